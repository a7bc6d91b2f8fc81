"""DQ: widths that follow from steps and ranges, the squared hinge, and the search."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, calibrate, compress
from bench.compression.kernels import Kind
from bench.compression.policy import LayerPolicy, Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.budget import parse_budget
from bench.costs.measures import BOPS, Latency, Measure, Memory
from bench.execution.stages.search import MatchedSearch
from bench.matching.repair import repair
from bench.method import SearchJob, SearchResult
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from bench.training.loop import reestimate_norms
from methods.dq import Dq, DqNetwork, DqOptions, DqQuantizer, dq_quantizer, grid, penalty, squared_hinge
from methods.shared.quantizers.learned_range import levels_of

MakeJob = Callable[..., SearchJob]
OwnForm = Callable[..., nn.Module]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec())]
ACCELERATED = (2, 4, 8)


def scrambled(network: DqNetwork, seed: int = 0) -> DqNetwork:
    """With steps and ranges of all widths."""
    draws = torch.Generator().manual_seed(seed)
    shape = network.signed.shape
    with torch.no_grad():
        step = torch.exp2(-6 * torch.rand(shape, generator=draws))
        network.fill("clip_step", step)
        network.fill("clip_range", step * torch.exp2(8 * torch.rand(shape, generator=draws)))
    network.project()
    return network


def network_of(job: SearchJob, **options: object) -> DqNetwork:
    return Dq(DqOptions.model_validate(options)).network(job)


# --- widths -----------------------------------------------------------------------------------------------------


def slow_width(step: float, limit: float, *, signed: bool) -> int:
    """The paper's formula for one tensor, in whole numbers: ⌈log2(n + 1)⌉ is the bit length of n."""
    power = 2.0 ** round(math.log2(step))
    return max(1, round(limit / power)).bit_length() + signed


def test_widths_are_those_of_the_formula(make_job: MakeJob) -> None:
    network = scrambled(network_of(make_job()))
    steps, limits = network.stacked("clip_step").tolist(), network.stacked("clip_range").tolist()
    expected = [
        [slow_width(step, limit, signed=signed) for step, limit in zip(*row, strict=True)]
        for signed, row in ((True, (steps[0], limits[0])), (False, (steps[1], limits[1])))
    ]
    assert network.relaxed_bits().tolist() == expected
    assert len({width for row in expected for width in row}) > 4


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_grids_take_exactly_their_width(make_job: MakeJob, bits: int, signed: bool) -> None:
    """One level more takes one bit more; logarithms in single precision could err either way."""
    network = network_of(make_job(), bits=(2, 3, 4, 5, 6, 7, 8, 9))
    for extra, width in ((0, bits), (1, bits + 1)):
        network.fill("clip_step", torch.full_like(network.stacked("clip_step"), 2.0**-5))
        limit = (levels_of(bits, signed) + extra) * 2.0**-5
        network.fill("clip_range", torch.full_like(network.stacked("clip_step"), limit))
        assert network.relaxed_bits()[0 if signed else 1].tolist() == [width] * len(network.layers)


def test_rounding_is_the_identity_in_the_gradients_of_widths(make_job: MakeJob) -> None:
    network = scrambled(network_of(make_job()))
    step, limit = network.stacked("clip_step").double(), network.stacked("clip_range").double()
    power, count = (part.double() for part in grid(step, limit))
    found = torch.autograd.grad(network.relaxed_bits().sum(), network.parameters("clip_step", "clip_range"))
    slope = 1 / ((count + 1) * math.log(2))
    to_limit, to_step = slope / power, -slope * limit / power / step  # d̂/d for the power, and 1/d̂ of −q/d̂²
    expected = torch.cat([to_step.flatten(), to_limit.flatten()]).float()
    assert torch.allclose(torch.stack(list(found)), expected, rtol=1e-5)


def test_margins_say_how_far_the_next_candidates_are(make_job: MakeJob) -> None:
    network = scrambled(network_of(make_job(), bits=(2, 4, 8)))
    steps, limits = network.stacked("clip_step"), network.stacked("clip_range")
    for decision in network.decisions():
        kind, row = ("weight_bits", "activation_bits").index(decision.what), list(network.layers).index(decision.layer)
        step, limit = steps[kind, row].item(), limits[kind, row].item()
        levels = limit / 2.0 ** round(math.log2(step))
        borders = (1.5, 7.5) if kind == 0 else (3.5, 15.5)
        expected = [math.log2(levels + 1) - math.log2(border + 1) for border in borders]
        assert decision.margins == pytest.approx(expected, abs=1e-5)
        assert [margin > 0 for margin in decision.margins] == [decision.chosen > 0, decision.chosen > 1]
        assert decision.options[decision.chosen] >= slow_width(step, limit, signed=kind == 0)


