"""How figures and names stand in the cells of tables, the same in every report."""

import math
from collections.abc import Mapping
from typing import Any

from bench.results import IDENTITY
from bench.wording import MILLION, TOO_FEW, interval, number, probability

__all__ = [
    "MILLION", "TOO_FEW", "anchor", "count", "figure", "interval", "name", "number", "probability", "spread", "yes_no",
]  # fmt: skip


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
