"""The statistics against closed forms, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bench.results import statistics


def test_summary_of_known_numbers() -> None:
    found = statistics.summarize([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    half = 4.302652729911275 / math.sqrt(3)  # t quantile 0.975 with two degrees of freedom
    assert found.interval.low == pytest.approx(2 - half)
    assert found.interval.high == pytest.approx(2 + half)


def test_one_value_has_no_deviation_and_no_interval() -> None:
    found = statistics.summarize([5.0])
    assert found.mean == 5.0
    assert math.isnan(found.std)
    assert math.isnan(found.interval.low) and math.isnan(found.interval.high)


@pytest.mark.parametrize("values", [[1.0, 1.0], [71.2 - 71.1, 70.3 - 70.2, 64.6 - 64.5], [0.0] * 6])
def test_equal_values_have_no_interval_and_detect_nothing(values: list[float]) -> None:
    """Zero scatter in a sample is no knowledge of the scatter; the last digits of a subtraction are no scatter."""
    found = statistics.compare_pairs(values, [0.0] * len(values))
    assert found.all_equal and found.std == 0.0
    assert found.mean == pytest.approx(values[0])
    assert math.isnan(found.interval.low) and math.isnan(found.interval.high)
    assert math.isnan(found.detectable)
    assert found.p == pytest.approx(1.0 if values[0] == 0 else 2 / 2 ** len(values))  # the test needs no scatter
    assert not statistics.compare_pairs([1.0, 1.001], [0.0, 0.0]).all_equal


def test_no_values_give_nan_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    found = statistics.summarize([])
    assert found.n == 0
    assert math.isnan(found.mean)
    assert not recwarn.list


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_covers_as_often_as_it_says(n: int) -> None:
    samples = np.random.default_rng(n).normal(3.0, 2.0, (2000, n))
    intervals = [statistics.t_interval(sample) for sample in samples]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_interval_at_another_level_agrees_with_scipy() -> None:
    sample = [0.3, 1.7, 2.2, 0.9]
    low, high = stats.ttest_1samp(sample, 0.0).confidence_interval(0.8)
    found = statistics.t_interval(sample, level=0.8)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_paired_difference_agrees_with_the_paired_t_test() -> None:
    a, b = [71.2, 70.8, 71.9, 70.1], [70.9, 70.2, 71.0, 70.4]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = statistics.compare_pairs(a, b)
    assert found.n == 4
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))


def test_pairs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        statistics.compare_pairs([1, 2], [1, 2, 3])


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_sign_flip_is_the_brute_force_share(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.5, 1.0, n)
    observed = abs(differences.sum())
    patterns = itertools.product((-1, 1), repeat=n)
    extreme = [abs(np.dot(signs, differences)) >= observed - 1e-12 for signs in patterns]
    assert statistics.sign_flip_p(differences) == pytest.approx(np.mean(extreme))


@pytest.mark.parametrize(("n", "smallest"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_smallest_possible_p(n: int, smallest: float) -> None:
    assert statistics.sign_flip_p(np.arange(1, n + 1)) == smallest


def test_sign_flip_counts_ties_of_equal_differences() -> None:
    # Decimal fractions do not add up exactly: only 0.1 + 0.1 + 0.1 and its mirror are as extreme.
    assert statistics.sign_flip_p([0.1, 0.1, 0.1]) == 0.25
    assert statistics.sign_flip_p([0.1, 0.2, -0.3]) == 1.0
    assert statistics.sign_flip_p([0.0, 0.0]) == 1.0
    assert math.isnan(statistics.sign_flip_p([]))


def test_twenty_pairs_are_enumerated_and_more_are_drawn() -> None:
    assert statistics.sign_flip_p(np.ones(20)) == 2 / 2**20
    assert statistics.sign_flip_p(np.ones(21), draws=1000) == 1 / 1001
    differences = np.random.default_rng(0).normal(0.3, 1.0, 21)
    drawn = statistics.sign_flip_p(differences)
    assert drawn == statistics.sign_flip_p(differences)
    exact = np.abs(statistics._all_flipped_sums(differences)) >= abs(differences.sum()) - 1e-9
    assert drawn == pytest.approx(exact.mean(), abs=0.005)


def test_sign_flip_rejects_as_often_as_its_level_allows() -> None:
    samples = np.random.default_rng(3).normal(0.0, 1.0, (2000, 6))
    rejected = np.mean([statistics.sign_flip_p(sample) <= 0.05 for sample in samples])
    assert rejected == pytest.approx(2 / 64, abs=0.015)


def test_holm_against_a_worked_example() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = statistics.holm([0.02, math.nan, 0.04])
    assert adjusted[0] == 0.04 and adjusted[2] == 0.04
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(("shift", "power"), [(0.5, 0.14), (1.0, 0.41), (1.5, 0.71), (2.0, 0.91)])
def test_power_at_five_pairs(shift: float, power: float) -> None:
    assert statistics.power_of_t_test(shift, 5) == pytest.approx(power, abs=0.01)
    assert statistics.power_of_t_test(-shift, 5) == statistics.power_of_t_test(shift, 5)


def test_without_a_shift_power_is_the_level() -> None:
    assert statistics.power_of_t_test(0.0, 4) == pytest.approx(0.05)


@pytest.mark.parametrize("n", [2, 3, 5, 30, 300])
def test_smallest_detectable_difference_has_eighty_percent_power(n: int) -> None:
    found = statistics.smallest_detectable(2.0, n)
    assert statistics.power_of_t_test(found / 2.0, n) == pytest.approx(0.8, abs=1e-6)


def test_smallest_detectable_difference_by_simulation() -> None:
    shift = statistics.smallest_detectable(1.0, 5)
    samples = np.random.default_rng(1).normal(shift, 1.0, (4000, 5))
    found = np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.025)


def test_smallest_detectable_difference_at_the_edges() -> None:
    assert math.isnan(statistics.smallest_detectable(1.0, 1))
    assert math.isnan(statistics.smallest_detectable(0.0, 5))
    assert math.isnan(statistics.smallest_detectable(math.nan, 5))


@pytest.mark.parametrize(("shift", "pairs"), [(0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6)])
def test_pairs_needed_are_those_of_power_tables(shift: float, pairs: int) -> None:
    # Two-sided paired t-test, 80 % power at 5 %: G*Power's numbers.
    assert statistics.pairs_needed(0.3, 0.3 / shift) == pairs


@pytest.mark.parametrize("level", [0.05, 0.05 / 7])
def test_pairs_needed_are_the_fewest(level: float) -> None:
    found = statistics.pairs_needed(0.4, 0.7, level=level)
    assert found is not None
    assert statistics.power_of_t_test(0.4 / 0.7, found, level) >= 0.8
    assert statistics.power_of_t_test(0.4 / 0.7, found - 1, level) < 0.8


def test_pairs_needed_by_simulation() -> None:
    n = statistics.pairs_needed(0.3, 0.35)
    assert n is not None
    samples = np.random.default_rng(2).normal(0.3, 0.35, (4000, n))
    assert 0.78 < np.mean(stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05) < 0.86


def test_pairs_needed_at_the_edges() -> None:
    assert statistics.pairs_needed(0.3, 0.0) == statistics.pairs_needed(100.0, 0.1) == 2
    for deviation in (math.nan, math.inf, 100.0):
        assert statistics.pairs_needed(0.3, deviation) is None


def test_interval_of_a_deviation_is_the_tables() -> None:
    # Quantiles of chi-square with one and nine degrees of freedom, from a table.
    for n, low, high in (
        (2, 1 / math.sqrt(5.024), 1 / math.sqrt(0.000982)),
        (10, 3 / math.sqrt(19.02), 3 / math.sqrt(2.700)),
    ):
        found = statistics.deviation_interval(1.0, n)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert math.isnan(statistics.deviation_interval(math.nan, 1).low)


@pytest.mark.parametrize("n", [2, 5])
def test_interval_of_a_deviation_covers_as_often_as_it_says(n: int) -> None:
    deviations = np.random.default_rng(n).normal(0.0, 2.0, (2000, n)).std(axis=1, ddof=1)
    intervals = [statistics.deviation_interval(deviation, n) for deviation in deviations]
    assert np.mean([found.low <= 2.0 <= found.high for found in intervals]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("pairs", [5, 12, 13, 40])
def test_random_sign_patterns_are_fair_and_independent(pairs: int) -> None:
    draws = 40_000
    sums = statistics._random_flipped_sums(2.0 ** np.arange(pairs), draws, 0)
    positive = ((sums + 2.0**pairs - 1) / 2).astype(np.int64)  # of powers of two, a sum tells all signs
    signs = 2.0 * ((positive[:, None] >> np.arange(pairs)) & 1) - 1
    assert np.array_equal(signs @ 2.0 ** np.arange(pairs), sums)
    products = signs.T @ signs / draws - np.eye(pairs)
    error = 5 / math.sqrt(draws)
    assert np.abs(signs.mean(axis=0)).max() < error and np.abs(products).max() < error


def test_random_sign_patterns_estimate_the_exact_p(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, 18)
    exact = statistics.sign_flip_p(differences)
    monkeypatch.setattr(statistics, "EXACT_PAIRS", 10)
    assert statistics.sign_flip_p(differences) == pytest.approx(exact, abs=5 * math.sqrt(exact / 200_000))
    assert 0.01 < exact < 0.9
