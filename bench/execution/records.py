"""Records of units: what they say, when a result stands, and what makes it stale."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from bench.planning.plan import RunUnit, TrialUnit, TuningUnit, Unit, kind_of
from bench.store.files import Status, Store
from bench.store.machine import hardware, versions
from bench.store.outcomes import RESULTS, Outcome, is_final
from bench.store.staleness import changes, fingerprint


def new_record(unit: Unit, data_checksum: str, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record of a unit whose work begins: what identifies it, and what it is made with.

    Args:
        unit: The unit.
        data_checksum: Of data and split.
        earlier: The record of the attempt before this one.
    """
    kind, spec = kind_of(unit), unit.spec
    record: dict[str, Any] = {
        "id": unit.identity,
        "kind": {"runs": "run", "trials": "trial"}.get(kind, kind),
        "status": "running",
        "reason": None,
        "model": spec.task.model,
        "dataset": spec.task.dataset,
        "seed": unit.seed,
        "metrics": {},
        "times": {},
        "peak_memory_mb": None,
        "versions": versions(),
        "hardware": hardware(torch.device(spec.device.partition(":")[0])),
        "fingerprint": fingerprint(source_of(unit), data_checksum, spec.task.model),
        "attempt": int((earlier or {}).get("attempt", 0)) + 1,
        "files": {},
        "started": now(),
        "finished": None,
    }
    named = unit.tuning if isinstance(unit, TrialUnit) else unit
    if isinstance(named, TuningUnit | RunUnit):
        record.update(
            method=named.method,
            budget=None if named.budget is None else named.budget.text,
            budget_cost=None if named.budget is None else named.budget.limit,
            budget_measure=None if named.budget is None else named.budget.measure.name,
            recipe=spec.recipe,
            match=spec.tuning.match,
            options=named.document["options"],
            knobs=dict(unit.knobs) if isinstance(unit, TrialUnit) else None,
        )
    if isinstance(unit, RunUnit):
        record.update(tuning=None if unit.tuning is None else unit.tuning.identity, within_budget=None)
    return record


def close(record: dict[str, Any], ending: Outcome) -> None:
    """Enter how the work ended."""
    record.update(status=ending.status, reason=ending.reason or None, finished=now())
    if ending.nearest is not None:
        record["nearest_cost"] = ending.nearest


def ending_in(record: Mapping[str, Any] | None) -> Outcome:
    """The ending that a record tells of; "running" without one: nobody has said how it ended."""
    if record is None:
        return Outcome(status="running")
    return Outcome(status=record["status"], reason=record.get("reason") or "", nearest=record.get("nearest_cost"))


def method_of(unit: Unit) -> str | None:
    """The name of the method that a unit belongs to, if it belongs to one."""
    named = unit.tuning if isinstance(unit, TrialUnit) else unit
    return named.method if isinstance(named, TuningUnit | RunUnit) else None


def source_of(unit: Unit) -> str | None:
    """What the method that a unit belongs to is loaded by: its name, or its place when it is in a file."""
    name = method_of(unit)
    return None if name is None else unit.spec.method_files.get(name, name)


def standing(
    store: Store, unit: Unit, data_checksum: str, retry: frozenset[Status] = frozenset()
) -> tuple[bool, str | None]:
    """Whether the store holds an ending of a unit that stands, and why one that it holds does not.

    Args:
        store: Where to look.
        unit: The unit.
        data_checksum: Of the data as they are now.
        retry: Failures that are to be tried again.
    """
    kind = kind_of(unit)
    record = store.record(kind, unit.identity)
    if record is None:
        damaged = (store.unit(kind, unit.identity) / "record.json").exists()
        return False, "its record is damaged" if damaged else None
    if not is_final(record["status"], retry):
        return False, None
    reason = changes(record, fingerprint(source_of(unit), data_checksum, unit.spec.task.model))
    if reason is None and record["status"] in RESULTS:
        reason = store.damage(kind, unit.identity, record, thorough=kind == "pretrained")
    return reason is None, reason


def set_aside(store: Store, unit: Unit) -> None:
    """Move a unit's folder out of the way, to `<id>.stale-<n>`."""
    folder = store.unit(kind_of(unit), unit.identity)
    number = 1
    while (aside := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    folder.rename(aside)


def now() -> str:
    """The time, for records."""
    return datetime.now(UTC).isoformat(timespec="seconds")
