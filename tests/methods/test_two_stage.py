from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from typing import Any

import pytest
import torch

import methods.two_stage
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget
from bench.costs.counter import price
from bench.matching.repair import policy_of, repair
from bench.method import CostTerm, SearchJob, SearchResult
from bench.spec.schema import SearchSchedule
from methods.sbs import Algorithm1, SbsOptions
from methods.shared.bit_sharing.network import Start
from methods.shared.space import SearchSpace
from methods.two_stage import PruneThenQuantize, QuantizeThenPrune

MakeJob = Callable[..., SearchJob]
TwoStage = PruneThenQuantize | QuantizeThenPrune

METHODS = [PruneThenQuantize, QuantizeThenPrune]
KNOBS = {"strength": 0.3, "first_strength": 2.0, "split": 0.5}
WIDTHS = {2, 4, 8}


@dataclass
class Stage:
    """One call of the search of Algorithm 1."""

    job: SearchJob
    space: SearchSpace
    start: Start
    term: CostTerm
    result: SearchResult


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[Stage]:
    """All stages that run, in order."""
    found: list[Stage] = []

    class Recorded(Algorithm1):
        def run(self) -> SearchResult:
            found.append(Stage(self.job, self.network.space, self.start, self.term, super().run()))
            return found[-1].result

    monkeypatch.setattr(methods.two_stage, "Algorithm1", Recorded)
    return found


def two_epochs(make_job: MakeJob, **changes: Any) -> SearchJob:
    return make_job(**{"knobs": KNOBS, "schedule": SearchSchedule(epochs=2, batch_size=48), **changes})


def cost(network: NetworkShape, policy: Policy) -> int:
    return price(network, policy).bops


def pruned_to_one_group(network: NetworkShape, bits: int) -> Policy:
    policy = uniform(network, bits)
    for shape in network.middle:
        if shape.prunable:
            policy = policy.with_layer(shape.name, kept_filters=(0, 1, 2, 3))
    return policy


