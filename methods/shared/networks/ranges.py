"""Networks in which every searched tensor has a learned range, and so a number of bits that follows from it.

DQ and DJPQ search in such a network: `methods.shared.quantizers.learned_range` has their quantizer. Its parameters
have shape (2, L) when they are stacked: row 0 for weights, row 1 for inputs of the L searched layers. The right operand
of a product of activations is in row 0 too.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Decision,
    LayerShape,
    LayerSpace,
    Policy,
    QuantizedLayer,
    QuantizedProduct,
    SearchJob,
    input_quantizer,
    policy_of,
    uniform,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted
from bench.costs.relaxed import Interpolation
from methods.shared.decisions import What
from methods.shared.options import RISING
from methods.shared.quantizers.learned_range import LearnedQuantizer
from methods.shared.search import replace_layers
from methods.shared.training import TrainedNetwork

SignedCandidates = Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=2), RISING]
"""Candidate bits of grids with a sign and a level at 0; such a grid needs two bits at least."""

_WHAT: tuple[What, What] = ("weight_bits", "activation_bits")
_KINDS: tuple[Kind, Kind] = ("weight", "activation")
"""Order of a layer's two quantizers."""
_MOMENTUM = 0.9
"""Momentum of steps, ranges and exponents (DQ's code has it for all parameters)."""
_LOWERED_AFTER = (0.5, 0.75)
"""Shares of the search after which their rate falls to a tenth (80 and 120 epochs of 160 in DQ's code)."""

MakeLayer = Callable[[nn.Module, LayerShape, nn.Module, nn.Module], QuantizedLayer]
"""Builds a searched layer from the float one, its shape, and the quantizers of its weight and its input."""


def plain_layer(module: nn.Module, shape: LayerShape, weight: nn.Module, activation: nn.Module) -> QuantizedLayer:
    """Build a searched layer that has its two quantizers and nothing more."""
    return QuantizedLayer(module, weight, activation)


Ranged = QuantizedLayer | QuantizedProduct


