"""Check that every finished unit is the one that its id stands for, and is stored with all its files."""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.diagnostics.submission.submission import Submission, outcome
from bench.diagnostics.verify import CheckLine
from bench.results.tables import section
from bench.spec.schema import canonical_hash
from bench.store.contents import UnitKey, units_of
from bench.store.files import read_stored_specification
from bench.store.outcomes import RESULTS

WHAT = "ids, specifications, records and files of the units agree"
_STATED = ("allowance", "recipe", "search", "finetune", "compile")
"""Values that a unit's specification and the part behind its id both have."""
_RECORDED = ("method", "options", "recipe", "seed")
"""Values that a record and the part behind the id both have."""


def check(submission: Submission) -> CheckLine:
    """Check all units of a study that have a result."""
    units = sorted(units_of(submission.results.study))
    records = {unit: submission.results.record(*unit) for unit in units}
    finished = [unit for unit in units if (records[unit] or {}).get("status") in RESULTS]
    faults = [f"{unit[0]} {unit[1]}: {fault}" for unit in finished for fault in _faults(submission, unit)]
    if not any(kind == "runs" for kind, _ in finished):
        faults.append("no run has a result")
    return outcome(WHAT, faults, f"{len(finished)} of {len(units)} units have a result, and all agree")


def _faults(submission: Submission, unit: UnitKey) -> Iterator[str]:
    store, record = submission.store, submission.results.record(*unit) or {}
    stored = read_stored_specification(store.unit(*unit))
    damage = store.damage(*unit, record, thorough=True)
    if damage is not None:
        yield damage
    if stored is None or stored["id"] != unit[1] or record.get("id") != unit[1]:
        yield "its specification is missing, or it or its record is another unit's"
        return
    depends = stored["depends_on"]
    if canonical_hash(depends) != unit[1]:
        yield "its specification is not the one that its id stands for"
    differing = [*_unlike(depends, stored["specification"]), *_unlike_recorded(depends, record)]
    place = submission.results.planned(unit[1])
    if place and str(place.get("method")).partition("[")[0] != str(depends.get("method")):
        differing.append("method in the study")
    if differing:
        yield f"it was made with other values than stated: {', '.join(differing)}"


def _unlike(depends: Mapping[str, Any], specification: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of a specification that are not those behind the id; a checkpoint is behind it as a hash."""
    yield from (key for key in _STATED if key in depends and depends[key] != specification.get(key))
    task, stated = section(depends, "task"), section(specification, "task")
    yield from (f"task.{key}" for key in task if key != "checkpoint" and task[key] != stated.get(key))
    if bool(task.get("checkpoint")) != bool(stated.get("checkpoint")):
        yield "task.checkpoint"


def _unlike_recorded(depends: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the values of a record that are not those behind the id."""
    yield from (f"recorded {key}" for key in _RECORDED if key in depends and record.get(key) != depends[key])
    task, budget = section(depends, "task"), section(depends, "budget")
    yield from (f"recorded {key}" for key in ("model", "dataset") if record.get(key) != task.get(key))
    pairs = {"budget": "text", "budget_cost": "limit", "budget_measure": "measure"}
    if "budget" in depends:
        yield from (f"recorded {key}" for key, name in pairs.items() if record.get(key) != budget.get(name))
    if "tuning" in depends and isinstance(depends["tuning"], str | None) and record.get("tuning") != depends["tuning"]:
        yield "recorded tuning"
