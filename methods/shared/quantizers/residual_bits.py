"""The nested grids of Bayesian Bits: a finer grid adds a quantized residual error to the value on the coarser one.

This is the decomposition of van Baalen et al. 2020 (arXiv 2005.07093, Section 2), with rounding and ranges as in the
authors' code (Qualcomm-AI-research/BayesianBits, `quantization/straight_through.py`). Values are not normalised, so
that a gate of 0 gives exactly zero. The grid of a signed tensor has 2^b − 1 levels; 0 is one of them, and the bounds of
the range are not. SBS has other grids (`methods.shared.bit_sharing`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind, blocks, in_one, inner, steps
from bench.compression.quantizer import positive
from methods.shared.quantizers.starts import ClipInit, best_grid

_CLIP_SHRINK = 1e-7
"""Share of the range by which it is clipped inside its bounds (the authors' `pact_clip`). The bounds of a signed range
lie half-way between two codes, and must not be rounded out of the grid."""


def step_sizes(clip: Tensor, bits: Sequence[int], kind: Kind) -> list[Tensor]:
    """Compute the steps s_2, s_4, s_8, …, each the one before divided by a whole number.

    Args:
        clip: Bound of the range, a positive scalar: weights lie in [−clip, clip], inputs in [0, clip].
        bits: Chain of candidate bits.
        kind: Weights, which are signed, or inputs, which are not.
    """
    length = 2 * clip if kind == "weight" else clip
    sizes = [length / steps(bits[0])]
    for low, high in pairwise(bits):
        sizes.append(sizes[-1] / (steps(high) // steps(low)))  # 2² + 1, 2⁴ + 1, …
    return sizes


def residuals(x: Tensor, clip: Tensor, bits: Sequence[int], kind: Kind) -> list[Tensor]:
    """Compute x_2, ε_4, ε_8, …, without gradients. The sum of the first j of them is x on the j-th grid.

    Args:
        x: Tensor of any shape.
        clip: Bound of the range, a positive scalar.
        bits: Chain of candidate bits, K of them.
        kind: Weights or activations.
    """
    highest = (1 - _CLIP_SHRINK) * clip
    rest = x.clamp(-highest if kind == "weight" else torch.zeros_like(highest), highest)
    parts = []
    for size in step_sizes(clip, bits, kind):
        parts.append((rest / size).round_().mul_(size))  # ties go to even, as the authors' do
        rest = rest - parts[-1]
    return parts


def nested(gates: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Compute x_2 + z_4 (ε_4 + z_8 (ε_8 + …)).

    Args:
        gates: Gates z_4, z_8, …, shape (K − 1,).
        parts: Tensors x_2, ε_4, ε_8, …, K of them, of one shape.
    """
    total = parts[-1]
    for gate, part in zip(reversed(gates.unbind()), reversed(parts[:-1]), strict=True):
        total = part + gate * total
    return total


class _Gated(torch.autograd.Function):
    """x_q with the gradients that autograd finds where rounding is the identity; only x is kept for the backward pass.

    Every part is homogeneous in x and range together. So, with g the gradient with respect to x_q, the gradient of x is
    g inside the range and 0 outside, and range · dL/drange = ⟨g, x_q⟩ − ⟨g, x⟩ over the inside.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, gates: Tensor, bits: tuple[int, ...], kind: Kind) -> Tensor:
        ctx.save_for_backward(x, clip, gates)
        ctx.bits, ctx.kind = bits, kind
        result = None if in_one(x) else torch.empty_like(x)
        values = x
        for block, out in blocks(x, result):
            values = nested(gates, residuals(_precise(block), clip, bits, kind))
            if out is not None:
                out.copy_(values)
        return values.to(x.dtype) if result is None else result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, clip, gates = ctx.saved_tensors
        highest = (1 - _CLIP_SHRINK) * clip
        lowest = -highest if ctx.kind == "weight" else torch.zeros_like(highest)
        to_x = None if in_one(x) else torch.empty_like(x)
        passed, inside, products = x, clip.new_zeros(()), clip.new_zeros(len(ctx.bits))
        for block, upstream, out in blocks(x, grads[0], to_x):
            block, upstream = _precise(block), _precise(upstream)  # noqa: PLW2901
            passed = torch.where((block > lowest) & (block < highest), upstream, 0)
            inside = inside + inner(passed, block)
            parts = residuals(block, clip, ctx.bits, ctx.kind)
            products = products + torch.stack([inner(upstream, part) for part in parts])
            if out is not None:
                out.copy_(passed)
        value = nested(gates, products.unbind())  # ⟨g, x_q⟩, since x_q is linear in its parts
        to_clip = (value - inside) / clip
        return passed.to(x.dtype) if to_x is None else to_x, to_clip, _to_gates(gates, products), None, None


def _precise(x: Tensor) -> Tensor:
    """Convert to single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _to_gates(gates: Tensor, products: Tensor) -> Tensor:
    """Compute dL/dz_j = Π_{i<j} z_i (⟨g, ε_j⟩ + z_{j+1} (⟨g, ε_{j+1}⟩ + …)), shape (K − 1,).

    Args:
        gates: Gates z_4, z_8, …, shape (K − 1,).
        products: Inner products ⟨g, x_2⟩, ⟨g, ε_4⟩, …, shape (K,).
    """
    to_gates, before = [], torch.ones_like(products[0])
    for index, gate in enumerate(gates.unbind()):
        to_gates.append(before * nested(gates[index + 1 :], products[index + 1 :].unbind()))
        before = before * gate
    return torch.stack(to_gates) if to_gates else torch.zeros_like(gates)


def gated_quantization(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int], kind: Kind) -> Tensor:
    """Compute x_2 + z_4 (ε_4 + z_8 (ε_8 + …)), with straight-through gradients for tensor, range and gates.

    Args:
        x: Tensor of any shape.
        clip: Bound of the range, a positive scalar.
        gates: Gates z_4, z_8, …, between 0 and 1, shape (K − 1,).
        bits: Chain of candidate bits, K of them.
        kind: Weights or activations.
    """
    result: Tensor = _Gated.apply(x, clip, gates, tuple(bits), kind)
    return result