class RangeNetwork(TrainedNetwork):
    """A model whose searched layers have learned ranges.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits, rising.
        quantizer: Factory of quantizers whose number of bits is searched: `quantizer(bits=…, kind=…, searching=True)`.
        start_bits: Bits for which quantizers are calibrated before the search.
        layer: Builder of the searched layers.
        pruned: Names of the layers that may lose filters.

    Attributes:
        quantizers: The 2 L quantizers, those of weights and of the right operands of products first.
        relaxed: Differentiable cost.
        signed: Whether a tensor has a sign, shape (2, L).
        candidates: Candidate bits, shape (K,).
        fixed_parameters: Names of the parameters that a quantizer of a fixed number of bits has.
    """

    layers: dict[str, Ranged]
    fixed_parameters: ClassVar[tuple[str, ...]] = ("clip_step", "clip_range")

    def __init__(
        self,
        job: SearchJob,
        bits: tuple[int, ...],
        quantizer: Callable[..., LearnedQuantizer],
        *,
        start_bits: int,
        layer: MakeLayer = plain_layer,
        pruned: Iterable[str] = (),
    ) -> None:
        def make(*, bits: int, kind: Kind, normalized: bool = False) -> LearnedQuantizer:
            return quantizer(bits=bits, kind=kind, searching=True)

        def searched(module: nn.Module, shape: LayerShape, _: Mapping[str, Ranged]) -> Ranged:
            of_input = input_quantizer(shape, start_bits, make)
            if shape.kind == "matmul":
                return QuantizedProduct(module, Shifted(make(bits=start_bits, kind="activation")), of_input)
            return layer(module, shape, make(bits=start_bits, kind="weight"), of_input)

        self.bits = bits
        self.network = job.task.network
        self.model = job.float_model()
        self.layers = replace_layers(self.model, self.network, searched)
        self.quantizers = [self._quantizer(name, kind) for kind in _KINDS for name in self.layers]
        self._pruned = tuple(pruned)
        space = {
            name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=int(name in self._pruned))
            for name in self.layers
        }
        self.relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)
        rows = [bits] * (2 * len(self.layers))
        self._interpolation = Interpolation(rows, len(bits), self.relaxed.in_channels, slope_at_lowest=True)
        signs = [quantizer.signed for quantizer in self.quantizers]
        self.signed = torch.tensor(signs, device=job.task.device).view(2, -1)
        self.candidates = torch.tensor(bits, device=job.task.device, dtype=torch.float64)

    def _quantizer(self, name: str, kind: Kind) -> LearnedQuantizer:
        quantizer = getattr(self.layers[name], f"{kind}_quantizer")
        inner = quantizer.quantizer if isinstance(quantizer, Shifted) else quantizer
        if not isinstance(inner, LearnedQuantizer):
            raise TypeError(f"the {kind} quantizer of {name} has no range to learn")
        return inner

    def parameters(self, *names: str) -> list[nn.Parameter]:
        """List the parameters of these names, of all quantizers."""
        return [getattr(quantizer, name) for name in names for quantizer in self.quantizers]

    def stacked(self, name: str) -> Tensor:
        """Stack the parameters of a name into one tensor, shape (2, L), differentiable."""
        return torch.stack([*self.parameters(name)]).view(2, -1)

    @torch.no_grad()
    def fill(self, name: str, values: Tensor) -> None:
        """Set the parameters of a name from a tensor of shape (2, L)."""
        for parameter, value in zip(self.parameters(name), values.flatten(), strict=True):
            parameter.copy_(value)

    @abstractmethod
    def relaxed_bits(self) -> Tensor:
        """Compute the bits that the cost term sees, shape (2, L), between the lowest and the highest candidate."""

    @abstractmethod
    def chosen(self) -> Tensor:
        """Return the indices of the candidates that the search would choose now, shape (2, L)."""

    @abstractmethod
    def margins(self) -> Tensor:
        """Compute by how many bits a tensor lies above each border between two candidates, shape (2, L, K − 1)."""

    def channels(self) -> dict[str, Tensor]:
        """Return `in_channels` and `out_channels` of the cost, differentiable; none when all channels stay."""
        return {}

    def relaxed_cost(self) -> Tensor:
        """Compute the cost as a function of the bits, a scalar.

        The cost is linear between two candidates. At a candidate its slope is that of the step down, which says what
        can be saved. At the lowest candidate it is that of the first step up. Without a slope there, the task alone
        would act, and its noise would drive the bits up again that the cost has just brought down.
        """
        return self._cost(self._interpolation(self.relaxed_bits().flatten()), self.channels())

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """Compute the cost of the policy that the search would return now, a scalar."""
        chosen = F.one_hot(self.chosen().flatten(), len(self.bits)).double()
        return self._cost(chosen, {name: counts.detach() for name, counts in self.channels().items()})

    def _cost(self, shares: Tensor, channels: Mapping[str, Tensor]) -> Tensor:
        of_weights, of_inputs = shares.view(2, len(self.layers), -1)
        return self.relaxed(of_weights, of_inputs, **channels)

    @torch.no_grad()
    def decisions(self) -> list[Decision]:
        """List every choice of bits; the margin is the distance to the border of the next candidate."""
        chosen, margins = self.chosen().tolist(), self.margins().tolist()
        return [
            Decision(layer=name, what=what, options=self.bits, chosen=chosen[kind][i], margins=tuple(margins[kind][i]))
            for i, name in enumerate(self.layers)
            for kind, what in enumerate(_WHAT)
        ]

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions; the first and the last layer have 8 bits."""
        base = uniform(self.network, EDGE_BITS)
        for name in self._pruned:
            base = base.with_layer(name, kept_filters=tuple(range(self.network[name].filters)))
        return policy_of(base, decisions)

    def learned(self, policy: Policy) -> dict[str, Tensor]:
        """Copy the parameters of the quantizers that a fixed number of bits leaves, as `SearchResult.quantizers`."""
        kept = (*self.fixed_parameters, "offset")
        return {
            f"{layer}.{name}": value.detach().clone()
            for layer, module in self.layers.items()
            for name, value in module.named_parameters()
            if "_quantizer." in name and name.rpartition(".")[2] in kept
        }

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by its bits, layer by layer: weight, input."""
        return {"widths": self.by_layer(self.relaxed_bits())}

    def by_layer(self, values: Tensor) -> dict[str, list[float]]:
        """Sort a tensor of shape (2, L) by layer."""
        return dict(zip(self.layers, values.detach().T.tolist(), strict=True))


def range_optimizer(
    job: SearchJob, network: RangeNetwork, names: Iterable[str], travel: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make the optimizer of the quantizers and its rates: SGD with momentum, whose rate falls twice, as in DQ's code.

    Args:
        job: Search, for its length.
        network: Network to train.
        names: Names of the parameters.
        travel: First rate × number of updates.
    """
    optimizer = torch.optim.SGD(network.parameters(*names), lr=travel / job.steps, momentum=_MOMENTUM, fused=True)
    milestones = [round(share * job.steps) for share in _LOWERED_AFTER]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