# --- the cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_hinge_is_on_the_exact_cost_of_the_policy(scrambled_job: SearchJob, measure: Measure) -> None:
    job = replace(scrambled_job, measure=measure)
    network = scrambled(network_of(job, bits=ACCELERATED))
    cost = job.price(network.policy(network.decisions()))
    assert network.relaxed_cost().item() == pytest.approx(cost, rel=1e-12)
    assert network.actual_cost().item() == pytest.approx(cost, rel=1e-12)
    for budget in (cost / 1.3, cost * 1.3):
        expected = job.knobs["strength"] * max(0.0, cost / budget - 1) ** 2 / 0.06
        term = replace(job, budget=budget).cost_term()
        assert penalty(term, network, 0.03).item() == pytest.approx(expected, rel=1e-9)


def test_a_width_s_slope_is_what_one_step_down_saves(make_job: MakeJob) -> None:
    """At the lowest candidate it is what the first step up costs."""
    job = make_job()
    network = scrambled(network_of(job))
    policy = network.policy(network.decisions())
    widths = network.relaxed_bits().detach().requires_grad_()
    network.relaxed_bits = lambda: widths  # type: ignore[method-assign]
    (slopes,) = torch.autograd.grad(network.relaxed_cost(), widths)
    for kind, what in enumerate(("weight_bits", "activation_bits")):
        for row, name in enumerate(network.layers):
            width = int(widths[kind, row])
            other = width - 1 if width > 2 else width + 1
            changed = job.price(policy.with_layer(name, **{what: other}))
            assert slopes[kind, row].item() == pytest.approx((changed - job.price(policy)) / (other - width))


def test_the_logarithm_takes_the_place_of_the_hinge_in_mode_lambda(make_job: MakeJob) -> None:
    job = make_job(match="lambda")
    network = network_of(job)
    cost = job.price(network.policy(network.decisions()))
    assert penalty(job.cost_term(), network, 0.03).item() == pytest.approx(0.3 * math.log(cost / job.budget))


def test_the_hinge_is_square_and_as_steep_as_the_cost_just_above_the_window() -> None:
    costs = torch.tensor([50.0, 100.0, 110.0, 120.0])
    assert squared_hinge(costs, 100.0, 0.5).tolist() == pytest.approx([0, 0, 0.01, 0.04])
    for tolerance in (0.03, 0.1):
        cost = torch.tensor(100.0 * (1 + tolerance), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(squared_hinge(cost, 100.0, tolerance), cost)
        assert slope.item() == pytest.approx(1 / 100)


# --- values and gradients ---------------------------------------------------------------------------------------


def rounded(x: Tensor) -> Tensor:
    """⌊x⌉ with the gradient of the identity."""
    return x + (torch.floor(x + 0.5) - x).detach()


@pytest.mark.parametrize("kind", ["weight", "activation"])
@pytest.mark.parametrize("limit", [0.75, 0.8, 0.7, 0.81, 1.06])
def test_values_and_gradients_are_those_of_the_authors_composition(kind: Kind, limit: float) -> None:
    """q_max clips as it is; rounded to a multiple of d̂, it would clip some of these values and not others."""
    quantizer = DqQuantizer(bits=4, kind=kind, searching=True).double()
    with torch.no_grad():
        quantizer.clip_step.fill_(0.11)
        quantizer.clip_range.fill_(limit)
    x = torch.linspace(-1.3, 1.3, 2001, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step, q_max = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.11, limit))
    power = 2 ** rounded(torch.log2(step))
    lowest = -q_max if kind == "weight" else torch.zeros_like(q_max)
    expected = power * rounded(torch.minimum(torch.maximum(x, lowest), q_max) / power)
    found = quantizer(x)
    assert torch.allclose(found, expected, atol=1e-12)
    leaves = (x, quantizer.clip_step, quantizer.clip_range), (x, step, q_max)
    mine, authors = (
        torch.autograd.grad((values * upstream).sum(), parameters)
        for values, parameters in zip((found, expected), leaves, strict=True)
    )
    for one, other in zip(mine, authors, strict=True):
        assert bool(other.any())
        assert torch.allclose(one, other, atol=1e-10)


# --- first values, bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "rounded"), [(3, math.floor), (4, math.floor), (5, math.ceil)])
def test_first_values_are_those_of_the_paper(bits: int, rounded: Callable[[float], int]) -> None:
    weight = torch.randn(50, generator=torch.Generator().manual_seed(0))
    of_weights = DqQuantizer(bits=bits, kind="weight", searching=True, clip_init="paper")
    of_inputs = DqQuantizer(bits=bits, kind="activation", searching=True, clip_init="paper")
    of_weights.calibrate(weight)
    of_inputs.calibrate(weight)
    step = 2.0 ** rounded(math.log2(weight.abs().max().item() / (2 ** (bits - 1) - 1)))
    assert (of_weights.clip_step.item(), of_weights.clip_range.item()) == (step, step * (2 ** (bits - 1) - 1))
    assert (of_inputs.clip_step.item(), of_inputs.clip_range.item()) == (0.125, 0.125 * (2**bits - 1))


