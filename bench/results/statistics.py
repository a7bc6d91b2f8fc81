"""Statistics for few paired seeds: intervals, paired differences, an exact test, and detectable differences.

Intervals are Student-t intervals, which keep their nominal coverage at three to ten seeds; bootstrap intervals do not.
The sign-flip test assumes only that paired differences are symmetric around zero when the methods do not differ.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
"""Coverage of all intervals."""

MIN_PAIRS = 6
"""With fewer pairs the smallest p that a two-sided sign-flip test can give, 2 / 2^n, is above 0.05."""

EXACT_PAIRS = 20
"""Up to this many pairs all 2^n sign patterns are enumerated."""

_ENUMERATED = 12
"""Number of differences whose sign patterns are enumerated, so that one random number draws all their signs."""

MOST_PAIRS = 10_000
"""Largest number of pairs that `pairs_needed` considers."""

_EQUAL = 1e-9
"""Values that differ by less than this, relative to the largest one, are equal: they differ by rounding only."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval; both ends are NaN when there is none: with fewer than two values, or when all values are equal."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The summary of one sample.

    Attributes:
        n: Number of values.
        mean: Mean of the values; NaN without values.
        std: Sample standard deviation (ddof = 1); NaN for fewer than two values.
        interval: 95 % Student-t interval of the mean.
    """

    n: int
    mean: float
    std: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The comparison of two methods over common seeds.

    Attributes:
        n: Number of pairs.
        mean: Mean difference, first minus second.
        std: Sample standard deviation of the differences.
        interval: 95 % Student-t interval of the mean difference; NaN for one pair, and when all differences are equal.
        p: Two-sided sign-flip p-value, not corrected for the number of comparisons.
        detectable: Smallest true difference that so many pairs find with 80 % power; NaN where the interval is.
    """

    n: int
    mean: float
    std: float
    interval: Interval
    p: float
    detectable: float

    @property
    def all_equal(self) -> bool:
        """Whether there are several pairs and all differ by the same, so that they say nothing about the scatter."""
        return self.n > 1 and self.std == 0


def mean(values: ArrayLike) -> float:
    """Return the mean; NaN without values."""
    array = _floats(values)
    return float(array.mean()) if array.size else math.nan


def std(values: ArrayLike) -> float:
    """Return the sample standard deviation (ddof = 1); NaN for fewer than two values, 0 for values equal on paper."""
    array = _floats(values)
    if array.size < 2:
        return math.nan
    return 0.0 if np.ptp(array) <= _EQUAL * np.abs(array).max() else float(array.std(ddof=1))


