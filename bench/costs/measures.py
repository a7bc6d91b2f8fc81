"""The measures that a budget can limit: bit operations, memory, latency and energy.

A `Measure` knows its name, column, heading, unit and decimals, prices a policy exactly, and makes the differentiable
form for searches. PyTorch is imported only where a policy is priced, so that reports can use the rest without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.compression.policy import FULL_PRECISION_BITS, LayerSpace, Policy, check, uniform
from bench.costs.accelerator.hardware import read_hardware
from bench.costs.measured import LayerTimes, times_on

if TYPE_CHECKING:
    import torch

    from bench.compression.shapes import LayerShape, NetworkShape
    from bench.costs.accelerator.pricing import AcceleratorCost
    from bench.costs.relaxed import RelaxedCost
    from bench.spec.schema import AcceleratorSpec

MeasureName = Literal["bops", "memory", "latency", "energy"]


@dataclass(frozen=True)
class Measure(ABC):
    """One measure of cost. The class says how figures are called and shown; an instance prices policies.

    Attributes:
        name: Name on the command line and in records.
        word: Name in sentences.
        column: Field of records and tables that holds a run's figure, in `unit`.
        title: Heading of tables and axes, with the unit in which figures are shown.
        unit: Unit in which `price` counts.
        scale: Size of one shown unit in `unit`.
        decimals: Decimals of a shown figure.
        on_accelerator: Whether the figure is estimated for hardware, simulated or measured.
        rises_with_bits: Whether more bits and more filters never cost less, so that a method's cheapest and costliest
            policies are known.
    """

    name: ClassVar[MeasureName]
    word: ClassVar[str]
    column: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    scale: ClassVar[float] = 1.0
    decimals: ClassVar[int]
    on_accelerator: ClassVar[bool] = False
    rises_with_bits: ClassVar[bool] = True

    @property
    def max_bits(self) -> int:
        """Highest bits that can be priced."""
        return FULL_PRECISION_BITS

    @property
    def max_quantized_bits(self) -> int:
        """Highest bits below full precision that can be priced."""
        return min(self.max_bits, FULL_PRECISION_BITS - 1)

    def costliest_bits(self, network: "NetworkShape") -> int:
        """Return the bits of the costliest uniform network that can be priced."""
        return self.max_bits

    @abstractmethod
    def price(self, network: "NetworkShape", policy: Policy) -> float:
        """Return the exact cost of a policy for one image, in `unit`.

        Raises:
            BenchError: The policy does not fit the network, or cannot be priced.
        """

    @abstractmethod
    def price_layer(self, policy: Policy, layer: "LayerShape") -> float:
        """Return one layer's share of the cost, in `unit`; shares and `constant` add up to the total (rounded)."""

    def constant(self, network: "NetworkShape") -> float:
        """Return the cost of what is multiplied outside of the layers, in `unit`; no policy changes it."""
        return 0

    @abstractmethod
    def relaxed(
        self, network: "NetworkShape", choices: Mapping[str, LayerSpace], device: "torch.device", edge_bits: int
    ) -> "RelaxedCost":
        """Make the differentiable form of the cost, in `unit`.

        Args:
            network: Shapes of the network.
            choices: Choices of every searched layer, by name.
            device: Device of the search.
            edge_bits: Bits of the first and last layer.
        """

    @classmethod
    def in_words(cls, cost: float) -> str:
        """Return a cost with its unit, for a sentence."""
        return f"{cost:,.{max(3, cls.decimals)}f} {cls.unit}"


@dataclass(frozen=True)
class Bops(Measure):
    """Bit operations for one image."""

    name = "bops"
    word = "BOPs"
    column = "bops"
    title = "BOPs (M)"
    unit = "BOPs"
    scale = 1e6
    decimals = 2

    def price(self, network: "NetworkShape", policy: Policy) -> float:
        """Return the bit operations of a policy, a whole number."""
        from bench.costs.counter import price

        return price(network, policy).bops

    def price_layer(self, policy: Policy, layer: "LayerShape") -> float:
        """Return the bit operations of one layer, a whole number."""
        from bench.costs.counter import price_layer

        return price_layer(policy, layer).bops

    def constant(self, network: "NetworkShape") -> float:
        """Return the bit operations outside of the layers, at full precision."""
        from bench.costs.counter import price_unquantized

        return sum(operation.bops for operation in price_unquantized(network))

    def relaxed(
        self, network: "NetworkShape", choices: Mapping[str, LayerSpace], device: "torch.device", edge_bits: int
    ) -> "RelaxedCost":
        """Make the differentiable form: Eq. 14 of the SBS paper."""
        from bench.costs.relaxed import RelaxedBops

        return RelaxedBops(network, choices, device, edge_bits=edge_bits)

    @classmethod
    def in_words(cls, cost: float) -> str:
        """Return a whole number of bit operations."""
        return f"{cost:,.0f} BOPs"


@dataclass(frozen=True)
class Memory(Measure):
    """Memory footprint in KB of 1,000 bytes: the weights and the inputs of all layers."""

    name = "memory"
    word = "memory"
    column = "memory_kb"
    title = "Memory KB"
    unit = "KB"
    decimals = 1

    def price(self, network: "NetworkShape", policy: Policy) -> float:
        """Return the footprint of a policy, a multiple of an eighth of a byte."""
        from bench.costs.counter import price

        return price(network, policy).memory_kb

    def price_layer(self, policy: Policy, layer: "LayerShape") -> float:
        """Return the footprint of one layer's weights and input."""
        from bench.costs.counter import BITS_PER_KB, price_layer

        return price_layer(policy, layer).memory_bits / BITS_PER_KB

    def relaxed(
        self, network: "NetworkShape", choices: Mapping[str, LayerSpace], device: "torch.device", edge_bits: int
    ) -> "RelaxedCost":
        """Make the differentiable form: weights and inputs with their expected bits."""
        from bench.costs.relaxed import RelaxedMemory

        return RelaxedMemory(network, choices, device, edge_bits=edge_bits)


