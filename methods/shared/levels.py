"""Policies as vectors of levels, as EvoPress (Sieberling et al. 2025, arXiv 2410.14649) has them.

Every searched tensor is a unit whose levels are its candidate bits. Every layer that may lose filters is one more unit,
whose levels are numbers of filter groups. Which groups a level drops is fixed: those of least mean absolute weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bench.api import EDGE_BITS, LayerPolicy, LayerShape, NetworkShape, Policy, SearchJob, uniform
from methods.shared.gates import filter_groups

Levels = tuple[int, ...]
"""The level of every unit, as an index of its candidates."""
Subject = Literal["weight_bits", "activation_bits", "filters"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One tensor with its candidate bits, or the filters of one layer.

    Attributes:
        layer: Name of the layer.
        what: Bits of one of the layer's two tensors, or its filters.
        options: Bits, or numbers of kept filter groups, rising.
    """

    layer: str
    what: Subject
    options: tuple[int, ...]


def units_of(network: NetworkShape, bits: tuple[int, ...], group_size: int, filter_levels: int) -> list[Unit]:
    """List the units of a network, layer by layer in order of execution.

    Args:
        network: Shapes of the network.
        bits: Candidate bits, rising.
        group_size: Number of filters of a group.
        filter_levels: Largest number of levels of a layer's filters; with 1, all filters are kept.
    """
    units = []
    for layer in network.middle:
        units += [Unit(layer.name, "weight_bits", bits), Unit(layer.name, "activation_bits", bits)]
        if layer.prunable and filter_levels > 1:
            units.append(Unit(layer.name, "filters", kept_groups(layer, group_size, filter_levels)))
    return units


def kept_groups(layer: LayerShape, group_size: int, levels: int) -> tuple[int, ...]:
    """List numbers of kept filter groups of a layer: at most so many, evenly spread from one group to all.

    Args:
        layer: Shape of the layer.
        group_size: Number of filters of a group.
        levels: Largest number of levels, at least 2.
    """
    steps = -(-layer.filters // layer.group_size(group_size)) - 1
    return tuple(sorted({1 + round(steps * level / (levels - 1)) for level in range(levels)}))


class FilterOrder:
    """The filters of a layer in groups, from the largest mean absolute weight to the smallest.

    A last group that is smaller than the others is dropped first, so that the number of kept filters, and with it the
    cost, depends on the number of groups alone.

    Args:
        layer: Shape of the layer.
        group_size: Number of filters of a group.
        weight: Weight of the layer; groups are in the order of their indices without it.
    """

    def __init__(self, layer: LayerShape, group_size: int, weight: Tensor | None = None) -> None:
        size = layer.group_size(group_size)
        starts = range(0, layer.filters, size)
        self._members = [tuple(range(start, min(start + size, layer.filters))) for start in starts]
        sizes = [0.0] * len(starts)
        if weight is not None:
            sizes = filter_groups(layer, group_size, weight.device).metric(weight).tolist()
        self._order = sorted(range(len(starts)), key=lambda group: (-len(self._members[group]), -sizes[group], group))

    def strongest(self, groups: int) -> tuple[int, ...] | None:
        """List the filters of so many groups, in rising order; `None` for all."""
        if groups == len(self._order):
            return None
        return tuple(sorted(filter_ for group in self._order[:groups] for filter_ in self._members[group]))


class LevelSpace:
    """All policies that vectors of levels describe.

    Args:
        network: Shapes of the network.
        units: Units, layer by layer.
        group_size: Number of filters of a group.
        state: Weights of the float network; without them, groups of filters are in the order of their indices.
    """

    def __init__(
        self, network: NetworkShape, units: Sequence[Unit], group_size: int, state: Mapping[str, Tensor] | None = None
    ) -> None:
        self.network, self.units = network, units
        self._base = uniform(network, EDGE_BITS)
        self._orders = {
            unit.layer: FilterOrder(
                network[unit.layer], group_size, None if state is None else state[f"{unit.layer}.weight"]
            )
            for unit in units
            if unit.what == "filters"
        }
        self._own: dict[str, list[int]] = {}
        for index, unit in enumerate(units):
            self._own.setdefault(unit.layer, []).append(index)
        self._choices: dict[tuple[str, Levels], LayerPolicy] = {}

    @property
    def lowest(self) -> Levels:
        """The lowest level of every unit."""
        return (0,) * len(self.units)

    @property
    def highest(self) -> Levels:
        """The highest level of every unit."""
        return tuple(len(unit.options) - 1 for unit in self.units)

    def with_bits(self, level: int) -> Levels:
        """Return one level of all bits, with all filters."""
        tops = zip(self.units, self.highest, strict=True)
        return tuple(top if unit.what == "filters" else level for unit, top in tops)

    def units_at(self, *layers: str | None) -> list[int]:
        """List the indices of the units of some layers."""
        return [index for layer in layers for index in self._own.get(layer or "", [])]

    def policy(self, levels: Levels) -> Policy:
        """Build the policy of a vector of levels; the first and the last layer have 8 bits."""
        chosen = {name: self._choice(name, tuple(levels[unit] for unit in own)) for name, own in self._own.items()}
        return Policy(model=self._base.model, dataset=self._base.dataset, layers={**self._base.layers, **chosen})

    def _choice(self, name: str, levels: Levels) -> LayerPolicy:
        if (name, levels) not in self._choices:
            values = {
                self.units[unit].what: self.units[unit].options[level]
                for unit, level in zip(self._own[name], levels, strict=True)
            }
            kept = self._orders[name].strongest(values["filters"]) if "filters" in values else None
            self._choices[name, levels] = LayerPolicy(
                weight_bits=values["weight_bits"], activation_bits=values["activation_bits"], kept_filters=kept
            )
        return self._choices[name, levels]


class LevelCosts:
    """Costs of vectors of levels, in the unit of a job's budget; layer by layer, each computed once.

    Args:
        job: Network and measure.
        space: Policies.
    """

    def __init__(self, job: SearchJob, space: LevelSpace) -> None:
        self._measure, self._space = job.measure, space
        self._layers = job.task.network.layers
        self._constant = job.measure.constant(job.task.network)
        self._units = [space.units_at(layer.name, layer.producer, layer.leader) for layer in self._layers]
        self._known: list[dict[Levels, float]] = [{} for _ in self._layers]

    def __call__(self, levels: Levels) -> float:
        """Return the cost of a vector of levels, up to the rounding of the sum over layers."""
        total = self._constant
        for layer, units, known in zip(self._layers, self._units, self._known, strict=True):
            key = tuple([levels[unit] for unit in units])
            if key not in known:
                known[key] = self._measure.price_layer(self._space.policy(levels), layer)
            total += known[key]
        return total
