"""Hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312), and layers whose bits and filters they choose.

A gate z with parameter φ is sampled in training:

    z = min(1, max(0, s (ζ − γ) + γ)),  s = sigmoid((log u − log(1 − u) + φ)/β),  u uniform on (0, 1)

so that P(z > 0) = sigmoid(φ − β log(−γ/ζ)). After training it is open where P(z = 0) is below a threshold.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.api import LayerShape, QuantizedLayer, QuantizedProduct, clamped
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted, positive
from methods.shared.gates import FilterGroups, filter_groups, of_inputs
from methods.shared.quantizers.residual_bits import RangeQuantizer, gated_quantization
from methods.shared.quantizers.starts import ClipInit, calibration_bits

BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1
"""Temperature β and stretch (ζ, γ) of the distribution (Louizos et al., Section 4.1; the authors' code)."""

SHUT_FROM = 0.34
"""P(z = 0) from which a gate is shut after training (`hc_thres` in the code of Bayesian Bits)."""

FIRST_PHI = 6.0
"""First φ of all gates: open with probability 0.9995 (`--gamma-4-init` and others in the code of Bayesian Bits)."""

_OFFSET = BETA * math.log(-GAMMA / ZETA)
LAST_OPEN_PHI = _OFFSET - math.log(SHUT_FROM / (1 - SHUT_FROM))
"""φ at which P(z = 0) is exactly `SHUT_FROM`, −0.935. Margins of decisions are distances to it."""


def hard_concrete(phi: Tensor, uniform: Tensor) -> Tensor:
    """Sample z, any shape.

    Args:
        phi: Parameters φ.
        uniform: Draws u from (0, 1), of the same shape.
    """
    stretched = torch.sigmoid((torch.logit(uniform) + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    return clamped(stretched, 0, 1)


def sampled(phi: Tensor, noise: torch.Generator) -> Tensor:
    """Sample z for parameters of any shape; u is drawn in single precision on the processor."""
    smallest = torch.finfo(torch.float32).eps
    uniform = torch.rand(phi.shape, generator=noise).clamp(smallest, 1 - smallest)
    return hard_concrete(phi, uniform.to(phi))


def probability_open(phi: Tensor) -> Tensor:
    """Compute P(z > 0), any shape."""
    return torch.sigmoid(phi - _OFFSET)


def thresholded(phi: Tensor) -> Tensor:
    """Compute the gates after training, any shape: 1 where P(z = 0) is below `SHUT_FROM`, else 0."""
    return (torch.sigmoid(_OFFSET - phi) < SHUT_FROM).to(phi.dtype)


def margins_of(phi: Tensor) -> list[float]:
    """Compute by how much φ exceeds the value at which a gate closes; at 0 and above it is open."""
    margins: list[float] = (phi.detach().double() - LAST_OPEN_PHI).tolist()
    return margins


def keep_strongest(gates: Tensor, phi: Tensor) -> Tensor:
    """Open the most probable of a layer's gates in any case, since a layer needs filters.

    Args:
        gates: Gates of the groups of a layer, shape (G,).
        phi: Parameters of these gates, shape (G,).
    """
    strongest = F.one_hot(phi.argmax(), len(phi)).to(gates.dtype)
    return gates + (strongest * (1 - gates)).detach()


class GatedQuantizer(RangeQuantizer):
    """The quantizer of Bayesian Bits with a gate for each candidate but the lowest.

    Args:
        bits: Chain of candidate bits, K of them.
        kind: Weights or activations.
        clip_init: First value of the range; see `RangeQuantizer`.

    Attributes:
        phi: φ_4, φ_8, …, shape (K − 1,).
        gates: z_4, z_8, … of the present step, shape (K − 1,). The network sets them before each forward pass.
    """

    def __init__(self, *, bits: tuple[int, ...], kind: Kind, clip_init: ClipInit = "calibrated") -> None:
        super().__init__(bits=bits[-1], kind=kind, clip_init=clip_init)
        self.chain = bits
        self.calibrated_for = calibration_bits(bits)
        self.phi = nn.Parameter(torch.full((len(bits) - 1,), FIRST_PHI))
        self.gates = torch.ones(len(bits) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute x_2 + z_4 (ε_4 + z_8 (ε_8 + …)) for a tensor of any shape."""
        return gated_quantization(x, positive(self.clip), self.gates.to(self.clip), self.chain, self.kind)


def gated_pair(weight: nn.Module, activation: nn.Module) -> tuple[GatedQuantizer, GatedQuantizer]:
    """Return the gated quantizers of a layer's or product's two tensors, without what shifts them."""
    inner = (each.quantizer if isinstance(each, Shifted) else each for each in (weight, activation))
    return tuple(inner)  # type: ignore[return-value]


class GatedProduct(QuantizedProduct):
    """A product of two activations whose bits are chosen by gates.

    Args:
        product: Module that multiplies.
        shape: Shape of the product.
        bits: Chain of candidate bits.
        clip_init: First values of the ranges.
    """

    phi_filters = groups = channel_gates = None
    """Heads are chosen by the layer that makes them."""

    def __init__(
        self, product: nn.Module, shape: LayerShape, bits: tuple[int, ...], clip_init: ClipInit = "calibrated"
    ) -> None:
        make = partial(GatedQuantizer, bits=bits, kind="activation", clip_init=clip_init)
        left = make()
        super().__init__(product, Shifted(make()), Shifted(left) if shape.signed_input else left)
        self.shape = shape

    def quantizers(self) -> tuple[GatedQuantizer, GatedQuantizer]:
        """Return the quantizers of the right and of the left operand."""
        return gated_pair(self.weight_quantizer, self.activation_quantizer)

    def filters(self, gates_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Count the filters, a scalar: all."""
        return self.quantizers()[0].clip.new_tensor(float(self.shape.filters))


class GatedLayer(QuantizedLayer):
    """A convolution or linear layer whose bits and filters are chosen by gates.

    Args:
        module: The float layer.
        shape: Shape of the layer.
        bits: Chain of candidate bits.
        group_size: Number of filters that share a gate; 0 when the layer is not pruned.
        producer: Layer whose filters are the inputs of this one; `None` when all its filters stay.
        clip_init: First values of the ranges.

    Attributes:
        phi_filters: φ_2 of each group of filters, shape (G,); `None` when the layer is not pruned.
        groups: Groups of filters; `None` when the layer is not pruned.
        channel_gates: z_2 of each filter in the present step; `None` when all filters stay.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: LayerShape,
        bits: tuple[int, ...],
        group_size: int,
        producer: "GatedLayer | None",
        clip_init: ClipInit = "calibrated",
    ) -> None:
        make = partial(GatedQuantizer, bits=bits, clip_init=clip_init)
        of_input = make(kind="activation")
        super().__init__(module, make(kind="weight"), Shifted(of_input) if shape.signed_input else of_input)
        self.shape = shape
        self._producer = (None if shape.depthwise else producer,)  # a tuple keeps it from becoming a submodule
        self.phi_filters: nn.Parameter | None = None
        self.groups: FilterGroups | None = None
        self.channel_gates: Tensor | None = None
        if group_size:
            self.groups = filter_groups(shape, group_size, self.weight.device)
            self.phi_filters = nn.Parameter(self.weight.new_full((len(self.groups.members),), FIRST_PHI))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the inputs that the producer's z_2 leave."""
        weight = self.weight_quantizer(self.weight)
        producer = self._producer[0]
        if producer is not None and producer.channel_gates is not None:
            # The same function as masking the quantized input, with the same gradients, on a far smaller tensor.
            gates = of_inputs(producer.channel_gates, self.shape)
            weight = weight * gates.to(weight).view(1, -1, *[1] * (weight.ndim - 2))
        return self.geometry.convolve(self.activation_quantizer(x), weight, self.bias)

    def quantizers(self) -> tuple[GatedQuantizer, GatedQuantizer]:
        """Return the quantizers of the weight and of the input."""
        return gated_pair(self.weight_quantizer, self.activation_quantizer)

    def filters(self, gates_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Count the filters, a scalar: Σ gates_of(φ_2) · size of the group, or all when the layer is not pruned."""
        if self.groups is None or self.phi_filters is None:
            return self.weight.new_tensor(float(self.shape.filters))
        return (gates_of(self.phi_filters) * self.groups.sizes).sum()
