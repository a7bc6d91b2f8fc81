import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.compression import quantizer as quantization
from bench.diagnostics.verify import CheckLine
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting.report import Figure
from bench.spec.seeds import generator
from methods.checks import regression, theorem
from methods.shared.bit_sharing import quantization as quantizers

Found = Iterator[CheckLine | Figure]


def lines_of(found: Found) -> list[CheckLine]:
    return [line for line in found if isinstance(line, CheckLine)]


def figure_of(found: Found) -> Figure:
    (figure,) = (figure for figure in found if isinstance(figure, Figure))
    return figure


def failed(found: Found) -> list[str]:
    return [line.what for line in lines_of(found) if not line.passed]


def some_failed(check: Callable[[], Found], words: str) -> bool:
    return any(words in what for what in failed(check()))


@pytest.fixture
def few_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "_SEEDS", 2)


def test_checks_are_found_by_name() -> None:
    assert set(available("checks")) >= {"costs", "theorem", "regression"}
    assert load("checks", "theorem") is theorem.checks


def test_every_line_passes() -> None:
    lines = lines_of(theorem.checks())
    assert failed(iter(lines)) == []
    assert len({line.what for line in lines}) == len(lines) > 10
    assert all(line.figure for line in lines)


# Theorem 1 and what follows from it.


@given(st.integers(-10_000, 10_000), st.integers(1, 500).map(lambda half: 2 * half))
def test_whole_number_roundings_are_those_of_fractions(numerator: int, denominator: int) -> None:
    ratio = Fraction(numerator, denominator)
    whole = np.array([numerator], dtype=np.int64)
    assert theorem.half_down(whole, denominator)[0] == math.ceil(ratio - Fraction(1, 2))
    assert theorem.half_even(whole, denominator)[0] == round(ratio)


@pytest.mark.parametrize("bits", [(2, 4, 8), (1, 2), (3, 6), (2, 6)])
def test_grids_count_as_fractions_do(bits: tuple[int, ...]) -> None:
    grids = theorem.ExactGrids(bits=bits)
    points = grids.points()
    parts = grids.decompose(points, theorem.half_down)
    for index, unit in enumerate(points.tolist()):
        z = Fraction(unit, grids.one)
        lower = Fraction(0)
        for part, width in zip(parts, bits, strict=True):
            step = Fraction(1, 2**width - 1)
            offset = step * math.ceil((z - lower) / step - Fraction(1, 2))
            assert Fraction(int(part[index]), grids.one) == offset
            lower = step * math.ceil(z / step - Fraction(1, 2))


@pytest.mark.parametrize("bits", [(2, 3), (2, 5), (3, 4)])
def test_theorem_fails_where_a_width_is_no_multiple(bits: tuple[int, int]) -> None:
    """The condition of the theorem is needed: between foreign grids the sum leaves the finer grid."""
    outer = 2 ** bits[1] - 1
    failures = 0
    for unit in range(2 * outer + 1):
        z = Fraction(unit, 2 * outer)
        low, high = (Fraction(math.ceil(z * (2**width - 1) - Fraction(1, 2)), 2**width - 1) for width in bits)
        offset = Fraction(math.ceil((z - low) * outer - Fraction(1, 2)), outer)
        failures += low + offset != high
    assert failures > 0


def rounded_with(monkeypatch: pytest.MonkeyPatch, rounding: Callable[[Tensor], Tensor]) -> None:
    """Break the quantizer's rounding alone."""
    monkeypatch.setattr(quantization, "discretize", lambda z, bits: rounding(z * (2**bits - 1)) / (2**bits - 1))


def test_half_even_rounding_in_the_quantizer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_with(monkeypatch, torch.round)
    assert some_failed(theorem.checks, "rounds ties down")


def test_floor_in_the_quantizer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded_with(monkeypatch, torch.floor)
    assert some_failed(theorem.checks, "off ties")


def test_wrong_steps_in_the_quantizer_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^k steps in place of 2^k − 1: the grids are no longer nested with an odd ratio."""
    monkeypatch.setattr(quantization, "discretize", lambda z, bits: torch.ceil(z * 2**bits - 0.5) / 2**bits)
    assert some_failed(theorem.checks, "off ties")


def test_decomposition_without_its_last_offset_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    decompose = quantizers.decompose
    monkeypatch.setattr(quantizers, "decompose", lambda z, bits: decompose(z, bits)[:-1])
    assert some_failed(theorem.checks, "off ties")
    assert some_failed(theorem.checks, "float32")


def test_decomposition_of_the_wrong_residual_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(z: Tensor, bits: Sequence[int]) -> list[Tensor]:
        low = quantization.discretize(z, bits[0])
        return [low, *(quantization.discretize(z - low, width) for width in bits[1:])]

    monkeypatch.setattr(quantizers, "decompose", broken)
    assert some_failed(theorem.checks, "off ties")


def test_wrong_counts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theorem, "half_down", theorem.half_even)
    assert some_failed(theorem.checks, "Theorem 1 for {2, 4, 8}, exact")
    monkeypatch.undo()
    monkeypatch.setattr(theorem, "half_even", theorem.half_down)
    assert some_failed(theorem.checks, "By contrast")


def test_larger_errors_break_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "discretize", lambda z, bits: torch.zeros_like(z) if bits == 8 else z)
    assert some_failed(theorem.checks, "Fig. 2")


def test_error_bound_falls_with_the_bits() -> None:
    curves = theorem.error_bound(0, bits=(2, 4, 8, 16))
    for curve in (curves.change, curves.bound, curves.error):
        assert len(curve) == 4
        assert list(curve) == sorted(curve, reverse=True)
    assert theorem.error_bound(0) == theorem.error_bound(0) != theorem.error_bound(1)


def chart_rows(figure: Figure) -> list[dict[str, Any]]:
    """The rows behind a figure's curves and bands."""
    rows: list[dict[str, Any]] = max(figure.draw().to_dict()["datasets"].values(), key=len)
    return rows