@dataclass(frozen=True)
class _OnAccelerator(Measure):
    """Base of the measures that are estimated for one image on hardware."""

    accelerator: "AcceleratorSpec"
    decimals = 4
    on_accelerator = True

    @property
    def max_bits(self) -> int:
        """Highest precision of the accelerator."""
        return read_hardware(self.accelerator.hardware).max_bits

    @abstractmethod
    def read(self, cost: "AcceleratorCost") -> float:
        """Read this measure's figure, in `unit`, from what the accelerator takes."""

    def price(self, network: "NetworkShape", policy: Policy) -> float:
        """Return the sum over the layers, which are computed one after another."""
        from bench.costs.accelerator.pricing import price_on

        return self.read(price_on(self.accelerator, network, policy))

    def price_layer(self, policy: Policy, layer: "LayerShape") -> float:
        """Return the figure of one layer's execution."""
        from bench.costs.counter import channels

        choice = policy.layers[layer.name]
        return self._execute(layer, choice.weight_bits, choice.activation_bits, *channels(policy, layer))

    def _execute(self, layer: "LayerShape", weight_bits: int, activation_bits: int, inputs: int, outputs: int) -> float:
        from bench.costs.accelerator.pricing import AcceleratorCost, execute_layer

        executed = execute_layer(self.accelerator, layer, weight_bits, activation_bits, inputs, outputs)
        return self.read(AcceleratorCost(accelerator=self.accelerator, layers={layer.name: executed}))

    def relaxed(
        self, network: "NetworkShape", choices: Mapping[str, LayerSpace], device: "torch.device", edge_bits: int
    ) -> "RelaxedCost":
        """Make the differentiable form: a table of every layer at all pairs of bits and some channel counts."""
        return self._table(network, choices, device, edge_bits, 0)

    def _table(
        self,
        network: "NetworkShape",
        choices: Mapping[str, LayerSpace],
        device: "torch.device",
        edge_bits: int,
        constant: float,
    ) -> "RelaxedCost":
        from bench.costs.relaxed import RelaxedTable

        edge = constant + sum(
            self._execute(layer, edge_bits, edge_bits, layer.in_channels, layer.out_channels)
            for layer in network.layers
            if layer.position != "middle"
        )
        return RelaxedTable(network, choices, self._execute, edge, device)


@dataclass(frozen=True)
class Latency(_OnAccelerator):
    """Milliseconds for one image."""

    name = "latency"
    word = "latency"
    column = "latency_ms"
    title = "Latency ms"
    unit = "ms"

    def read(self, cost: "AcceleratorCost") -> float:
        """Read the milliseconds."""
        return cost.latency_ms


@dataclass(frozen=True)
class MeasuredLatency(Latency):
    """Milliseconds for one image by a table of layers that were measured on a machine.

    Fewer bits may take longer, since integers must be made from real numbers first.
    """

    rises_with_bits = False

    @property
    def max_bits(self) -> int:
        """Full precision, in which every machine computes."""
        return FULL_PRECISION_BITS

    @property
    def max_quantized_bits(self) -> int:
        """Highest bits that the table has beside full precision."""
        measured = {level.weight_bits for layer in self._times.layers for level in layer.levels}
        return max(measured - {FULL_PRECISION_BITS})

    def costliest_bits(self, network: "NetworkShape") -> int:
        """Return the bits of the slowest uniform network."""
        levels = {level.weight_bits for layer in self._times.layers for level in layer.levels}
        return max(levels, key=lambda bits: self.price(network, uniform(network, bits)))

    def price(self, network: "NetworkShape", policy: Policy) -> float:
        """Return the sum over the layers, and the rest of the network."""
        check(network, policy)
        return sum(self.price_layer(policy, layer) for layer in network.layers) + self.constant(network)

    def constant(self, network: "NetworkShape") -> float:
        """Return what the float network takes beyond its layers."""
        return self._times.network(network).rest_ms

    def relaxed(
        self, network: "NetworkShape", choices: Mapping[str, LayerSpace], device: "torch.device", edge_bits: int
    ) -> "RelaxedCost":
        """Make the differentiable form from the same table."""
        return self._table(network, choices, device, edge_bits, self.constant(network))

    def _execute(self, layer: "LayerShape", weight_bits: int, activation_bits: int, inputs: int, outputs: int) -> float:
        return self._times.quartiles(layer, weight_bits, activation_bits, inputs, outputs)[1]

    @property
    def _times(self) -> LayerTimes:
        return times_on(self.accelerator)


@dataclass(frozen=True)
class Energy(_OnAccelerator):
    """Millijoules for one image."""

    name = "energy"
    word = "energy"
    column = "energy_mj"
    title = "Energy mJ"
    unit = "mJ"

    def read(self, cost: "AcceleratorCost") -> float:
        """Read the millijoules."""
        return cost.energy_mj


BOPS = Bops()
"""The measure of a budget that names no other one."""

MEASURES: Mapping[MeasureName, type[Measure]] = {kind.name: kind for kind in (Bops, Memory, Latency, Energy)}
"""All measures by name, in the order of tables."""
