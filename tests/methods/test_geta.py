"""GETA: stages, rounding onto the budget, and a problem whose best groups are known."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench.compression.compress import calibrate
from bench.compression.policy import Policy, check, uniform
from bench.costs.budget import Budget, parse_budget
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.matching.repair import repair
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from bench.training.loop import reestimate_norms
from methods.geta import Geta, GetaNetwork, GetaOptions, Stages
from methods.shared.removal import Periods
from tests.methods.test_devices import WithoutDevice

MakeJob = Callable[..., SearchJob]
OwnForm = Callable[..., nn.Module]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
DUAL: Mapping[str, Any] = {"match": "dual", "knobs": {"headroom": 0.0}}


def network_of(job: SearchJob, **options: object) -> GetaNetwork:
    network = Geta(GetaOptions.model_validate(options)).network(job)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    return network


# --- stages and projection --------------------------------------------------------------------------------------


def test_the_upper_bits_fall_once_less_than_there_are_periods() -> None:
    options = GetaOptions(warmup=0.1, projected_after=0.4, pruned_after=0.7, periods=5)
    stages = Stages.of(100, options, (16, 8))
    bits = [stages.upper_bits(step) for step in range(100)]
    assert bits[:15] == [16.0] * 15  # the first period is updates 10 to 15
    assert [step + 1 for step in range(99) if bits[step + 1] < bits[step]] == [15, 21, 27, 33]
    assert sorted(set(bits), reverse=True) == [16, 14, 12, 10, 8]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13, 40])
def test_the_upper_bits_have_fallen_before_groups_are_removed(steps: int) -> None:
    stages = Stages.of(steps, GetaOptions(), (8, 4))
    bits = [stages.upper_bits(step) for step in range(steps)]
    assert bits == sorted(bits, reverse=True)
    assert bits[max(0, stages.joint.start - 1)] == bits[-1] == 4
    assert sum(stages.joint.begins(step) and stages.joint.is_last(step) for step in range(steps)) == 1


@pytest.mark.parametrize("exponent", ["linear", "learned"])
def test_projection_keeps_the_bits_of_weights_and_inputs_in_bounds(make_job: MakeJob, exponent: str) -> None:
    network = network_of(make_job(**DUAL), exponent=exponent)
    assert network.continuous_bits().flatten().tolist() == pytest.approx([8.0] * 16, abs=1e-4)
    noise = torch.Generator().manual_seed(0)
    for name in ("clip_step", "clip_range", "clip_exponent"):
        network.fill(name, torch.exp2(4 * torch.randn(network.signed.shape, generator=noise)))
    network.lowest, network.highest = network.candidates.new_tensor(2.0), network.candidates.new_tensor(4.75)
    network.project()
    bits = network.continuous_bits().flatten()
    assert bits.min() >= 2 - 1e-5 and bits.max() <= 4.75 + 1e-5
    assert (bits > 4.7).any() and (bits < 2.1).any()
    assert (network.stacked("clip_exponent") == 1).all() == (exponent == "linear")


# --- the budget -------------------------------------------------------------------------------------------------


def test_bits_are_rounded_to_the_nearest_and_raised_only_as_far_as_the_budget_asks(make_job: MakeJob) -> None:
    job = make_job(**DUAL)
    network = network_of(job)
    bits = torch.tensor([[2.2, 2.6, 4.4, 4.6, 4.9, 5.0, 3.4, 3.6], [5.0] * 8])
    power = network.stacked("clip_range")
    network.fill("clip_step", power / (torch.exp2(bits - 1.0 * network.signed) - 1))
    for lowest, expected in (
        (2, [2, 3, 4, 5, 5, 5, 3, 4]),
        (3, [3, 3, 4, 5, 5, 5, 3, 4]),
        (4, [4, 4, 4, 5, 5, 5, 4, 4]),
    ):
        policy = uniform(job.task.network, 5)
        for name, own in zip(network.layers, expected, strict=True):
            policy = policy.with_layer(name, weight_bits=own)
        aimed = Geta(GetaOptions(upper_bits=5)).network(replace(job, budget=job.price(policy)))
        for name in ("clip_step", "clip_range"):
            aimed.fill(name, network.stacked(name))
        aimed.round_bits()
        assert aimed.policy(aimed.decisions()) == policy, lowest
        assert aimed.actual_cost().item() == job.price(policy)
        for decision, own in zip(aimed.decisions()[::2], bits[0].tolist(), strict=True):
            assert decision.margins == pytest.approx(
                [own - border for border in (2.5, 3.5, 4.5, 5.5, 6.5, 7.5)], abs=1e-4
            )


@pytest.mark.parametrize("headroom", [0.0, 1.9])
@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_search_ends_near_its_budget(make_job: MakeJob, measure: Measure, headroom: float) -> None:
    """Inside the window, or above it by a single group: those of this network are large."""
    job = make_job(match="dual", knobs={"headroom": headroom}, measure=measure)
    job = replace(job, budget=0.95 * job.price(uniform(job.task.network, 4)))
    result = Geta().search(job)
    check(job.task.network, result.policy)
    repaired = repair(
        job.task.network,
        result.policy,
        result.decisions,
        Budget(text="test", limit=job.budget, tolerance=0.03, measure=measure),
    )
    assert 0.8 * job.budget <= job.price(result.policy) <= job.budget
    assert repaired.moved <= 2 and 0.97 * job.budget <= repaired.cost <= job.budget
    assert measure is not BOPS or result.record["upper_bits"] == 4 + int(headroom)
    removed = {name: choice.kept_filters for name, choice in result.policy.layers.items() if choice.kept_filters}
    assert removed.keys() == result.record["removed"].keys()
    for name, kept in removed.items():
        rows = result.state[f"{name}.weight"].abs().flatten(1).sum(1)
        assert bool((rows[[row for row in range(len(rows)) if row not in kept]] == 0).all())
        assert bool((rows[list(kept)] > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("text", ["3bit", "4bit"])
@pytest.mark.parametrize(("headroom", "most"), [(0.0, 2), (1.0, 4)])
def test_a_longer_search_lands(make_job: MakeJob, task: Task, text: str, headroom: float, most: int) -> None:
    """With more groups to remove, the last one may step over the window: a group of this network costs more than it."""
    limit = parse_budget(text, task.network, 0.03, AcceleratorSpec()).limit
    schedule = SearchSchedule(epochs=15, batch_size=56)
    job = make_job(match="dual", knobs={"headroom": headroom}, budget=limit, schedule=schedule)
    result = Geta().search(job)
    repaired = repair(task.network, result.policy, result.decisions, Budget(text="test", limit=limit, tolerance=0.03))
    assert repaired.moved <= most and 0.97 * limit <= repaired.cost <= limit


@pytest.mark.parametrize("match", ["lambda", "hinge"])
def test_without_a_moving_bound_the_strength_is_the_compression(make_job: MakeJob, match: str) -> None:
    job = make_job(match=match)
    full = job.price(uniform(job.task.network, 8))
    result = Geta().search(replace(job, knobs={"strength": 4.0}))
    assert 0.8 * full / 4 <= job.price(result.policy) <= full / 4
    least = Geta().search(replace(job, knobs={"strength": 1e6}))
    assert job.price(least.policy) == job.price(Geta().cheapest(job.task.network))


def test_knobs_are_tuned_unless_they_are_given() -> None:
    assert [set(Geta().knobs(match)) for match in ("dual", "hinge", "lambda")] == [
        {"headroom"},
        {"strength", "headroom"},
        {"strength"},
    ]
    assert Geta(GetaOptions(upper_bits=5)).knobs("dual") == {}


def test_the_upper_bits_are_those_from_which_filters_can_save_enough(make_job: MakeJob) -> None:
    job = make_job(**DUAL)
    network = job.task.network

    def upper(budget: float, headroom: float, **options: Any) -> int:
        method = Geta(GetaOptions.model_validate(options))
        return method.network(replace(job, budget=budget, knobs={"headroom": headroom}))._upper

    at = {bits: job.price(uniform(network, bits)) for bits in range(2, 9)}
    assert [upper(at[3], headroom) for headroom in (0.0, 0.9, 1.0, 2.5)] == [4, 4, 5, 6]
    assert upper(0.99 * at[3], 0.0) == 3
    assert upper(at[8], 3.0) == 8
    assert upper(at[3], 0.0, upper_bits=6) == 6
    least = job.price(Geta().cheapest(network))
    assert upper(least, 3.0) == upper(least, 0.0, upper_bits=8) == 2
    with pytest.raises(UnreachableBudgetError, match="even one group of filters a layer at 2 bits costs") as caught:
        upper(least - 1, 0.0)
    assert caught.value.nearest == least


# --- what is returned -------------------------------------------------------------------------------------------


def test_the_searched_network_is_the_reduced_one(pruned_job: SearchJob, own_form: OwnForm) -> None:
    """Without removed groups, behind depthwise convolutions, gates, and grids with an offset."""
    job = replace(pruned_job, **DUAL)
    narrowest = job.price(Geta(GetaOptions(bits=(4, 8))).cheapest(job.task.network))
    job = replace(job, budget=0.3 * narrowest + 0.7 * job.price(uniform(job.task.network, 4)))
    network = network_of(job, upper_bits=4)
    images = job.task.data.calibration_batches(1, 16)[0]
    optimizer = torch.optim.SGD(network.model.parameters(), lr=0.1)
    noise = torch.Generator().manual_seed(0)
    network.fill(
        "clip_step", network.stacked("clip_step") * torch.exp2(6 * torch.rand(network.signed.shape, generator=noise))
    )
    network.project()
    network.stages = replace(network.stages, joint=Periods(start=0, length=1, count=1))
    network.advance(0, optimizer)
    network.project()
    reestimate_norms(network.model, job.task.data, 28)
    policy = network.policy(network.decisions())
    check(job.task.network, policy)
    assert any(layer.kept_filters is not None for layer in policy.layers.values())
    other = own_form(Geta(), network, job, policy)
    for index, quantizer in enumerate(network.quantizers):
        kind, row = divmod(index, len(network.layers))
        layer = policy.layers[list(network.layers)[row]]
        quantizer.bits = layer.activation_bits if kind else layer.weight_bits
        quantizer.searching = False
    with torch.no_grad():
        found = network.model.double().eval()(images.double())
        assert found.std(0).min() > 0
        assert torch.allclose(found, other(images.double()), rtol=1e-9, atol=1e-9)


def test_nothing_is_left_on_the_default_device(make_job: MakeJob) -> None:
    with WithoutDevice():
        result = Geta().search(make_job(**DUAL))
    assert result.record["removed"]


def test_the_groups_that_nothing_reads_are_removed(unread: tuple[SearchJob, Policy]) -> None:
    """The best half of four groups is known; bits stay at their upper bound, since nothing asks for fewer."""
    job, half = unread
    schedule = job.schedule.model_copy(update={"weight_decay": 0.0})  # what only decays agrees with its direction
    method = Geta(GetaOptions(upper_bits=4, group_size=2, warmup=0.3))
    assert method.search(replace(job, match="dual", knobs={}, schedule=schedule)).policy == half


@pytest.mark.parametrize(
    "changes",
    [{"warmup": 0.4}, {"pruned_after": 0.4}, {"periods": 0}, {"upper_bits": 9}, {"bits": (1, 2)}, {"bits": (4, 2)}],
)
def test_options_have_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GetaOptions.model_validate(changes)