class RangeQuantizer(nn.Module):
    """The paper's quantizer at a fixed number of bits, with a learned range.

    Args:
        bits: Number of bits.
        kind: Weights, whose range is symmetric and whose grid of 2^b − 1 levels contains 0, or activations.
        normalized: Ignored, since the authors do not standardise weights.
        clip_init: First value of the range: that of the least squared error, or the largest value of the tensor, as in
            the authors' code (`get_x_min_x_max`).

    Attributes:
        calibrated_for: Number of bits for which the range is calibrated.
    """

    def __init__(self, *, bits: int, kind: Kind, normalized: bool = False, clip_init: ClipInit = "calibrated") -> None:
        super().__init__()
        self.bits = self.calibrated_for = bits
        self.kind: Kind = kind
        self.clip_init: ClipInit = clip_init
        self.clip = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        clip = positive(self.clip)
        return gated_quantization(x, clip, clip.detach().new_zeros(0), (self.bits,), self.kind)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the range for a tensor of any shape."""
        signed = self.kind == "weight"
        largest = float((x.abs() if signed else x).max())
        if not largest > 0:
            self.clip.fill_(1.0)
        elif self.clip_init == "paper":
            self.clip.fill_(largest)
        else:
            self.clip.fill_(self._best_range(x))

    def _best_range(self, x: Tensor) -> float:
        """Find the range with the least squared error; a signed one ends half a step beyond its last level."""
        step, limit = best_grid(x, self.calibrated_for, signed=self.kind == "weight")
        return limit + step / 2 if self.kind == "weight" else limit
