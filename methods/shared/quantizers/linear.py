"""The linear quantizers of HAQ (Wang et al. 2019, arXiv 1811.08886, "Quantization"), and their thresholds.

Weights have the levels T/(2^(b−1) − 1) · {−(2^(b−1) − 1), …, 2^(b−1) − 1}, which are three at 2 bits. Inputs have the
levels T/(2^b − 1) · {0, …, 2^b − 1}, and their T learns as in PACT. The threshold T is chosen so that quantization
changes the distribution of values least. "The code" is that of the authors, github.com/mit-han-lab/haq.
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
"""Bits below which thresholds come from a divergence, and from which on they are the largest value (the code)."""
WIDEST_RANGE = 6.0
"""Largest range of activations before it learns (the code)."""

_LEAST_PROBABILITY = 1e-12

Vector = NDArray[np.float64]


class _Linear(torch.autograd.Function):
    """The nearest of evenly spaced levels in ±T; in the backward pass the identity, also beyond T (the code)."""

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
        bits: Number of bits b, at least 2; with one bit the only level would be 0.

    Raises:
        ValueError: There are fewer than 2 bits.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if bits < 2:
            raise ValueError(f"a symmetric linear quantizer has no level but 0 at {bits} bit; give at least 2 bits")
        self.bits = bits
        self.threshold: Tensor
        self.register_buffer("threshold", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight tensor of any shape."""
        count = 2 ** (self.bits - 1) - 1
        result: Tensor = _Linear.apply(weight, positive(self.threshold), count)
        return result

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the threshold for a weight tensor."""
        self.threshold.fill_(threshold_of(x, self.bits))


class RangedActivation(PactActivation):
    """x ↦ s · round(clip(x, 0, T)/s) with s = T/(2^b − 1); the range T learns as in PACT."""

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the range for a tensor without negative elements."""
        self.clip.fill_(min(threshold_of(x, self.bits), x.max().item(), WIDEST_RANGE))


def linear_quantizer(*, bits: int, kind: Kind, normalized: bool) -> nn.Module:
    """Make the linear quantizer of weights or of activations; weights are not standardised."""
    return LinearWeight(bits) if kind == "weight" else RangedActivation(bits)


def threshold_of(x: Tensor, bits: int) -> float:
    """Choose the threshold of a tensor of any shape, from its absolute values."""
    x = x.detach()
    sizes = drawn_sample(x).abs().double().cpu().numpy()
    if bits >= KL_BELOW or not sizes.max() > 0:
        return float(x.abs().max())
    return divergence_threshold(sizes, bits)


def divergence_threshold(sizes: Vector, bits: int) -> float:
    """Choose the threshold at which quantization changes the distribution of values least (the code).

    The distribution is the cumulative histogram C of √N bins. Clipped after i bins, it is 1 from there on. Quantized,
    it is known at 2^(b−1) evenly spaced bins of these i and linear in between; call it Q. Of all i, the one is chosen
    whose Q has the least symmetric Kullback-Leibler divergence, Σ (C − Q) · log₂(C/Q).

    Args:
        sizes: Absolute values, shape (N,), not all 0.
        bits: Number of bits b.
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
    """Compute Q: the cumulative distribution clipped after `kept` bins and known at `nodes` of them."""
    clipped = np.where(np.arange(len(exact)) < kept - 1, exact, 1.0)
    bins, knots = np.arange(kept), np.linspace(0, kept - 1, nodes)
    clipped[:kept] = np.interp(bins, knots, np.interp(knots, bins, clipped[:kept]))
    return clipped


def _divergence(exact: Vector, coarse: Vector) -> float:
    """Compute Σ (C − Q) · log₂(C/Q); a probability of 0 counts as 1e-12."""
    one, other = np.maximum(exact, _LEAST_PROBABILITY), np.maximum(coarse, _LEAST_PROBABILITY)
    return float(((one - other) * np.log2(one / other)).sum())
