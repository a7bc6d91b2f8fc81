"""How figures and names stand in the cells of tables, the same in every report."""

import math
from collections.abc import Mapping
from typing import Any

from bench.results import IDENTITY
from bench.statistics import Interval

MILLION = 1e6


def spread(mean: float, std: float) -> str:
    """Mean±std; small figures get more digits so that they do not vanish. Empty for no mean."""
    digits = 2 if math.isnan(mean) or mean == 0 or abs(mean) >= 1 else 4
    return number(mean, digits) if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"


def number(value: float, digits: int) -> str:
    """A figure; empty for none."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def interval(ends: Interval, sign: str = "") -> str:
    """Both ends; empty for none. `sign` is a format's, such as "+"."""
    return "" if math.isnan(ends.low) else f"[{ends.low:{sign}.2f}, {ends.high:{sign}.2f}]"


def yes_no(value: Any) -> str:
    """A truth; empty for neither."""
    return {True: "yes", False: "no"}.get(value, "")


def name(fields: Mapping[Any, Any]) -> str:
    """Method and budget of a run or a line of the comparison."""
    return " ".join(filter(None, (str(fields["method"]), str(fields["budget"]))))


def anchor(fields: Mapping[Any, Any]) -> str:
    """What other tables call a line of the comparison."""
    return " / ".join(str(fields[key]) for key in IDENTITY)


def figure(value: Any) -> float:
    """A number read from a file; NaN for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else math.nan
