"""Exact costs of a policy: pure functions of layer shapes and policy.

The conventions are those of all tables of the paper:

* MACs of a layer: (in/groups) · out · kernel area · output positions, for one image. Positions of a linear layer are
  its tokens. Biases, normalisation, activations, additions and pooling are not counted.
* BOPs: MACs · weight bits · activation bits.
* Memory footprint: weights · weight bits + elements of the input · activation bits, summed over the layers. An input
  that two layers read counts twice. 1 KB is 1,000 bytes.
* Peak memory: all weights, but only the largest input. A device that computes layer after layer must hold so much at
  once.
* Parameters: weights of convolutions and linear layers, without biases.
* Products of two activations: MACs · bits of the left operand · bits of the right one. Both operands are inputs in
  memory, and neither is a weight.
* Multiplications outside of the layers, such as those of `F.conv2d` or of two activations, have 32 bits on both sides.
  Their MACs and BOPs are part of every policy's cost. Their tensors are not part of memory and parameters.
"""

from dataclasses import asdict, dataclass
from typing import Any

from bench.compression.policy import FULL_PRECISION_BITS, Policy, check, kept_inputs, kept_outputs
from bench.compression.shapes import LayerShape, NetworkShape

BITS_PER_KB = 8000

_LAYER_KEYS = (
    *("name", "macs", "weight_bits", "activation_bits", "bops", "parameters", "memory_bits"),
    *("in_channels", "out_channels"),
)
"""Attributes of a layer in JSON, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """Exact cost of one layer, for one image; `weight_bits` of a product are those of its right operand."""

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
class OperationCost:
    """Exact cost of an operation outside of the layers, for one image; the same under every policy.

    Attributes:
        name: Path of the module, a colon, and the operation.
        macs: Multiplications.
        bops: Bit operations at full precision.
    """

    name: str
    macs: int
    bops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkCost:
    """Exact cost of a network under a policy, for one image.

    Attributes:
        model, dataset: Names of the model and of the data set.
        layers: Costs of the layers.
        unquantized: Costs of operations outside of the layers.
    """

    model: str
    dataset: str
    layers: tuple[LayerCost, ...]
    unquantized: tuple[OperationCost, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(layer.macs for layer in self.layers) + sum(rest.macs for rest in self.unquantized)

    @property
    def bops(self) -> int:
        """Bit operations for one image."""
        return sum(layer.bops for layer in self.layers) + sum(rest.bops for rest in self.unquantized)

    @property
    def parameters(self) -> int:
        """Number of weights of convolutions and linear layers."""
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
        """Peak memory in KB of 1,000 bytes."""
        return self.peak_memory_bits / BITS_PER_KB

    def to_json(self) -> dict[str, Any]:
        """Return the document that `bench cost --json` prints."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "macs": self.macs,
            "bops": self.bops,
            "memory_bits": self.memory_bits,
            "memory_kb": self.memory_kb,
            "peak_memory_bits": self.peak_memory_bits,
            "parameters": self.parameters,
            "unquantized": [asdict(operation) for operation in self.unquantized],
            "layers": [{key: getattr(layer, key) for key in _LAYER_KEYS} for layer in self.layers],
        }


def price(network: NetworkShape, policy: Policy) -> NetworkCost:
    """Price a policy exactly. A pruned layer has fewer filters, and the layer that reads it fewer inputs.

    Raises:
        BenchError: The policy does not fit the network.
    """
    check(network, policy)
    return NetworkCost(
        model=network.model,
        dataset=network.dataset,
        layers=tuple(price_layer(policy, layer) for layer in network.layers),
        unquantized=price_unquantized(network),
    )


def price_unquantized(network: NetworkShape) -> tuple[OperationCost, ...]:
    """Price what a network multiplies outside of its layers."""
    return tuple(
        OperationCost(name=operation.label, macs=operation.macs, bops=operation.macs * FULL_PRECISION_BITS**2)
        for operation in network.unquantized
    )


def price_layer(policy: Policy, layer: LayerShape) -> LayerCost:
    """Price one layer under a policy that fits its network."""
    choice = policy.layers[layer.name]
    in_channels, out_channels = channels(policy, layer)
    right_elements = layer.right_elements(in_channels, out_channels)
    macs = right_elements * layer.out_size[0] * layer.out_size[1]
    input_bits = in_channels * layer.in_size[0] * layer.in_size[1] * choice.activation_bits
    right_bits = right_elements * choice.weight_bits
    product = layer.kind == "matmul"
    return LayerCost(
        name=layer.name,
        macs=macs,
        weight_bits=choice.weight_bits,
        activation_bits=choice.activation_bits,
        bops=macs * choice.weight_bits * choice.activation_bits,
        parameters=0 if product else right_elements,
        weight_memory_bits=0 if product else right_bits,
        activation_memory_bits=input_bits + (right_bits if product else 0),
        in_channels=in_channels,
        out_channels=out_channels,
    )


def channels(policy: Policy, layer: LayerShape) -> tuple[int, int]:
    """Count the input and output channels of a layer that a policy keeps."""
    inputs, outputs = kept_inputs(policy, layer), kept_outputs(policy, layer)
    return (
        layer.in_channels if inputs is None else len(inputs) * layer.inputs_per_filter,
        layer.out_channels if outputs is None else len(outputs) * layer.outputs_per_filter,
    )
