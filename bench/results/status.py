"""The state of each unit of a study: how far it is, which process runs it, and that process's last sign of life."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.results.tables import DAMAGED, STALE
from bench.store.files import Store, UnitKind
from bench.store.leases import Leases, LeaseView
from bench.store.outcomes import LOST
from bench.store.staleness import Staleness

PLANNED, ORPHANED = "planned", "orphaned"
"""State of a unit that no process has begun, and of one whose process died without reporting an outcome."""
_LEFT = LOST | {PLANNED, ORPHANED, STALE, DAMAGED}
"""States of units that the same command works on."""

_UNITS: tuple[tuple[UnitKind, str], ...] = (("pretrained", "pretrained"), ("tuning", "tunings"), ("runs", "runs"))
"""Kinds of units, and the field of a study's document that lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitState:
    """The state of one unit.

    Attributes:
        kind, identity: Kind and id of the unit.
        title: Name of the unit in words.
        state: A status of `bench.store.files`, or planned, orphaned, stale, damaged.
        progress: Progress in words; empty while no process runs the unit.
        sign: Seconds since the process's last sign of life; `None` while no process runs the unit.
        holder: Process that runs the unit; empty for none.
        attempt: Number of times that the unit was begun.
        seconds: Time that the unit took; `None` before it has ended.
        top1, bops: Figures of the result, when there is one.
        reason: Reason for the state; empty when it needs none.
    """

    kind: UnitKind
    identity: str
    title: str
    state: str
    progress: str = ""
    sign: float | None = None
    holder: str = ""
    attempt: int = 0
    seconds: float | None = None
    top1: float | None = None
    bops: float | None = None
    reason: str = ""


def unit_states(store: Store, study: Mapping[str, Any]) -> Iterator[UnitState]:
    """Yield the state of every pretraining, tuning and run of a study, in the order of work."""
    leases, staleness = Leases(store.root), Staleness(study)
    living = {view.name: view for view in leases.all() if not leases.is_dead(view)}
    for kind, field in _UNITS:
        for identity in map(str, study.get(field) or ()):
            record = store.record(kind, identity)
            title = str((study.get("titles") or {}).get(identity, identity))
            if record is None:
                yield _without_record(store, kind, identity, title)
            else:
                yield _with_record(staleness, kind, identity, title, record, leases, living)


def _without_record(store: Store, kind: UnitKind, identity: str, title: str) -> UnitState:
    damaged = (store.unit(kind, identity) / "record.json").exists()
    return UnitState(
        kind=kind,
        identity=identity,
        title=title,
        state=DAMAGED if damaged else PLANNED,
        reason="its record does not match its checksum; the same command repeats the unit" if damaged else "",
    )


def _with_record(
    staleness: Staleness,
    kind: UnitKind,
    identity: str,
    title: str,
    record: Mapping[str, Any],
    leases: Leases,
    living: Mapping[str, LeaseView],
) -> UnitState:
    holder = living.get(f"{kind}-{identity}")
    state, reason = _state_and_reason(record, staleness, holder)
    metrics = record.get("metrics") or {}
    return UnitState(
        kind=kind,
        identity=identity,
        title=title,
        state=state,
        progress="" if holder is None else progress_in_words(_progress(kind, identity, holder, living)),
        sign=None if holder is None else leases.age(holder),
        holder="" if holder is None else str(holder.holder),
        attempt=int(record.get("attempt") or 0),
        seconds=(record.get("times") or {}).get("total_seconds", record.get("tuning_seconds")),
        top1=metrics.get("top1"),
        bops=metrics.get("bops"),
        reason=reason,
    )


def _state_and_reason(record: Mapping[str, Any], staleness: Staleness, holder: LeaseView | None) -> tuple[str, str]:
    status, reason = str(record["status"]), str(record.get("reason") or "")
    if status == "running" and holder is None:
        return (
            ORPHANED,
            f"its process died (last sign of life {record['started']}); the same command continues the unit",
        )
    stale = staleness.why(record)
    return (status, reason) if stale is None else (STALE, stale)


def _progress(kind: UnitKind, identity: str, holder: LeaseView, living: Mapping[str, LeaseView]) -> Mapping[str, Any]:
    """Return a unit's progress; a tuning's includes that of its current trial."""
    if kind != "tuning":
        return holder.progress
    trial = next((view for view in living.values() if view.tuning == identity), None)
    return {**holder.progress, "within": {} if trial is None else trial.progress}


def progress_in_words(progress: Mapping[str, Any]) -> str:
    """Describe progress: "search 3/8", "trial 2/4, finetune 1/3"."""
    if not progress.get("phase"):
        return "starting"
    text = f"{progress['phase']} {progress.get('epoch', 0):.0f}"
    if "epochs" in progress:
        text += f"/{progress['epochs']:.0f}"
    return f"{text}, {progress_in_words(progress['within'])}" if progress.get("within") else text


def seconds_left(study: Mapping[str, Any], states: Sequence[UnitState]) -> float | None:
    """Estimate the seconds that one worker takes for the rest of a study; `None` while there is nothing to go by.

    Units of one method on one model are taken to last equally long, and a unit that has begun counts as a whole. There
    is no estimate before every kind of unit that is left has been finished once.

    Args:
        study: Document of the study.
        states: States of its units.
    """
    places = study.get("places") or {}

    def group(state: UnitState) -> tuple[str, ...]:
        place = places.get(state.identity) or {}
        return (state.kind, *(str(place.get(key)) for key in ("model", "method")))

    times: dict[tuple[str, ...], list[float]] = {}
    for state in states:
        if state.state == "done" and state.seconds is not None:
            times.setdefault(group(state), []).append(state.seconds)
    left = [group(state) for state in states if state.state in _LEFT]
    if not left or not all(map(times.__contains__, left)):
        return None
    paces = {key: sum(times[key]) / len(times[key]) for key in times}
    return sum(map(paces.__getitem__, left))


def stale_notes(states: Iterable[UnitState]) -> list[str]:
    """Summarise the stale results of a study, one line for each reason."""
    counts = Counter(state.reason for state in states if state.state == STALE)
    return [
        f"{count} result{'s are' if count > 1 else ' is'} stale and will be made again by the next run: {reason}"
        for reason, count in counts.items()
    ]
