"""Networks with several paths in each layer, one for each candidate number of bits (Wu et al. 2018, arXiv 1812.00090).

A layer has K paths for its weight and K for its input, each with a quantizer of its own. Probabilities p of weights and
q of inputs mix them. Convolution is linear in its weight and in its input, so the sum over all pairs of paths

    Σ_ij p_i q_j conv(Q_j(x), Q_i(w_i)) = conv(Σ_j q_j Q_j(x), Σ_i p_i Q_i(w_i))

is one convolution. The right-hand side is computed.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Capabilities,
    Decision,
    LayerShape,
    LayerSpace,
    Options,
    Policy,
    QuantizedLayer,
    QuantizerFactory,
    SearchJob,
    UniformQuantizer,
    geometry_of,
    input_quantizer,
    policy_of,
    uniform,
)
from bench.compression.compress import names_of
from bench.compression.quantizer import Shifted, clips_of, positive, read_clips
from methods.shared.decisions import bits_decision
from methods.shared.options import RISING, ChoosesBits
from methods.shared.quantizers.mixture import mixture
from methods.shared.search import replace_layers
from methods.shared.training import TrainedNetwork, TrainingMethod


class PathOptions(Options):
    """Options of every search in a network with several paths.

    Attributes:
        bits: Candidate bits for weights and activations.
        logit_travel: Learning rate of the logits (Adam) × number of their updates. The rate follows from the length of
            the search.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=2), RISING] = (2, 4, 8)
    logit_travel: Annotated[float, Field(gt=0)] = 6.0


class MixedOperation(nn.Module):
    """What layers and products have in common: one quantizer for each candidate of both tensors, and logits.

    Args:
        bits: Candidate bits, K of them.

    Attributes:
        weight_quantizers: Quantizers of the weight, or of the right operand.
        activation_quantizers: Quantizers of the input, or of the left operand.
        logits: Architecture parameters, shape (2, K): of weights, then of activations.
        probabilities: Probabilities p and q of the present step, shape (2, K). The search sets them before each forward
            pass.
    """

    def __init__(self, bits: tuple[int, ...]) -> None:
        super().__init__()
        self.bits = bits

    def add_paths(self, of_weights: Sequence[nn.Module], of_inputs: Sequence[nn.Module], device: torch.device) -> None:
        """Add the quantizers and the logits."""
        self.weight_quantizers = nn.ModuleList(of_weights)
        self.activation_quantizers = nn.ModuleList(of_inputs)
        self.logits = nn.Parameter(torch.zeros(2, len(self.bits), device=device))
        self.to(device)
        self.probabilities = torch.full((2, len(self.bits)), 1 / len(self.bits), device=device)


