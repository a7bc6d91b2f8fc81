"""Costs: pure functions of layer shapes and policy.

Conventions (all of the paper's tables follow them):

* MACs of a layer: (in/groups) · out · kernel area · output positions. Batch 1. Biases, normalisation,
  activations, additions and pooling are not counted.
* BOPs: MACs · weight bits · activation bits.
* Memory footprint: weights · weight bits + elements of the input · activation bits, summed over the layers;
  an input that two layers read counts twice. 1 KB is 1,000 bytes.
* Parameters: weights of convolutions and linear layers, without biases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.network import LayerShape, NetworkShape
from bench.policy import EDGE_BITS, LayerPolicy, Policy, check, kept_inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """The cost of one layer; exact integers."""

    name: str
    macs: int
    weight_bits: int
    activation_bits: int
    bops: int
    parameters: int
    memory_bits: int
    in_channels: int
    out_channels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkCost:
    """The cost of a network under a policy; exact integers."""

    model: str
    dataset: str
    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one image."""
        return sum(layer.bops for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights of convolutions and linear layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def memory_bits(self) -> int:
        """Bits of all weights and all layer inputs."""
        return sum(layer.memory_bits for layer in self.layers)

    @property
    def memory_kb(self) -> float:
        """Memory footprint in KB of 1,000 bytes."""
        return self.memory_bits / 8000

    def to_json(self) -> dict[str, Any]:
        """The document that `bench cost --json` prints."""
        layers = [
            {
                "name": layer.name,
                "macs": layer.macs,
                "weight_bits": layer.weight_bits,
                "activation_bits": layer.activation_bits,
                "bops": layer.bops,
                "parameters": layer.parameters,
                "memory_bits": layer.memory_bits,
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
            }
            for layer in self.layers
        ]
        return {
            "model": self.model,
            "dataset": self.dataset,
            "macs": self.macs,
            "bops": self.bops,
            "memory_bits": self.memory_bits,
            "memory_kb": self.memory_kb,
            "parameters": self.parameters,
            "layers": layers,
        }


def price(network: NetworkShape, policy: Policy) -> NetworkCost:
    """Price a policy exactly. A pruned layer shrinks, and so do the inputs of the layer that reads it.

    Raises:
        BenchError: The policy does not fit the network.
    """
    check(network, policy)
    return NetworkCost(
        model=network.model,
        dataset=network.dataset,
        layers=tuple(_price_layer(network, policy, layer) for layer in network.layers),
    )


def _price_layer(network: NetworkShape, policy: Policy, layer: LayerShape) -> LayerCost:
    choice = policy.layers[layer.name]
    inputs = kept_inputs(network, policy, layer)
    in_channels = layer.in_channels if inputs is None else len(inputs)
    out_channels = layer.out_channels if choice.kept_filters is None else len(choice.kept_filters)
    parameters = in_channels * out_channels * layer.kernel[0] * layer.kernel[1] // layer.groups
    macs = parameters * layer.out_size[0] * layer.out_size[1]
    input_elements = in_channels * layer.in_size[0] * layer.in_size[1]
    return LayerCost(
        name=layer.name,
        macs=macs,
        weight_bits=choice.weight_bits,
        activation_bits=choice.activation_bits,
        bops=macs * choice.weight_bits * choice.activation_bits,
        parameters=parameters,
        memory_bits=parameters * choice.weight_bits + input_elements * choice.activation_bits,
        in_channels=in_channels,
        out_channels=out_channels,
    )


class RelaxedBops:
    """BOPs of the searched layers as a differentiable function of bits and channels, plus the constant rest.

    The same per-layer formula as the counter's, with expectations over gates or probabilities in place of
    integers: R = R_edge + Σ_l unit_l · in_l · out_l · b_w,l · b_x,l, where unit_l holds kernel area and output
    positions (the joint form of the paper's Eq. 14). With integer arguments it equals the counter exactly.

    Args:
        network: The shapes.
        device: Where the arguments will live.
        edge_bits: Bits of the first and the last layer.

    Attributes:
        layers: The searched layers; position i of every argument belongs to `layers[i]`.
        in_channels, out_channels: Full channel counts, shape (L,).
    """

    def __init__(
        self, network: NetworkShape, device: torch.device | str = "cpu", *, edge_bits: int = EDGE_BITS
    ) -> None:
        self.layers: Sequence[LayerShape] = network.middle
        units = [
            layer.kernel[0] * layer.kernel[1] * layer.out_size[0] * layer.out_size[1] / layer.groups
            for layer in self.layers
        ]

        def vector(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        self._units = vector(units)
        self.in_channels = vector([layer.in_channels for layer in self.layers])
        self.out_channels = vector([layer.out_channels for layer in self.layers])
        edges = Policy(
            model=network.model,
            dataset=network.dataset,
            layers={
                layer.name: LayerPolicy(weight_bits=edge_bits, activation_bits=edge_bits) for layer in network.layers
            },
        )
        self._edge = float(
            sum(_price_layer(network, edges, layer).bops for layer in network.layers if layer.position != "middle")
        )

    def __call__(
        self,
        weight_bits: Tensor,
        activation_bits: Tensor,
        *,
        in_channels: Tensor | None = None,
        out_channels: Tensor | None = None,
    ) -> Tensor:
        """Total BOPs, a scalar in float64.

        Args:
            weight_bits: Shape (L,), expected bits of the weights.
            activation_bits: Shape (L,), expected bits of the inputs.
            in_channels: Shape (L,), expected surviving input channels; all when absent.
            out_channels: Shape (L,), expected surviving filters; all when absent.
        """
        inputs = self.in_channels if in_channels is None else in_channels
        outputs = self.out_channels if out_channels is None else out_channels
        return self._edge + (self._units * inputs * outputs * weight_bits * activation_bits).sum()
