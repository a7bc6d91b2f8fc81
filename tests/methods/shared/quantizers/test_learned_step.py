"""LSQ: its grid, its gradients and its first steps."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.compression.kernels import Kind
from methods.shared.quantizers.learned_step import LearnedStep, grid, learned_step, quantize_by_step

KINDS: tuple[Kind, Kind] = ("weight", "activation")


def drawn(kind: Kind, count: int = 4000) -> Tensor:
    x = torch.randn(4, count // 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x if kind == "weight" else x.clamp_min(0)


def by_hand(x: float, step: float, bits: int, kind: Kind) -> float:
    """The nearest level, by comparison with all of them."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind == "weight" else (0, 2**bits - 1)
    return min((step * level for level in range(low, high + 1)), key=lambda level: abs(level - x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_values_are_the_nearest_levels(bits: int, kind: Kind) -> None:
    x, step = 3 * drawn(kind, 200), torch.tensor(0.173, dtype=torch.float64)
    expected = [by_hand(value, 0.173, bits, kind) for value in x.flatten().tolist()]
    assert quantize_by_step(x, step, bits, kind).flatten().tolist() == pytest.approx(expected)
    assert (grid(bits, "weight"), grid(bits, "activation")) == (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        (0, 2**bits - 1),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_gradients_are_those_of_the_paper(bits: int, kind: Kind) -> None:
    """Eqs. 3 and 5, and the scale of Section 2.2, which counts the inputs of one image of four."""
    low, high = grid(bits, kind)
    x = drawn(kind, 300).requires_grad_()
    step = torch.tensor(0.31, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(4, 75, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    to_x, to_step = torch.autograd.grad((quantize_by_step(x, step, bits, kind) * towards).sum(), [x, step])
    expected = 0.0
    rows = ((x / 0.31).flatten().tolist(), towards.flatten().tolist(), to_x.flatten().tolist())
    for value, weight, found in zip(*rows, strict=True):
        inside = low <= value <= high
        assert found == pytest.approx(weight if inside else 0.0)
        expected += weight * (round(value) - value if inside else low if value < low else high)
    assert float(to_step) == pytest.approx(expected / math.sqrt((300 if kind == "weight" else 75) * high))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_learns_until_its_gradient_is_zero_and_falls_with_the_bits(kind: Kind) -> None:
    """Squared error of the quantized tensor: training ends at the root of the closed form, found by bisection."""
    x, ends = drawn(kind), []
    for bits in (2, 3, 4):
        quantizer = LearnedStep(bits=bits, kind=kind).double()
        quantizer.calibrate(x)
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.15)
        for _ in range(300):
            optimizer.zero_grad()
            (quantizer(x) - x).square().sum().div(math.sqrt(x.numel())).backward()
            optimizer.step()
        low, high = grid(bits, kind)

        def slope(step: float, low: int = low, high: int = high) -> float:
            v = x / step
            rounded = v.clamp(low, high).round()
            moved = torch.where(v < low, float(low), torch.where(v > high, float(high), rounded - v))
            return float((2 * (step * rounded - x) * moved).sum())

        assert quantizer.step.item() == pytest.approx(root(slope, 0.01, 3.0), rel=0.02)
        ends.append(quantizer.step.item())
    assert ends[0] > ends[1] > ends[2]


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """By bisection; the function rises."""
    assert function(low) < 0 < function(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_a_calibrated_step_has_the_least_squared_error(bits: int, kind: Kind) -> None:
    x = drawn(kind)
    quantizer = LearnedStep(bits=bits, kind=kind).double()
    quantizer.calibrate(x)

    def error(step: float) -> float:
        return float((quantize_by_step(x, torch.tensor(step, dtype=torch.float64), bits, kind) - x).square().mean())

    assert error(quantizer.step.item()) <= 1.02 * min(error(0.005 * number) for number in range(1, 600))


def test_the_first_steps_of_the_code() -> None:
    weight, activation = drawn("weight") + 0.1, drawn("activation")
    of_weight = LearnedStep(bits=3, kind="weight", clip_init="paper").double()
    of_weight.calibrate(weight)
    mean, spread = float(weight.mean()), 3 * float(weight.std())
    assert of_weight.step.item() == pytest.approx(max(abs(mean - spread), abs(mean + spread)) / 4)
    of_input = LearnedStep(bits=3, kind="activation", clip_init="paper").double()
    of_input.calibrate(activation)
    assert of_input.step.item() == pytest.approx(2 * float(activation.mean()) / math.sqrt(7))


def test_a_tensor_of_zeros_and_one_bit() -> None:
    quantizer = learned_step(bits=4, kind="activation", normalized=False)
    quantizer.calibrate(torch.zeros(1, 10))
    assert quantizer(torch.zeros(1, 10)).tolist() == [[0.0] * 10]
    assert learned_step(bits=1, kind="activation", normalized=False)(torch.tensor([[0.2, 0.8]])).tolist() == [
        [0.0, 1.0]
    ]
    with pytest.raises(ValueError, match="no positive level at 1 bit; give at least 2 bits"):
        learned_step(bits=1, kind="weight", normalized=False)