def test_a_search_starts_at_four_bits(make_job: MakeJob, network: NetworkShape) -> None:
    job = make_job()
    found = network_of(job)
    calibrate(found.model, job.task.data.calibration_batches(1, 28)[0])
    found.project()
    assert found.policy(found.decisions()) == uniform(network, 4)


def test_updates_end_within_bounds(make_job: MakeJob) -> None:
    network = network_of(make_job(), bits=(3, 4, 5))
    first = [2.0**-12, 0.5, 4.0, 0.25, 0.25, 0.25, 0.5, 0.25]
    limit = [1.0, 0.125, 8.0, 99.0, 0.25, 1e-9, -1.0, 0.75]
    network.fill("clip_step", torch.tensor([first, first]))
    network.fill("clip_range", torch.tensor([limit, limit]))
    network.project()
    steps, limits = network.stacked("clip_step"), network.stacked("clip_range")
    # The second, the sixth and the seventh cross; weights take 3 to 15 steps.
    assert steps[0].tolist() == [2.0**-8, 0.125, 1.0, 0.25, 0.25, 2.0**-8, 2.0**-8, 0.25]
    assert limits[0].tolist() == [15 / 256, 0.5, 8.0, 15 / 4, 0.75, 15 / 256, 15 / 256, 0.75]
    assert network.relaxed_bits().min() == 3
    assert network.relaxed_bits().max() == 5


def test_gradients_are_at_most_the_step(make_job: MakeJob) -> None:
    network = scrambled(network_of(make_job()))
    for sign, name in ((1, "clip_step"), (-1, "clip_range")):
        for parameter in network.parameters(name):
            parameter.grad = torch.tensor(sign * 100.0)
    network.quantizers[0].clip_step.grad = network.quantizers[0].clip_step.detach() / 2
    network.bound_gradients()
    for index, quantizer in enumerate(network.quantizers):
        step = quantizer.clip_step.item()
        assert quantizer.clip_step.grad is not None and quantizer.clip_range.grad is not None
        assert quantizer.clip_step.grad.item() == pytest.approx(step if index else step / 2)
        assert quantizer.clip_range.grad.item() == pytest.approx(-step)


# --- fixed widths -----------------------------------------------------------------------------------------------


def test_a_fixed_width_goes_on_from_what_was_learned() -> None:
    searched = DqQuantizer(bits=4, kind="weight", searching=True)
    fixed = dq_quantizer(bits=4, kind="weight", normalized=True)
    with torch.no_grad():
        searched.clip_step.fill_(0.11)
        searched.clip_range.fill_(0.63)  # five levels of seven
    fixed.load_state_dict(searched.state_dict())
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fixed(x), searched(x))
    assert len(fixed(x).unique()) == 11
    with torch.no_grad():
        fixed.clip_range.fill_(100.0)
    assert len(fixed(torch.linspace(-9, 9, 1001)).unique()) == 2 * 7 + 1


