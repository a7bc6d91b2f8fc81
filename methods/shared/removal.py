"""Gradual removal of groups of filters of least saliency while a network trains: the core of HESSO and GETA.

A group is what can be removed together: filters of a layer, with the rows of layers that lose them too and the scales
and shifts of their normalisations. If all of it is zero, and nothing is read from it, the network computes what the
reduced network does. Groups are removed in periods. At the start of a period, all groups that are left are ranked by a
saliency

    0.2 · (‖x‖ + ‖x‖/size + (1 + cos(x, g)) + |⟨x, g⟩| + ½⟨x, g⟩²)

of their parameters x and the direction g of the optimizer, where each of the five terms is divided by its norm over
these groups. The least ones are redundant: they shrink during the period, in a way that the method says, and stay zero
after it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from bench.api import NetworkShape, Policy, SearchJob
from methods.shared.budget import unreachable
from methods.shared.gates import filter_groups

Slices = tuple[tuple[nn.Parameter, Tensor], ...]
"""Parameters, each with some indices of one dimension."""


@dataclass(frozen=True, slots=True)
class Periods:
    """Equal parts of a search, in updates.

    Attributes:
        start: First update of the first period.
        length: Number of updates of a period, P.
        count: Number of periods.
    """

    start: int
    length: int
    count: int

    @classmethod
    def of(cls, steps: int, shares: tuple[float, float], count: int) -> Self:
        """Divide a part of a search into equal periods of one update at least.

        Args:
            steps: Number of updates of the search.
            shares: Shares of the search at which the first period begins and the last one ends.
            count: Number of periods; there are fewer in a search with fewer updates.
        """
        start = min(round(shares[0] * steps), steps - 1)
        updates = max(1, round(shares[1] * steps) - start)
        count = min(count, updates)
        return cls(start, updates // count, count)

    def _position(self, step: int) -> tuple[int, int]:
        return divmod(step - self.start, self.length)

    def begins(self, step: int) -> bool:
        """Return whether a period begins with an update."""
        period, within = self._position(step)
        return 0 <= period < self.count and within == 0

    def share(self, step: int) -> float:
        """Return the share of all periods that has passed when the present one ends."""
        return (self._position(step)[0] + 1) / self.count

    def is_last(self, step: int) -> bool:
        """Return whether the present period is the last one."""
        return self._position(step)[0] == self.count - 1

    def factor(self, step: int) -> float:
        """Return the factor of redundant groups in an update: (P − s − 1)/(P − s), and 0 after the last period."""
        period, within = self._position(step)
        return (self.length - within - 1) / (self.length - within) if period < self.count else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """Filters that are removed together.

    Attributes:
        layer: Prunable layer.
        filters: Filters of the layer.
        rows: Parameters with the indices that belong to the group, in their first dimension.
        columns: Weights that read the group, with indices in their second dimension.
    """

    layer: str
    filters: tuple[int, ...]
    rows: Slices
    columns: Slices = ()

    def values(self) -> Tensor:
        """Return all parameters, one-dimensional."""
        return torch.cat([parameter.detach()[index].flatten() for parameter, index in self.rows])

    def direction(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Return the optimizer's present direction for all parameters, one-dimensional; 0 for those not trained."""
        return torch.cat([direction_of(optimizer, parameter)[index].flatten() for parameter, index in self.rows])


def direction_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor:
    """Return the momentum of a parameter, which has its last gradient and its decay; the gradient without momentum."""
    momentum: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
    direction = parameter.grad if momentum is None else momentum
    return torch.zeros_like(parameter) if direction is None else direction


def groups_of(network: NetworkShape, model: nn.Module, group_size: int) -> list[Group]:
    """List all groups of a network.

    Args:
        network: Shapes of the network.
        model: The network, with float or quantized layers.
        group_size: Number of filters of a group.
    """
    return [
        Group(
            layer.name,
            filters,
            _rows(network, model, layer.name, filters),
            _columns(network, model, layer.name, filters),
        )
        for layer in network.middle
        if layer.prunable
        for filters in filter_groups(layer, group_size, torch.device("cpu")).members
    ]


def _rows(network: NetworkShape, model: nn.Module, name: str, filters: tuple[int, ...]) -> Slices:
    """List the rows of a layer and of those that lose filters with it, and the entries of their normalisations."""
    parts: list[tuple[nn.Module, Sequence[int]]] = [
        (model.get_submodule(layer.name), layer.rows(filters))
        for layer in network.layers
        if name in (layer.name, layer.leader) and layer.kind != "matmul"
    ]
    parts += [(model.get_submodule(norm), filters) for norm, owner in network.norms if owner == name]
    return tuple(
        (parameter, torch.tensor(list(rows), device=parameter.device))
        for module, rows in parts
        for parameter in (module.weight, module.bias)
        if isinstance(parameter, nn.Parameter)
    )


def _columns(network: NetworkShape, model: nn.Module, name: str, filters: tuple[int, ...]) -> Slices:
    """List the columns of the layers that read a layer's filters.

    What is zero when it is made need not be zero when it is read: a grid with an offset can lie in between.
    """
    readers = [
        layer for layer in network.layers if layer.producer == name and layer.kind != "matmul" and not layer.depthwise
    ]
    weights = [(model.get_submodule(layer.name).weight, layer.columns(filters)) for layer in readers]
    return tuple(
        (weight, torch.tensor(list(columns), device=weight.device))
        for weight, columns in weights
        if isinstance(weight, nn.Parameter)
    )


