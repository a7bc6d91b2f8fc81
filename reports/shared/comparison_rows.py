"""The rows of the comparison before they are text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.api import StudyResults
from bench.results.differences import BaselineDifference, baseline_differences
from bench.results.groups import Flags, with_result
from bench.results.statistics import PairedDifference
from bench.results.tables import IDENTITY
from reports.shared.formatting import in_budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the table before it is text.

    Attributes:
        result: Row of `StudyResults.lines`.
        budget_cost: Limit of the budget, in the unit of its measure; NaN without a budget.
        in_budget: Position of the finished runs relative to the budget window, in words.
        top1: Top-1 of the runs that are done.
        beside: Difference to the baseline; `None` while no run is done.
    """

    result: Mapping[str, Any]
    budget_cost: float
    in_budget: str
    top1: Sequence[float]
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
        """Reasons why the row takes no part in verdicts."""
        return () if self.beside is None else self.beside.group.flags


def comparison_rows(results: StudyResults, flags: Flags | None) -> list[Row]:
    """Make the rows of the table in the study's order."""
    groups = dict(iter(results.runs.groupby(list(IDENTITY), sort=False)))
    beside = {row.group.key: row for row in baseline_differences(results, flags)}
    rows = []
    for line in results.lines.to_dict("records"):
        key = tuple(line[name] for name in IDENTITY)
        group = groups[key]
        rows.append(
            Row(
                result={str(name): value for name, value in line.items()},
                budget_cost=group["budget_cost"].max(),
                in_budget=in_budget(group[group["status"] == "done"]),
                top1=list(with_result(group)["top1"]),
                beside=beside.get(key),
            )
        )
    return rows