def mixed(x: Tensor, quantizers: Sequence[nn.Module], probabilities: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Compute Σ_j q_j Q_j(x); in one pass over x where all Q_j are the common quantizer."""
    if all(isinstance(quantizer, UniformQuantizer) for quantizer in quantizers):
        clips = torch.stack([positive(quantizer.clip) for quantizer in quantizers])  # type: ignore[arg-type]
        return mixture(x, clips, probabilities, bits)
    paths = zip(probabilities, quantizers, strict=True)
    return sum((q_j * quantizer(x) for q_j, quantizer in paths), start=x.new_zeros(()))


class MixedProduct(MixedOperation):
    """A product of two activations with one path for each candidate of both operands.

    Args:
        product: Module that multiplies.
        shape: Shape of the product.
        bits: Candidate bits, K of them.
        quantizer: Factory of the quantizers of all paths.
        device: Device of the logits.
    """

    def __init__(
        self,
        product: nn.Module,
        shape: LayerShape,
        bits: tuple[int, ...],
        quantizer: QuantizerFactory,
        device: torch.device,
    ) -> None:
        super().__init__(bits)
        self.product = product
        right = [Shifted(quantizer(bits=path, kind="activation", normalized=False)) for path in bits]
        self.add_paths(right, [input_quantizer(shape, path, quantizer) for path in bits], device)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Compute Σ_j q_j Q_j(left) · Σ_i p_i Q_i(right)."""
        p, q = self.probabilities
        left = mixed(left, list(self.activation_quantizers), q, self.bits)
        result: Tensor = self.product(left, mixed(right, list(self.weight_quantizers), p, self.bits))
        return result

    @torch.no_grad()
    def calibrate(self, left: Tensor, right: Tensor) -> None:
        """Set the quantizer of every path for its own number of bits."""
        for quantizers, operand in ((self.activation_quantizers, left), (self.weight_quantizers, right)):
            for quantizer in quantizers:
                quantizer.calibrate(operand)  # type: ignore[operator]


class MixedLayer(MixedOperation):
    """A convolution or linear layer with one path for each candidate.

    Args:
        module: The float layer.
        shape: Shape of the layer.
        bits: Candidate bits, K of them.
        quantizer: Factory of the quantizers of all paths.
        shared: Whether all paths have the same weight.
    """

    bias: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        shape: LayerShape,
        bits: tuple[int, ...],
        quantizer: QuantizerFactory,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(bits)
        self.geometry = geometry_of(module)
        weight: Tensor = module.weight  # type: ignore[assignment]
        trained = weight.requires_grad
        copies = [nn.Parameter(weight.detach().clone(), trained) for _ in (bits[:1] if shared else bits)]
        self.weight = nn.ParameterList(copies * len(bits) if shared else copies)
        self.bias = module.bias  # type: ignore[assignment]
        of_weights = [quantizer(bits=path, kind="weight", normalized=shape.normalized) for path in bits]
        self.add_paths(of_weights, [input_quantizer(shape, path, quantizer) for path in bits], weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Compute conv(Σ_j q_j Q_j(x), Σ_i p_i Q_i(w_i))."""
        p, q = self.probabilities
        paths = zip(p, self.weight_quantizers, self.weight, strict=True)
        weight = sum((p_i * quantizer(w_i) for p_i, quantizer, w_i in paths), start=x.new_zeros(()))
        return self.geometry.convolve(mixed(x, list(self.activation_quantizers), q, self.bits), weight, self.bias)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the quantizer of every path for its own number of bits."""
        for quantizer, weight in zip(self.weight_quantizers, self.weight, strict=True):
            quantizer.calibrate(weight)  # type: ignore[operator]
        for quantizer in self.activation_quantizers:
            quantizer.calibrate(x)  # type: ignore[operator]


Mixed = MixedLayer | MixedProduct


class PathNetwork(TrainedNetwork):
    """A model whose searched layers have one path for each candidate.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits.
        quantizer: Factory of the quantizers of all paths.
        shared: Whether all paths of a layer have the same weight.
    """

    layers: dict[str, Mixed]

    def __init__(
        self, job: SearchJob, bits: tuple[int, ...], quantizer: QuantizerFactory, *, shared: bool = False
    ) -> None:
        def searched(module: nn.Module, shape: LayerShape, _: Mapping[str, Mixed]) -> Mixed:
            if shape.kind == "matmul":
                return MixedProduct(module, shape, bits, quantizer, job.task.device)
            return MixedLayer(module, shape, bits, quantizer, shared=shared)

        self.bits, self._common = bits, quantizer is UniformQuantizer
        self.network = job.task.network
        self.model = job.float_model()
        self.layers = replace_layers(self.model, self.network, searched)
        space = dict.fromkeys(self.layers, LayerSpace(weight_bits=bits, activation_bits=bits))
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)

    def logits(self) -> list[nn.Parameter]:
        """List the architecture parameters of all layers."""
        return [layer.logits for layer in self.layers.values()]

    def draw(self, temperature: float, noise: torch.Generator | None) -> None:
        """Set every layer's probabilities: a Gumbel-softmax with noise, a softmax without."""
        for layer in self.layers.values():
            scores: Tensor = layer.logits
            if noise is not None:
                uniform_draws = torch.rand(scores.shape, generator=noise).clamp(1e-9, 1 - 1e-9)
                scores = scores - torch.log(-torch.log(uniform_draws)).to(scores.device)
            layer.probabilities = torch.softmax(scores / temperature, dim=1)

    def expected_cost(self) -> Tensor:
        """Compute the cost at the expected bits under the present probabilities, a scalar."""
        shares = torch.stack([layer.probabilities for layer in self.layers.values()])
        return self._relaxed(shares[:, 0], shares[:, 1])

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """Compute the cost of the bits with the largest logits, a scalar."""
        chosen = torch.stack([layer.logits.argmax(1) for layer in self.layers.values()])
        shares = F.one_hot(chosen, len(self.bits)).double()
        return self._relaxed(shares[:, 0], shares[:, 1])

    def decisions(self) -> list[Decision]:
        """List every choice of bits; margins are differences between neighbouring logits."""
        decisions = []
        for name, layer in self.layers.items():
            of_weights, of_inputs = layer.logits.tolist()
            decisions.append(bits_decision(name, "weight_bits", self.bits, of_weights))
            decisions.append(bits_decision(name, "activation_bits", self.bits, of_inputs))
        return decisions

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions; the first and the last layer have 8 bits."""
        return policy_of(uniform(self.network, EDGE_BITS), decisions)

    def state(self, policy: Policy, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy the weights of the chosen paths, under the names of the float model."""
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, MixedLayer)}
        weights = {f"{alias}.weight": name for name in layers for alias in names_of(self.model, name)}
        state = super().state(policy, {name: names[name] for name in names if name not in weights})
        for alias, name in weights.items():
            chosen = self.bits.index(policy.layers[name].weight_bits)
            state[alias] = layers[name].weight[chosen].detach().clone()
        return state

    def clips(self, policy: Policy) -> dict[str, float]:
        """Read the clip values of the chosen paths and of both edges; none unless paths have the common quantizer."""
        if not self._common:
            return {}
        chosen = [clip for name in self.layers for clip in clips_of(name, *self._chosen_quantizers(name, policy))]
        return read_clips([*chosen, *self._edge_clips()])

    def learned(self, policy: Policy) -> dict[str, Tensor]:
        """Copy the parameters of the chosen paths' quantizers; none where paths have the common quantizer."""
        if self._common:
            return {}
        return {
            f"{name}.{kind}_quantizer.{parameter}": value.detach().clone()
            for name in self.layers
            for kind, quantizer in zip(("weight", "activation"), self._chosen_quantizers(name, policy), strict=True)
            for parameter, value in quantizer.named_parameters()
        }

    def _chosen_quantizers(self, name: str, policy: Policy) -> tuple[nn.Module, nn.Module]:
        """Return the quantizers of weight and input in the paths that a policy chooses."""
        layer, choice = self.layers[name], policy.layers[name]
        return (
            layer.weight_quantizers[self.bits.index(choice.weight_bits)],
            layer.activation_quantizers[self.bits.index(choice.activation_bits)],
        )

    def _edge_clips(self) -> list[tuple[str, nn.Parameter]]:
        """List the clip values of the first and the last layer."""
        names = [shape.name for shape in self.network.layers if shape.position != "middle"]
        edges = {name: self.model.get_submodule(name) for name in names}
        return [
            clip
            for name, edge in edges.items()
            if isinstance(edge, QuantizedLayer)
            for clip in clips_of(name, edge.weight_quantizer, edge.activation_quantizer)
        ]

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by its logits."""
        return {"logits": {name: layer.logits.tolist() for name, layer in self.layers.items()}}


class PathMethod(TrainingMethod[PathNetwork], ChoosesBits):
    """A search that trains a network with several paths and takes the path of the largest logit in each layer."""

    capabilities = Capabilities(budget="strength", mixed_precision=True, data_parallel=True)
    Options = PathOptions
    options: PathOptions
