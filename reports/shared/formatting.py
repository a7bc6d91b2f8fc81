"""Figures and names as cells of tables, the same in all reports."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.api import StudyResults
from bench.costs.measures import Measure
from bench.reporting.wording import (
    ALL_EQUAL,
    FLAGGED,
    TOO_FEW,
    difference,
    finished,
    interval,
    number,
    percent_interval,
    span,
    spread,
)
from bench.results.tables import COSTLIEST, IDENTITY, INSIDE

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ALL_EQUAL",
    "FLAGGED",
    "TOO_FEW",
    "anchor",
    "difference",
    "figure",
    "finished",
    "in_budget",
    "interval",
    "measured",
    "named_runs",
    "number",
    "percent_interval",
    "span",
    "spread",
    "window_position",
]


def measured(cost: float, measure: type[Measure]) -> str:
    """Format a cost, given in the measure's unit, in the unit and with the decimals in which it is shown."""
    return number(cost / measure.scale, measure.decimals)


def in_budget(runs: "pd.DataFrame") -> str:
    """Say whether all runs of a row are inside the budget window; otherwise, where the run farthest outside lies.

    Args:
        runs: Runs that are done, of one method and budget. No runs or no budget give an empty text.
    """
    if not len(runs) or not runs["budget"].iloc[0]:
        return ""
    outside = runs[runs["position"] != INSIDE]
    percents = 100 * outside["cost"] / outside["budget_cost"]
    if len(outside) and set(outside["position"]) == {COSTLIEST}:
        return f"at most {percents.max():.1f} %"
    return window_position(not len(outside), percents.max() if (percents > 100).any() else percents.min())


def window_position(inside: Any, percent: float) -> str:
    """Say where a cost lies relative to the budget window: "yes", "below the window (27.7 %)", "over (103.2 %)".

    Args:
        inside: Whether the cost is inside the window; anything but a truth value gives an empty text.
        percent: Cost in percent of the budget.
    """
    if not isinstance(inside, bool):
        return ""
    if inside:
        return "yes"
    side = "over" if percent > 100 else "below the window"
    return "no" if math.isnan(percent) else f"{side} ({percent:.1f} %)"


def anchor(fields: Mapping[Any, Any]) -> str:
    """Return the name under which other tables link to a row of the comparison."""
    return " / ".join(str(fields[key]) for key in IDENTITY)


def figure(value: Any) -> float:
    """Return a number that was read from a file; NaN for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan


def named_runs(results: StudyResults) -> "pd.DataFrame":
    """Return the runs with a column `line`: the method, after its model when a study has several models."""
    runs = results.runs
    return runs.assign(line=runs["method"] if runs["model"].nunique() < 2 else runs["model"] + " " + runs["method"])
