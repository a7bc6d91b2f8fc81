"""The network of a bit-sharing search: a model whose searched layers are shared ones, with its cost and decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    FULL_PRECISION_BITS,
    Decision,
    LayerPolicy,
    LayerShape,
    LayerSpace,
    Policy,
    QuantizedLayer,
    SearchJob,
    replace_layer,
)
from bench.compression.quantizer import clips_of, read_clips, restore_clips
from methods.shared.bit_sharing.layer import LayerSettings, SharedLayer
from methods.shared.decisions import gates_decision, group_decisions
from methods.shared.gates import shares
from methods.shared.search import edge_layer
from methods.shared.space import FULL_PRECISION, SearchSpace


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a search starts.

    Attributes:
        state: Weights under the float model's names.
        clips: Clip values to keep; when empty they are set by `clip_init`.
    """

    state: Mapping[str, Tensor]
    clips: Mapping[str, float]


class SharedNetwork:
    """A model whose searched layers are shared ones, with its differentiable cost.

    Attributes:
        model: The network, in which layers keep their names.
        layers: The searched layers, in order of execution.
    """

    def __init__(self, job: SearchJob, space: SearchSpace, settings: LayerSettings, start: Start) -> None:
        self.network = job.task.network
        self.model = job.task.make_model()
        self.model.load_state_dict(dict(start.state))
        full_precision = all(choice.weight_bits == FULL_PRECISION for choice in space.values())
        self.layers: dict[str, SharedLayer] = {}
        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            if shape.position == "middle":
                self.layers[shape.name] = self._shared(module, shape, space[shape.name], settings)
                replace_layer(self.model, shape.name, self.layers[shape.name])
            elif not full_precision:
                edge = edge_layer(module, shape, normalized=settings.weight_normalization)
                replace_layer(self.model, shape.name, edge)
        self._edge_bits = FULL_PRECISION_BITS if full_precision else EDGE_BITS
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, self._edge_bits)
        if settings.gate_place == "norm_output":
            self._mask_after_norms()
        restore_clips(self._clips(), start.clips)

    def _shared(self, module: nn.Module, shape: LayerShape, space: LayerSpace, settings: LayerSettings) -> SharedLayer:
        producer, leader = self.layers.get(shape.producer or ""), self.layers.get(shape.leader or "")
        return SharedLayer(module, shape, space, settings, producer=producer, leader=leader)

    def _mask_after_norms(self) -> None:
        for norm, name in self.network.norms:
            layer = self.layers[name]

            def mask(_: nn.Module, __: Any, output: Tensor, layer: SharedLayer = layer) -> Tensor:
                gates = layer.channel_gates
                return output if gates is None else output * gates.view(1, -1, 1, 1)

            self.model.get_submodule(norm).register_forward_hook(mask)

    def _clips(self) -> Sequence[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            if isinstance(module, SharedLayer):
                found += [(f"{shape.name}.{kind}", clip) for kind, clip in module.clips().items()]
            elif isinstance(module, QuantizedLayer):
                found += clips_of(shape.name, module.weight_quantizer, module.activation_quantizer)
        return found

    def clips(self) -> dict[str, float]:
        """All clip values, after `decide`."""
        found = dict(self._clips())
        for name, layer in self.layers.items():
            found.update({f"{name}.{kind}": clip for kind, clip in layer.decided_clips().items()})
        return read_clips(found.items())

    def relaxed_cost(self) -> Tensor:
        """R as a function of the gates of the latest forward pass (Eq. 14); its value is the exact cost.

        Each width is expanded over its own gates, and the cost of a layer is their product: by the product rule
        a gate of weights then has the gradient of the printed, weight-only form at the present activations.
        """
        layers = list(self.layers.values())
        filters = {name: layer.filters() for name, layer in self.layers.items()}
        outputs = [filters[shape.leader or shape.name] for shape in self._relaxed.layers]
        inputs = [
            filters.get(shape.producer or "", full)
            for shape, full in zip(self._relaxed.layers, self._relaxed.in_channels, strict=True)
        ]
        return self._relaxed(
            shares([layer.weight_gates for layer in layers]),
            shares([layer.activation_gates for layer in layers]),
            in_channels=torch.stack(inputs),
            out_channels=torch.stack(outputs),
        )

    @torch.no_grad()
    def probe(self, share: float, noise: torch.Generator) -> None:
        """Let a share of the gates of bits, drawn anew, act as if they were shut in the passes that follow.

        Args:
            share: Between 0, which ends probing, and 1.
            noise: Draws them.
        """
        for layer in self.layers.values():
            layer.probed_weight = _drawn(layer.thresholds_weight, share, noise)
            layer.probed_activation = _drawn(layer.thresholds_activation, share, noise)

    def with_cost(self) -> nn.Module:
        """A module that maps images to logits and to `relaxed_cost`; it shares the network's parameters."""
        return _WithCost(self)

    def state(self, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights and buffers under the float model's names."""
        mine = self.model.state_dict()
        return {name: mine[name].detach().clone() for name in names}

    def decide(self, policy: Policy) -> None:
        """Fix all gates as a policy says."""
        for name, layer in self.layers.items():
            layer.decide(policy.layers[name])

    def decisions(self, activation_metrics: Mapping[str, Tensor]) -> list[Decision]:
        """Every gate with its margin Â − α, at the present thresholds.

        Args:
            activation_metrics: Calibrated metrics by layer.
        """
        found: list[Decision] = []
        for name, layer in self.layers.items():
            excess = (layer.weight_metric - layer.thresholds_weight).tolist()
            found += gates_decision(name, "weight_bits", layer.space.weight_bits, excess)
            excess = (activation_metrics[name] - layer.thresholds_activation).tolist()
            found += gates_decision(name, "activation_bits", layer.space.activation_bits, excess)
            if layer.groups is not None and layer.threshold_filters is not None:
                excess = (layer.group_metric - layer.threshold_filters).tolist()
                found += group_decisions(name, layer.groups.members, excess, int(layer.group_metric.argmax()))
        return found

    def base_policy(self, space: SearchSpace) -> Policy:
        """What is fixed beforehand: edges, widths without a choice, filters kept from an earlier stage.

        Layers with pruning gates list all their filters.
        """
        layers = {}
        for shape in self.network.layers:
            choice = space.get(shape.name)
            if choice is None:
                layers[shape.name] = LayerPolicy(weight_bits=self._edge_bits, activation_bits=self._edge_bits)
            else:
                layers[shape.name] = LayerPolicy(
                    weight_bits=choice.weight_bits[0],
                    activation_bits=choice.activation_bits[0],
                    kept_filters=tuple(range(shape.out_channels)) if choice.group_size else choice.kept_filters,
                )
        return Policy(model=self.network.model, dataset=self.network.dataset, layers=layers)


class _WithCost(nn.Module):
    def __init__(self, network: SharedNetwork) -> None:
        super().__init__()
        self.model = network.model
        self._network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(images), self._network.relaxed_cost()


def _drawn(like: Tensor, share: float, noise: torch.Generator) -> Tensor | None:
    """1 with probability `share`, 0 otherwise, in the shape of another tensor; `None` without a share."""
    return (torch.rand(like.shape, generator=noise) < share).to(like) if share else None
