"""Two stages instead of one: SBS-P → SBS-Q and SBS-Q → SBS-P (paper, Section 5.2 and Table 7).

Each stage is a search by Algorithm 1 with a λ of its own, and half of the epochs. The knob `split` says how much of the
compression the first stage does: on a logarithmic scale from the uncompressed cost (0) to the budget (1). The harness
tunes it by validation accuracy, and with `match = "hinge"` also the strength of both stages.

With `match = "lambda"` no budget acts inside a search. There is no `split` then: the first strength alone says how much
the first stage compresses, and the second one is bracketed onto the budget.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp, log

from bench.api import (
    STRENGTH,
    Budget,
    Capabilities,
    Decision,
    Knob,
    Match,
    NetworkShape,
    Policy,
    SearchJob,
    SearchResult,
)
from bench.matching.repair import repair
from methods.sbs import SOURCE, Algorithm1, Sbs, SharingMethod
from methods.shared.bit_sharing.network import Start
from methods.shared.bit_sharing.options import search_space
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
    """The search of both orders."""

    deviations = (
        *Sbs.deviations,
        "How the stages share the compression is tuned on validation images: the first has a budget of its own, at a "
        "tuned part of the way to the run's, and is repaired onto it; the paper found it by experiments.",
        "Both stages together have the epochs of one search, and each has one at least; nothing is fine-tuned between "
        "them.",
        "With match = 'lambda' no stage has a budget: the first strength stays in the middle of its range, and the "
        "second one is tuned onto the run's budget.",
        "In the stage that only prunes, thresholds move in every update.",
    )
    capabilities = Capabilities(budget="strength", prunes=True, mixed_precision=True, data_parallel=True)

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """Return the strengths of both stages unless they move by themselves, and the split where budgets act."""
        strengths = {} if match == "dual" else {**super().knobs(match), "first_strength": STRENGTH}
        return strengths if match == "lambda" else {**strengths, "split": Knob(low=0.1, high=0.9)}

    @abstractmethod
    def first_space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of the first stage."""

    @abstractmethod
    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """Build the space of the second stage, after a policy of the first."""

    @abstractmethod
    def kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """Select the clip values of the first stage that the second one starts from."""

    @abstractmethod
    def open_decisions(self, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """Select the decisions of the first stage that repair may still change after the second."""

    def search(self, job: SearchJob) -> SearchResult:
        """Run both stages; the second starts from the weights and the policy of the first."""
        first_epochs = max(1, job.schedule.epochs // 2)
        first = self._first_stage(_stage(job, "first", first_epochs))
        second_job = _stage(job, "second", max(1, job.schedule.epochs - first_epochs))
        start = Start(state=first.state, clips=self.kept_clips(first.clips))
        space = self.second_space(job.task.network, first.policy)
        second = Algorithm1(second_job, space, self.options, start, second_job.cost_term()).run()
        starts = {"start_top1": first.record["start_top1"], "second_start_top1": second.record["start_top1"]}
        moved = {"repaired_in_search": first.record.get("repaired_gates", 0)}
        decisions = [*self.open_decisions(first.decisions), *second.decisions]
        record = {**second.record, **starts, **moved, "first_stage": first.record}
        return replace(second, decisions=decisions, record=record)

    def _first_stage(self, job: SearchJob) -> SearchResult:
        """Search for the first stage's budget, and repair the result onto it."""
        space = self.first_space(job.task.network)
        target = self._target(job, space)
        term = job.cost_term(strength=job.knobs.get("first_strength"), budget=target)
        start = Start(state=job.pretrained, clips={})
        result = Algorithm1(job, space, self.options, start, term).run()
        record = {**result.record, "target_cost": target, "raw_cost": job.price(result.policy)}
        if "split" not in job.knobs:
            return replace(result, record=record)
        window = Budget(text="first stage", limit=target, tolerance=_STAGE_TOLERANCE, measure=job.measure)
        repaired = repair(job.task.network, result.policy, result.decisions, window)
        moved = {"cost": repaired.cost, "repaired_gates": repaired.moved}
        return replace(result, policy=repaired.policy, decisions=repaired.decisions, record={**record, **moved})

    def _target(self, job: SearchJob, space: SearchSpace) -> float:
        """Compute the first stage's budget; that of the run where there is no split."""
        if "split" not in job.knobs:
            return job.budget
        network = job.task.network
        costliest = job.price(costliest_policy(network, space))
        reachable = max(job.budget, job.price(cheapest_policy(network, space)))
        return exp(log(costliest) + job.knobs["split"] * (log(reachable) - log(costliest)))


class PruneThenQuantize(_TwoStage):
    """SBS-P, then SBS-Q on the filters that are left."""

    summary = "Two stages: filter pruning at full precision, then mixed-precision quantization of what is left"
    family = "learned gates"
    source = f"{SOURCE}, Section 5.2 and Table 7"
    capabilities = replace(_TwoStage.capabilities, full_precision=True)

    def first_space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of filters, at full precision."""
        return search_space(network, self.options, bits=FULL_PRECISION, prune=True)

    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """Build the space of bits, with the filters of the first stage."""
        return with_fixed_filters(search_space(network, self.options, prune=False), first)

    def kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """Select none: the first stage quantizes nothing."""
        return {}

    def open_decisions(self, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """Select none: the filters that the first stage removed were not trained in the second."""
        return ()


class QuantizeThenPrune(_TwoStage):
    """SBS-Q, then SBS-P at the bits found."""

    summary = "Two stages: mixed-precision quantization, then filter pruning at the bits found"
    family = "learned gates"
    source = f"{SOURCE}, Section 5.2 and Table 7"

    def first_space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of bits."""
        return search_space(network, self.options, prune=False)

    def second_space(self, network: NetworkShape, first: Policy) -> SearchSpace:
        """Build the space of filters, with the bits of the first stage."""
        return with_fixed_bits(search_space(network, self.options, prune=True), first)

    def kept_clips(self, clips: Mapping[str, float]) -> Mapping[str, float]:
        """Select all: the second stage keeps the quantizers of the first."""
        return clips

    def open_decisions(self, decisions: Sequence[Decision]) -> Sequence[Decision]:
        """Select all: filters alone may not reach a low budget at the bits that were found."""
        return decisions


def _stage(job: SearchJob, name: str, epochs: int) -> SearchJob:
    return replace(job, name=name, schedule=job.schedule.model_copy(update={"epochs": epochs}))
