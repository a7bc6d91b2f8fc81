"""HESSO: filters that fade away while the network trains (Chen et al. 2024, arXiv 2409.09085; the core of GETA).

After a warm-up, groups of filters of least saliency are removed in periods (`methods.shared.removal`). In update s of
the P of a period, redundant groups are multiplied by (P − s − 1)/(P − s) after the gradient step, so that they fall
linearly to zero, and they stay zero. GETA (`methods.geta`) adds learned bits.

"The code" is that of the authors, github.com/microsoft/geta.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from bench.api import (
    Capabilities,
    Decision,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    evaluate,
    sgd,
    uniform,
    weight_groups,
)
from methods.shared.budget import unreachable
from methods.shared.removal import Periods, Removal, groups_of
from methods.shared.space import cheapest_policy, grouped_space
from methods.shared.training import TrainedNetwork, train_jointly

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
        return cheapest_policy(network, grouped_space(network, (bits,), self._group_size(network)))

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
        options = self.options
        bits = options.bits or self._bits_for(job)
        if (least := job.price(self._narrowest(job.task.network, bits))) > job.budget:
            raise unreachable(job, f"one group of filters a layer at {bits} bits", least)
        network = FadingNetwork(job, bits, self._group_size(job.task.network))
        start_top1 = evaluate(network.model, job.task.data, job.task.data.validation).top1
        removal, optimizer = network.removal, sgd(weight_groups(network.model), job.schedule)
        periods = Periods.of(job.steps, (options.warmup, options.pruned_after), options.periods)

        def remove(step: int) -> None:
            if periods.begins(step):
                removal.extend(optimizer, periods.share(step), last=periods.is_last(step))
            removal.fade(periods.factor(step))

        history = train_jointly(job, network, {"optimizer": optimizer}, after=remove, others={"removal": removal})
        record = {"bits": bits, "start_top1": start_top1, "removed": removal.removed(), "history": history.entries}
        policy = removal.policy()
        return SearchResult(policy=policy, state=network.state(policy, job.pretrained), record=record)


class FadingNetwork(TrainedNetwork):
    """The float network, whose groups of filters fade away.

    Args:
        job: Model, weights, measure of cost and budget.
        bits: Bits of the policy.
        group_size: Number of filters of a group.

    Attributes:
        removal: The groups that are removed.
    """

    def __init__(self, job: SearchJob, bits: int, group_size: int) -> None:
        self.network, self.model, self.layers = job.task.network, job.float_model(), {}
        groups = groups_of(self.network, self.model, group_size)
        self.removal = Removal(job, uniform(self.network, bits), groups)

    def decisions(self) -> list[Decision]:
        """List no choice: what is zero cannot come back."""
        return []

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Return the policy without removed groups."""
        return self.removal.policy()

    def actual_cost(self) -> Tensor:
        """Compute the cost without removed groups, a scalar."""
        return self.removal.actual_cost()
