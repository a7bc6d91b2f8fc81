"""HESSO: filters that fade away while the network trains (Chen et al. 2024, arXiv 2409.09085; the core of GETA).

A group is what can be removed together: filters of a layer, with the rows of layers that lose them too and the scales
and shifts of their normalisations. If all of it is zero, the network computes what the reduced network does. After a
warm-up, groups are removed in periods. At the start of a period, all groups that are left are ranked by a saliency

    0.2 · (‖x‖ + ‖x‖/size + (1 + cos(x, g)) + |⟨x, g⟩| + ½⟨x, g⟩²)

of their parameters x and the direction g of the optimizer, where each of the five terms is divided by its norm over
these groups. The least ones are redundant. In update s of the P of a period, they are multiplied by (P − s − 1)/(P − s)
after the gradient step, so that they fall linearly to zero, and they stay zero. GETA (Qu et al. 2025, arXiv 2502.16638)
adds learned bits.

"The code" is that of the authors, github.com/microsoft/geta.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    Meter,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    Stateful,
    evaluate,
    replicas,
    sgd,
    uniform,
    weight_groups,
)
from methods.shared.budget import unreachable
from methods.shared.gates import filter_groups
from methods.shared.history import History
from methods.shared.space import cheapest_policy, uniform_space

_MOST_BITS = 16


class HessoOptions(Options):
    """Options of HESSO.

    Attributes:
        bits: Bits of all layers but the first and the last. When absent, they are the fewest whose full network exceeds
            the budget, or one less if one group of filters a layer still does.
        group_size: Number of filters of a group; as the model states when absent.
        warmup: Share of the search before the first period.
        pruned_after: Share of the search at which the last period ends.
        periods: Number of periods (10 in the code's tutorial); fewer in a search with fewer updates.
    """

    bits: Annotated[int, Field(ge=1, le=_MOST_BITS)] | None = None
    group_size: Annotated[int, Field(ge=1)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pruned_after: Annotated[float, Field(gt=0, le=1)] = 0.6
    periods: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _periods_have_time(self) -> Self:
        if self.pruned_after <= self.warmup:
            raise ValueError(
                f"pruned_after is {self.pruned_after}, but pruning begins after warmup, {self.warmup}; give a larger "
                "share of the search, e.g. 0.6"
            )
        return self


class Hesso(Method):
    """Structured pruning with a hybrid saliency, at uniform precision."""

    family = "saliency"
    summary = "HESSO: the groups of least saliency fade to zero in training, until the network fits, at uniform bits"
    source = (
        "Chen, Qu, Aponte, Banbury, Ko, Ding, Ma, Lyapunov, Zharkov, Liang 2024: HESSO: Towards Automatic Efficient "
        "and User Friendly Any Neural Network Training and Pruning, arXiv 2409.09085; github.com/microsoft/geta"
    )
    deviations = (
        "The text of the paper was not at hand; the algorithm is that of the code, without its corrective cycle.",
        "Groups are removed until the cost fits the budget, evenly from period to period; in the code their number is "
        "given, and is the same in all periods. In the last period, a group that would take the cost below "
        "the budget's window is passed over for one that does not, if there is one.",
        "Only groups that are left are ranked; in the code, removed ones stay in the ranking.",
        "Groups have several filters (group_size); in the code each filter is one.",
        "Periods begin after a tenth of the search, as in the code's tutorial, and end after six tenths. There they "
        "end after a quarter of all training, of which fine-tuning is the rest here.",
        "The network is also quantized, to one number of bits, after the search. The search has full precision.",
        "The search starts from pretrained weights; the tutorial trains from the start.",
        "One group of each layer stays.",
    )
    capabilities = Capabilities(budget="direct", prunes=True, one_stage=True, data_parallel=True)
    Options = HessoOptions
    options: HessoOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options, with the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self._group_size(network)}

    def cheapest(self, network: NetworkShape) -> Policy:
        """Keep one group of filters, the smallest, of each layer, at the bits of the options or at one bit."""
        return self._narrowest(network, self.options.bits or 1)

    def _narrowest(self, network: NetworkShape, bits: int) -> Policy:
        size = self._group_size(network)
        sizes = {layer.name: size for layer in network.middle if layer.prunable}
        return cheapest_policy(network, uniform_space(network, (bits,), sizes))

    def costliest(self, network: NetworkShape) -> Policy:
        """Keep all filters, at the bits of the options or at the most that are tried."""
        return uniform(network, self.options.bits or _MOST_BITS)

    def _bits_for(self, job: SearchJob) -> int:
        """Find the fewest bits whose full network exceeds the budget, or one less if filters do not save enough."""
        allowed = range(1, min(_MOST_BITS, job.measure.max_quantized_bits) + 1)
        above = (bits for bits in allowed if job.price(uniform(job.task.network, bits)) > job.budget)
        bits = next(above, allowed[-1])
        reached = job.price(self._narrowest(job.task.network, bits)) <= job.budget
        return bits if reached or bits == 1 else bits - 1

    def _group_size(self, network: NetworkShape) -> int:
        return self.options.group_size or network.group_size

    def search(self, job: SearchJob) -> SearchResult:
        """Train the float network, and remove groups while it trains.

        Raises:
            UnreachableBudgetError: Even one group a layer costs more than the budget.
        """
        options, network = self.options, job.task.network
        bits = options.bits or self._bits_for(job)
        if (least := job.price(self._narrowest(network, bits))) > job.budget:
            raise unreachable(job, f"one group of filters a layer at {bits} bits", least)
        model = job.float_model()
        groups = groups_of(network, model, self._group_size(network))
        removal = Removal(job, uniform(network, bits), groups)
        periods = Periods.of(job.steps, options)
        history = History()
        start_top1 = evaluate(model, job.task.data, job.task.data.validation).top1
        optimizer, forward = sgd(weight_groups(model), job.schedule), job.in_training(model)
        state: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "removal": removal, "history": history}
        per_epoch = job.task.data.batches_per_epoch(job.schedule.batch_size)
        for epoch, batches in job.epochs(state):
            model.train()
            meter = Meter(job.task.device)
            for step, (images, labels) in enumerate(batches, epoch * per_epoch):
                outputs = forward(images)
                loss = F.cross_entropy(outputs, labels)
                model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                replicas.average_gradients(model.parameters())
                optimizer.step()
                if periods.begins(step):
                    removal.extend(optimizer, periods.share(step), last=periods.is_last(step))
                removal.fade(periods.factor(step))
                meter.add(loss, outputs, labels)
            history.end_epoch(job, removal, epoch, meter.figures())
        record = {"bits": bits, "start_top1": start_top1, "removed": removal.removed(), "history": history.entries}
        return SearchResult(policy=removal.policy(), state=_copy(model), record=record)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True, slots=True)
class Periods:
    """The updates of a search in which groups are removed.

    Attributes:
        start: First update of the first period.
        length: Number of updates of a period, P.
        count: Number of periods.
    """

    start: int
    length: int
    count: int

    @classmethod
    def of(cls, steps: int, options: HessoOptions) -> Self:
        """Divide a share of a search of so many updates into equal periods of one update at least."""
        start = min(round(options.warmup * steps), steps - 1)
        updates = max(1, round(options.pruned_after * steps) - start)
        count = min(options.periods, updates)
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
        slices: Parameters with the indices that belong to the group, in their first dimension.
    """

    layer: str
    filters: tuple[int, ...]
    slices: tuple[tuple[nn.Parameter, Tensor], ...]

    def values(self) -> Tensor:
        """Return all parameters, one-dimensional."""
        return torch.cat([parameter.detach()[index].flatten() for parameter, index in self.slices])

    def direction(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Return the optimizer's present direction for all parameters, one-dimensional; 0 for those not trained."""
        return torch.cat([_direction(optimizer, parameter)[index].flatten() for parameter, index in self.slices])

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply all parameters."""
        for parameter, index in self.slices:
            parameter[index] *= factor


def _direction(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> Tensor:
    """Return the momentum of a parameter, which has its last gradient and its decay; the gradient without momentum."""
    momentum: Tensor | None = optimizer.state[parameter].get("momentum_buffer")
    direction = parameter.grad if momentum is None else momentum
    return torch.zeros_like(parameter) if direction is None else direction


def groups_of(network: NetworkShape, model: nn.Module, group_size: int) -> list[Group]:
    """List all groups of a network.

    Args:
        network: Shapes of the network.
        model: The float network.
        group_size: Number of filters of a group.
    """
    return [
        Group(layer.name, filters, _slices(network, model, layer.name, filters))
        for layer in network.middle
        if layer.prunable
        for filters in filter_groups(layer, group_size, torch.device("cpu")).members
    ]


def _slices(
    network: NetworkShape, model: nn.Module, name: str, filters: tuple[int, ...]
) -> tuple[tuple[nn.Parameter, Tensor], ...]:
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
    """

    def __init__(self, job: SearchJob, base: Policy, groups: Sequence[Group]) -> None:
        self._job, self._base, self._groups = job, base, groups
        self._first = job.price(base)
        self._zero: list[int] = []
        self._redundant: list[int] = []

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
        policy = self._base
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
        self._zero, self._redundant = [*self._zero, *self._redundant], []
        target = self._first - share * (self._first - self._job.budget)
        low = (1 - self._job.tolerance) * self._job.budget if last else 0.0
        left = {index: group for index, group in enumerate(self._groups) if index not in set(self._zero)}
        if not left:
            return
        scores = saliency((group.values(), group.direction(optimizer)) for group in left.values())
        ranked = [list(left)[place] for place in scores.argsort(stable=True).tolist()]
        for least in (low, 0.0):
            for index in ranked:
                if self._job.price(self.policy()) <= target:
                    return
                self._try(index, least)
        if last and (cost := self._job.price(self.policy())) > target:
            raise unreachable(self._job, "one group of filters a layer", cost)

    def _try(self, index: int, least: float) -> None:
        """Choose a group, unless it is the last of its layer or the cost would fall below a bound."""
        removed = {*self._zero, *self._redundant}
        own = [other for other, group in enumerate(self._groups) if group.layer == self._groups[index].layer]
        if index in removed or removed.issuperset(other for other in own if other != index):
            return
        if self._job.price(self._without({*removed, index})) >= least:
            self._redundant.append(index)

    def fade(self, factor: float) -> None:
        """Multiply redundant groups by a factor, and those of earlier periods by zero."""
        for index in self._zero:
            self._groups[index].scale(0.0)
        for index in self._redundant:
            self._groups[index].scale(factor)

    def removed(self) -> dict[str, int]:
        """Count the removed groups by layer."""
        return dict(Counter(self._groups[index].layer for index in (*self._zero, *self._redundant)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"zero": self._zero, "redundant": self._redundant}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._zero, self._redundant = list(state["zero"]), list(state["redundant"])
