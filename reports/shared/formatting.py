"""Figures and names as cells of tables: the same everywhere."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.api import StudyResults
from bench.reporting.wording import MILLION, TOO_FEW, difference, interval, number
from bench.results.tables import IDENTITY

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MILLION",
    "TOO_FEW",
    "anchor",
    "count",
    "difference",
    "figure",
    "interval",
    "named_runs",
    "number",
    "spread",
    "yes_no",
]


def count(n: int, failed: int) -> str:
    """Finished runs, of all that ended where some failed."""
    return f"{n}/{n + failed}" if failed else str(n)


def spread(mean: float, std: float) -> str:
    """Mean±std; small figures get more digits so that they do not vanish. Empty for no mean."""
    digits = 2 if math.isnan(mean) or mean == 0 or abs(mean) >= 1 else 4
    return number(mean, digits) if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"


def yes_no(value: Any) -> str:
    """A truth; empty for neither."""
    return {True: "yes", False: "no"}.get(value, "")


def anchor(fields: Mapping[Any, Any]) -> str:
    """What other tables call a line of the comparison."""
    return " / ".join(str(fields[key]) for key in IDENTITY)


def figure(value: Any) -> float:
    """A number read from a file; NaN for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan


def named_runs(results: StudyResults) -> "pd.DataFrame":
    """The runs with a column `line`: the method, after its model where a study has several."""
    runs = results.runs
    return runs.assign(line=runs["method"] if runs["model"].nunique() < 2 else runs["model"] + " " + runs["method"])
