"""Differences in the paper's tables, from its printed figures."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bench.results import printed_differences as module
from bench.results.printed_differences import PrintedDifference, printed_differences, runs_needed
from bench.results.published import printed


def of(table: str, model: str, other: str) -> PrintedDifference:
    return next(d for d in printed_differences(table) if (d.first.model, d.second.row) == (model, other))


def samples(mean: float, std: float, seed: int) -> np.ndarray:
    """Five values with exactly this mean and deviation."""
    values = np.random.default_rng(seed).normal(size=5)
    return np.asarray(mean + std * (values - values.mean()) / values.std(ddof=1))


@pytest.mark.parametrize(
    ("table", "model", "other"), [("1", "resnet20", "fixed"), ("7", "resnet56", "quantize_then_prune")]
)
def test_the_test_is_that_of_samples_with_the_printed_mean_and_deviation(table: str, model: str, other: str) -> None:
    found = of(table, model, other)
    first = samples(found.first.top1, found.first.top1_std, 0)
    second = samples(found.second.top1, found.second.top1_std, 1)
    test = stats.ttest_ind(first, second, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


def test_a_known_row() -> None:
    """68.1±0.3 against 67.8±0.3: t = 0.3 / (0.3 √(2/5)) with 8 degrees of freedom."""
    found = of("1", "resnet20", "fixed")
    assert (found.first.row, found.points) == ("sbs", 0.3)
    assert found.p == pytest.approx(2 * stats.t.sf(0.3 / (0.3 * math.sqrt(2 / 5)), 8))
    assert found.told_apart == "no" or found.p_clearest <= 0.05
    assert found.p_clearest < found.p < found.p_unclearest <= 1


def test_the_row_of_sbs_is_compared_with_all_others_that_have_a_deviation() -> None:
    assert [d.second.row for d in printed_differences("1") if d.first.model == "resnet56"] == [
        *("fixed", "dq", "haq", "dnas", "sbs_p", "sbs_q")
    ]
    assert {(d.first.row, d.second.row) for d in printed_differences("5")} == {("sbs_q", "multi_path")}
    assert printed_differences("3") == []  # ImageNet: one run
    assert printed_differences("13") == []


def test_holm_is_over_the_table() -> None:
    found = printed_differences("1")
    smallest = min(found, key=lambda d: d.p)
    assert smallest.corrected == pytest.approx(min(1.0, len(found) * smallest.p))


def test_what_rounding_could_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    base = printed("1")[1]

    def with_figures(first: tuple[float, float], second: tuple[float, float]) -> PrintedDifference:
        rows = [
            replace(base, row="sbs", top1=first[0], top1_std=first[1]),
            replace(base, top1=second[0], top1_std=second[1]),
        ]
        monkeypatch.setattr(module, "printed", lambda table: tuple(rows))
        (found,) = printed_differences("x")
        return found

    assert with_figures((70.0, 0.2), (65.0, 0.2)).told_apart == "yes"
    assert with_figures((70.0, 0.2), (70.0, 0.2)).told_apart == "no"
    assert with_figures((70.2, 0.1), (70.0, 0.1)).told_apart == "depends on rounding"
    zero = with_figures((76.1, 0.0), (76.0, 0.0))
    assert math.isnan(zero.p) and math.isnan(zero.interval.low) and math.isnan(zero.corrected)
    assert (zero.p_clearest, zero.told_apart) == (0.0, "depends on rounding")
    assert zero.runs_needed == 2


def test_runs_needed_have_the_power_in_a_simulation() -> None:
    needed = runs_needed(0.3, 0.3, 0.3)
    assert needed == 17  # the textbook's 2 (1.96 + 0.84)² = 15.7, and one more for the unknown deviation
    generator = np.random.default_rng(0)

    def power(n: int) -> float:
        first, second = generator.normal(0.3, 0.3, (20000, n)), generator.normal(0.0, 0.3, (20000, n))
        return float((stats.ttest_ind(first, second, axis=1).pvalue < 0.05).mean())

    assert power(needed) == pytest.approx(0.8, abs=0.02)
    assert runs_needed(0.0, 0.3, 0.3) is None
    assert runs_needed(1e-6, 1.0, 1.0) is None
