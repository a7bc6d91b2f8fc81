"""Bit sharing: every bitwidth as a subset of one shared set of quantized values (paper, Sections 3.1 and 3.2).

Two forms of the same mathematics. `decompose` and `bit_sharing_literal` read like Eqs. 8 and 10 and are
differentiated by autograd. `bit_sharing` is what searches run: gates are binary, so by Theorem 1 its value is
the plain quantization at the active width, and its backward pass recomputes the residuals from the input.
It keeps that and its output, which the convolution keeps anyway.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.api import replicas
from bench.compression.kernels import Kind, gradients, mean_errors, quantized, steps
from bench.compression.quantizer import denormalize, discretize, normalize, straight_through
from methods.shared.gates import gate, opened, surrogate_slope


def check_chain(bits: Sequence[int]) -> None:
    """Make sure that candidates form a chain b, γb, γγ′b, … as Theorem 1 demands.

    Raises:
        ValueError: One is not a multiple of the one before it.
    """
    if not bits or bits[0] < 1:
        raise ValueError(f"bit candidates {list(bits)} must be one or more positive widths, e.g. [2, 4, 8]")
    for low, high in pairwise(bits):
        if high <= low or high % low:
            raise ValueError(f"{high} is not a multiple of {low}: each candidate must be one of the width before it")


def decompose(z: Tensor, bits: Sequence[int]) -> list[Tensor]:
    """z_b1 and the re-assignment offsets r_b2, …, r_bK (Eq. 8); their sum is D(z, s_bK).

    Args:
        z: Normalised values in [0, 1], any shape.
        bits: The chain of candidates.
    """
    parts = [discretize(z, bits[0])]
    for low, high in pairwise(bits):
        parts.append(discretize(z - discretize(z, low), high))
    return parts


def bit_sharing_literal(
    x: Tensor,
    clip: Tensor,
    thresholds: Tensor,
    bits: Sequence[int],
    kind: Kind,
    mask: Tensor | None = None,
    scale: Tensor | float = 1.0,
    probed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 10 term by term; D is the identity in the backward pass, H the sigmoid's slope (Eq. 12).

    Args and result are those of `bit_sharing`.
    """
    z = normalize(x, clip, kind)
    gates = gate(scale * metrics_literal(z, bits, mask), thresholds)
    used = gates if probed is None else gates - (gates * probed).detach()
    offsets = torch.zeros_like(z)
    for index in reversed(range(1, len(bits))):
        residual = straight_through(z - straight_through(z, bits[index - 1]), bits[index])
        offsets = used[index - 1] * (residual + offsets)
    return denormalize(straight_through(z, bits[0]) + offsets, clip, kind), gates


