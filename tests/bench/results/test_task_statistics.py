"""Statistics across tasks against closed forms, SciPy, and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bench.results import task_statistics
from bench.results.task_statistics import average_ranks, interquartile_mean, probability_of_improvement


def test_interquartile_mean_of_known_numbers() -> None:
    assert interquartile_mean([[1, 2, 3, 100], [-50, 4, 5, 6]]).value == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean([[1.0], [3.0]]).value == 2.0
    assert interquartile_mean([[], [1, 2, 3, 4]]).value == 2.5
    assert math.isnan(interquartile_mean([]).value) and math.isnan(interquartile_mean([[], []]).value)


def test_interquartile_mean_is_the_mean_of_the_middle_half_by_sorting() -> None:
    generator = np.random.default_rng(5)
    for sizes in ((3, 3), (5, 4, 7), (2, 9)):
        tasks = [generator.normal(task, 2.0, size) for task, size in enumerate(sizes)]
        values = sorted(itertools.chain(*tasks))
        cut = len(values) // 4
        assert interquartile_mean(tasks).value == pytest.approx(np.mean(values[cut : len(values) - cut]))


def test_probability_of_improvement_of_known_numbers() -> None:
    assert probability_of_improvement([[2, 3]], [[0, 1]]).value == 1.0
    assert probability_of_improvement([[1, 2]], [[1, 2]]).value == 0.5  # two ties count half each
    assert probability_of_improvement([[1, 3], [0]], [[2], [1]]).value == 0.25  # 1/2 and 0
    assert math.isnan(probability_of_improvement([], []).value)


def test_probability_of_improvement_is_the_mean_of_mann_whitney_shares() -> None:
    generator = np.random.default_rng(7)
    first = [generator.integers(0, 6, size) for size in (3, 5, 4)]
    second = [generator.integers(0, 6, size) for size in (6, 2, 4)]
    shares = [stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(first, second, strict=True)]
    found = probability_of_improvement(first, second).value
    assert found == pytest.approx(np.mean(shares))
    assert probability_of_improvement(second, first).value == pytest.approx(1 - found)


def test_tasks_must_agree() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        probability_of_improvement([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="some without runs"):
        probability_of_improvement([[1], []], [[1], [2]])


def test_ranks_of_known_numbers() -> None:
    ranks = average_ranks([[90.0, 80.0, 70.0], [60.0, 60.0, 50.0], [10.0, 20.0, 30.0]])
    assert ranks == pytest.approx([(1 + 1.5 + 3) / 3, (2 + 1.5 + 2) / 3, (3 + 3 + 1) / 3])


def test_ranks_of_k_methods_add_up_to_half_k_times_k_plus_one() -> None:
    scores = np.random.default_rng(1).integers(0, 4, (11, 5))
    assert average_ranks(scores).sum() == pytest.approx(5 * 6 / 2)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_resamples_have_the_variance_of_a_mean(n: int) -> None:
    sample = np.random.default_rng(n).normal(0.0, 3.0, n)
    means = task_statistics._resampled(sample, np.random.default_rng(0)).mean(axis=1)
    assert means.var() == pytest.approx(sample.var(ddof=1) / n, rel=0.1)
    assert means.mean() == pytest.approx(sample.mean(), abs=0.15)


@pytest.mark.parametrize(("n", "stated"), [(3, 0.86), (5, 0.92), (10, 0.94)])
def test_interval_of_the_interquartile_mean_covers_as_stated(
    monkeypatch: pytest.MonkeyPatch, n: int, stated: float
) -> None:
    monkeypatch.setattr(task_statistics, "DRAWS", 500)
    generator = np.random.default_rng(n)
    levels = np.array([-2.0, -0.5, 0.5, 2.0])[:, None]  # symmetric, so that the true value is 0
    intervals = [interquartile_mean(levels + generator.normal(0.0, 1.0, (4, n))).interval for _ in range(400)]
    assert np.mean([found.low <= 0 <= found.high for found in intervals]) == pytest.approx(stated, abs=0.03)


@pytest.mark.parametrize("n", [3, 6])
def test_interval_of_the_probability_covers(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(task_statistics, "DRAWS", 500)
    generator = np.random.default_rng(n)
    truth = stats.norm.cdf(0.5 / math.sqrt(2))
    intervals = [
        probability_of_improvement(generator.normal(0.5, 1.0, (4, n)), generator.normal(0.0, 1.0, (4, n))).interval
        for _ in range(400)
    ]
    assert np.mean([found.low <= truth <= found.high for found in intervals]) == pytest.approx(0.955, abs=0.03)


def test_no_interval_where_resampling_tells_nothing() -> None:
    for found in (
        interquartile_mean([[1.0], [2.0, 3.0]]),
        interquartile_mean([[5.0, 5.0], [5.0, 5.0]]),
        probability_of_improvement([[2, 3], [2, 3]], [[0, 1], [0, 1]]),
        probability_of_improvement([[2, 3]], [[2]]),
    ):
        assert math.isnan(found.interval.low) and math.isnan(found.interval.high)


def test_the_same_runs_give_the_same_interval() -> None:
    tasks = [[1.0, 2.0, 4.0], [3.0, 5.0, 9.0]]
    assert interquartile_mean(tasks) == interquartile_mean(tasks)
    assert interquartile_mean(tasks).interval != interquartile_mean(tasks, seed=1).interval


def test_a_lower_level_gives_a_narrower_interval() -> None:
    tasks = [[1.0, 2.0, 4.0], [3.0, 5.0, 9.0]]
    wide, narrow = (interquartile_mean(tasks, level=level).interval for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
