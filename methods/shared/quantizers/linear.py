"""The linear quantizers of HAQ (Wang et al. 2019, arXiv 1811.08886, "Quantization"), and where they clip.

Weights lie at T/(2^(b−1) − 1) · {−(2^(b−1) − 1), …, 2^(b−1) − 1}, which are three levels at 2 bits, inputs at
T/(2^b − 1) · {0, …, 2^b − 1} with a range T that learns as in PACT. The threshold is where quantization changes the
distribution of values least. "The code" is the authors', github.com/mit-han-lab/haq.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.compression.kernels import Kind
from bench.compression.quantizer import drawn_sample, positive
from methods.shared.quantizers.pact import PactActivation

KL_BELOW = 5
"""Thresholds come from a divergence below this width, and from the largest value at and above it (the code)."""
WIDEST_RANGE = 6.0
"""An activation's range is at most that before it learns (the code)."""

_LEAST_PROBABILITY = 1e-12

Vector = NDArray[np.float64]


class _Linear(torch.autograd.Function):
    """The nearest of evenly spaced levels in ±T, the identity in the backward pass, also beyond T (the code)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor, count: int) -> Tensor:
        step = threshold / count
        return (weight.clamp(-threshold, threshold) / step).round_() * step

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class LinearWeight(nn.Module):
    """w ↦ s · round(clamp(w, ±T)/s) with s = T/(2^(b−1) − 1); the threshold T does not learn (the code).

    Args:
        bits: Width, at least 2; with one bit there would be no level but 0.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if bits < 2:
            raise ValueError(f"a symmetric linear quantizer has no levels at {bits} bit; the least width is 2")
        self.bits = bits
        self.threshold: Tensor
        self.register_buffer("threshold", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight tensor of any shape."""
        count = 2 ** (self.bits - 1) - 1
        result: Tensor = _Linear.apply(weight, positive(self.threshold), count)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the threshold from a weight tensor."""
        self.threshold.fill_(threshold_of(x, self.bits))


class RangedActivation(PactActivation):
    """x ↦ s · round(clip(x, 0, T)/s) with s = T/(2^b − 1); the range T learns as in PACT."""

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the range from a tensor as it arrives, without negative elements."""
        self.clip.fill_(min(threshold_of(x, self.bits), x.max().item(), WIDEST_RANGE))


def linear_quantizer(*, bits: int, kind: Kind, normalized: bool) -> nn.Module:
    """The linear quantizer of either kind; weights are quantized as they are."""
    return LinearWeight(bits) if kind == "weight" else RangedActivation(bits)


def threshold_of(x: Tensor, bits: int) -> float:
    """Where to clip a tensor of any shape, from its absolute values."""
    x = x.detach()
    sizes = drawn_sample(x).abs().double().cpu().numpy()
    if bits >= KL_BELOW or not sizes.max() > 0:
        return float(x.abs().max())
    return divergence_threshold(sizes, bits)


def divergence_threshold(sizes: Vector, bits: int) -> float:
    """The threshold at which the distribution of values changes least by quantization (the code).

    The distribution is the cumulative histogram C of √N bins. Clipped after i bins it is 1 from there on, and
    quantized it is known at 2^(b−1) evenly spaced bins of them and linear in between; of all i the one is taken whose
    Q has the least symmetric Kullback-Leibler divergence, Σ (C − Q) · log₂(C/Q).

    Args:
        sizes: Absolute values, shape (N,), not all 0.
        bits: b.
    """
    bins, nodes = math.ceil(math.sqrt(len(sizes))), 2 ** (bits - 1)
    counts, edges = np.histogram(sizes, bins=bins, range=(0, sizes.max()))
    exact = np.cumsum(counts) / len(sizes)
    if bins <= nodes:
        return float(edges[-1])
    candidates = range(nodes + 1, bins + 1)
    best = min(candidates, key=lambda kept: _divergence(exact, _coarse(exact, kept, nodes)))
    return float((best + 0.5) * edges[1])


def _coarse(exact: Vector, kept: int, nodes: int) -> Vector:
    """A cumulative distribution that is clipped after some bins and known at a few nodes of them."""
    clipped = np.where(np.arange(len(exact)) < kept - 1, exact, 1.0)
    places, knots = np.arange(kept), np.linspace(0, kept - 1, nodes)
    clipped[:kept] = np.interp(places, knots, np.interp(knots, places, clipped[:kept]))
    return clipped


def _divergence(exact: Vector, coarse: Vector) -> float:
    """Σ (C − Q) · log₂(C/Q), with bins that are empty up to there counted as almost so."""
    one, other = np.maximum(exact, _LEAST_PROBABILITY), np.maximum(coarse, _LEAST_PROBABILITY)
    return float(((one - other) * np.log2(one / other)).sum())
