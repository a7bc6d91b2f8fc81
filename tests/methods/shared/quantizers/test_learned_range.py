"""Q with a learned step, range and exponent: values and gradients against loops over single numbers."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from methods.shared.quantizers.learned_range import bounded, least_error, levels_of, quantize

EXPONENTS = [None, 0.6, 1.0, 1.7]
STEP, LIMIT = 0.13, 0.9


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def slow(x: float, step: float, limit: float, exponent: float, *, signed: bool) -> float:
    """Q of one number, as the formula says it."""
    if not signed and x < 0:
        return 0.0
    code = math.floor(min(abs(x), limit) ** exponent / step + 0.5)
    return math.copysign(code * step, x) if code else 0.0


def slow_gradients(x: float, step: float, limit: float, exponent: float, *, signed: bool) -> Sequence[float]:
    """Derivatives of Q for x, d, q and t, rounding taken for the identity."""
    if not signed and x < 0:
        return 0.0, 0.0, 0.0, 0.0
    sign, clipped = math.copysign(1.0, x), min(abs(x), limit)
    code = math.floor(clipped**exponent / step + 0.5)
    outside = abs(x) > limit
    dead = (step / 2) ** (1 / exponent)
    to_x = 0.0 if outside else exponent * max(abs(x), dead) ** (exponent - 1)
    to_limit = sign * exponent * limit ** (exponent - 1) if outside else 0.0
    return to_x, sign * (code - clipped**exponent / step), to_limit, sign * clipped**exponent * math.log(clipped)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_formula(exponent: float | None, signed: bool) -> None:
    x = torch.cat([values(300), torch.tensor([0.0, LIMIT, -LIMIT, 3.0, STEP / 2, -STEP / 2])])
    t = None if exponent is None else scalar(exponent)
    found = quantize(x, scalar(STEP), scalar(LIMIT), t, signed=signed)
    expected = [slow(value, STEP, LIMIT, exponent or 1.0, signed=signed) for value in x.tolist()]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert (found < 0).any() == signed


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_are_those_of_the_stated_surrogate(exponent: float | None, signed: bool) -> None:
    x, upstream = values(300, seed=1).requires_grad_(), values(300, seed=2)
    parameters = [scalar(STEP), scalar(LIMIT), *([] if exponent is None else [scalar(exponent)])]
    step, limit, *rest = parameters
    loss = (quantize(x, step, limit, rest[0] if rest else None, signed=signed) * upstream).sum()
    to_x, *to_parameters = torch.autograd.grad(loss, [x, *parameters])
    rows = [slow_gradients(value, STEP, LIMIT, exponent or 1.0, signed=signed) for value in x.tolist()]
    expected = torch.tensor(rows, dtype=torch.float64) * upstream.unsqueeze(1)
    assert torch.allclose(to_x, expected[:, 0], atol=1e-12)
    for index, found in enumerate(to_parameters, start=1):
        assert found.item() == pytest.approx(expected[:, index].sum().item(), abs=1e-10)


def test_slopes_near_zero_are_finite_for_small_exponents() -> None:
    x = torch.tensor([0.0, 1e-30, -1e-30], dtype=torch.float64, requires_grad=True)
    t = scalar(0.5)
    to_x, to_t = torch.autograd.grad(quantize(x, scalar(STEP), scalar(LIMIT), t, signed=True).sum(), [x, t])
    assert to_x.tolist() == pytest.approx([0.5 * (STEP / 2) ** -1] * 3)
    assert math.isfinite(to_t.item())


def test_half_precision_is_rounded_once_at_the_end() -> None:
    x = values(100).to(torch.bfloat16)
    step, limit = torch.tensor(0.013), torch.tensor(0.9)
    found = quantize(x, step, limit, signed=True)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, quantize(x.float(), step, limit, signed=True).to(torch.bfloat16))


@pytest.mark.parametrize(("bits", "signed", "levels"), [(2, True, 1), (8, True, 127), (2, False, 3), (8, False, 255)])
def test_levels_of_a_width(bits: int, signed: bool, levels: int) -> None:
    assert levels_of(bits, signed) == levels
    assert levels_of(bits, torch.tensor(signed)).item() == levels


def test_bounds_of_gradients() -> None:
    value = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    (bounded(value, torch.tensor([0.5, 0.5, 9.0])) * torch.tensor([3.0, -3.0, 3.0])).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [0.5, -0.5, 3.0]


def test_the_candidate_of_least_error_is_taken() -> None:
    x = values(500)
    candidates = [(0.5, 1.5), (0.75, 2.25), (1.5, 4.5)]
    errors = [
        sum((slow(value, step, limit, 1.0, signed=True) - value) ** 2 for value in x.tolist())
        for step, limit in candidates
    ]
    assert least_error(x, candidates, signed=True) == candidates[errors.index(min(errors))]