def t_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the Student-t interval of the mean; NaN for fewer than two values, and for values that are all equal.

    Equal values do not show how much values scatter. An interval without width would claim that the mean is exact.

    Args:
        values: Sample.
        level: Coverage, between 0 and 1.
    """
    array = _floats(values)
    deviation = std(array)
    if not deviation > 0:
        return Interval(math.nan, math.nan)
    half = float(scipy.stats.t.ppf((1 + level) / 2, array.size - 1)) * deviation / math.sqrt(array.size)
    return Interval(mean(array) - half, mean(array) + half)


def summarize(values: ArrayLike) -> Sample:
    """Return the mean, deviation and interval of a sample."""
    array = _floats(values)
    return Sample(int(array.size), mean(array), std(array), t_interval(array))


def compare_pairs(first: ArrayLike, second: ArrayLike) -> PairedDifference:
    """Compare two samples pair by pair.

    Args:
        first: Figures of the first method, one for each seed.
        second: Figures of the second method, for the same seeds in the same order.

    Raises:
        ValueError: The two differ in length.
    """
    a, b = _floats(first), _floats(second)
    if a.shape != b.shape:
        raise ValueError(f"pairs need samples of the same length, got {a.size} and {b.size}")
    sample = summarize(a - b)
    p, detectable = sign_flip_p(a - b), smallest_detectable(sample.std, sample.n)
    return PairedDifference(sample.n, sample.mean, sample.std, sample.interval, p, detectable)


def sign_flip_p(differences: ArrayLike, *, draws: int = 200_000, seed: int = 0) -> float:
    """Return the two-sided p-value of the sign-flip test on the sum of paired differences.

    The p-value is the share of sign patterns whose sum is at least as far from zero as the observed one. It is exact
    up to `EXACT_PAIRS` pairs. Above that it is a Monte Carlo estimate, which counts the observed pattern, so that it is
    never 0.

    Args:
        differences: Paired differences.
        draws: Number of random sign patterns when there are too many to enumerate.
        seed: Seed of those patterns.

    Returns:
        The p-value; NaN without differences.
    """
    array = _floats(differences)
    if array.size == 0:
        return math.nan
    # Sums that are equal on paper differ in the last digits; they must count as equal.
    threshold = abs(array.sum()) - 1e-9 * np.abs(array).sum()
    if array.size <= EXACT_PAIRS:
        return float(np.mean(np.abs(_all_flipped_sums(array)) >= threshold))
    extreme = np.abs(_random_flipped_sums(array, draws, seed)) >= threshold
    return float((1 + extreme.sum()) / (1 + draws))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct a family of p-values by Holm's step-down procedure, in the order given.

    NaN marks a comparison that was not tested. It stays NaN and does not count as part of the family.
    """
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def smallest_detectable(deviation: float, n: int, *, power: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest true mean difference that a paired t-test of n pairs finds with the given power.

    Args:
        deviation: Standard deviation of the paired differences.
        n: Number of pairs.
        power: Wanted probability of a significant result.
        level: Two-sided significance level.

    Returns:
        The difference in the unit of `deviation`; NaN for fewer than two pairs, and for a deviation of 0, from which
        nothing follows.
    """
    return deviation * _detectable_shift(n, power, level) if n > 1 and deviation > 0 else math.nan


def pairs_needed(difference: float, deviation: float, *, power: float = 0.8, level: float = 0.05) -> int | None:
    """Return the fewest pairs with which a paired t-test finds a true mean difference with the given power.

    Args:
        difference: True mean difference, above 0.
        deviation: Standard deviation of the paired differences, in the same unit.
        power: Wanted probability of a significant result.
        level: Two-sided significance level.

    Returns:
        Number of pairs, at least 2; `None` above `MOST_PAIRS`, or when the deviation is NaN or infinite.
    """
    if not math.isfinite(deviation):
        return None
    if deviation == 0:
        return 2

    def enough(n: int) -> bool:
        return power_of_t_test(difference / deviation, n, level) >= power

    return fewest(enough)


def fewest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number from 2 to `MOST_PAIRS` that is enough; `None` when none is.

    Args:
        enough: Function that says whether a number is enough; if one is, all larger ones are.
    """
    number = bisect.bisect_left(range(2, MOST_PAIRS + 1), True, key=enough) + 2
    return number if number <= MOST_PAIRS else None


def deviation_interval(deviation: float, n: int, level: float = LEVEL) -> Interval:
    """Return the chi-square interval of a normal distribution's standard deviation; NaN for fewer than two values.

    Args:
        deviation: Sample standard deviation (ddof = 1).
        n: Number of values behind the deviation.
        level: Coverage, between 0 and 1.
    """
    if n < 2:
        return Interval(math.nan, math.nan)
    low, high = (deviation * math.sqrt((n - 1) / float(scipy.stats.chi2.ppf(tail, n - 1))) for tail in _tails(level))
    return Interval(low, high)


def power_of_t_test(shift: float, n: int, level: float = 0.05) -> float:
    """Return the power of a two-sided paired t-test.

    Args:
        shift: True mean difference, in standard deviations of the differences.
        n: Number of pairs, at least 2.
        level: Significance level.
    """
    critical = float(scipy.stats.t.ppf(1 - level / 2, n - 1))
    location = abs(shift) * math.sqrt(n)
    upper = float(scipy.stats.nct.sf(critical, n - 1, location))
    lower = float(scipy.stats.nct.cdf(-critical, n - 1, location))
    # Far from zero SciPy returns NaN for the opposite tail, which is zero to all digits there.
    return upper + (0.0 if math.isnan(lower) else lower)


def _tails(level: float) -> tuple[float, float]:
    """Return the upper and lower tail; the larger quantile gives the smaller deviation."""
    return (1 + level) / 2, (1 - level) / 2


@cache
def _detectable_shift(n: int, power: float, level: float) -> float:
    """Return the shift, in standard deviations of the differences, at which the test has the wanted power."""
    high = 1.0
    while power_of_t_test(high, n, level) < power:
        high *= 2
    return float(scipy.optimize.brentq(lambda shift: power_of_t_test(shift, n, level) - power, 0.0, high))


def _all_flipped_sums(differences: Floats) -> Floats:
    """Return the sums of all 2^n sign patterns, built up one difference at a time."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate((sums + difference, sums - difference))
    return sums


def _random_flipped_sums(differences: Floats, draws: int, seed: int) -> Floats:
    """Return the sums of random sign patterns: of each few differences, one of all patterns is drawn."""
    generator = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for start in range(0, differences.size, _ENUMERATED):
        few = _all_flipped_sums(differences[start : start + _ENUMERATED])
        sums += few[generator.integers(0, few.size, draws, dtype=np.uint16)]
    return sums


def _floats(values: Any) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)