def metrics_literal(z: Tensor, bits: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Normalised gate metrics Â_j = mean |z − z_b(j−1)|, shape (K − 1,), without gradient (Eq. 10, Section 3.2.3).

    Args:
        z: Normalised values.
        bits: The chain of candidates.
        mask: 1 for elements that count, broadcastable to `z`; all when absent.
    """
    counted = torch.ones_like(z) if mask is None else mask.expand_as(z)
    errors = [((z.detach() - discretize(z, low)).abs() * counted).sum() / counted.sum() for low in bits[:-1]]
    return torch.stack(errors) if errors else z.new_zeros(0)


def bit_sharing(
    x: Tensor,
    clip: Tensor,
    thresholds: Tensor,
    bits: Sequence[int],
    kind: Kind,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
    probed: Tensor | None = None,
    *,
    task_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize at the width that the gates choose.

    Args:
        x: Any shape.
        clip: v, a positive scalar; or one for each width, shape (K,).
        thresholds: α_b2, …, α_bK, shape (K − 1,).
        bits: The chain of candidates, K of them.
        kind: Weights or activations.
        mask: 1 for elements that count in the metrics; without gradient.
        scale: Factors of the metrics, shape (K − 1,); 1 when absent.
        probed: 1 for gates that act as if they were shut, shape (K − 1,); none when absent. The task's gradient on
            such a gate is that of a shut one.
        task_gradient: Whether the task loss reaches the gates; the control `cost_only` switches it off.

    Returns:
        The quantized tensor; the gates g_b2, …, g_bK, shape (K − 1,), each the result of its own threshold
        whatever the gates before it, probed or not; and their metrics, shape (K − 1,), without gradient.
    """
    form = _BitSharing if clip.ndim == 0 else _ByWidth
    result: tuple[Tensor, Tensor, Tensor] = form.apply(  # type: ignore[no-untyped-call]
        x, clip, thresholds, tuple(bits), kind, mask, scale, probed, task_gradient
    )
    return result


class _BitSharing(torch.autograd.Function):
    """The value at the active width; the gradients of Eqs. 10 and 12 with straight-through D.

    With y = v·q, q the active level and r_j the offsets (for weights v becomes 2v):
    dy/dx and dy/dv are the plain quantizer's; dL/dg_j = v Π_{i<j} g_i ⟨dL/dy, r_j + g_{j+1}(r_{j+1} + …)⟩.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        clip: Tensor,
        thresholds: Tensor,
        bits: tuple[int, ...],
        kind: Kind,
        mask: Tensor | None,
        scale: Tensor | None,
        probed: Tensor | None,
        task_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        measured = _scaled(mean_errors(x, clip, bits[:-1], kind, mask), scale, x, kind)
        gates = (measured >= thresholds).to(thresholds.dtype)
        used = _used(gates, probed)
        values = quantized(x, clip, opened([steps(width) for width in bits], used), kind)
        ctx.save_for_backward(x, clip, values, used, measured - thresholds)
        ctx.bits, ctx.kind, ctx.task_gradient = bits, kind, task_gradient
        ctx.mark_non_differentiable(measured)
        return values, gates, measured

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, clip, values, used, excess = ctx.saved_tensors
        to_gates = ctx.task_gradient and len(ctx.bits) > 1
        counts = [steps(width) for width in ctx.bits] if to_gates else []
        found = gradients(grads[0], x, values, clip, ctx.kind, counts)
        grad_gates = grads[1]
        if to_gates:
            scale = clip if ctx.kind == "activation" else 2 * clip
            # ⟨grad, r_j⟩ with r_j = z_bj − z_b(j−1), by Theorem 1
            grad_gates = grad_gates + scale * _gate_products(found.levels.diff(), used)
        return found.to_x, found.to_clip, -grad_gates * surrogate_slope(excess), *[None] * 6


class _ByWidth(torch.autograd.Function):
    """A clip value for each width, Q_j = v_j · D_bj(x/v_j): x_q = Q_1 + g_2(Q_2 − Q_1 + g_3(Q_3 − Q_2 + …)).

    The subset of Theorem 1 is given up: widths share their weights, but no longer their grid. Each metric is taken on
    the grid of the width below its gate; dL/dg_j comes from the products ⟨dL/dy, Q_j⟩, one pass a width, and the clip
    value of the active width alone learns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        clips: Tensor,
        thresholds: Tensor,
        bits: tuple[int, ...],
        kind: Kind,
        mask: Tensor | None,
        scale: Tensor | None,
        probed: Tensor | None,
        task_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = [mean_errors(x, clip, [width], kind, mask) for clip, width in zip(clips, bits[:-1], strict=False)]
        measured = _scaled(torch.cat([clips.new_zeros(0), *found]), scale, x, kind)
        gates = (measured >= thresholds).to(thresholds.dtype)
        used = _used(gates, probed)
        active = used.cumprod(0).sum().long()
        counts = clips.new_tensor([steps(width) for width in bits])
        values = quantized(x, _entry(clips, active), _entry(counts, active), kind)
        ctx.save_for_backward(x, clips, values, used, measured - thresholds, active)
        ctx.bits, ctx.kind, ctx.task_gradient = bits, kind, task_gradient
        ctx.mark_non_differentiable(measured)
        return values, gates, measured

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, clips, values, used, excess, active = ctx.saved_tensors
        found = gradients(grads[0], x, values, _entry(clips, active), ctx.kind)
        grad_gates = grads[1]
        if ctx.task_gradient and len(ctx.bits) > 1:
            products = [
                gradients(grads[0], x, quantized(x, clip, steps(width), ctx.kind), clip, ctx.kind).value
                for clip, width in zip(clips, ctx.bits, strict=True)
            ]
            grad_gates = grad_gates + _gate_products(torch.stack(products).diff(), used)
        to_clips = torch.zeros_like(clips).index_copy(0, active.view(1), found.to_clip.view(1))
        return found.to_x, to_clips, -grad_gates * surrogate_slope(excess), *[None] * 6


def _scaled(measured: Tensor, scale: Tensor | None, x: Tensor, kind: Kind) -> Tensor:
    """Metrics of the whole batch, in the scale in which gates of different tensors are compared."""
    if kind == "activation":  # weights are the same on all replicas
        measured = replicas.mean(measured, weight=len(x))
    return measured if scale is None else measured * scale


def _used(gates: Tensor, probed: Tensor | None) -> Tensor:
    """The gates that act: all but the probed ones."""
    return gates if probed is None else gates * (1 - probed)


def _entry(values: Tensor, index: Tensor) -> Tensor:
    """One entry of a vector as a scalar, without waiting for the device."""
    return values.index_select(0, index.view(1)).squeeze(0)


def _gate_products(residuals: Tensor, gates: Tensor) -> Tensor:
    """Π_{i<j} g_i (⟨grad, r_j⟩ + g_{j+1}(⟨grad, r_{j+1}⟩ + …)) for j = 2, …, K.

    Args:
        residuals: ⟨grad, r_j⟩, shape (K − 1,).
        gates: Shape (K − 1,).
    """
    tails = [residuals[-1]]
    for index in reversed(range(len(gates) - 1)):
        tails.append(residuals[index] + gates[index + 1] * tails[-1])
    before = torch.cat([torch.ones_like(gates[:1]), torch.cumprod(gates, 0)[:-1]])
    return before * torch.stack(tails[::-1])
