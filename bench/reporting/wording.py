"""Figures as text, the same in every table and sentence. An unknown figure is an empty text."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from bench.results.statistics import MIN_PAIRS, Interval, PairedDifference, t_interval

MILLION = 1e6
TOO_FEW = f"n<{MIN_PAIRS}"
"""Text in place of a p-value when there are too few pairs for a test."""
FLAGGED = "†"
"""Mark of a row that takes no part in verdicts."""
ALL_EQUAL = "No interval for a difference of several pairs: all of them are equal, which shows no scatter"
"""Note below tables with such a difference."""


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """Format a number with a fixed number of decimals.

    Args:
        value: Number; NaN gives an empty text.
        digits: Number of decimals.
        sign: "+" to show the sign of positive numbers too.
    """
    return "" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def spread(mean: float, std: float) -> str:
    """Format mean±std; figures below 1 get more decimals. No mean gives an empty text."""
    digits = 2 if math.isnan(mean) or mean == 0 or abs(mean) >= 1 else 4
    return number(mean, digits) if math.isnan(std) else f"{mean:.{digits}f}±{std:.{digits}f}"


def percent_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of a mean of percentages, cut at 0 and 100, beyond which no mean lies."""
    ends = t_interval(values)
    return Interval(max(0.0, ends.low), min(100.0, ends.high)) if ends.low == ends.low else ends


def interval(ends: Interval, sign: str = "") -> str:
    """Format an interval: "[0.10, 0.74]"."""
    return "" if math.isnan(ends.low) else f"[{ends.low:{sign}.2f}, {ends.high:{sign}.2f}]"


def probability(p: float) -> str:
    """Format a p-value: "0.031", "<0.001"."""
    if math.isnan(p):
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def difference(pair: PairedDifference | None, p: float) -> tuple[str, str, str]:
    """Format a paired difference, its interval and its corrected p-value; three empty texts for `None`."""
    if pair is None:
        return "", "", ""
    return f"{pair.mean:+.2f}", interval(pair.interval, sign="+"), TOO_FEW if pair.n < MIN_PAIRS else probability(p)


def span(values: Iterable[float]) -> str:
    """Format percentages as one number, or as their range: "56.9", "95.1 to 96.4"."""
    low, high = min(ends := list(values)), max(ends)
    return number(low, 1) if number(low, 1) == number(high, 1) else f"{number(low, 1)} to {number(high, 1)}"


def finished(n: int, failed: int) -> str:
    """Format the number of finished runs; "2/3" when one of three failed."""
    return f"{n}/{n + failed}" if failed else str(n)


def count(n: int, word: str) -> str:
    """Format a count with its noun: "1 pair", "2 pairs"."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(values: Iterable[object]) -> str:
    """Join values with commas; "none" when there are none."""
    return ", ".join(map(str, values)) or "none"


def period(start: str, end: str) -> str:
    """Format two times: "30 Nov 2026, 14:37 to 14:39 UTC", or with both dates; what is no ISO time stays as it is.

    Args:
        start: Earlier time in ISO format; empty for unknown.
        end: Later time, likewise.
    """
    try:
        times = [datetime.fromisoformat(text).astimezone(UTC) for text in (start, end) if text]
    except ValueError:
        return " to ".join(filter(None, (start, end)))
    dates = dict.fromkeys(f"{time.day} {time:%b %Y}" for time in times)
    clocks = dict.fromkeys(f"{time:%H:%M}" for time in times)
    if len(dates) == 1:
        return f"{', '.join(dates)}, {' to '.join(clocks)} UTC"
    return f"{' to '.join(f'{time.day} {time:%b %Y}, {time:%H:%M}' for time in times)} UTC" if times else ""