def test_figure_2_shows_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the definition of Corollary 1, evaluated point by point; and no draw is evaluated twice."""
    draws = []
    error_bound = theorem.error_bound
    monkeypatch.setattr(theorem, "_FIGURE_DRAWS", 3)
    monkeypatch.setattr(theorem, "error_bound", lambda seed: draws.append(seed) or error_bound(seed))
    figure = figure_of(theorem.checks())
    rows = {(row["curve"].split()[0], row["bits"]): row for row in chart_rows(figure)}
    assert draws == [0, 1, 2]
    assert rows.keys() == {(curve, bits) for curve in ("change", "bound") for bits in (1, 2, 4, 8, 16)}

    def error(z: list[float], bits: int) -> float:
        levels = 2**bits - 1
        return sum(abs(value - math.ceil(value * levels - 0.5) / levels) for value in z) / sum(z)

    points = [torch.rand(100, generator=generator("error bound", seed), dtype=torch.float64).tolist() for seed in draws]
    for bits in (1, 2, 4, 8, 16):
        changes = [abs(error(z, bits) - error(z, 2 * bits)) for z in points]
        bounds = [100 / sum(z) / (2**bits - 1) for z in points]
        for curve, values in (("change", changes), ("bound", bounds)):
            row = rows[curve, bits]
            expected = (sum(values) / 3, min(values), max(values))
            assert (row["mean"], row["low"], row["high"]) == pytest.approx(expected, rel=1e-6)


# The toy regression.


@pytest.mark.usefixtures("few_seeds")
def test_regression_lines_pass() -> None:
    lines = lines_of(regression.checks())
    assert failed(iter(lines)) == []
    assert len(lines) == 4
    assert all("not judged" in line.what for line in lines[1:])


@pytest.mark.usefixtures("few_seeds")
@pytest.mark.parametrize("method", ["SharedWeight", "SeparateWeights"])
def test_a_method_that_stays_at_two_bits_is_noticed(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def coarse(model: torch.nn.Module) -> Tensor:
        weight = model.weight if method == "SharedWeight" else model.weights[0]  # type: ignore[index]
        return quantization.quantize(weight, torch.ones((), dtype=torch.float64), 2, "weight")  # type: ignore[arg-type]

    monkeypatch.setattr(getattr(regression, method), "forward", coarse)
    assert "Proposition 1" in failed(regression.checks())[0]


def test_curves_are_the_same_again_and_start_at_the_same_problem() -> None:
    first, again, longer = (regression.regression_curves(3, count) for count in (20, 20, 40))
    assert first == again
    assert len(first.sbs) == len(first.dnas) == 20 < len(longer.sbs)
    assert first.floor == longer.floor
    assert first.sbs[0] == longer.sbs[0]


def test_loss_is_the_mean_squared_error_over_all_samples() -> None:
    problem = regression._Problem(0, 2, 8)
    weight = torch.linspace(0, 1, 10, dtype=torch.float64).requires_grad_()
    expected = (problem.targets - problem.inputs @ weight).square().mean()
    assert problem.loss(weight.detach()) == pytest.approx(float(expected.detach()))
    batch = problem.batches[0]
    loss = (problem.targets[batch] - problem.inputs[batch] @ weight).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(problem.gradient(weight.detach(), batch), gradient)
    assert problem.floor == pytest.approx(1, abs=0.1)
    assert problem.floor < float(expected.detach())


def test_measures_of_a_curve_by_hand() -> None:
    curve = [4.0, 3.0, 2.0, 1.04, 0.9] + [1.0] * 50
    assert regression.final_loss(curve) == 1.0
    assert regression.iterations_to_converge(curve) == 3
    assert regression.roughness(curve) == pytest.approx((1 + 1 + 0.96 + 0.14 + 0.1) / 54)


def test_figure_3_shows_the_runs_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[regression.RegressionCurves] = []
    curves = regression.regression_curves

    def short(seed: int, **rates: float) -> regression.RegressionCurves:
        made.append(curves(seed, 60, **rates))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(regression, "_SEEDS", 3)
    monkeypatch.setattr(regression, "regression_curves", short)
    figure = figure_of(regression.checks())
    assert len(made) == 9
    rows = {(row["curve"], row["iteration"]): row for row in chart_rows(figure)}
    names = ("SBS (single-path)", "DNAS (multi-path)", "DNAS, 3 times the rate")
    assert rows.keys() == {(name, iteration) for name in names for iteration in range(60)}
    groups = ([run.sbs for run in made[:3]], [run.dnas for run in made[:3]], [run.dnas for run in made[3:6]])
    for name, losses in zip(names, groups, strict=True):
        means, spreads = np.mean(losses, axis=0), np.std(losses, axis=0, ddof=1)
        assert [rows[name, i]["mean"] for i in range(60)] == pytest.approx(means)
        assert [rows[name, i]["high"] for i in range(60)] == pytest.approx(means + spreads)
        assert [rows[name, i]["low"] for i in range(60)] == pytest.approx(means - spreads)
