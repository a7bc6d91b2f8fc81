"""Costs: pure functions of layer shapes and policy.

Conventions (all of the paper's tables follow them):

* MACs of a layer: (in/groups) · out · kernel area · output positions. Batch 1. Biases, normalisation,
  activations, additions and pooling are not counted.
* BOPs: MACs · weight bits · activation bits.
* Memory footprint: weights · weight bits + elements of the input · activation bits, summed over the layers;
  an input that two layers read counts twice. 1 KB is 1,000 bytes. The peak form counts all weights, but of the inputs
  only the largest: what a device that computes layer after layer must hold at once.
* Parameters: weights of convolutions and linear layers, without biases.
"""

from dataclasses import dataclass
from typing import Any

from bench.compression.policy import Policy, check, kept_inputs, kept_outputs
from bench.compression.shapes import LayerShape, NetworkShape

BITS_PER_KB = 8000


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """The cost of one layer; exact integers."""

    name: str
    macs: int
    weight_bits: int
    activation_bits: int
    bops: int
    parameters: int
    weight_memory_bits: int
    activation_memory_bits: int
    in_channels: int
    out_channels: int

    @property
    def memory_bits(self) -> int:
        """Bits of the weights and of the input."""
        return self.weight_memory_bits + self.activation_memory_bits


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
        return self.memory_bits / BITS_PER_KB

    @property
    def peak_memory_bits(self) -> int:
        """Bits of all weights and of the largest layer input."""
        weights = sum(layer.weight_memory_bits for layer in self.layers)
        return weights + max(layer.activation_memory_bits for layer in self.layers)

    @property
    def peak_memory_kb(self) -> float:
        """The same in KB of 1,000 bytes."""
        return self.peak_memory_bits / BITS_PER_KB

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
            "peak_memory_bits": self.peak_memory_bits,
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
        layers=tuple(price_layer(policy, layer) for layer in network.layers),
    )


def price_layer(policy: Policy, layer: LayerShape) -> LayerCost:
    """The exact cost of one layer under a policy that fits its network."""
    choice = policy.layers[layer.name]
    in_channels, out_channels = channels(policy, layer)
    groups = in_channels if layer.depthwise else layer.groups
    parameters = in_channels * out_channels * layer.kernel[0] * layer.kernel[1] // groups
    macs = parameters * layer.out_size[0] * layer.out_size[1]
    input_elements = in_channels * layer.in_size[0] * layer.in_size[1]
    return LayerCost(
        name=layer.name,
        macs=macs,
        weight_bits=choice.weight_bits,
        activation_bits=choice.activation_bits,
        bops=macs * choice.weight_bits * choice.activation_bits,
        parameters=parameters,
        weight_memory_bits=parameters * choice.weight_bits,
        activation_memory_bits=input_elements * choice.activation_bits,
        in_channels=in_channels,
        out_channels=out_channels,
    )


def channels(policy: Policy, layer: LayerShape) -> tuple[int, int]:
    """Input and output channels of a layer that a policy leaves."""
    inputs, outputs = kept_inputs(policy, layer), kept_outputs(policy, layer)
    return (
        layer.in_channels if inputs is None else len(inputs),
        layer.out_channels if outputs is None else len(outputs),
    )