# --- the target of the first stage ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("method", "bits", "cheapest_bits"), [(PruneThenQuantize, 32, None), (QuantizeThenPrune, 8, 2)]
)
@pytest.mark.parametrize("budget_bits", [1, 4])
def test_first_stage_goes_its_share_of_the_way(
    method: type[TwoStage],
    bits: int,
    cheapest_bits: int | None,
    split: float,
    budget_bits: int,
    network: NetworkShape,
    make_job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a logarithmic scale from the uncompressed cost to the budget, or to what the stage can reach."""
    targets: list[float] = []

    class EnoughError(Exception):
        """The target is known."""

    def stop(*arguments: Any) -> SearchResult:
        targets.append(arguments[-1].budget)
        raise EnoughError

    monkeypatch.setattr(methods.two_stage, "Algorithm1", stop)
    budget = float(cost(network, uniform(network, budget_bits)))
    with pytest.raises(EnoughError):
        method(SbsOptions()).search(make_job(knobs={**KNOBS, "split": split}, budget=budget))
    cheapest = uniform(network, cheapest_bits) if cheapest_bits else pruned_to_one_group(network, 32)
    dearest = cost(network, uniform(network, bits))
    end = max(budget, cost(network, cheapest))
    assert targets == pytest.approx([exp((1 - split) * log(dearest) + split * log(end))])


def test_record_of_the_first_stage(stages: list[Stage], make_job: MakeJob) -> None:
    job = two_epochs(make_job)
    result = QuantizeThenPrune(SbsOptions()).search(job)
    first = stages[0]
    record = result.record["first_stage"]
    target = record["target_cost"]
    assert first.term == CostTerm("hinge", 2.0, target)
    assert stages[1].term == CostTerm("hinge", 0.3, job.budget)
    assert record["raw_cost"] == cost(job.task.network, first.result.policy)
    window = Budget(text="first stage", limit=target, tolerance=0.03)
    repaired = repair(job.task.network, first.result.policy, first.result.decisions, window)
    assert record["cost"] == repaired.cost
    assert record["history"] == first.result.record["history"]
    starts = [stage.result.record["start_top1"] for stage in stages]
    assert [result.record[name] for name in ("start_top1", "second_start_top1")] == starts


# --- what the second stage takes over ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_second_stage_leaves_alone_what_the_first_decided(
    method: type[TwoStage], match: str, stages: list[Stage], make_job: MakeJob
) -> None:
    knobs = {**KNOBS, "first_strength": 10.0} if match == "hinge" else {"strength": 0.3, "first_strength": 10.0}
    job = two_epochs(make_job, match=match, knobs=knobs)
    result = method(SbsOptions(threshold_lr=0.1)).search(job)
    first, second = stages
    network = job.task.network
    decided = first_policy(first, network, result, match)
    prunes_first = method is PruneThenQuantize
    for shape in network.middle:
        name = shape.name
        before, after, choice = decided.layers[name], result.policy.layers[name], second.space[name]
        if prunes_first:
            assert {before.weight_bits, before.activation_bits} == {32}
            assert after.kept_filters == before.kept_filters == choice.kept_filters
            assert choice.group_size == 0
            assert {after.weight_bits, after.activation_bits} <= WIDTHS
        else:
            widths = (before.weight_bits, before.activation_bits)
            assert set(widths) <= WIDTHS
            assert (after.weight_bits, after.activation_bits) == widths
            assert (choice.weight_bits, choice.activation_bits) == ((widths[0],), (widths[1],))
            assert before.kept_filters is None
            assert after.kept_filters is None or shape.prunable
    what = [{decision.what for decision in stage.result.decisions} for stage in stages]
    bits, filters = {"weight_bits", "activation_bits"}, {"filters"}
    assert what == ([filters, bits] if prunes_first else [bits, filters])
    own = len(second.result.decisions)
    assert list(result.decisions[-own:]) == list(second.result.decisions)
    # Filters that were removed first stay removed; repair may still change bits that were found first.
    assert len(result.decisions) - own == (0 if prunes_first else len(first.result.decisions))
    if not prunes_first:
        rebuilt = policy_of(with_all_filters(result.policy, network), result.decisions)
        assert rebuilt == result.policy
    assert decided != uniform(network, 32 if prunes_first else 8)
    assert {result.policy.layers[name].weight_bits for name in ("conv1", "fc")} == {8}


def with_all_filters(policy: Policy, network: NetworkShape) -> Policy:
    """List every filter of the layers that may lose some, as decisions about filters need it."""
    for shape in network.middle:
        if shape.prunable:
            policy = policy.with_layer(shape.name, kept_filters=tuple(range(shape.out_channels)))
    return policy


def first_policy(first: Stage, network: NetworkShape, result: SearchResult, match: str) -> Policy:
    """The policy that the first stage hands on: repaired onto its target where it has one."""
    if match == "lambda":
        return first.result.policy
    window = Budget(text="first stage", limit=result.record["first_stage"]["target_cost"], tolerance=0.03)
    return repair(network, first.result.policy, first.result.decisions, window).policy


@pytest.mark.parametrize("method", METHODS)
def test_second_stage_starts_where_the_first_ended(
    method: type[TwoStage], stages: list[Stage], make_job: MakeJob
) -> None:
    job = two_epochs(make_job)
    method().search(job)
    first, second = stages
    assert all(torch.equal(first.start.state[name], job.pretrained[name]) for name in job.pretrained)
    assert all(torch.equal(second.start.state[name], first.result.state[name]) for name in job.pretrained)
    takes_clips = method is QuantizeThenPrune
    assert second.start.clips == (first.result.clips if takes_clips else {})
    assert bool(second.start.clips) == takes_clips
    assert first.start.clips == {}


@pytest.mark.parametrize(("epochs", "parts"), [(1, [1, 1]), (2, [1, 1]), (5, [2, 3])])
def test_epochs_are_divided(epochs: int, parts: list[int], stages: list[Stage], make_job: MakeJob) -> None:
    schedule = SearchSchedule(epochs=epochs, batch_size=288)
    PruneThenQuantize(SbsOptions()).search(two_epochs(make_job, schedule=schedule))
    assert [stage.job.schedule.epochs for stage in stages] == parts


# --- knobs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_split_is_a_knob_only_where_budgets_act_inside_searches(method: type[TwoStage]) -> None:
    assert set(method(SbsOptions()).knobs("hinge")) == {"strength", "first_strength", "split"}
    assert set(method(SbsOptions()).knobs("lambda")) == {"strength", "first_strength"}
    assert set(method(SbsOptions()).knobs("dual")) == {"split"}
    split = method(SbsOptions()).knobs("hinge")["split"]
    assert 0 < split.low < split.high < 1
    assert not split.log


@pytest.mark.parametrize("method", METHODS)
def test_cheapest_is_the_one_of_both_stages(method: type[TwoStage], network: NetworkShape) -> None:
    cheapest = cost(network, method(SbsOptions()).cheapest(network))
    assert cheapest == cost(network, pruned_to_one_group(network, 2))
