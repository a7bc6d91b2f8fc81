"""DNAS (Wu et al. 2018, arXiv 1812.00090): multi-path search with DoReFa weights and PACT activations.

Quantizers as the paper's Appendix F states them: DoReFa-Net (Zhou et al. 2016, arXiv 1606.06160, Eq. 9) for weights,
PACT (Choi et al. 2018, arXiv 1805.06085, Eqs. 1–3) with a clipping level that starts at 1 for activations.
Candidates {2, 4, 8}: the printed costs of DNAS lie on the lattice of exactly these widths. With `recipe = "common"`
the found policy is fine-tuned with the common quantizer like everybody's, with `recipe = "own"` with DoReFa and PACT.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bench.api import Capabilities, QuantizerFactory
from bench.compression.kernels import Kind, steps
from methods.multi_path import CHOICES, MultiPath
from methods.shared.quantizers.pact import PactActivation


class _Round(torch.autograd.Function):
    """Rounding to the nearest level of [0, 1], the identity in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, count: int) -> Tensor:
        return torch.round(z * count) / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def _round(z: Tensor, bits: int) -> Tensor:
    result: Tensor = _Round.apply(z, steps(bits))  # type: ignore[no-untyped-call]
    return result


class DorefaWeight(nn.Module):
    """w ↦ 2 · round_k(tanh(w) / (2 max |tanh(w)|) + 1/2) − 1."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight tensor to [−1, 1]."""
        squashed = torch.tanh(weight)
        return 2 * _round(squashed / (2 * squashed.abs().max()) + 0.5, self.bits) - 1

    def calibrate(self, x: Tensor) -> None:
        """DoReFa has no parameter to set."""


def dorefa_pact(*, bits: int, kind: Kind, normalized: bool) -> nn.Module:
    """DoReFa for weights, PACT for activations; DoReFa brings its own normalisation."""
    return DorefaWeight(bits) if kind == "weight" else PactActivation(bits)


class Dnas(MultiPath):
    """DNAS."""

    summary = "Multi-path differentiable search: separate weights per candidate, Gumbel-softmax, DoReFa and PACT"
    source = (
        "Wu et al. 2018, Mixed Precision Quantization of ConvNets via Differentiable Neural Architecture Search, "
        "arXiv 1812.00090; quantizers as in the SBS paper's Appendix F"
    )
    deviations = (
        "The cost term is the harness's; the paper multiplies the loss by β(log cost)^γ.",
        "The argmax of the final distribution is taken; the paper draws several networks from it.",
        *CHOICES,
    )
    capabilities = Capabilities(budget="strength", mixed_precision=True, own_quantizer=True, data_parallel=True)

    @property
    def search_quantizer(self) -> QuantizerFactory:
        """DoReFa and PACT."""
        return dorefa_pact

    @property
    def quantizer(self) -> QuantizerFactory:
        """DoReFa and PACT."""
        return dorefa_pact
