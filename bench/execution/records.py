"""Records of units: what they say from the start, which results are valid, and archiving of those that are not."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.planning.units import RunUnit, TrialUnit, Unit, kind_of, method_source, method_unit
from bench.store.files import Status, Store, write_text
from bench.store.machine import hardware, versions
from bench.store.outcomes import RESULTS, Outcome, is_final
from bench.store.staleness import changes, fingerprint
from bench.store.urls import without_secrets


def write_traceback(folder: Path, text: str) -> None:
    """Write the traceback of a unit's failure into its folder, without the passwords of addresses in it."""
    write_text(folder / "error.txt", without_secrets(text))


def new_record(unit: Unit, data_checksum: str, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the record of a unit whose work begins.

    Args:
        unit: The unit.
        data_checksum: Checksum of data and split.
        earlier: Record of the attempt before this one, if there was one.
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
        "fingerprint": fingerprint(method_source(unit), data_checksum, spec.task.model),
        "attempt": int((earlier or {}).get("attempt", 0)) + 1,
        "files": {},
        "started": now(),
        "finished": None,
    }
    owner = method_unit(unit)
    if owner is not None:
        record.update(
            method=owner.method,
            budget=None if owner.budget is None else owner.budget.text,
            budget_cost=None if owner.budget is None else owner.budget.limit,
            budget_measure=None if owner.budget is None else owner.budget.measure.name,
            recipe=spec.recipe,
            match=spec.tuning.match,
            options=owner.document["options"],
            knobs=dict(unit.knobs) if isinstance(unit, TrialUnit) else None,
        )
    if isinstance(unit, RunUnit):
        record.update(tuning=None if unit.tuning is None else unit.tuning.identity, within_budget=None)
    return record


def close(record: dict[str, Any], outcome: Outcome) -> None:
    """Enter the outcome of the work into a record."""
    record.update(plain(record), status=outcome.status, reason=outcome.reason or None, finished=now())
    if outcome.nearest is not None:
        record["nearest_cost"] = outcome.nearest


def plain(value: Any) -> Any:
    """Return a value in which every number is Python's own; JSON knows none of NumPy and PyTorch."""
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def recorded_outcome(record: Mapping[str, Any] | None) -> Outcome:
    """Return the outcome that a record states; "running" for no record, since no process has stated one."""
    if record is None:
        return Outcome(status="running")
    return Outcome(status=record["status"], reason=record.get("reason") or "", nearest=record.get("nearest_cost"))


def valid_result(
    store: Store, unit: Unit, data_checksum: str, retry: frozenset[Status] = frozenset()
) -> tuple[bool, str | None]:
    """Return whether a unit needs no work, and why a result that the store holds is not valid.

    A unit needs no work if the store holds a result or a final failure, everything that it depends on is unchanged, and
    its files are intact.

    Args:
        store: Store to look into.
        unit: The unit.
        data_checksum: Checksum of the present data.
        retry: Failures to try again.

    Returns:
        Whether the result is valid, and the reason if it is stale or damaged. A unit that was not finished is not
        valid; it has a reason only if its checkpoints are stale.
    """
    kind = kind_of(unit)
    record = store.record(kind, unit.identity)
    if record is None:
        damaged = (store.unit(kind, unit.identity) / "record.json").exists()
        return False, "its record is damaged" if damaged else None
    reason = changes(record, fingerprint(method_source(unit), data_checksum, unit.spec.task.model))
    if not is_final(record["status"], retry):  # checkpoints of another version must not be continued
        return False, reason if any(store.unit(kind, unit.identity).glob("checkpoints/*")) else None
    if reason is None and record["status"] in RESULTS:
        reason = store.damage(kind, unit.identity, record, thorough=kind == "pretrained")
    return reason is None, reason


def archive_stale(store: Store, unit: Unit) -> None:
    """Rename the folder of a stale or damaged unit to `<id>.stale-<n>`, so that the unit can be made again."""
    folder = store.unit(kind_of(unit), unit.identity)
    number = 1
    while (archived := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    folder.rename(archived)


def now() -> str:
    """Return the present time in the form that records use."""
    return datetime.now(UTC).isoformat(timespec="seconds")
