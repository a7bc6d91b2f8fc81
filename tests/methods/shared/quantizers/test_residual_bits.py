"""Nested grids: the decomposition and its gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.compression.kernels import Kind
from methods.shared.quantizers.residual_bits import RangeQuantizer, gated_quantization, residuals, step_sizes

CHAINS = [(2, 4, 8), (4, 8), (2, 6), (3, 6, 12), (8,)]
KINDS: Sequence[Kind] = ("weight", "activation")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", CHAINS)
def test_the_first_parts_are_plain_rounding_at_each_width(bits: tuple[int, ...], kind: Kind) -> None:
    x, clip = normal(5_000), 1.7
    parts = residuals(x, number(clip), bits, kind)
    low = -clip if kind == "weight" else 0.0
    clipped = np.clip(x.numpy(), low * (1 - 1e-7), clip * (1 - 1e-7))
    for count, width in enumerate(bits, start=1):
        step = (clip - low) / (2**width - 1)
        found = torch.stack(parts[:count]).sum(0)
        assert found.numpy() == pytest.approx(step * np.rint(clipped / step), abs=1e-12)


@pytest.mark.parametrize(("kind", "fewer"), [("weight", 1), ("activation", 0)])
def test_grids_of_signed_tensors_have_one_level_less_and_zero(kind: Kind, fewer: int) -> None:
    clip = torch.tensor(0.7)
    low = -1.0 if kind == "weight" else 0.0
    bounds = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    x = 0.7 * torch.cat([torch.linspace(low, 1, 20_000), bounds])
    for gates, width in ((torch.zeros(2), 2), (torch.tensor([1.0, 0.0]), 4), (torch.ones(2), 8)):
        step = step_sizes(clip, (2, 4, 8), kind)[(2, 4, 8).index(width)]
        codes = gated_quantization(x, clip, gates, (2, 4, 8), kind) / step
        assert codes.sub(codes.round()).abs().max() < 1e-3
        levels = torch.unique(codes.round())
        assert len(levels) == 2**width - fewer
        assert 0 in levels
        if kind == "weight":
            assert torch.equal(levels, -levels.flip(0))


def test_bounds_of_a_range_never_leave_the_grid_in_single_precision() -> None:
    source = torch.Generator().manual_seed(0)
    for clip in 10 ** (4 * torch.rand(500, generator=source) - 3):
        for count, width in enumerate((2, 4, 8), start=1):
            top = torch.stack(residuals(clip.view(1), clip, (2, 4, 8), "weight")[:count]).sum()
            assert float(top / clip) == pytest.approx((2**width - 2) / (2**width - 1), abs=1e-5)


class _Round(torch.autograd.Function):
    """Rounding with the identity's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return grads[0]  # type: ignore[no-any-return]


def literal(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int], kind: Kind) -> Tensor:
    """Term by term, for autograd: clipped like PACT, residual errors of plain roundings."""
    high = (1 - 1e-7) * clip
    low = -high if kind == "weight" else torch.zeros_like(clip)
    u = high - F.relu(high - low - F.relu(x - low))
    full = clip * (2 if kind == "weight" else 1)
    total, product_of_gates = torch.zeros_like(u), torch.ones_like(clip)
    below = torch.zeros_like(u)
    for index, width in enumerate(bits):
        step = full / (2**width - 1)
        part = step * _Round.apply((u - below) / step)  # type: ignore[no-untyped-call]
        product_of_gates = product_of_gates * (gates[index - 1] if index else 1)
        total = total + product_of_gates * part
        below = below + part
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", CHAINS)
def test_gradients_are_those_of_straight_through_rounding(bits: tuple[int, ...], kind: Kind) -> None:
    values = [normal(7, 50), number(1.3), torch.linspace(0.3, 0.9, len(bits) - 1, dtype=torch.float64)]
    upstream = normal(7, 50, seed=1)
    results = []
    for form in (gated_quantization, literal):
        leaves = [value.clone().requires_grad_() for value in values]
        found = form(leaves[0], leaves[1], leaves[2], bits, kind)
        results.append([found.detach(), *torch.autograd.grad((found * upstream).sum(), leaves, allow_unused=True)])
    for mine, expected in zip(*results, strict=True):
        assert torch.allclose(mine, torch.zeros_like(mine) if expected is None else expected, atol=1e-10)
    assert results[0][1].eq(0).any() and results[0][1].ne(0).any()


@pytest.mark.parametrize("gates", [(0.0, 0.7), (1.0, 0.0)])
def test_a_gate_feels_what_its_opening_would_bring_and_nothing_behind_a_shut_one(gates: tuple[float, float]) -> None:
    x, clip, upstream = normal(200), number(1.5), normal(200, seed=1)
    z = torch.tensor(gates, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad((gated_quantization(x, clip, z, (2, 4, 8), "weight") * upstream).sum(), z)
    _, four, eight = residuals(x, clip, (2, 4, 8), "weight")
    first, second = gates
    assert found.tolist() == pytest.approx(
        [float((upstream * (four + second * eight)).sum()), first * float((upstream * eight).sum())]
    )


def test_large_tensors_are_worked_on_in_blocks_with_the_same_result() -> None:
    x = normal(3, 100_000)
    leaves = [x.requires_grad_(), number(2.0).requires_grad_(), torch.tensor([0.8, 0.4]).double().requires_grad_()]
    whole = [*leaves[:1], *leaves[1:]]
    upstream = normal(3, 100_000, seed=1)
    found = gated_quantization(whole[0], whole[1], whole[2], (2, 4, 8), "activation")
    expected = literal(whole[0], whole[1], whole[2], (2, 4, 8), "activation")
    assert torch.allclose(found, expected, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad((found * upstream).sum(), leaves),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9)


def test_half_precision_is_computed_in_single() -> None:
    x = torch.linspace(-1, 1, 999).bfloat16()
    found = gated_quantization(x, torch.tensor(1.0), torch.ones(2), (2, 4, 8), "weight")
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found, gated_quantization(x.float(), torch.tensor(1.0), torch.ones(2), (2, 4, 8), "weight").bfloat16()
    )


def test_ranges_start_at_the_least_and_the_largest_value() -> None:
    weight = RangeQuantizer(bits=4, kind="weight", clip_init="paper")
    activation = RangeQuantizer(bits=4, kind="activation", clip_init="paper")
    weight.calibrate(torch.tensor([-3.0, 2.0]))
    activation.calibrate(torch.tensor([0.0, 2.5]))
    assert (weight.clip.item(), activation.clip.item()) == (3.0, 2.5)
    activation.calibrate(torch.zeros(3))
    assert activation.clip.item() == 1.0
