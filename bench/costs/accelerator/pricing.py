"""Execution of a network on the simulated accelerator, layer after layer, under a policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bench.compression.policy import Policy, check
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.accelerator.bitfusion import Execution, execute
from bench.costs.accelerator.hardware import Hardware, read_hardware
from bench.costs.accelerator.tiling import Form, Loops
from bench.costs.counter import channels
from bench.errors import BenchError
from bench.spec.schema import AcceleratorSpec

NOT_A_LAYER = "it multiplies outside of the layers at full precision, which the accelerator does not"
"""Reason why the execution of an operation outside of the layers is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorCost:
    """The cost of executing a network.

    Attributes:
        accelerator: Settings of the accelerator.
        layers: Executions of the layers for a whole batch, by name.
    """

    accelerator: AcceleratorSpec
    layers: Mapping[str, Execution]

    @property
    def cycles(self) -> int:
        """Cycles for the whole batch."""
        return sum(layer.cycles for layer in self.layers.values())

    @property
    def latency_ms(self) -> float:
        """Milliseconds for one image."""
        return sum(layer.latency_ms for layer in self.layers.values())

    @property
    def energy_mj(self) -> float:
        """Millijoules for one image."""
        return sum(layer.energy_mj for layer in self.layers.values())


def price_on(accelerator: AcceleratorSpec, network: NetworkShape, policy: Policy) -> AcceleratorCost:
    """Execute a network under a policy.

    Raises:
        BenchError: The policy does not fit the network, has more bits than the accelerator computes with, a layer is
            not square or a product of activations, or the network multiplies outside of its layers.
    """
    check(network, policy)
    if network.unquantized:
        label = network.unquantized[0].label
        raise BenchError(f"latency and energy of '{network.model}' are not known because of '{label}': {NOT_A_LAYER}")
    layers = {}
    for layer in network.layers:
        choice = policy.layers[layer.name]
        layers[layer.name] = execute_layer(
            accelerator, layer, choice.weight_bits, choice.activation_bits, *channels(policy, layer)
        )
    return AcceleratorCost(accelerator=accelerator, layers=layers)


def execute_layer(
    accelerator: AcceleratorSpec,
    layer: LayerShape,
    weight_bits: int,
    activation_bits: int,
    in_channels: int,
    out_channels: int,
) -> Execution:
    """Execute one layer with the channels that it keeps.

    Raises:
        BenchError: A number of bits is above the accelerator's highest precision, or the layer is not square, or a
            product of activations.
    """
    if layer.kind == "matmul":
        raise BenchError(
            f"'{layer.name}' multiplies two activations; latency and energy can be estimated for layers with weights "
            "only, since the accelerator's model keeps one operand for a whole batch"
        )
    if not _is_square(layer):
        raise BenchError(
            f"layer '{layer.name}' has a {layer.kernel[0]}×{layer.kernel[1]} kernel with stride {layer.stride} on a "
            f"{layer.out_size[0]}×{layer.out_size[1]} map; latency and energy can be estimated for squares only"
        )
    loops = Loops(
        kernel=layer.kernel[0],
        out_size=layer.out_size[0],
        stride=layer.stride[0],
        in_channels=in_channels,
        out_channels=out_channels,
        batch=accelerator.batch,
        form=_form(accelerator, layer),
    )
    return execute(_hardware(accelerator.hardware), loops, weight_bits, activation_bits)


def _form(accelerator: AcceleratorSpec, layer: LayerShape) -> Form:
    if layer.position == "first" and layer.kind == "conv":
        return "image"
    return "channelwise" if layer.depthwise and accelerator.depthwise == "channelwise" else "conv"


def _is_square(layer: LayerShape) -> bool:
    return all(len(set(pair)) == 1 for pair in (layer.kernel, layer.out_size, layer.stride))


@cache
def _hardware(name: str) -> Hardware:
    return read_hardware(name)
