"""The network of a bit-sharing search: a model of shared layers, with its cost R and its decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import (
    Decision,
    LayerPolicy,
    LayerShape,
    Policy,
    QuantizedLayer,
    SearchJob,
    policy_of,
    replicas,
    restore_state,
)
from bench.compression.quantizer import clips_of, read_clips, restore_clips
from methods.shared.bit_sharing.layer import LayerSettings, SharedLayer, SharedProduct
from methods.shared.bit_sharing.quantizer import SharedQuantizer
from methods.shared.decisions import gates_decision, group_decisions
from methods.shared.gates import shares
from methods.shared.search import SearchNetwork, edge_layer, replace_layers
from methods.shared.space import FULL_PRECISION, SearchSpace, edge_bits


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a search.

    Attributes:
        state: Weights and buffers under the names of the float model.
        clips: Clip values to keep, by the keys of `SearchResult.clips`; when empty, the search sets them.
    """

    state: Mapping[str, Tensor]
    clips: Mapping[str, float]


Shared = SharedLayer | SharedProduct


class SharedNetwork(SearchNetwork):
    """A model whose searched layers share bits, with its differentiable cost.

    Args:
        job: Model and measure of the cost.
        space: Choices of every searched layer.
        settings: Behaviour of the layers.
        start: Weights and clip values.
        quantizer: Class of the quantizers of searched layers.
    """

    layers: dict[str, Shared]

    def __init__(
        self,
        job: SearchJob,
        space: SearchSpace,
        settings: LayerSettings,
        start: Start,
        *,
        quantizer: type[SharedQuantizer] = SharedQuantizer,
    ) -> None:
        self.network, self.space = job.task.network, space
        self.model = job.task.make_model()
        restore_state(self.model, start.state)
        self._edge_bits = edge_bits(space)

        def searched(module: nn.Module, shape: LayerShape, before: Mapping[str, Shared]) -> Shared:
            producer, leader = (_layer(before, name) for name in (shape.producer, shape.leader))
            choice = space[shape.name]
            if shape.kind == "matmul":
                like = next(self.model.parameters()).detach()
                return SharedProduct(module, shape, choice, settings, like, leader=leader, quantizer=quantizer)
            return SharedLayer(module, shape, choice, settings, producer=producer, leader=leader, quantizer=quantizer)

        quantized = partial(edge_layer, normalized=settings.weight_normalization)
        edge = _unquantized if (self._edge_bits,) == FULL_PRECISION else quantized
        self.layers = replace_layers(self.model, self.network, searched, edge)
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, self._edge_bits)
        if settings.gate_place == "norm_output":
            self._mask_after_norms()
        restore_clips(self._clips(), start.clips)

    def _mask_after_norms(self) -> None:
        for norm, name in self.network.norms:
            layer = self.layers[name]

            def mask(_: nn.Module, __: Any, output: Tensor, layer: Shared = layer) -> Tensor:
                gates = layer.channel_gates
                return output if gates is None else output * gates.view(1, -1, 1, 1)

            self.model.get_submodule(norm).register_forward_hook(mask)

    def weight_thresholds(self) -> list[nn.Parameter]:
        """List α_w: the thresholds of weights, and those of filter groups."""
        gates = [layer.filter_gates for layer in self.layers.values()]
        filters = [of_layer.threshold for of_layer in gates if of_layer is not None]
        return [layer.weight_quantizer.thresholds for layer in self.layers.values()] + filters

    def activation_thresholds(self) -> list[nn.Parameter]:
        """List α_x: the thresholds of activations."""
        return [layer.activation_quantizer.thresholds for layer in self.layers.values()]

    # --- the cost -------------------------------------------------------------------------------------------------

    def relaxed_cost(self) -> Tensor:
        """Compute R as a function of the gates of the latest forward pass (Eq. 14), a scalar.

        Its value is the exact cost. The bits of each tensor are expanded over its own gates, and the cost of a layer is
        their product. By the product rule a gate of weights then has the gradient of the printed, weight-only form at
        the present activations.
        """
        layers = self.layers.values()
        return self._relaxed(
            shares([layer.weight_quantizer.gates for layer in layers]),
            shares([layer.activation_quantizer.gates for layer in layers]),
            **self._relaxed.channels({name: layer.filters() for name, layer in self.layers.items()}),
        )

    def with_cost(self) -> nn.Module:
        """Return a module that maps images to logits and to `relaxed_cost`; it shares the network's parameters."""
        return _WithCost(self)

    # --- the end of a search --------------------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate_metrics(self, batches: Sequence[Tensor]) -> None:
        """Replace the metrics of activations' gates by their means over batches.

        Args:
            batches: Images, each of shape (N, C, H, W).
        """
        every = [quantizer for layer in self.layers.values() for quantizer in layer.quantizers().values()]
        quantizers = [quantizer for quantizer in every if quantizer.kind == "activation"]
        sums = [torch.zeros_like(quantizer.thresholds) for quantizer in quantizers]
        self.model.train()  # batch statistics, as the gates met them during the search
        with replicas.alone():
            for images in batches:
                self.model(images)
                sums = [total + quantizer.metric for total, quantizer in zip(sums, quantizers, strict=True)]
        replicas.share([*sums, *self.model.buffers()])
        for total, quantizer in zip(sums, quantizers, strict=True):
            quantizer.metric = total / len(batches)

    def decisions(self) -> list[Decision]:
        """List every gate with its margin Â − α, for the present metrics and thresholds."""
        decisions: list[Decision] = []
        for name, layer in self.layers.items():
            for what, quantizer in layer.quantizers().items():
                excess = (quantizer.metric - quantizer.thresholds).tolist()
                decisions += gates_decision(name, what, quantizer.bits, excess)
            if (filters := layer.filter_gates) is not None:
                excess = (filters.metric - filters.threshold).tolist()
                decisions += group_decisions(name, filters.groups.members, excess, int(filters.metric.argmax()))
        return decisions

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions."""
        return policy_of(self.base_policy(), decisions)

    def base_policy(self) -> Policy:
        """Build the policy of what is fixed before the search: edges, single candidates, filters of an earlier stage.

        Layers with pruning gates list all their filters.
        """
        edge = LayerPolicy(weight_bits=self._edge_bits, activation_bits=self._edge_bits)
        layers = {shape.name: edge for shape in self.network.layers}
        for name, choice in self.space.items():
            every = tuple(range(self.network[name].filters))
            layers[name] = LayerPolicy(
                weight_bits=choice.weight_bits[0],
                activation_bits=choice.activation_bits[0],
                kept_filters=every if choice.group_size else choice.kept_filters,
            )
        return Policy(model=self.network.model, dataset=self.network.dataset, layers=layers)

    def clips(self, policy: Policy) -> dict[str, float]:
        """Read all clip values and offsets, at the bits of a policy."""
        return read_clips(self._clips(policy))

    def _clips(self, policy: Policy | None = None) -> list[tuple[str, Tensor]]:
        """List the parameters of all quantizers; without a policy those of the lowest candidates."""
        chosen = self.base_policy() if policy is None else policy
        clips: list[tuple[str, Tensor]] = []
        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            if isinstance(module, Shared):
                clips += [
                    (f"{shape.name}.{key}", clip) for key, clip in module.clips(chosen.layers[shape.name]).items()
                ]
            elif isinstance(module, QuantizedLayer):
                clips += clips_of(shape.name, module.weight_quantizer, module.activation_quantizer)
        return clips

    def decide(self, policy: Policy) -> None:
        """Fix all gates as a policy says."""
        for name, layer in self.layers.items():
            layer.decide(policy.layers[name])


def _layer(layers: Mapping[str, Shared], name: str | None) -> SharedLayer | None:
    """Return the layer of a name; `None` where there is no name or it is not searched."""
    layer = layers.get(name or "")
    return layer if isinstance(layer, SharedLayer) else None


def _unquantized(module: nn.Module, _: LayerShape) -> nn.Module:
    return module


class _WithCost(nn.Module):
    def __init__(self, network: SharedNetwork) -> None:
        super().__init__()
        self.model = network.model
        self._network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(images), self._network.relaxed_cost()
