"""What a policy costs in every measure at once, and what changes between two policies.

Operations and memory are known of every policy, latency and energy only where the accelerator has the widths and the
model of it knows the shape. What is not known is `None`, with the reason.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.compression.policy import FULL_PRECISION_BITS, Policy, load_policy, uniform
from bench.compression.shapes import NetworkShape
from bench.compression.space_size import policies
from bench.costs.accelerator.bitfusion import Execution, read_hardware
from bench.costs.accelerator.pricing import execute_layer
from bench.costs.counter import BITS_PER_KB, LayerCost, NetworkCost, price
from bench.costs.measures import MeasureName
from bench.errors import BenchError
from bench.spec.schema import AcceleratorSpec

_UNIFORM = re.compile(r"(\d+)bit")
_KEYS: Mapping[MeasureName, str] = {
    "bops": "bops",
    "memory": "memory_kb",
    "latency": "latency_ms",
    "energy": "energy_mj",
}
"""What measures are called in JSON, with their units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostBreakdown:
    """What a policy costs.

    Attributes:
        network: The shapes of the full network.
        cost: Operations and memory, for one image.
        accelerator: Where latency and energy are estimated.
        executions: What each layer takes there for a batch, by name, as far as that is known.
        unknown: Why it is not known of the other layers.
    """

    network: NetworkShape
    cost: NetworkCost
    accelerator: AcceleratorSpec
    executions: Mapping[str, Execution]
    unknown: Mapping[str, str]

    def total(self, measure: MeasureName) -> float | None:
        """The whole network for one image: BOPs, KB, ms or mJ."""
        if measure == "bops":
            return self.cost.bops
        if measure == "memory":
            return self.cost.memory_kb
        if self.unknown:
            return None
        return sum(_executed(measure, execution) for execution in self.executions.values())

    def of(self, measure: MeasureName, layer: LayerCost) -> float | None:
        """A layer's part of the total."""
        if measure == "bops":
            return layer.bops
        if measure == "memory":
            return layer.memory_bits / BITS_PER_KB
        execution = self.executions.get(layer.name)
        return None if execution is None else _executed(measure, execution)

    def shares(self, measure: MeasureName) -> Mapping[str, float]:
        """Each layer's share of the total, by name; of nothing where the total is not known."""
        total = self.total(measure)
        if not total:
            return {}
        return {layer.name: (self.of(measure, layer) or 0) / total for layer in self.cost.layers}

    def to_json(self) -> dict[str, Any]:
        """The document that `bench cost --json` prints."""
        document = self.cost.to_json()
        layers = [{**layer, **_execution_json(self.executions.get(layer["name"]))} for layer in document.pop("layers")]
        return {
            **document,
            "latency_ms": self.total("latency"),
            "energy_mj": self.total("energy"),
            **self.accelerator.model_dump(),
            "search_space": policies(self.network),
            "layers": layers,
        }


def _executed(measure: MeasureName, execution: Execution) -> float:
    """Milliseconds or millijoules for one image."""
    return execution.latency_ms if measure == "latency" else execution.energy_mj


def _execution_json(execution: Execution | None) -> dict[str, Any]:
    """What a layer takes for the whole batch; the memory's traffic is that of reads and writes together."""
    if execution is None:
        return {"cycles": None, "dram_bits": None, "energy_nj": None}
    return {
        "cycles": execution.cycles,
        "dram_bits": execution.dram_read_bits + execution.dram_write_bits,
        "energy_nj": execution.energy_nj,
    }


