"""DNAS (Wu et al. 2018, arXiv 1812.00090): multi-path search with DoReFa weights and PACT activations.

The search is that of `methods.multi_path`. Quantizers are as the SBS paper's Appendix F states them: DoReFa-Net (Zhou
et al. 2016, arXiv 1606.06160, Eq. 9) for weights, and PACT (Choi et al. 2018, arXiv 1805.06085, Eqs. 1–3) for
activations. Appendix F starts PACT's clipping level at 1, as it starts SBS's clip values; `clip_init = "paper"` does
so, and by default both are calibrated. Candidates are 2, 4 and 8 bits, since the costs that are printed for DNAS can be
composed of exactly these. With `recipe = "common"` the found policy is fine-tuned with the common quantizer, as for all
methods; with `recipe = "own"`, with DoReFa and PACT.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bench.api import Capabilities, QuantizerFactory
from bench.compression.kernels import Kind, steps
from methods.multi_path import MultiPath
from methods.shared.quantizers.pact import PactActivation


class _Round(torch.autograd.Function):
    """round_k(z), the nearest of k-bit levels in [0, 1]; the identity in the backward pass (straight-through)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, count: int) -> Tensor:
        return torch.round(z * count) / count

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0], None


def _round(z: Tensor, bits: int) -> Tensor:
    result: Tensor = _Round.apply(z, steps(bits))
    return result


class DorefaWeight(nn.Module):
    """w ↦ 2 · round_k(tanh(w) / (2 max |tanh(w)|) + 1/2) − 1."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize a weight tensor of any shape to [−1, 1]."""
        squashed = torch.tanh(weight)
        return 2 * _round(squashed / (2 * squashed.abs().max()) + 0.5, self.bits) - 1

    def calibrate(self, x: Tensor) -> None:
        """Do nothing: DoReFa has no parameter to set."""


def dorefa_pact(*, bits: int, kind: Kind, normalized: bool) -> nn.Module:
    """Make DoReFa's quantizer for weights and PACT's for activations; DoReFa has a normalisation of its own."""
    return DorefaWeight(bits) if kind == "weight" else PactActivation(bits)


class Dnas(MultiPath):
    """DNAS with DoReFa and PACT."""

    summary = "DNAS: separate weights for each candidate, Gumbel-softmax, DoReFa and PACT quantizers"
    source = (
        "Wu et al. 2018, Mixed Precision Quantization of ConvNets via Differentiable Neural Architecture Search, "
        "arXiv 1812.00090; quantizers as in the SBS paper's Appendix F"
    )
    deviations = (
        "The text of the paper was not at hand; what is said of it here is recalled.",
        "The cost term is the harness's; the paper multiplies the loss by β(log cost)^γ.",
        "The paper has other candidates: 0 to 4, 8 and 32 bits of weights on CIFAR, and pairs for weights and inputs "
        "on ImageNet.",
        "The found network is fine-tuned from the weights of its paths; the paper trains drawn networks anew.",
        "The first and the last layer have 8 bits: with the common quantizer in the search, and with DoReFa and PACT "
        "in fine-tuning with recipe = 'own'.",
        "The bits of the largest logits are taken; the paper draws several networks from the final distribution.",
        "Clipping levels have no weight decay, like the clip values of all methods; PACT regularises them by L2.",
        *MultiPath.deviations,
    )
    capabilities = Capabilities(budget="strength", mixed_precision=True, own_quantizer=True, data_parallel=True)

    @property
    def search_quantizer(self) -> QuantizerFactory:
        """DoReFa and PACT, in every path."""
        return dorefa_pact

    @property
    def quantizer(self) -> QuantizerFactory:
        """DoReFa and PACT, in fine-tuning with `recipe = "own"`."""
        return dorefa_pact
