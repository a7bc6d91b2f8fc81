"""GETA: how redundant groups forget, stages, rounding onto the budget, and problems whose best groups are known."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import calibrate
from bench.compression.policy import Policy, check, uniform
from bench.costs.budget import Budget, parse_budget
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.matching.repair import repair
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from bench.training.loop import reestimate_norms
from methods.geta import (
    ETA,
    ZETA,
    Geta,
    GetaNetwork,
    GetaOptions,
    Stages,
    clipped_and_error,
    forget,
    forgetting,
)
from methods.shared.quantizers.companded import CompandedQuantizer
from methods.shared.removal import Periods, saliency
from tests.methods.test_devices import WithoutDevice

MakeJob = Callable[..., SearchJob]
OwnForm = Callable[..., nn.Module]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
DUAL: Mapping[str, Any] = {"match": "dual", "knobs": {"headroom": 0.0}}


def network_of(job: SearchJob, **options: object) -> GetaNetwork:
    network = Geta(GetaOptions.model_validate(options)).network(job)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    return network


# --- forgetting -------------------------------------------------------------------------------------------------


def slow_forgetting(
    g: list[float], c: list[float], r: list[float], bounds: tuple[float, float], lr: float, linear: float
) -> tuple[float, float]:
    """γ and d of a single weight, by the rules of the code, one after the other."""

    def norm(x: list[float]) -> float:
        return math.sqrt(sum(value * value for value in x))

    def cosine(x: list[float], y: list[float]) -> float:
        return sum(a * b for a, b in zip(x, y, strict=True)) / (norm(x) * norm(y))

    finest, coarsest = bounds
    rate = linear
    if cosine(g, c) < 0:
        rate = min(1.0, -(1 - ETA) * lr * norm(g) / (cosine(g, c) * norm(c)))
    if cosine(g, r) >= 0:
        return rate, coarsest
    step = -ZETA * ETA * lr * norm(g) / (rate * cosine(g, r) * norm(r))
    while step < finest:
        rate, step = 0.8 * rate, step / 0.8
    return rate, min(step, coarsest)


def drawn(count: int, noise: torch.Generator) -> Tensor:
    return torch.randn(count, generator=noise, dtype=torch.float64)


def chosen(
    g: Tensor, c: Tensor, r: Tensor, bounds: tuple[float, float], lr: float, linear: float
) -> tuple[float, float]:
    ends = g.new_tensor([bounds[0]]), g.new_tensor([bounds[1]])
    square = g.square().sum()
    rate, steps = forgetting((g @ c, (g @ r).view(1)), (square, square.view(1)), ends, lr=lr, linear=linear)
    return rate.item(), steps.item()


def test_rates_and_steps_are_those_of_the_rules() -> None:
    noise = torch.Generator().manual_seed(0)
    for case in range(200):
        g, c, r = (drawn(12, noise) for _ in range(3))
        bounds = (0.01 * (1 + case % 7), 0.3)
        found = chosen(g, c, r / 4, bounds, 0.05, 0.2)
        assert found == pytest.approx(slow_forgetting(g.tolist(), c.tolist(), (r / 4).tolist(), bounds, 0.05, 0.2))


def test_with_both_products_negative_the_slope_is_a_known_share_of_that_of_the_gradient() -> None:
    """−lr‖g‖² − γ⟨g, c⟩ − γ d⟨g, r⟩ = −η (1 − ζ) lr‖g‖², where no bound of d acts; a step within bounds falls more."""
    noise, cases = torch.Generator().manual_seed(1), 0
    for _ in range(400):
        g, c, r = (drawn(30, noise) for _ in range(3))
        free, bounded = (chosen(g, c, r, bounds, 0.1, 0.5) for bounds in ((0.0, math.inf), (1e-3, 0.2)))
        slopes = [float(-0.1 * g @ g - rate * (g @ c) - rate * step * (g @ r)) for rate, step in (free, bounded)]
        if g @ c < 0 and g @ r < 0:
            cases += 1
            assert slopes[0] == pytest.approx(-ETA * (1 - ZETA) * 0.1 * float(g @ g), rel=1e-9)
        if g @ c < 0 or g @ r >= 0:
            assert slopes[1] < 0 or g @ r >= 0
    assert cases > 50


@pytest.mark.parametrize("exponent", [1.0, 0.7, 1.6])
def test_a_quantized_value_is_the_clipped_one_and_the_error_in_steps(exponent: float) -> None:
    quantizer = CompandedQuantizer(bits=3, kind="weight", searching=True).double()
    with torch.no_grad():
        for name, value in (("step", 0.21), ("range", 0.8), ("exponent", exponent)):
            getattr(quantizer, f"clip_{name}").fill_(value)
    x = drawn(300, torch.Generator().manual_seed(2))
    ranges = quantizer.clip_step, quantizer.clip_range, quantizer.clip_exponent
    clipped, error = clipped_and_error(x, *ranges)
    assert torch.allclose(quantizer(x), clipped + 0.21 * error, atol=1e-12)
    expected = [math.copysign(min(abs(value), 0.8) ** exponent, value) for value in x.tolist()]
    assert clipped.tolist() == pytest.approx(expected)
    assert float(error.detach().abs().max()) <= 0.5 + 1e-12


def test_least_squares_with_an_irrelevant_group_ends_at_the_solution_of_the_reduced_problem() -> None:
    """The irrelevant half of the weights is redundant, is exactly zero after a period, and the rest is the solution."""
    noise = torch.Generator().manual_seed(3)
    relevant = torch.randn(400, 6, generator=noise, dtype=torch.float64)
    inputs = torch.cat([relevant, torch.randn(400, 6, generator=noise, dtype=torch.float64)], dim=1)
    target = relevant @ drawn(6, noise) + 0.1 * drawn(400, noise)
    solution = torch.linalg.lstsq(relevant, target.unsqueeze(1)).solution.flatten()
    weight = nn.Parameter(0.5 * drawn(12, noise).view(2, 6))
    quantizer = CompandedQuantizer(bits=16, kind="weight", searching=True, linear=True).double()
    with torch.no_grad():
        quantizer.clip_range.fill_(4.0)
        quantizer.clip_step.fill_(4.0 / (2**15 - 1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    bounds = weight.new_tensor([4.0 / (2**15 - 1)]), weight.new_tensor([4.0 / 127])
    period, redundant = Periods(start=20, length=10, count=1), torch.tensor([0])
    for step in range(300):
        loss = (inputs @ quantizer(weight).flatten() - target).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if period.begins(step):
            momentum = optimizer.state[weight]["momentum_buffer"]
            redundant = saliency(zip(weight.detach(), momentum, strict=True)).argmin().view(1)
            assert redundant.tolist() == [1]
        if step < period.start:
            continue
        with torch.no_grad():
            if period.factor(step) > 0:
                forget(((weight, redundant),), {weight: quantizer}, bounds, optimizer, 1 - period.factor(step))
                assert bounds[0] * (1 - 1e-9) <= quantizer.clip_step <= bounds[1] * (1 + 1e-9)
            else:
                weight[redundant] = 0.0
                quantizer.clip_step.copy_(bounds[0][0])
    assert weight[1].tolist() == [0.0] * 6
    assert torch.allclose(weight[0].detach(), solution, atol=1e-3)


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
@pytest.mark.parametrize("headroom", [0.0, 1.0])
def test_a_longer_search_lands(make_job: MakeJob, task: Task, text: str, headroom: float) -> None:
    limit = parse_budget(text, task.network, 0.03, AcceleratorSpec()).limit
    schedule = SearchSchedule(epochs=15, batch_size=56)
    job = make_job(match="dual", knobs={"headroom": headroom}, budget=limit, schedule=schedule)
    result = Geta().search(job)
    repaired = repair(task.network, result.policy, result.decisions, Budget(text="test", limit=limit, tolerance=0.03))
    assert repaired.moved <= 2 and 0.97 * limit <= repaired.cost <= limit


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
