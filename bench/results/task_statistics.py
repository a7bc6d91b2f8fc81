"""Statistics across tasks: interquartile mean, probability of improvement, average ranks.

A task is a model on a data set. The first two statistics follow Agarwal et al. 2021 ("Deep reinforcement learning at
the edge of the statistical precipice"), average ranks follow Demšar 2006 ("Statistical comparisons of classifiers over
multiple data sets").

Intervals come from the bootstrap within tasks. With three to ten runs for each task the plain bootstrap is too narrow:
the variance of its resamples is too small by the factor (n − 1)/n. Each draw therefore leaves out one run of each task
(the bootknife of Hesterberg 2004), which gives the variance of a mean its correct value.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from bench.results.statistics import LEVEL, Interval

DRAWS = 4000
"""Number of bootstrap draws; a hundred of them lie beyond either end of a 95 % interval."""

_QUARTER = 0.25

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number estimated from runs on several tasks.

    Attributes:
        value: Estimate; NaN without runs.
        interval: 95 % bootstrap interval; NaN when a task has only one run or all resamples agree.
    """

    value: float
    interval: Interval


def interquartile_mean(tasks: Sequence[ArrayLike], *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean of the middle half of all runs of all tasks.

    Args:
        tasks: Figures of the runs of each task. Tasks with more runs weigh more.
        level: Coverage of the interval.
        seed: Seed of the bootstrap.
    """
    samples = _samples(tasks)
    if not samples:
        return Estimate(nan, Interval(nan, nan))
    return Estimate(float(_middle(samples)), _bootstrap(_middle, samples, level, seed))


def probability_of_improvement(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Return the probability that a run of the first method is better than one of the second on the same task.

    On each task this is the share of all pairs of a run of either method in which the first has the higher figure; ties
    count half. It equals the Mann-Whitney U divided by its largest value. The result is the mean over tasks. Seeds play
    no part.

    Args:
        first: Figures of the first method's runs on each task.
        second: Figures of the second method's runs on the same tasks in the same order; numbers of runs may differ.
        level: Coverage of the interval.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The numbers of tasks differ, or one method has no run on a task.
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
    """Return the rank of each method, averaged over tasks; 1 is the best, and tied methods share the mean rank.

    Args:
        scores: Figures of shape (tasks, methods), none missing; higher is better.

    Returns:
        Average ranks of shape (methods,).
    """
    return np.asarray(
        scipy.stats.rankdata(-np.asarray(scores, dtype=np.float64), axis=1).mean(axis=0), dtype=np.float64
    )


def _middle(samples: Sequence[Floats]) -> Floats:
    """Return the interquartile means over the last axis of all samples together."""
    pooled = np.concatenate(samples, axis=-1)
    return np.asarray(scipy.stats.trim_mean(pooled, _QUARTER, axis=-1), dtype=np.float64)


def _share_above(first: Floats, second: Floats) -> Floats:
    """Return, over the last axes, how often a value of the first is above one of the second; ties count half."""
    signs = np.sign(first[..., :, None] - second[..., None, :])
    return np.asarray((1 + signs.mean(axis=(-2, -1))) / 2)


def _bootstrap(
    statistic: Callable[[Sequence[Floats]], Floats], samples: Sequence[Floats], level: float, seed: int
) -> Interval:
    """Return the percentile interval of a statistic; each sample is resampled separately."""
    if min(sample.size for sample in samples) < 2:
        return Interval(nan, nan)
    generator = np.random.default_rng(seed)
    values = statistic([_resampled(sample, generator) for sample in samples])
    if np.ptp(values) == 0:
        return Interval(nan, nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _resampled(sample: Floats, generator: np.random.Generator) -> Floats:
    """Return draws of shape (draws, n); each draw leaves out one value at random."""
    n = sample.size
    left_out = generator.integers(0, n, (DRAWS, 1))
    return np.asarray(sample[(left_out + generator.integers(1, n, (DRAWS, n))) % n])


def _samples(tasks: Sequence[Any]) -> list[Floats]:
    """Return the tasks that have runs, as arrays."""
    arrays = [np.asarray(task, dtype=np.float64).reshape(-1) for task in tasks]
    return [array for array in arrays if array.size]