@dataclass(frozen=True, slots=True)
class _Joined:
    """Rows and columns of several groups, with one index for each parameter."""

    rows: Slices
    columns: Slices

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Self:
        """Join the indices of each parameter."""
        groups = list(groups)
        return cls(_joined(group.rows for group in groups), _joined(group.columns for group in groups))


def _joined(parts: Iterable[Slices]) -> Slices:
    indices: dict[nn.Parameter, list[Tensor]] = {}
    for parameter, index in chain.from_iterable(parts):
        indices.setdefault(parameter, []).append(index)
    return tuple((parameter, torch.cat(own)) for parameter, own in indices.items())


def saliency(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the saliency of groups, shape (G,): the mean of five terms, each divided by its norm over all groups.

    Args:
        pairs: Parameters x and direction g of each group, one-dimensional.
    """
    terms = []
    for x, g in pairs:
        norm, product = x.norm(), x @ g
        cosine = product / (norm * g.norm()).clamp_min(torch.finfo(x.dtype).tiny)
        terms.append(torch.stack([norm, norm / len(x), 1 + cosine, product.abs(), product.square() / 2]))
    table = torch.stack(terms)
    normalized: Tensor = table / table.norm(dim=0).clamp_min(torch.finfo(table.dtype).tiny)
    return normalized.mean(1)


class Removal:
    """The groups that are removed, and the cost that is left; a part of a search's checkpoints.

    Args:
        job: Measure and budget.
        base: Policy with all filters.
        groups: All groups.

    Attributes:
        base: Policy with all filters; its bits may change during a search.
        redundant: Parameters of the groups of the present period with their indices, by layer.
    """

    def __init__(self, job: SearchJob, base: Policy, groups: Sequence[Group]) -> None:
        self.base = base
        self._job, self._groups = job, groups
        self._first = job.price(base)
        self._choose([], [])

    def _choose(self, zero: Sequence[int], redundant: Sequence[int]) -> None:
        """Set the groups that are zero, and those that become so in the present period."""
        self._zero, self._redundant = list(zero), list(redundant)
        gone, fading = ([self._groups[index] for index in chosen] for chosen in (zero, redundant))
        self._gone, self._fading = _Joined.of(gone), _Joined.of(fading)
        names = dict.fromkeys(group.layer for group in fading)
        self.redundant = {name: _Joined.of(group for group in fading if group.layer == name).rows for name in names}

    def policy(self) -> Policy:
        """Return the policy without removed groups."""
        return self._without({*self._zero, *self._redundant})

    def actual_cost(self) -> Tensor:
        """Compute the cost without removed groups, a scalar."""
        return torch.tensor(self._job.price(self.policy()), dtype=torch.float64, device=self._job.task.device)

    def _without(self, removed: set[int]) -> Policy:
        kept: dict[str, list[int]] = {}
        for index, group in enumerate(self._groups):
            kept.setdefault(group.layer, []).extend(() if index in removed else group.filters)
        policy = self.base
        for layer in {self._groups[index].layer for index in removed}:
            policy = policy.with_layer(layer, kept_filters=tuple(kept[layer]))
        return policy

    def extend(self, optimizer: torch.optim.Optimizer, share: float, *, last: bool) -> None:
        """Begin a period: choose groups of least saliency until the cost has fallen by a share of the way.

        Args:
            optimizer: Optimizer that has just made an update.
            share: Share of the way from the first cost to the budget.
            last: Whether the period is the last one, which ends inside the window if groups allow it.

        Raises:
            UnreachableBudgetError: Even one group a layer costs more than the budget.
        """
        zero = [*self._zero, *self._redundant]
        self._choose(zero, [])
        target = self._first - share * (self._first - self._job.budget)
        low = (1 - self._job.tolerance) * self._job.budget if last else 0.0
        left = {index: group for index, group in enumerate(self._groups) if index not in set(zero)}
        if left:
            scores = saliency((group.values(), group.direction(optimizer)) for group in left.values())
            ranked = [list(left)[place] for place in scores.argsort(stable=True).tolist()]
            self._choose(zero, self._chosen(ranked, target, low))
        if last and left and (cost := self._job.price(self.policy())) > target:
            raise unreachable(self._job, "one group of filters a layer", cost)

    def _chosen(self, ranked: Sequence[int], target: float, low: float) -> list[int]:
        """Choose groups in this order until the cost is at most a target, at first none that takes it below a bound."""
        chosen: list[int] = []
        for least in (low, 0.0):
            for index in ranked:
                if self._job.price(self._without({*self._zero, *chosen})) <= target:
                    return chosen
                if self._may_go(index, chosen, least):
                    chosen.append(index)
        return chosen

    def _may_go(self, index: int, chosen: Sequence[int], least: float) -> bool:
        """Return whether a group is not the last of its layer, and leaves a cost of at least a bound."""
        removed = {*self._zero, *chosen}
        own = [other for other, group in enumerate(self._groups) if group.layer == self._groups[index].layer]
        if index in removed or removed.issuperset(other for other in own if other != index):
            return False
        return self._job.price(self._without({*removed, index})) >= least

    @torch.no_grad()
    def fade(self, factor: float) -> None:
        """Multiply redundant groups by a factor, and set those of earlier periods to zero; at 0 these, too.

        What reads a group is set to zero with it.
        """
        for joined, own in ((self._fading, factor), (self._gone, 0.0)):
            for parameter, index in joined.rows:
                parameter[index] *= own
            for weight, index in joined.columns if own == 0 else ():
                weight[:, index] = 0.0

    def removed(self) -> dict[str, int]:
        """Count the removed groups by layer."""
        return dict(Counter(self._groups[index].layer for index in (*self._zero, *self._redundant)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"zero": self._zero, "redundant": self._redundant}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._choose(state["zero"], state["redundant"])
