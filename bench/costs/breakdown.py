"""The cost of a policy in every measure at once, layer by layer, and the difference between two policies.

Operations and memory are known for every policy. Latency and energy are known only where the accelerator supports the
bits and its model covers the shape of a layer. An unknown figure is `None`, and the reason is kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.compression.policy import FULL_PRECISION_BITS, Policy, load_policy, uniform
from bench.compression.shapes import NetworkShape
from bench.compression.space_size import policies
from bench.costs.accelerator.bitfusion import Execution
from bench.costs.accelerator.hardware import read_hardware
from bench.costs.accelerator.pricing import NOT_A_LAYER, execute_layer
from bench.costs.counter import BITS_PER_KB, LayerCost, NetworkCost, price
from bench.costs.measured import Quartiles, times_on
from bench.costs.measures import MEASURES, MeasureName
from bench.errors import BenchError
from bench.spec.schema import AcceleratorSpec

if TYPE_CHECKING:
    import pandas as pd

_UNIFORM = re.compile(r"(\d+)bit", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostBreakdown:
    """The cost of a policy in every measure.

    Attributes:
        network: Shapes of the full network.
        policy: The policy.
        cost: Operations and memory for one image.
        accelerator: Accelerator that latency and energy are estimated on.
        executions: Execution of each layer on the accelerator for a batch, or its measured time for an image, by name,
            as far as it is known.
        rest_ms: Measured time beyond the layers, for one image.
        unknown: Reason for each layer, or operation outside of the layers, whose execution is not known, by name.
    """

    network: NetworkShape
    policy: Policy
    cost: NetworkCost
    accelerator: AcceleratorSpec
    executions: Mapping[str, "Execution | MeasuredTime"]
    unknown: Mapping[str, str]
    rest_ms: float = 0.0

    def total(self, measure: MeasureName) -> float | None:
        """Return the cost of the whole network for one image in the measure's unit; `None` when it is not known."""
        if measure == "bops":
            return self.cost.bops
        if measure == "memory":
            return self.cost.memory_kb
        if self.unknown:
            return None
        parts = [_executed(measure, execution) for execution in self.executions.values()]
        known = [part for part in parts if part is not None]
        return sum(known) + (self.rest_ms if measure == "latency" else 0) if len(known) == len(parts) else None

    def metrics(self) -> dict[str, float | None]:
        """Return all costs by the names that records have; latency and energy are `None` where they are not known."""
        return {
            "bops": self.cost.bops,
            "memory_kb": self.cost.memory_kb,
            "memory_bits": self.cost.memory_bits,
            "peak_memory_bits": self.cost.peak_memory_bits,
            "macs": self.cost.macs,
            "parameters": self.cost.parameters,
            "latency_ms": self.total("latency"),
            "energy_mj": self.total("energy"),
        }

    def layer_cost(self, measure: MeasureName, layer: LayerCost) -> float | None:
        """Return one layer's part of the total; `None` when it is not known."""
        if measure == "bops":
            return layer.bops
        if measure == "memory":
            return layer.memory_bits / BITS_PER_KB
        execution = self.executions.get(layer.name)
        return None if execution is None else _executed(measure, execution)

    def shares(self, measure: MeasureName) -> Mapping[str, float]:
        """Return each layer's share of the total, by name; an empty mapping when the total is not known."""
        total = self.total(measure)
        if not total:
            return {}
        return {layer.name: (self.layer_cost(measure, layer) or 0) / total for layer in self.cost.layers}

    @property
    def frame(self) -> "pd.DataFrame":
        """One row for each layer, with the fields of `to_json`: counts of operations, bits of memory, energy in nJ."""
        import pandas as pd

        return pd.DataFrame(self.to_json()["layers"])

    def to_json(self) -> dict[str, Any]:
        """Return the document that `bench cost --json` prints."""
        document = self.cost.to_json()
        layers = [{**layer, **_execution_json(self.executions.get(layer["name"]))} for layer in document.pop("layers")]
        return {
            **document,
            "latency_ms": self.total("latency"),
            "energy_mj": self.total("energy"),
            **self.accelerator.model_dump(),
            **({"rest_ms": self.rest_ms} if self.accelerator.measured else {}),
            "search_space": policies(self.network),
            "layers": layers,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTime:
    """Measured time of a layer for one image; energy is not measured.

    Attributes:
        quartiles: Quartiles in milliseconds.
    """

    quartiles: Quartiles

    @property
    def latency_ms(self) -> float:
        """Median in milliseconds."""
        return self.quartiles[1]


def _executed(measure: MeasureName, execution: Execution | MeasuredTime) -> float | None:
    """Return the milliseconds or millijoules of an execution for one image; `None` if it is not known."""
    if measure == "latency":
        return execution.latency_ms
    return None if isinstance(execution, MeasuredTime) else execution.energy_mj


def _execution_json(execution: Execution | MeasuredTime | None) -> dict[str, Any]:
    """Return a layer's figures for the whole batch; memory traffic is reads and writes together."""
    if isinstance(execution, MeasuredTime):
        return {"latency_ms": execution.latency_ms, "latency_quartiles_ms": list(execution.quartiles)}
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
        BenchError: The policy does not fit the network, or the hardware does not exist.
    """
    cost = price(network, policy)
    if accelerator.measured:
        return _measured_breakdown(accelerator, network, policy, cost)
    read_hardware(accelerator.hardware)
    executions: dict[str, Execution | MeasuredTime] = {}
    unknown = {}
    for shape, layer in zip(network.layers, cost.layers, strict=True):
        bits = layer.weight_bits, layer.activation_bits
        try:
            executions[layer.name] = execute_layer(accelerator, shape, *bits, layer.in_channels, layer.out_channels)
        except BenchError as error:
            unknown[layer.name] = str(error)
    unknown |= dict.fromkeys((operation.label for operation in network.unquantized), NOT_A_LAYER)
    return CostBreakdown(
        network=network,
        policy=policy,
        cost=cost,
        accelerator=accelerator,
        executions=executions,
        unknown=unknown,
    )


def _measured_breakdown(
    accelerator: AcceleratorSpec, network: NetworkShape, policy: Policy, cost: NetworkCost
) -> CostBreakdown:
    """Price a policy in every measure, with latency by a table of measured layers."""
    times = times_on(accelerator)
    rest = times.network(network).rest_ms
    executions: dict[str, Execution | MeasuredTime] = {}
    unknown = {}
    for shape, layer in zip(network.layers, cost.layers, strict=True):
        bits = layer.weight_bits, layer.activation_bits
        try:
            quartiles = times.quartiles(shape, *bits, layer.in_channels, layer.out_channels)
        except BenchError as error:
            unknown[layer.name] = str(error)
        else:
            executions[layer.name] = MeasuredTime(quartiles=quartiles)
    return CostBreakdown(
        network=network,
        policy=policy,
        cost=cost,
        accelerator=accelerator,
        executions=executions,
        unknown=unknown,
        rest_ms=rest,
    )


# --- two policies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One of two policies that are compared.

    Attributes:
        name: Name that the user gave: a file, or "4bit".
        costs: Cost of the policy.
    """

    name: str
    costs: CostBreakdown


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two policies of one network."""

    first: Side
    second: Side

    def percent(self, measure: MeasureName, layer: int | None = None) -> float | None:
        """Return by how much the second policy costs more than the first, in percent of the first.

        Args:
            measure: Measure of the cost.
            layer: Index of a layer; the whole network when absent.
        """
        before, after = (_cost(side.costs, measure, layer) for side in (self.first, self.second))
        return None if before is None or after is None else 100 * (after - before) / before

    def to_json(self) -> dict[str, Any]:
        """Return the document that `bench cost --diff A B --json` prints."""
        first, second = self.first.costs, self.second.costs
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
        return {measure.column: self.percent(name, layer) for name, measure in MEASURES.items()}


def _cost(costs: CostBreakdown, measure: MeasureName, layer: int | None) -> float | None:
    return costs.total(measure) if layer is None else costs.layer_cost(measure, costs.cost.layers[layer])


def _side_json(side: Side) -> dict[str, Any]:
    document = {key: value for key, value in side.costs.to_json().items() if key in _TOTALS}
    return {"policy": side.name, **document}


_TOTALS = {
    *(measure.column for measure in MEASURES.values()),
    *("macs", "memory_bits", "peak_memory_bits", "parameters"),
}


def _layer_json(costs: CostBreakdown, index: int) -> dict[str, Any]:
    """Return one layer of one side; `filters` counts those, or the heads, that are kept."""
    layer = costs.cost.layers[index]
    return {
        "weight_bits": layer.weight_bits,
        "activation_bits": layer.activation_bits,
        "filters": layer.out_channels // costs.network.layers[index].outputs_per_filter,
        **{measure.column: costs.layer_cost(name, layer) for name, measure in MEASURES.items()},
    }


def policy_or_bits(name: str) -> Policy | int:
    """Read an argument of `--diff`: the policy in a file, or the bits of a name such as "4bit".

    Raises:
        BenchError: The bits are out of range, or the file cannot be read or holds something else.
    """
    if match := _UNIFORM.fullmatch(name):
        bits = int(match[1])
        if not 1 <= bits <= FULL_PRECISION_BITS:
            raise BenchError(f"--diff '{name}': bits go from 1 to {FULL_PRECISION_BITS}")
        return bits
    try:
        return load_policy(Path(name))
    except BenchError as error:
        raise BenchError(f"{error}; --diff takes policy files and names such as 4bit") from error


def side(name: str, network: NetworkShape, choice: Policy | int, accelerator: AcceleratorSpec) -> Side:
    """Price one of two policies.

    Args:
        name: Name that the user gave.
        network: Shapes of the network.
        choice: Policy, or bits of a uniform one.
        accelerator: Accelerator that latency and energy are estimated on.

    Raises:
        BenchError: The policy does not fit the network.
    """
    policy = uniform(network, choice) if isinstance(choice, int) else choice
    try:
        return Side(name=name, costs=breakdown(accelerator, network, policy))
    except BenchError as error:
        raise BenchError(f"--diff '{name}': {error}") from error
