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
    QuantizedProduct,
    QuantizerFactory,
    SearchJob,
    UniformQuantizer,
    geometry_of,
    input_quantizer,
    policy_of,
    uniform,
)
from bench.compression.compress import names_of
from bench.compression.quantizer import clips_of, positive, read_clips
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


class MixedLayer(nn.Module):
    """A convolution or linear layer with one path for each candidate.

    Args:
        module: The float layer.
        shape: Shape of the layer.
        bits: Candidate bits, K of them.
        quantizer: Factory of the quantizers of all paths.
        shared: Whether all paths have the same weight.

    Attributes:
        logits: Architecture parameters, shape (2, K): of weights, then of activations.
        probabilities: Probabilities p and q of the present step, shape (2, K). The search sets them before each forward
            pass.
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
        super().__init__()
        self.geometry = geometry_of(module)
        self.bits = bits
        weight: Tensor = module.weight  # type: ignore[assignment]
        trained = weight.requires_grad
        copies = [nn.Parameter(weight.detach().clone(), trained) for _ in (bits[:1] if shared else bits)]
        self.weight = nn.ParameterList(copies * len(bits) if shared else copies)
        self.bias = module.bias  # type: ignore[assignment]
        of_weights = [quantizer(bits=path, kind="weight", normalized=shape.normalized) for path in bits]
        self.weight_quantizers = nn.ModuleList(of_weights)
        self.activation_quantizers = nn.ModuleList([input_quantizer(shape, path, quantizer) for path in bits])
        self.logits = nn.Parameter(torch.zeros(2, len(bits)))
        self.to(weight.device)
        self.probabilities = torch.full((2, len(bits)), 1 / len(bits), device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Compute conv(Σ_j q_j Q_j(x), Σ_i p_i Q_i(w_i))."""
        p, q = self.probabilities
        paths = zip(p, self.weight_quantizers, self.weight, strict=True)
        weight = sum((p_i * quantizer(w_i) for p_i, quantizer, w_i in paths), start=x.new_zeros(()))
        return self.geometry.convolve(self._mixed_input(x, q), weight, self.bias)

    def _mixed_input(self, x: Tensor, q: Tensor) -> Tensor:
        """Compute Σ_j q_j Q_j(x); in one pass over x where all Q_j are the common quantizer."""
        quantizers = list(self.activation_quantizers)
        if all(isinstance(quantizer, UniformQuantizer) for quantizer in quantizers):
            clips = torch.stack([positive(quantizer.clip) for quantizer in quantizers])  # type: ignore[arg-type]
            return mixture(x, clips, q, self.bits)
        paths = zip(q, quantizers, strict=True)
        return sum((q_j * quantizer(x) for q_j, quantizer in paths), start=x.new_zeros(()))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the quantizer of every path for its own number of bits."""
        for quantizer, weight in zip(self.weight_quantizers, self.weight, strict=True):
            quantizer.calibrate(weight)  # type: ignore[operator]
        for quantizer in self.activation_quantizers:
            quantizer.calibrate(x)  # type: ignore[operator]


class PathNetwork(TrainedNetwork):
    """A model whose searched layers have one path for each candidate.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits.
        quantizer: Factory of the quantizers of all paths.
        shared: Whether all paths of a layer have the same weight.
    """

    layers: dict[str, MixedLayer]

    def __init__(
        self, job: SearchJob, bits: tuple[int, ...], quantizer: QuantizerFactory, *, shared: bool = False
    ) -> None:
        def mixed(module: nn.Module, shape: LayerShape, _: Mapping[str, MixedLayer]) -> MixedLayer:
            return MixedLayer(module, shape, bits, quantizer, shared=shared)

        self.bits = bits
        self.network = job.task.network
        self.model = job.float_model()
        self.layers = replace_layers(self.model, self.network, mixed)
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
        weights = {f"{alias}.weight": name for name in self.layers for alias in names_of(self.model, name)}
        state = super().state(policy, {name: names[name] for name in names if name not in weights})
        for alias, name in weights.items():
            chosen = self.bits.index(policy.layers[name].weight_bits)
            state[alias] = self.layers[name].weight[chosen].detach().clone()
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

    @property
    def _common(self) -> bool:
        """Whether paths have the common quantizer."""
        paths = (path for layer in self.layers.values() for path in layer.weight_quantizers)
        return all(isinstance(path, UniformQuantizer) for path in paths)

    def _edge_clips(self) -> list[tuple[str, nn.Parameter]]:
        """List the clip values of the first and the last layer, and of products of activations."""
        names = [shape.name for shape in self.network.layers if shape.position != "middle"]
        edges = {name: self.model.get_submodule(name) for name in names}
        return [
            clip
            for name, edge in edges.items()
            if isinstance(edge, QuantizedLayer | QuantizedProduct)
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
