"""How redundant groups forget: the rule against a slow one, its slope, and least squares with an irrelevant group."""

import math

import pytest
import torch
from torch import Tensor, nn

from methods.shared.forgetting import ETA, ZETA, clipped_and_error, forget, forgetting
from methods.shared.quantizers.companded import CompandedQuantizer
from methods.shared.removal import Periods, saliency


def slow_forgetting(
    g: list[float], c: list[float], r: list[float], bounds: tuple[float, float], lr: float, linear: float
) -> tuple[float, float]:
    """γ and d of a single weight, by the rules of the code, one after the other."""

    def norm(x: list[float]) -> float:
        return math.sqrt(sum(value * value for value in x))

    def cosine(x: list[float], y: list[float]) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True)) / (norm(x) * norm(y))

    finest, coarsest = bounds
    rate = linear
    if cosine(g, c) < 0:
        rate = min(1.0, -(1 - ETA) * lr * norm(g) / (cosine(g, c) * norm(c)))
    if cosine(g, r) >= 0:
        return rate, coarsest
    step = -ZETA * ETA * lr * norm(g) / (rate * cosine(g, r) * norm(r))
    while step < finest:
        rate, step = 0.8 * rate, step / 0.8
    return rate, min(step, coarsest)


def drawn(count: int, noise: torch.Generator) -> Tensor:
    return torch.randn(count, generator=noise, dtype=torch.float64)


def chosen(
    g: Tensor, c: Tensor, r: Tensor, bounds: tuple[float, float], lr: float, linear: float
) -> tuple[float, float]:
    ends = g.new_tensor([bounds[0]]), g.new_tensor([bounds[1]])
    square = g.square().sum()
    rate, steps = forgetting((g @ c, (g @ r).view(1)), (square, square.view(1)), ends, lr=lr, linear=linear)
    return rate.item(), steps.item()


def test_rates_and_steps_are_those_of_the_rules() -> None:
    noise = torch.Generator().manual_seed(0)
    for case in range(200):
        g, c, r = (drawn(12, noise) for _ in range(3))
        bounds = (0.01 * (1 + case % 7), 0.3)
        found = chosen(g, c, r / 4, bounds, 0.05, 0.2)
        assert found == pytest.approx(slow_forgetting(g.tolist(), c.tolist(), (r / 4).tolist(), bounds, 0.05, 0.2))


def test_with_both_products_negative_the_slope_is_a_known_share_of_that_of_the_gradient() -> None:
    """−lr‖g‖² − γ⟨g, c⟩ − γ d⟨g, r⟩ = −η (1 − ζ) lr‖g‖², where no bound of d acts; a step within bounds falls more."""
    noise, cases = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        g, c, r = (drawn(30, noise) for _ in range(3))
        free, bounded = (chosen(g, c, r, bounds, 0.1, 0.5) for bounds in ((0.0, math.inf), (1e-3, 0.2)))
        slopes = [float(-0.1 * g @ g - rate * (g @ c) - rate * step * (g @ r)) for rate, step in (free, bounded)]
        if g @ c < 0 and g @ r < 0:
            cases += 1
            assert slopes[0] == pytest.approx(-ETA * (1 - ZETA) * 0.1 * float(g @ g), rel=1e-9)
        if g @ c < 0 or g @ r >= 0:
            assert slopes[1] < 0 or g @ r >= 0
    assert cases > 50


@pytest.mark.parametrize("exponent", [1.0, 0.7, 1.6])
def test_a_quantized_value_is_the_clipped_one_and_the_error_in_steps(exponent: float) -> None:
    quantizer = CompandedQuantizer(bits=3, kind="weight", searching=True).double()
    with torch.no_grad():
        for name, value in (("step", 0.21), ("range", 0.8), ("exponent", exponent)):
            getattr(quantizer, f"clip_{name}").fill_(value)
    x = drawn(300, torch.Generator().manual_seed(2))
    ranges = quantizer.clip_step, quantizer.clip_range, quantizer.clip_exponent
    clipped, error = clipped_and_error(x, *ranges)
    assert torch.allclose(quantizer(x), clipped + 0.21 * error, atol=1e-12)
    expected = [math.copysign(min(abs(value), 0.8) ** exponent, value) for value in x.tolist()]
    assert clipped.tolist() == pytest.approx(expected)
    assert float(error.detach().abs().max()) <= 0.5 + 1e-12


def test_least_squares_with_an_irrelevant_group_ends_at_the_solution_of_the_reduced_problem() -> None:
    """The irrelevant half of the weights is redundant, is exactly zero after a period, and the rest is the solution."""
    noise = torch.Generator().manual_seed(3)
    relevant = torch.randn(400, 6, generator=noise, dtype=torch.float64)
    inputs = torch.cat([relevant, torch.randn(400, 6, generator=noise, dtype=torch.float64)], dim=1)
    target = relevant @ drawn(6, noise) + 0.1 * drawn(400, noise)
    solution = torch.linalg.lstsq(relevant, target.unsqueeze(1)).solution.flatten()
    weight = nn.Parameter(0.5 * drawn(12, noise).view(2, 6))
    quantizer = CompandedQuantizer(bits=16, kind="weight", searching=True, linear=True).double()
    with torch.no_grad():
        quantizer.clip_range.fill_(4.0)
        quantizer.clip_step.fill_(4.0 / (2**15 - 1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    bounds = weight.new_tensor([4.0 / (2**15 - 1)]), weight.new_tensor([4.0 / 127])
    period, redundant = Periods(start=20, length=10, count=1), torch.tensor([0])
    for step in range(300):
        loss = (inputs @ quantizer(weight).flatten() - target).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if period.begins(step):
            momentum = optimizer.state[weight]["momentum_buffer"]
            redundant = saliency(zip(weight.detach(), momentum, strict=True)).argmin().view(1)
            assert redundant.tolist() == [1]
        if step < period.start:
            continue
        with torch.no_grad():
            if period.factor(step) > 0:
                forget(((weight, redundant),), {weight: quantizer}, bounds, optimizer, 1 - period.factor(step))
                assert bounds[0] * (1 - 1e-9) <= quantizer.clip_step <= bounds[1] * (1 + 1e-9)
            else:
                weight[redundant] = 0.0
                quantizer.clip_step.copy_(bounds[0][0])
    assert weight[1].tolist() == [0.0] * 6
    assert torch.allclose(weight[0].detach(), solution, atol=1e-3)
