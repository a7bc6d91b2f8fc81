"""Bit sharing: every candidate of bits as a subset of one shared set of quantized values (paper, Sections 3.1 and 3.2).

The mathematics has two forms. `decompose` and `bit_sharing_literal` read like Eqs. 8 and 10 and are differentiated by
autograd. `bit_sharing` is the form that searches run. Gates are binary, so that by Theorem 1 its value is the plain
quantization at the bits that the gates choose. Its backward pass recomputes the residuals from the input; it keeps the
input and the output only, which the convolution keeps anyway.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.api import replicas
from bench.compression.kernels import Kind, gradients, mean_errors, quantized, steps
from bench.compression.quantizer import denormalize, discretize, normalize, straight_through
from methods.shared.gates import gate, opened


def check_chain(bits: tuple[int, ...]) -> tuple[int, ...]:
    """Return candidate bits if they form a chain b, γb, γγ′b, … as Theorem 1 demands.

    Raises:
        ValueError: A candidate is not a multiple of the one before it.
    """
    if not bits or bits[0] < 1:
        raise ValueError(f"bit candidates {list(bits)} must be one or more positive numbers, e.g. [2, 4, 8]")
    for low, high in pairwise(bits):
        if high <= low or high % low:
            raise ValueError(
                f"{high} is not a multiple of {low}; each candidate must be a multiple of the one before it"
            )
    return bits


# --- as the paper writes it ---------------------------------------------------------------------------------------


def decompose(z: Tensor, bits: Sequence[int]) -> list[Tensor]:
    """Split D(z, s_bK) into z_b1 and the re-assignment offsets r_b2, …, r_bK (Eq. 8).

    Args:
        z: Normalised values in [0, 1], any shape.
        bits: Chain of candidate bits.
    """
    parts = [discretize(z, bits[0])]
    for low, high in pairwise(bits):
        parts.append(discretize(z - discretize(z, low), high))
    return parts


def bit_sharing_literal(
    x: Tensor, clip: Tensor, thresholds: Tensor, bits: Sequence[int], kind: Kind, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute Eq. 10 term by term; D is the identity in the backward pass, H has the sigmoid's slope (Eq. 12).

    Arguments and results are those of `bit_sharing`, without the metrics.
    """
    z = normalize(x, clip, kind)
    gates = gate(metrics_literal(z, bits, mask), thresholds)
    return gated_literal(x, clip, gates, bits, kind), gates


def gated_literal(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int], kind: Kind) -> Tensor:
    """Compute the second line of Eq. 10; arguments and result are those of `gated_quantization`."""
    z = normalize(x, clip, kind)
    offsets = torch.zeros_like(z)
    for index in reversed(range(1, len(bits))):
        residual = straight_through(z - straight_through(z, bits[index - 1]), bits[index])
        offsets = gates[index - 1] * (residual + offsets)
    return denormalize(straight_through(z, bits[0]) + offsets, clip, kind)


