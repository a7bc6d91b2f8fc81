"""Figures as cells of tables: the same everywhere."""

import math

from bench.wording import MILLION, TOO_FEW, interval, number, probability

__all__ = ["MILLION", "TOO_FEW", "count", "interval", "number", "probability", "spread"]


def count(n: int, failed: int) -> str:
    """Finished runs, of all that ended where some failed."""
    return f"{n}/{n + failed}" if failed else str(n)


def spread(mean: float, std: float) -> str:
    """Mean±std; small figures get more digits so that they do not vanish."""
    digits = 2 if math.isnan(mean) or mean == 0 or abs(mean) >= 1 else 4
    return number(mean, digits) if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"
