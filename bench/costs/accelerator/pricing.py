"""A network on the simulated accelerator: its layers one after another, under a policy."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bench.compression.policy import Policy, check
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.accelerator.bitfusion import Execution, Form, Hardware, Loops, execute, read_hardware
from bench.costs.counter import channels
from bench.errors import BenchError
from bench.spec.schema import AcceleratorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceleratorCost:
    """What a network takes.

    Attributes:
        accelerator: Where and how it was executed.
        layers: By name, for a whole batch.
    """

    accelerator: AcceleratorSpec
    layers: Mapping[str, Execution]

    @property
    def cycles(self) -> int:
        """Cycles of the whole batch."""
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
        BenchError: The policy does not fit the network, a width is above the accelerator's highest precision, or a
            layer has a shape that the model does not know.
    """
    check(network, policy)
    layers = {}
    for layer in network.layers:
        choice = policy.layers[layer.name]
        layers[layer.name] = execute_layer(
            accelerator, layer, choice.weight_bits, choice.activation_bits, *channels(policy, layer)
        )
    return AcceleratorCost(accelerator=accelerator, layers=layers)


def computes(accelerator: AcceleratorSpec, network: NetworkShape, policy: Policy) -> bool:
    """Whether the accelerator has all widths of a policy, and the model knows the shapes of all layers."""
    highest = _hardware(accelerator.hardware).max_bits
    narrow = all(max(layer.weight_bits, layer.activation_bits) <= highest for layer in policy.layers.values())
    return narrow and all(_is_square(layer) for layer in network.layers)


def execute_layer(
    accelerator: AcceleratorSpec,
    layer: LayerShape,
    weight_bits: int,
    activation_bits: int,
    in_channels: int,
    out_channels: int,
) -> Execution:
    """One layer with its surviving channels.

    Raises:
        BenchError: A width is above the accelerator's highest precision, or the layer is not square.
    """
    if not _is_square(layer):
        raise BenchError(
            f"layer '{layer.name}' has a {layer.kernel[0]}×{layer.kernel[1]} kernel with stride {layer.stride} on a "
            f"{layer.out_size[0]}×{layer.out_size[1]} map; latency and energy are known for squares only"
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