def metrics_literal(z: Tensor, bits: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Compute Â_j = mean |z − z_b(j−1)|, the normalised gate metrics (Eq. 10, Section 3.2.3).

    Args:
        z: Normalised values.
        bits: Chain of candidate bits, K of them.
        mask: 1 for elements that count, broadcastable to `z`; all when absent.

    Returns:
        Shape (K − 1,), without gradient.
    """
    counted = torch.ones_like(z) if mask is None else mask.expand_as(z)
    errors = [((z.detach() - discretize(z, low)).abs() * counted).sum() / counted.sum() for low in bits[:-1]]
    return torch.stack(errors) if errors else z.new_zeros(0)


# --- as searches compute it ---------------------------------------------------------------------------------------


def bit_sharing(
    x: Tensor,
    clip: Tensor,
    thresholds: Tensor,
    bits: Sequence[int],
    kind: Kind,
    mask: Tensor | None = None,
    *,
    task_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a tensor at the bits that its gates choose (Eq. 10).

    Args:
        x: Any shape.
        clip: v, a positive scalar.
        thresholds: α_b2, …, α_bK, shape (K − 1,).
        bits: Chain of candidate bits, K of them.
        kind: Weights or activations.
        mask: 1 for elements that count in the metrics; without gradient.
        task_gradient: Whether the task loss reaches the gates; the control `cost_only` switches it off.

    Returns:
        The quantized tensor; the gates g_b2, …, g_bK, shape (K − 1,), each the result of its own threshold
        whatever the gates before it; and their metrics, shape (K − 1,), without gradient.
    """
    metrics = gate_metrics(x, clip, bits, kind, mask)
    gates = gate(metrics, thresholds)
    return gated_quantization(x, clip, gates if task_gradient else gates.detach(), bits, kind), gates, metrics


@torch.no_grad()
def gate_metrics(x: Tensor, clip: Tensor, bits: Sequence[int], kind: Kind, mask: Tensor | None = None) -> Tensor:
    """Compute the metrics Â of a tensor's gates over the whole batch; arguments are those of `bit_sharing`.

    Returns:
        Shape (K − 1,).
    """
    metrics = mean_errors(x, clip, bits[:-1], kind, mask)
    if kind == "weight":  # the same on all replicas
        return metrics
    return replicas.mean(metrics, weight=len(x))


def gated_quantization(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int], kind: Kind) -> Tensor:
    """Compute z_b1 + g_b2 (r_b2 + … + g_bK r_bK), not normalised, for binary gates.

    Args:
        x: Any shape.
        clip: v, a positive scalar.
        gates: g_b2, …, g_bK, shape (K − 1,).
        bits: Chain of candidate bits, K of them.
        kind: Weights or activations.
    """
    result: Tensor = _GatedQuantization.apply(x, clip, gates, tuple(bits), kind)
    return result


class _GatedQuantization(torch.autograd.Function):
    """The value at the chosen bits; the gradients of Eq. 10 with straight-through D.

    With y = v·q, q the chosen level and r_j the offsets (for weights v becomes 2v):
    dy/dx and dy/dv are the plain quantizer's; dL/dg_j = v Π_{i<j} g_i ⟨dL/dy, r_j + g_{j+1}(r_{j+1} + …)⟩.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, gates: Tensor, bits: tuple[int, ...], kind: Kind) -> Tensor:
        values = quantized(x, clip, opened([steps(b) for b in bits], gates), kind)
        ctx.save_for_backward(x, clip, values, gates)
        ctx.bits, ctx.kind = bits, kind
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, clip, values, gates = ctx.saved_tensors
        to_gates = ctx.needs_input_grad[2] and len(ctx.bits) > 1
        counts = [steps(b) for b in ctx.bits] if to_gates else []
        parts = gradients(grads[0], x, values, clip, ctx.kind, counts)
        if not to_gates:
            return parts.to_x, parts.to_clip, None, None, None
        scale = clip if ctx.kind == "activation" else 2 * clip
        # ⟨dL/dy, r_j⟩ with r_j = z_bj − z_b(j−1), by Theorem 1
        return parts.to_x, parts.to_clip, scale * gate_products(parts.levels.diff(), gates), None, None


def gate_products(residuals: Tensor, gates: Tensor) -> Tensor:
    """Compute Π_{i<j} g_i (⟨grad, r_j⟩ + g_{j+1}(⟨grad, r_{j+1}⟩ + …)) for j = 2, …, K.

    Args:
        residuals: ⟨grad, r_j⟩, shape (K − 1,).
        gates: Shape (K − 1,).
    """
    tails = [residuals[-1]]
    for index in reversed(range(len(gates) - 1)):
        tails.append(residuals[index] + gates[index + 1] * tails[-1])
    before = torch.cat([torch.ones_like(gates[:1]), torch.cumprod(gates, 0)[:-1]])
    return before * torch.stack(tails[::-1])
