"""How far each unit of a study is: its state, its progress, and the last sign of life of who works on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.results.tables import DAMAGED, STALE, first_sentence
from bench.store.files import Store, UnitKind
from bench.store.leases import Leases, LeaseView
from bench.store.staleness import outdated

PLANNED, ORPHANED = "planned", "orphaned"
"""What is shown of a unit that nobody has begun, and of one whose process is gone without having said so."""

_UNITS: tuple[tuple[UnitKind, str], ...] = (("pretrained", "pretrained"), ("tuning", "tunings"), ("runs", "runs"))
"""Kinds, and the field of a study's document that lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitState:
    """What is known of a unit.

    Attributes:
        kind, identity: The unit.
        title: The same in words.
        state: A status of `bench.store.files`, or planned, orphaned, stale, damaged.
        progress: How far it is, in words; empty when it is not worked on.
        sign: Seconds since the last sign of life of who works on it, `None` when nobody does.
        holder: Who works on it.
        attempt: How often it was begun.
        top1, bops: Its figures, when it has them.
        reason: Why it is in its state.
    """

    kind: UnitKind
    identity: str
    title: str
    state: str
    progress: str = ""
    sign: float | None = None
    holder: str = ""
    attempt: int = 0
    top1: float | None = None
    bops: float | None = None
    reason: str = ""


def unit_states(store: Store, study: Mapping[str, Any]) -> Iterator[UnitState]:
    """Every pretraining, tuning and run of a study, in the order in which they are worked on."""
    leases = Leases(store.root)
    living = {view.name: view for view in leases.all() if not leases.is_dead(view)}
    for kind, field in _UNITS:
        for identity in study.get(field) or ():
            yield _state(store, study, kind, str(identity), leases, living)


def _state(
    store: Store, study: Mapping[str, Any], kind: UnitKind, identity: str, leases: Leases, living: dict[str, LeaseView]
) -> UnitState:
    record = store.record(kind, identity)
    title = str((study.get("titles") or {}).get(identity, identity))
    if record is None:
        damaged = (store.unit(kind, identity) / "record.json").exists()
        reason = "the record is not as it was written; the same command makes it anew" if damaged else ""
        state = DAMAGED if damaged else PLANNED
        return UnitState(kind=kind, identity=identity, title=title, state=state, reason=reason)
    holder = living.get(f"{kind}-{identity}")
    state, reason = _judged(record, study, holder)
    metrics = record.get("metrics") or {}
    return UnitState(
        kind=kind,
        identity=identity,
        title=title,
        state=state,
        progress="" if holder is None else _in_words(_progress(kind, identity, holder, living)),
        sign=None if holder is None else leases.age(holder),
        holder="" if holder is None else str(holder.holder),
        attempt=int(record.get("attempt") or 0),
        top1=metrics.get("top1"),
        bops=metrics.get("bops"),
        reason=reason,
    )


def _judged(record: Mapping[str, Any], study: Mapping[str, Any], holder: LeaseView | None) -> tuple[str, str]:
    """State and reason of a unit with a record."""
    status, reason = str(record["status"]), str(record.get("reason") or "")
    if status == "running" and holder is None:
        return ORPHANED, f"its process is gone since some time after {record['started']}; the same command goes on"
    if status in ("done", "unreachable"):
        try:
            stale = outdated(record, study)
        except BenchError as error:  # the method is not installed here
            stale = first_sentence(error)
        if stale is not None:
            return STALE, stale
    return status, reason


def _progress(kind: UnitKind, identity: str, holder: LeaseView, living: Mapping[str, LeaseView]) -> Mapping[str, Any]:
    """A unit's progress; that of a tuning with its present trial's."""
    if kind != "tuning":
        return holder.progress
    trial = next((view for name, view in living.items() if name.startswith(f"trials-{identity}-")), None)
    return {**holder.progress, "within": {} if trial is None else trial.progress}


def _in_words(progress: Mapping[str, Any]) -> str:
    """Such as: search 3/8; trial 2/4, finetune 1/3."""
    if not progress.get("phase"):
        return "starting"
    text = f"{progress['phase']} {progress.get('epoch', 0):.0f}"
    if "epochs" in progress:
        text += f"/{progress['epochs']:.0f}"
    return f"{text}, {_in_words(progress['within'])}" if progress.get("within") else text