@pytest.mark.parametrize("kind", ["weight", "activation"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fixed_width_is_calibrated_to_a_power_of_two(kind: str, bits: int) -> None:
    quantizer = DqQuantizer(bits=bits, kind=kind)  # type: ignore[arg-type]
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    x = x if kind == "weight" else x.abs()
    quantizer.calibrate(x)
    step = quantizer.clip_step.item()
    assert math.log2(step) == round(math.log2(step))
    levels = 2 ** (bits - (kind == "weight")) - 1
    assert quantizer.clip_range.item() == step * levels

    def error(step: float) -> float:
        return float(((x / step).round().clamp(-levels, levels) * step - x).square().mean())

    assert error(step) <= min(error(step * 2), error(step / 2))


def test_gradients_of_a_fixed_width_are_bounded_too() -> None:
    quantizer = dq_quantizer(bits=4, kind="weight", normalized=True)
    quantizer.calibrate(torch.randn(100, generator=torch.Generator().manual_seed(0)))
    (quantizer(5 * torch.ones(100)) * 1000).sum().backward()
    assert quantizer.clip_range.grad is not None
    assert quantizer.clip_range.grad.item() == pytest.approx(quantizer.clip_step.item())


# --- the search -------------------------------------------------------------------------------------------------


def test_the_best_of_all_policies_is_found(known_best: tuple[SearchJob, Policy]) -> None:
    job, best = known_best
    assert Dq(DqOptions(bits=(2, 4))).search(replace(job, knobs={"strength": 0.6})).policy == best


@pytest.mark.parametrize(("strength", "least"), [(1e3, True), (1e-3, False)])
def test_the_extremes_of_the_strength(make_job: MakeJob, network: NetworkShape, strength: float, least: bool) -> None:
    schedule = SearchSchedule(epochs=3, batch_size=28)
    job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
    found = Dq().search(job)
    assert (found.policy == uniform(network, 2) == Dq().cheapest(network)) == least
    assert least or job.price(found.policy) > job.budget
    assert all(math.isfinite(entry["loss"]) for entry in found.record["history"])


@pytest.mark.parametrize("budget", ["3bit", "4bit"])
def test_a_search_ends_near_its_budget_and_repair_within(make_job: MakeJob, network: NetworkShape, budget: str) -> None:
    target = parse_budget(budget, network, 0.03, AcceleratorSpec())
    schedule = SearchSchedule(epochs=4, batch_size=28)
    job = make_job(knobs={"strength": 6.0}, budget=target.limit, schedule=schedule)
    found = Dq().search(job)
    assert 0.7 < job.price(found.policy) / target.limit < 1.3
    assert target.matches(repair(network, found.policy, found.decisions, target).cost)


def searched_form(network: DqNetwork, job: SearchJob) -> nn.Module:
    """The network that is searched in, with every width fixed, in evaluation."""
    return network.model.double().eval()


def test_the_searched_network_is_the_compressed_one(scrambled_job: SearchJob, own_form: OwnForm) -> None:
    network = network_of(scrambled_job, clip_init="calibrated")
    images = scrambled_job.task.data.calibration_batches(1, 16)[0]
    calibrate(network.model, images)
    ranges = network.stacked("clip_range").detach()
    factors = torch.randint(-1, 3, ranges.shape, generator=torch.Generator().manual_seed(0))
    network.fill("clip_range", ranges * 1.1 * 2.0**factors)
    network.project()
    reestimate_norms(network.model, scrambled_job.task.data, 28)
    policy = network.policy(network.decisions())
    other = own_form(Dq(), network, scrambled_job, policy)
    with torch.no_grad():
        found = searched_form(network, scrambled_job)(images.double())
        assert torch.allclose(found, other(images.double()), rtol=1e-9, atol=1e-9)
        assert found.std(0).min() > 0
        changed = policy
        for name in network.layers:
            changed = changed.with_layer(name, weight_bits=2)
        assert not torch.allclose(found, own_form(Dq(), network, scrambled_job, changed)(images.double()))


def test_own_quantizers_go_on_but_for_layers_that_repair_moved(mobile_job: SearchJob) -> None:
    result = Dq().search(mobile_job)
    names = [shape.name for shape in mobile_job.task.network.middle]
    moved = names[2]
    policy = result.policy.with_layer(moved, weight_bits=11 - result.policy.layers[moved].weight_bits)
    found = MatchedSearch(result=result, policy=policy, repaired=None, raw_cost=0.0, updates=0)
    kept = found.kept_quantizers()
    layers = {key.partition("_quantizer.")[0].rpartition(".")[0] for key in kept}
    assert layers == set(names) - {moved}
    signed = [shape.name for shape in mobile_job.task.network.middle if shape.signed_input and shape.name != moved]
    assert signed
    assert all(f"{name}.activation_quantizer.offset" in kept for name in signed)
    model = mobile_job.task.make_model()
    model.load_state_dict(dict(result.state))
    network = compress(model, mobile_job.task.network, policy, quantizer=Dq().quantizer)
    calibrate(network, mobile_job.task.data.calibration_batches(1, 16)[0])
    before = network.state_dict()[f"{moved}.weight_quantizer.clip_step"].clone()
    assert network.load_state_dict(kept, strict=False).unexpected_keys == []
    state = network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())
    assert torch.equal(state[f"{moved}.weight_quantizer.clip_step"], before)


def test_a_search_returns_every_choice_and_leaves_no_trace_in_the_names(
    make_job: MakeJob, network: NetworkShape
) -> None:
    job = make_job()
    found: SearchResult = Dq().search(job)
    assert found.state.keys() == job.pretrained.keys()
    assert [(d.layer, d.what) for d in found.decisions] == [
        (layer.name, what) for layer in network.middle for what in ("weight_bits", "activation_bits")
    ]
    for decision in found.decisions:
        layer: LayerPolicy = found.policy.layers[decision.layer]
        assert decision.options[decision.chosen] == getattr(layer, decision.what)
    assert found.record["widths"].keys() == {layer.name for layer in network.middle}
    assert isinstance(Dq().network(job).model.get_submodule(network.middle[0].name), QuantizedLayer)


@pytest.mark.parametrize(
    "options", [{"bits": (4, 2)}, {"bits": (2,)}, {"bits": (1, 2)}, {"range_travel": 0.0}, {"clip_init": "best"}]
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DqOptions.model_validate(options)
