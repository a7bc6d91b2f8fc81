"""Arguments of bit sharing whose results are known, element by element."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from bench.compression.kernels import Kind
from methods.shared.bit_sharing.quantization import bit_sharing, bit_sharing_literal

KINDS: tuple[Kind, ...] = ("weight", "activation")
CHAINS = [(4,), (2, 4), (2, 4, 8), (3, 6, 12)]
SHAPE = (4, 3, 3, 4)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tie_distance(z: float, bits: Sequence[int]) -> float:
    """How far a value is from the nearest middle between two levels of any width, in steps."""
    scaled = [z * (2**width - 1) - 0.5 for width in bits]
    return min(abs(value - round(value)) for value in scaled)


@cache
def away_from_ties(shape: tuple[int, ...], clip: float, kind: Kind, bits: tuple[int, ...], seed: int = 0) -> Tensor:
    """Values inside and outside the clip range, none of which rounds differently in another precision."""
    found: list[float] = []
    for x in torch.randn(3 * math.prod(shape), generator=draws(seed), dtype=torch.float64).tolist():
        ratio = min(max(x / clip, 0 if kind == "activation" else -1), 1)
        z = ratio if kind == "activation" else (ratio + 1) / 2
        if tie_distance(z, bits) > 2e-3 and abs(abs(x) - clip) > 1e-3:
            found.append(x)
    return torch.tensor(found[: math.prod(shape)], dtype=torch.float64).view(shape)


# --- the mathematics, one element at a time ---


def level(z: float, width: int) -> float:
    """D(z, s)."""
    count = 2**width - 1
    return math.ceil(z * count - 0.5) / count


def position(x: float, clip: float, kind: Kind) -> float:
    """Eqs. 1 and 2."""
    if kind == "activation":
        return min(max(x / clip, 0.0), 1.0)
    return (min(max(x / clip, -1.0), 1.0) + 1) / 2


def relaxed_value(x: float, clip: float, gates: Sequence[float], bits: Sequence[int], kind: Kind) -> float:
    """Eq. 10 with gates of any value."""
    z = position(x, clip, kind)
    total, product_of_gates = level(z, bits[0]), 1.0
    for (low, high), opened in zip(pairwise(bits), gates, strict=True):
        product_of_gates *= opened
        total += product_of_gates * level(z - level(z, low), high)
    return clip * total if kind == "activation" else clip * (2 * total - 1)


class Case(NamedTuple):
    """Arguments of bit sharing, and the upstream gradients of its results."""

    x: Tensor
    clip: Tensor
    thresholds: Tensor
    mask: Tensor | None
    grad: Tensor
    grad_gates: Tensor


def make_case(
    kind: Kind, bits: tuple[int, ...], pattern: Sequence[int], *, masked: bool, channels_last: bool, dtype: torch.dtype
) -> Case:
    """Random arguments for which the gates are `pattern`."""
    clip = 1.25
    x = away_from_ties(SHAPE, clip, kind, bits).to(dtype)
    grad = torch.randn(SHAPE, generator=draws(7), dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last)
    mask = None
    if masked:
        mask = torch.tensor([1.0, 0.0, 1.0], dtype=dtype).view(1, -1, 1, 1)
        if kind == "weight":
            mask = mask * torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=dtype).view(-1, 1, 1, 1)
    measured = torch.tensor(mean_errors(x, clip, bits, kind, mask), dtype=dtype)
    offsets = torch.tensor([-0.01 if opened else 0.013 for opened in pattern], dtype=dtype)
    grad_gates = torch.randn(len(bits) - 1, generator=draws(8), dtype=torch.float64).to(dtype)
    return Case(x, torch.tensor(clip, dtype=dtype), measured + offsets, mask, grad, grad_gates)


def mean_errors(x: Tensor, clip: float, bits: Sequence[int], kind: Kind, mask: Tensor | None) -> list[float]:
    """Â of each gate, by a loop."""
    counted = torch.ones_like(x) if mask is None else mask.expand_as(x)
    inside = [
        position(v, clip, kind) for v, m in zip(x.flatten().tolist(), counted.flatten().tolist(), strict=True) if m
    ]
    return [sum(abs(z - level(z, low)) for z in inside) / len(inside) for low in bits[:-1]]


CASES = [
    (kind, bits, pattern) for kind in KINDS for bits in CHAINS for pattern in product((0, 1), repeat=len(bits) - 1)
]


class Outcome(NamedTuple):
    """Results and gradients of one form."""

    value: Tensor
    gates: Tensor
    to_x: Tensor
    to_clip: Tensor
    to_thresholds: Tensor


def run(case: Case, bits: Sequence[int], kind: Kind, *, literal: bool, task_gradient: bool = True) -> Outcome:
    """Results and gradients of bit sharing."""
    leaves = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in case[:3]]
    if literal:
        value, gates = bit_sharing_literal(*leaves, bits, kind, case.mask)
    else:
        value, gates, _ = bit_sharing(*leaves, bits, kind, case.mask, task_gradient=task_gradient)
    return outcome(case, value, gates, leaves)


def outcome(case: Case, value: Tensor, gates: Tensor, leaves: Sequence[Tensor]) -> Outcome:
    """Results, and the gradients of a case for tensor, clip value and thresholds."""
    loss = (value * case.grad).sum() + (gates * case.grad_gates).sum()
    return Outcome(value.detach(), gates.detach(), *torch.autograd.grad(loss, leaves))
