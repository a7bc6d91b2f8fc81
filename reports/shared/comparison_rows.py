"""The rows of the comparison before they are text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.api import StudyResults
from bench.results import statistics
from bench.results.differences import BaselineDifference, baseline_differences
from bench.results.groups import Flags, RunGroup, with_result
from bench.results.statistics import PairedDifference
from bench.results.tables import IDENTITY, RESULT_COLUMNS, section
from reports.shared.formatting import in_budget

PRETRAINED = "pretrained"
"""Name of the row of the networks that all methods start from."""
_REFERENCE = "full_precision"
_MEANS = ("top1", "top5", "bops", "memory_kb")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the table before it is text.

    Attributes:
        result: Row of `StudyResults.lines`.
        budget_cost: Limit of the budget, in the unit of its measure; NaN without a budget.
        in_budget: Position of the finished runs relative to the budget window, in words.
        top1: Top-1 of the runs that are done.
        repaired: Mean number of choices that repair changed in a finished run; NaN without a budget.
        beside: Difference to the baseline; `None` while no run is done.
    """

    result: Mapping[str, Any]
    budget_cost: float
    in_budget: str
    top1: Sequence[float]
    repaired: float = math.nan
    beside: BaselineDifference | None = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.result["method"])

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        return str(self.result["model"]), str(self.result["dataset"])

    @property
    def budget(self) -> str:
        """Budget as the user wrote it; empty for none."""
        return str(self.result["budget"])

    @property
    def difference(self) -> PairedDifference | None:
        """Difference to the baseline; `None` without a pair."""
        return None if self.beside is None else self.beside.pair

    @property
    def p(self) -> float:
        """Corrected p-value of the difference; NaN when it was not tested."""
        return math.nan if self.beside is None else self.beside.p

    @property
    def flags(self) -> Sequence[str]:
        """Reasons why the row takes no part in verdicts; none for a row that is outside the window as a whole."""
        return () if self.beside is None else marked_flags(self.beside.group)


def marked_flags(group: RunGroup) -> Sequence[str]:
    """Return the flags of a group that has runs inside the window; others are compared with nothing anyway."""
    return group.flags if group.top1 else ()


def pretrained_rows(results: StudyResults) -> list[Row]:
    """Return a row for the pretrained networks of each task without a reference at full precision.

    Their accuracy costs no training. It is that of networks which were trained for a shorter time than all others, so a
    study that names the reference `full_precision` shows that one instead.
    """
    planned = map(str, results.study.get("pretrained") or ())
    titles = section(results.study, "titles")
    # Pretrainings of ablations have the change in brackets; their networks are not those of the table.
    records = [results.record("pretrained", unit) or {} for unit in planned if "[" not in str(titles.get(unit, ""))]
    done = [record for record in records if _is_reference(record, results)]
    named = set(results.runs[results.runs["method"] == _REFERENCE]["model"])
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in done:
        if record.get("model") not in named:
            task = str(record.get("model")), str(record.get("dataset"))
            groups.setdefault(task, []).append(section(record, "metrics"))
    return [_pretrained_row(*task, figures) for task, figures in groups.items()]


def _is_reference(record: Mapping[str, Any], results: StudyResults) -> bool:
    known = record.get("status") == "done" and "top1" in section(record, "metrics")
    return known and results.why_stale(record) is None


def _pretrained_row(model: str, dataset: str, figures: Sequence[Mapping[str, Any]]) -> Row:
    values = {name: [float(entry[name]) for entry in figures] for name in _MEANS}
    result: dict[str, Any] = {
        **dict.fromkeys(RESULT_COLUMNS, math.nan),
        **{"model": model, "dataset": dataset, "method": PRETRAINED, "budget": "", "n": len(figures), "n_failed": 0},
        **{f"{name}_mean": statistics.mean(sample) for name, sample in values.items()},
        **{f"{name}_std": statistics.std(values[name]) for name in ("top1", "top5", "bops")},
    }
    return Row(result=result, budget_cost=math.nan, in_budget="", top1=values["top1"])


def comparison_rows(results: StudyResults, flags: Flags | None) -> list[Row]:
    """Make the rows of the table: by task and budget in the study's order, the most accurate first, references last."""
    groups = dict(iter(results.runs.groupby(list(IDENTITY), sort=False)))
    beside = {row.group.key: row for row in baseline_differences(results, flags)}
    rows = []
    for line in results.lines.to_dict("records"):
        key = tuple(line[name] for name in IDENTITY)
        group = groups[key]
        done = group[group["status"] == "done"]
        rows.append(
            Row(
                result={str(name): value for name, value in line.items()},
                budget_cost=group["budget_cost"].max(),
                in_budget=in_budget(done),
                top1=list(with_result(group)["top1"]),
                repaired=done["repaired_gates"].mean() if key[-1] else math.nan,
                beside=beside.get(key),
            )
        )
    return _ranked([*rows, *pretrained_rows(results)])


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by task and budget in the order of their first appearance, then by falling accuracy."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    budgets = [*dict.fromkeys(row.budget for row in rows if row.budget), ""]

    def rank(row: Row) -> tuple[int, int, float]:
        top1 = float(row.result["top1_mean"])
        return tasks.index(row.task), budgets.index(row.budget), math.inf if math.isnan(top1) else -top1

    return sorted(rows, key=rank)
