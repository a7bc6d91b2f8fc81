"""Two stages instead of one: SBS-P → SBS-Q and SBS-Q → SBS-P (paper, Section 5.2 and Table 7).

Each stage is a search of its own with a strength of its own. How much of the compression the first stage
does is the knob `split`: on a logarithmic scale from the uncompressed cost (0) to the budget (1). Both are tuned by
the harness on validation accuracy, like any other method's knobs; the search's epochs are divided between the
stages.

With `match = "lambda"` there is no budget inside a search: `split` falls away and the first strength alone says how
far the first stage goes, while the second is bracketed onto the budget.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from math import exp, log
from typing import ClassVar

from bench.api import Budget, Capabilities, Knob, Match, NetworkShape, Policy, SearchJob, SearchResult
from bench.matching.repair import repair
from methods.sbs import (
    PRUNING_STRENGTH,
    QUANTIZATION_STRENGTH,
    SOURCE,
    Sbs,
    SharingMethod,
    search_space,
    share_bits,
)
from methods.shared.bit_sharing.network import Start
from methods.shared.space import (
    FULL_PRECISION,
    SearchSpace,
    cheapest_policy,
    costliest_policy,
    with_fixed_bits,
    with_fixed_filters,
)

_STAGE_TOLERANCE = 0.03


class _TwoStage(SharingMethod):
    """What both orders share."""

    deviations = (
        *Sbs.deviations,
        "How the stages share the compression is tuned on validation images: the first has a budget of its own, at a "
        "tuned part of the way to the run's, and is repaired onto it; the paper found it by experiments.",
        "Both stages together have the epochs of one search.",
    )
    capabilities = Capabilities(budget="strength", prunes=True, mixed_precision=True, data_parallel=True)

    first_strength: ClassVar[Knob]
    second_strength: ClassVar[Knob]

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """Strengths of both stages, and the split where budgets act inside searches."""
        stages = {"strength": self.second_strength, "first_strength": self.first_strength}
        return stages if match == "lambda" else {**stages, "split": Knob(low=0.1, high=0.9)}

    @abstractmethod
    def first_space(self, network: NetworkShape) -> SearchSpace:
        """What the first stage may choose."""

    @abstractmethod
    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """What the second stage may choose after the first."""

    def cheapest(self, network: NetworkShape) -> Policy:
        """The cheapest policy of joint pruning and quantization; both orders can express it."""
        return cheapest_policy(network, search_space(network, self.options, prune=True))

    def search(self, job: SearchJob) -> SearchResult:
        """Search, repair onto the first stage's own budget, and search on from there."""
        network = job.task.network
        first_epochs = max(1, job.schedule.epochs // 2)
        space = self.first_space(network)
        first = self._first_stage(_stage(job, "first", first_epochs), space)
        second_job = _stage(job, "second", max(1, job.schedule.epochs - first_epochs))
        clips = first.clips if self.options.finetune_from == "searched" else {}
        start = Start(state=first.state, clips=self._kept_clips(clips))
        second = share_bits(second_job, self.second_space(network, first.policy), self.options, start, job.cost_term())
        return replace(second, record={**second.record, "first_stage": first.record})

    def _first_stage(self, job: SearchJob, space: SearchSpace) -> SearchResult:
        network = job.task.network
        costliest = job.price(costliest_policy(network, space))
        target = job.budget
        if "split" in job.knobs:
            reachable = max(job.budget, job.price(cheapest_policy(network, space)))
            target = exp(log(costliest) + job.knobs["split"] * (log(reachable) - log(costliest)))
        term = job.cost_term(strength=job.knobs["first_strength"], budget=target)
        result = share_bits(job, space, self.options, Start(state=job.pretrained, clips={}), term)
        record = {**result.record, "target_cost": target, "raw_cost": job.price(result.policy)}
        if "split" in job.knobs:
            window = Budget(text="first stage", limit=target, tolerance=_STAGE_TOLERANCE, measure=job.measure)
            repaired = repair(network, result.policy, result.decisions, window)
            return replace(result, policy=repaired.policy, record={**record, "cost": repaired.cost})
        return replace(result, record=record)

    @abstractmethod
    def _kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """Clip values of the first stage that the second starts from."""


class PruneThenQuantize(_TwoStage):
    """SBS-P, then SBS-Q on the filters that are left."""

    summary = "Two stages: filter pruning at full precision, then mixed-precision quantization of what is left"
    source = f"{SOURCE}, Section 5.2 and Table 7"
    capabilities = replace(_TwoStage.capabilities, full_precision=True)
    first_strength, second_strength = PRUNING_STRENGTH, QUANTIZATION_STRENGTH

    def first_space(self, network: NetworkShape) -> SearchSpace:
        """Filters, at full precision."""
        return search_space(network, self.options, bits=FULL_PRECISION, prune=True)

    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """Bits, with the filters of the first stage."""
        return with_fixed_filters(search_space(network, self.options, prune=False), first)

    def _kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """None: nothing was quantized yet."""
        return {}


class QuantizeThenPrune(_TwoStage):
    """SBS-Q, then SBS-P at the widths found."""

    summary = "Two stages: mixed-precision quantization, then filter pruning at the widths found"
    source = f"{SOURCE}, Section 5.2 and Table 7"
    first_strength, second_strength = QUANTIZATION_STRENGTH, PRUNING_STRENGTH

    def first_space(self, network: NetworkShape) -> SearchSpace:
        """Bits."""
        return search_space(network, self.options, prune=False)

    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """Filters, with the widths of the first stage."""
        return with_fixed_bits(search_space(network, self.options, prune=True), first)

    def _kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """All of them: the second stage goes on with the quantizers of the first."""
        return clips


def _stage(job: SearchJob, name: str, epochs: int) -> SearchJob:
    return replace(job, name=name, schedule=job.schedule.model_copy(update={"epochs": epochs}))
