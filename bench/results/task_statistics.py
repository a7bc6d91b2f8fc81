"""Statistics across tasks, a task being a model on a data set: interquartile mean, probability of improvement, ranks.

The first two follow Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice"),
ranks Demšar 2006 ("Statistical comparisons of classifiers over multiple data sets"). Intervals come from the
bootstrap within tasks. With three to ten runs a task the plain bootstrap is too narrow, since its resamples vary by
(n − 1)/n of what they should; each draw therefore leaves out one run of each task (the bootknife of Hesterberg
2004), which makes the variance of a mean come out right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bench.results.statistics import LEVEL, Interval

DRAWS = 4000
"""Bootstrap draws: of the values beyond either end of a 95 % interval there are then a hundred."""

_QUARTER = 0.25

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number estimated from runs on several tasks.

    Attributes:
        value: The estimate; NaN without runs.
        interval: 95 % bootstrap interval; NaN where resampling tells nothing: a task has one run only, or all
            resamples agree.
    """

    value: float
    interval: Interval


def interquartile_mean(tasks: Sequence[ArrayLike], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The mean of the middle half of all runs of all tasks.

    Args:
        tasks: For each task the figures of its runs. Tasks with more runs weigh more.
        level: Coverage of the interval.
        seed: Of the bootstrap.
    """
    samples = _samples(tasks)
    if not samples:
        return Estimate(nan, Interval(nan, nan))
    return Estimate(float(_middle(samples)), _bootstrap(_middle, samples, level, seed))


def probability_of_improvement(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """The probability that a run of the first method is better than one of the second on the same task.

    It is the mean over tasks of the share of pairs (a run of the one, a run of the other) in which the first has the
    higher figure, ties counting half: the Mann-Whitney U divided by its largest value. Seeds play no part in it.

    Args:
        first: For each task the figures of one method's runs.
        second: Those of the other for the same tasks in the same order; the numbers of runs may differ.
        level: Coverage of the interval.
        seed: Of the bootstrap.

    Raises:
        ValueError: The two have different numbers of tasks, or one has no run on a task.
    """
    a, b = _samples(first), _samples(second)
    if not len(a) == len(b) == len(first) == len(second):
        raise ValueError(f"both need runs on the same tasks, got {len(first)} and {len(second)}, some without runs")
    if not a:
        return Estimate(nan, Interval(nan, nan))

    def share(samples: Sequence[Floats]) -> Floats:
        shares = [_share_above(x, y) for x, y in zip(samples[: len(a)], samples[len(a) :], strict=True)]
        return np.asarray(np.mean(shares, axis=0))

    return Estimate(float(share([*a, *b])), _bootstrap(share, [*a, *b], level, seed))


def average_ranks(scores: ArrayLike) -> Floats:
    """The rank of each method, averaged over tasks; 1 is the best, tied methods share the mean of their ranks.

    Args:
        scores: Figures of shape (tasks, methods), higher being better, none of them missing.

    Returns:
        One rank a method.
    """
    return np.asarray(stats.rankdata(-np.asarray(scores, dtype=np.float64), axis=1).mean(axis=0), dtype=np.float64)


def _middle(samples: Sequence[Floats]) -> Floats:
    """Interquartile means over the last axis of all samples together."""
    pooled = np.concatenate(samples, axis=-1)
    return np.asarray(stats.trim_mean(pooled, _QUARTER, axis=-1), dtype=np.float64)


def _share_above(first: Floats, second: Floats) -> Floats:
    """Over the last axes: how often a value of the first is above one of the second, ties half."""
    signs = np.sign(first[..., :, None] - second[..., None, :])
    return np.asarray((1 + signs.mean(axis=(-2, -1))) / 2)


def _bootstrap(
    statistic: Callable[[Sequence[Floats]], Floats], samples: Sequence[Floats], level: float, seed: int
) -> Interval:
    """The percentile interval of a statistic, each sample resampled by itself."""
    if min(sample.size for sample in samples) < 2:
        return Interval(nan, nan)
    generator = np.random.default_rng(seed)
    found = statistic([_resampled(sample, generator) for sample in samples])
    if np.ptp(found) == 0:
        return Interval(nan, nan)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resampled(sample: Floats, generator: np.random.Generator) -> Floats:
    """Draws of the sample's size, shape (draws, n), each from all values but one that is left out at random."""
    n = sample.size
    left_out = generator.integers(0, n, (DRAWS, 1))
    return np.asarray(sample[(left_out + generator.integers(1, n, (DRAWS, n))) % n])


def _samples(tasks: Sequence[Any]) -> list[Floats]:
    """The tasks that have runs, as arrays."""
    arrays = [np.asarray(task, dtype=np.float64).reshape(-1) for task in tasks]
    return [array for array in arrays if array.size]
