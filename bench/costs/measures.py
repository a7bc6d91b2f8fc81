"""What a budget can limit: each measure prices a policy exactly and has a differentiable form for searches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from bench.compression.policy import FULL_PRECISION_BITS, LayerSpace, Policy
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.accelerator.bitfusion import read_hardware
from bench.costs.accelerator.pricing import AcceleratorCost, execute_layer, price_on
from bench.costs.counter import BITS_PER_KB, channels, price, price_layer
from bench.costs.relaxed import RelaxedBops, RelaxedCost, RelaxedMemory, RelaxedTable
from bench.spec.schema import AcceleratorSpec

MeasureName = Literal["bops", "memory", "latency", "energy"]


@dataclass(frozen=True)
class Measure(ABC):
    """One kind of cost.

    Attributes:
        name: In records.
        unit: In which `price` counts.
        title: In texts, with the unit.
    """

    name: ClassVar[MeasureName]
    unit: ClassVar[str]
    title: ClassVar[str]

    @property
    def widest(self) -> int:
        """Bits of the dearest uniform network that can be priced."""
        return FULL_PRECISION_BITS

    @property
    def on_accelerator(self) -> bool:
        """Whether it is estimated on a simulated accelerator."""
        return False

    @abstractmethod
    def price(self, network: NetworkShape, policy: Policy) -> float:
        """The exact cost of a policy, in the measure's unit.

        Raises:
            BenchError: The policy does not fit the network, or cannot be priced.
        """

    @abstractmethod
    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        """A layer's part of that; the parts of all layers add up to it, but for rounding."""

    @abstractmethod
    def relaxed(
        self, network: NetworkShape, choices: Mapping[str, LayerSpace], device: torch.device, edge_bits: int
    ) -> RelaxedCost:
        """The differentiable form, in the same unit.

        Args:
            network: The shapes.
            choices: By searched layer.
            device: Where searches live.
            edge_bits: Bits of first and last layer.
        """

    def in_words(self, cost: float) -> str:
        """A cost with its unit."""
        return f"{cost:,.3f} {self.unit}"


@dataclass(frozen=True)
class Bops(Measure):
    """Bit operations for one image."""

    name = "bops"
    unit = "BOPs"
    title = "BOPs"

    def price(self, network: NetworkShape, policy: Policy) -> float:
        """Exact, a whole number."""
        return price(network, policy).bops

    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        """Exact, a whole number."""
        return price_layer(policy, layer).bops

    def relaxed(
        self, network: NetworkShape, choices: Mapping[str, LayerSpace], device: torch.device, edge_bits: int
    ) -> RelaxedCost:
        """Eq. 14."""
        return RelaxedBops(network, choices, device, edge_bits=edge_bits)

    def in_words(self, cost: float) -> str:
        """A whole number."""
        return f"{cost:,.0f} BOPs"


@dataclass(frozen=True)
class Memory(Measure):
    """Memory footprint in KB of 1,000 bytes: weights and the inputs of all layers."""

    name = "memory"
    unit = "KB"
    title = "memory (KB)"

    def price(self, network: NetworkShape, policy: Policy) -> float:
        """A multiple of an eighth of a byte."""
        return price(network, policy).memory_kb

    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        """Of its weights and its input."""
        return price_layer(policy, layer).memory_bits / BITS_PER_KB

    def relaxed(
        self, network: NetworkShape, choices: Mapping[str, LayerSpace], device: torch.device, edge_bits: int
    ) -> RelaxedCost:
        """Weights and inputs with their expected widths."""
        return RelaxedMemory(network, choices, device, edge_bits=edge_bits)


@dataclass(frozen=True)
class _OnAccelerator(Measure):
    """What the simulated accelerator takes for one image."""

    accelerator: AcceleratorSpec

    @property
    def widest(self) -> int:
        """The accelerator's highest precision."""
        return read_hardware(self.accelerator.hardware).max_bits

    @property
    def on_accelerator(self) -> bool:
        """It is."""
        return True

    @abstractmethod
    def of(self, cost: AcceleratorCost) -> float:
        """The figure of a network or of a layer."""

    def price(self, network: NetworkShape, policy: Policy) -> float:
        """The sum over the layers, computed one after another."""
        return self.of(price_on(self.accelerator, network, policy))

    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        """Of its own execution."""
        choice = policy.layers[layer.name]
        return self._execute(layer, choice.weight_bits, choice.activation_bits, *channels(policy, layer))

    def _execute(self, layer: LayerShape, weight_bits: int, activation_bits: int, inputs: int, outputs: int) -> float:
        executed = execute_layer(self.accelerator, layer, weight_bits, activation_bits, inputs, outputs)
        return self.of(AcceleratorCost(accelerator=self.accelerator, layers={layer.name: executed}))

    def relaxed(
        self, network: NetworkShape, choices: Mapping[str, LayerSpace], device: torch.device, edge_bits: int
    ) -> RelaxedCost:
        """A table of every layer at every pair of widths and at some channel counts."""
        edge = sum(
            self._execute(layer, edge_bits, edge_bits, layer.in_channels, layer.out_channels)
            for layer in network.layers
            if layer.position != "middle"
        )
        return RelaxedTable(network, choices, self._execute, edge, device)


@dataclass(frozen=True)
class Latency(_OnAccelerator):
    """Milliseconds for one image."""

    name = "latency"
    unit = "ms"
    title = "latency (ms)"

    def of(self, cost: AcceleratorCost) -> float:
        """Milliseconds."""
        return cost.latency_ms


@dataclass(frozen=True)
class Energy(_OnAccelerator):
    """Millijoules for one image."""

    name = "energy"
    unit = "mJ"
    title = "energy (mJ)"

    def of(self, cost: AcceleratorCost) -> float:
        """Millijoules."""
        return cost.energy_mj


BOPS = Bops()
"""What everything is limited by unless something else is asked for."""
