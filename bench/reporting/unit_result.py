"""The result of a unit in a few words, for the line that a study prints when the unit has ended."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench.outputs.times import duration
from bench.reporting.wording import count
from bench.store.files import UnitKind

_SYMBOLS = {"strength": "λ"}


def result_in_words(kind: UnitKind, record: Mapping[str, Any]) -> str:
    """Return what a finished unit gave and how long it took: "89.69 %, 99.5 % of the budget, 21 s".

    Args:
        kind: Kind of the unit.
        record: Record of the unit; what it does not state is left out.
    """
    parts = {"runs": _of_run, "tuning": _of_tuning}.get(kind, _of_pretraining)
    return ", ".join(parts(record))


def _of_run(record: Mapping[str, Any]) -> Iterator[str]:
    metrics = record.get("metrics") or {}
    top1, cost, budget = (
        _number(value) for value in (metrics.get("top1"), metrics.get("cost"), record.get("budget_cost"))
    )
    if not math.isnan(top1):
        yield f"{top1:.2f} %"
    if not math.isnan(cost / budget if budget else math.nan):
        yield f"{100 * cost / budget:.1f} % of the budget"
    yield from _total_time(record)


def _of_tuning(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("trials_used") is not None:
        yield count(record["trials_used"], "trial")
    yield from (f"{_SYMBOLS.get(name, name)} {value:.3g}" for name, value in (record.get("knobs") or {}).items())
    if record.get("tuning_seconds") is not None:
        yield duration(record["tuning_seconds"])


def _of_pretraining(record: Mapping[str, Any]) -> Iterator[str]:
    top1 = _number((record.get("metrics") or {}).get("validation_top1"))
    if not math.isnan(top1):
        yield f"validation {top1:.2f} %"
    yield from _total_time(record)


def _total_time(record: Mapping[str, Any]) -> Iterator[str]:
    seconds = _number((record.get("times") or {}).get("total_seconds"))
    if not math.isnan(seconds):
        yield duration(seconds)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
