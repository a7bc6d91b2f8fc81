"""Which differences that the SBS paper prints can be told apart from chance, computed from its rounded figures.

The paper prints mean and standard deviation of five runs. Welch's t-test and interval need no more. Rounding to one
decimal moves a mean and a deviation by up to 0.05, which is as much as many of the printed deviations. So each p-value
has a range: from the figures that make the difference clearest to those that make it least clear.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import scipy

from bench.results.published import Printed, printed
from bench.results.statistics import LEVEL, Floats, Interval, fewest, holm

PRINTED_RUNS = 5
"""Runs behind each printed mean and deviation (Section 4.2 of the paper)."""
ROUNDING = 0.05
"""Largest error of a figure that is printed with one decimal."""
_GRID = 10
"""Steps on either side of a printed deviation, within its rounding, at which a test is made."""
_PRECISION = 9
"""Decimals at which printed figures are subtracted; more would be the error of binary fractions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedDifference:
    """Top-1 of one printed row minus that of another.

    Attributes:
        first, second: The rows.
        points: Difference of the means, in points.
        interval: Welch's 95 % interval of the difference.
        p: Two-sided p-value of Welch's test; NaN if both deviations are printed as 0.
        p_clearest, p_unclearest: The same for the figures within rounding that make the difference clearest and least
            clear.
        corrected: `p` corrected by Holm's procedure over the table.
        runs_needed: Fewest runs of each method with which the difference would be found with 80 % power if the printed
            figures were the true ones; `None` for no difference, or above `MOST_PAIRS`.
    """

    first: Printed
    second: Printed
    points: float
    interval: Interval
    p: float
    p_clearest: float
    p_unclearest: float
    corrected: float
    runs_needed: int | None

    @property
    def told_apart(self) -> str:
        """Whether a test at 5 % tells the rows apart: "yes", "no", or "depends on rounding"."""
        level = 1 - LEVEL
        if self.p_unclearest <= level:
            return "yes"
        return "depends on rounding" if self.p_clearest <= level else "no"


def printed_differences(table: str) -> list[PrintedDifference]:
    """Compare the SBS row of each model of a printed table with every other row that has a deviation.

    The row is `sbs`, or `sbs_q` in a table without it. Rows without a printed deviation take no part.

    Args:
        table: Number of the table, "1" to "12" or "I".
    """
    pairs = list(_pairs(printed(table)))
    tests = [_welch(first.top1 - second.top1, first.top1_std, second.top1_std) for first, second in pairs]
    corrected = holm([p for p, _ in tests])
    return [
        _difference(first, second, p, interval, adjusted)
        for (first, second), (p, interval), adjusted in zip(pairs, tests, corrected, strict=True)
    ]


def _pairs(rows: Sequence[Printed]) -> Iterator[tuple[Printed, Printed]]:
    for _, members in groupby(rows, key=lambda row: row.model):
        known = [row for row in members if not math.isnan(row.top1_std)]
        ours = next((row for name in ("sbs", "sbs_q") for row in known if row.row == name), None)
        yield from ((ours, row) for row in known if ours is not None and row is not ours)


def _difference(first: Printed, second: Printed, p: float, interval: Interval, corrected: float) -> PrintedDifference:
    points, deviations = round(first.top1 - second.top1, _PRECISION), (first.top1_std, second.top1_std)
    clearest = float(_p_values(abs(points) + 2 * ROUNDING, deviations).min())
    unclearest = float(_p_values(max(0.0, abs(points) - 2 * ROUNDING), deviations).max())
    return PrintedDifference(
        first=first,
        second=second,
        points=points,
        interval=interval,
        p=p,
        p_clearest=clearest,
        p_unclearest=unclearest,
        corrected=corrected,
        runs_needed=runs_needed(points, *deviations),
    )


def _p_values(points: float, deviations: Sequence[float]) -> Floats:
    """Return the p-values of a difference for a grid of deviations that are printed as the given ones.

    The extremes may lie inside the grid: a smaller deviation of one side leaves fewer degrees of freedom.
    """
    steps = np.arange(-_GRID, _GRID + 1) / _GRID * ROUNDING
    first, second = np.meshgrid(*(np.maximum(0.0, deviation + steps) for deviation in deviations))
    scatters = (first > 0) | (second > 0)
    test = _test(points, first[scatters], second[scatters])
    certain = np.full(np.count_nonzero(~scatters), float(points == 0))
    return np.concatenate((test.pvalue, certain))


def _test(points: float, first_std: Any, second_std: Any) -> Any:
    """Make Welch's test for two samples of `PRINTED_RUNS`; deviations may be arrays."""
    return scipy.stats.ttest_ind_from_stats(
        round(points, _PRECISION), first_std, PRINTED_RUNS, 0.0, second_std, PRINTED_RUNS, equal_var=False
    )


def _welch(points: float, first_std: float, second_std: float) -> tuple[float, Interval]:
    """Return p-value and 95 % interval of Welch's test for two samples of `PRINTED_RUNS`; NaN without any deviation."""
    if first_std == second_std == 0:
        return math.nan, Interval(math.nan, math.nan)
    test = _test(points, first_std, second_std)
    variances = (first_std**2 / PRINTED_RUNS, second_std**2 / PRINTED_RUNS)
    freedom = sum(variances) ** 2 / (sum(variance**2 for variance in variances) / (PRINTED_RUNS - 1))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(variances))
    return float(test.pvalue), Interval(points - half, points + half)


def runs_needed(points: float, first_std: float, second_std: float, *, power: float = 0.8) -> int | None:
    """Return the fewest runs of each method with which a t-test of two samples finds a difference.

    Args:
        points: True difference of the means.
        first_std: True standard deviation of the first method, in the same unit.
        second_std: That of the second method.
        power: Wanted probability of a significant result at the 5 % level.

    Returns:
        Number of runs of each method, at least 2; `None` for no difference, or above `MOST_PAIRS`.
    """
    deviation = math.sqrt((first_std**2 + second_std**2) / 2)
    if points == 0:
        return None
    if deviation == 0:
        return 2

    def enough(n: int) -> bool:
        freedom, location = 2 * n - 2, abs(points) / deviation * math.sqrt(n / 2)
        critical = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))
        return float(scipy.stats.nct.sf(critical, freedom, location)) >= power

    return fewest(enough)