def breakdown(accelerator: AcceleratorSpec, network: NetworkShape, policy: Policy) -> CostBreakdown:
    """Price a policy in every measure.

    Raises:
        BenchError: The policy does not fit the network, or there is no such hardware.
    """
    cost = price(network, policy)
    read_hardware(accelerator.hardware)
    executions, unknown = {}, {}
    for shape, layer in zip(network.layers, cost.layers, strict=True):
        widths = layer.weight_bits, layer.activation_bits
        try:
            executions[layer.name] = execute_layer(accelerator, shape, *widths, layer.in_channels, layer.out_channels)
        except BenchError as error:
            unknown[layer.name] = str(error)
    return CostBreakdown(network=network, cost=cost, accelerator=accelerator, executions=executions, unknown=unknown)


# --- two policies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of two policies.

    Attributes:
        name: As it was asked for, a file or "4bit".
        overall: What it costs.
    """

    name: str
    overall: CostBreakdown


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two policies of one network."""

    first: Side
    second: Side

    def percent(self, measure: MeasureName, layer: int | None = None) -> float | None:
        """By how much the second costs more than the first, in percent of the first.

        Args:
            measure: What of.
            layer: A layer's position; the whole network when absent.
        """
        before, after = (_cost(side.overall, measure, layer) for side in (self.first, self.second))
        return None if before is None or after is None else 100 * (after - before) / before

    def to_json(self) -> dict[str, Any]:
        """The document that `bench cost --diff A B --json` prints."""
        first, second = self.first.overall, self.second.overall
        return {
            "model": first.cost.model,
            "dataset": first.cost.dataset,
            **first.accelerator.model_dump(),
            "first": _side_json(self.first),
            "second": _side_json(self.second),
            "difference_percent": self._percents(None),
            "layers": [
                {
                    "name": layer.name,
                    "first": _layer_json(first, index),
                    "second": _layer_json(second, index),
                    "difference_percent": self._percents(index),
                }
                for index, layer in enumerate(first.cost.layers)
            ],
        }

    def _percents(self, layer: int | None) -> dict[str, float | None]:
        return {key: self.percent(measure, layer) for measure, key in _KEYS.items()}


def _cost(overall: CostBreakdown, measure: MeasureName, layer: int | None) -> float | None:
    return overall.total(measure) if layer is None else overall.of(measure, overall.cost.layers[layer])


def _side_json(side: Side) -> dict[str, Any]:
    document = {key: value for key, value in side.overall.to_json().items() if key in _TOTALS}
    return {"policy": side.name, **document}


_TOTALS = {*_KEYS.values(), "macs", "memory_bits", "peak_memory_bits", "parameters"}


def _layer_json(overall: CostBreakdown, index: int) -> dict[str, Any]:
    """A layer of one side; filters are those that are left."""
    layer = overall.cost.layers[index]
    return {
        "weight_bits": layer.weight_bits,
        "activation_bits": layer.activation_bits,
        "filters": layer.out_channels,
        **{key: overall.of(measure, layer) for measure, key in _KEYS.items()},
    }


def chosen(name: str) -> Policy | int:
    """What a name stands for: the policy in a file, or the width of "4bit".

    Raises:
        BenchError: There is no such width, or the file cannot be read or holds something else.
    """
    if found := _UNIFORM.fullmatch(name):
        if not 1 <= int(found[1]) <= FULL_PRECISION_BITS:
            raise BenchError(f"--diff '{name}': bits go from 1 to {FULL_PRECISION_BITS}")
        return int(found[1])
    try:
        return load_policy(Path(name))
    except BenchError as error:
        raise BenchError(f"{error}; --diff takes policy files and names such as 4bit") from error


def side(name: str, network: NetworkShape, choice: Policy | int, accelerator: AcceleratorSpec) -> Side:
    """Price one of two policies.

    Args:
        name: As it was asked for.
        network: The shapes.
        choice: What the name stands for.
        accelerator: Where latency and energy are estimated.

    Raises:
        BenchError: The policy does not fit the network.
    """
    policy = uniform(network, choice) if isinstance(choice, int) else choice
    try:
        return Side(name=name, overall=breakdown(accelerator, network, policy))
    except BenchError as error:
        raise BenchError(f"--diff '{name}': {error}") from error
