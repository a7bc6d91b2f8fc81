"""Figures as cells of tables: the same everywhere."""

import math

from bench.statistics import MIN_PAIRS, Interval

MILLION = 1e6
TOO_FEW = f"n<{MIN_PAIRS}"
"""In place of a p that so few pairs cannot give."""


def count(n: int, failed: int) -> str:
    """Finished runs, of all that ended where some failed."""
    return f"{n}/{n + failed}" if failed else str(n)


def spread(mean: float, std: float) -> str:
    """Mean±std; small figures get more digits so that they do not vanish."""
    digits = 2 if math.isnan(mean) or mean == 0 or abs(mean) >= 1 else 4
    return number(mean, digits) if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"


def number(value: float, digits: int) -> str:
    """A number with so many digits; empty when there is none."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def interval(ends: Interval, sign: str = "") -> str:
    """Both ends of an interval; empty when there is none."""
    return "" if math.isnan(ends.low) else f"[{ends.low:{sign}.2f}, {ends.high:{sign}.2f}]"


def probability(p: float) -> str:
    """A p-value."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
