"""Figures as text, the same in every table and sentence; what is not known is an empty text."""

import math
from collections.abc import Iterable

from bench.results.statistics import MIN_PAIRS, Interval, PairedDifference

MILLION = 1e6
TOO_FEW = f"n<{MIN_PAIRS}"
"""In place of a p that so few pairs cannot give."""


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """A number with so many decimals."""
    return "" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def interval(found: Interval, sign: str = "") -> str:
    """An interval: "[0.10, 0.74]"."""
    return "" if math.isnan(found.low) else f"[{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def probability(p: float) -> str:
    """A p-value: "0.031", "<0.001"."""
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference(found: PairedDifference | None, p: float) -> tuple[str, str, str]:
    """A paired difference, its interval, and its p after correction; nothing where there is none."""
    if found is None:
        return "", "", ""
    return f"{found.mean:+.2f}", interval(found.interval, sign="+"), TOO_FEW if found.n < MIN_PAIRS else probability(p)


def count(n: int, word: str) -> str:
    """A count with its noun: "1 pair", "2 pairs"."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(values: Iterable[object]) -> str:
    """Values separated by commas; "none" without any."""
    return ", ".join(map(str, values)) or "none"


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "12 min", "3.4 h", "2.1 d"."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"
