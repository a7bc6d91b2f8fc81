"""DJPQ: continuous widths, the information bottleneck on channels, and the search for both."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import calibrate
from bench.compression.policy import Policy, check, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.budget import parse_budget
from bench.costs.counter import price
from bench.costs.measures import BOPS, Latency, Measure, Memory
from bench.execution.stages.finetuning import reduced_form
from bench.matching.repair import repair
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from bench.training.loop import reestimate_norms
from methods.djpq import Djpq, DjpqNetwork, DjpqOptions, penalty
from methods.shared.networks.bottleneck import ChannelGates, gated_norms
from methods.shared.quantizers.companded import CompandedQuantizer, companded_quantizer

MakeJob = Callable[..., SearchJob]
OwnForm = Callable[..., nn.Module]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec())]
CPU = torch.device("cpu")


def network_of(job: SearchJob, **options: object) -> DjpqNetwork:
    return Djpq(DjpqOptions.model_validate(options)).network(job)


def scrambled(network: DjpqNetwork, seed: int = 0) -> DjpqNetwork:
    """With quantizers of all widths around calibrated ones, and gates of which some are shut."""
    draws = torch.Generator().manual_seed(seed)
    shape = network.signed.shape
    with torch.no_grad():
        network.fill("clip_exponent", 0.8 + 0.4 * torch.rand(shape, generator=draws))
        step = network.stacked("clip_step") * torch.exp2(6 * torch.rand(shape, generator=draws))
        network.fill("clip_step", step)
        for gates in network.gates.values():
            gates.mean.copy_(0.5 + torch.rand(gates.mean.shape, generator=draws))
            gates.log_variance.copy_(2 * torch.randn(gates.mean.shape, generator=draws))
    network.project()
    return network


def settled(network: DjpqNetwork, policy: Policy) -> nn.Module:
    """The network that is searched in at the found widths, in evaluation."""
    network.project()
    for index, quantizer in enumerate(network.quantizers):
        kind, row = divmod(index, len(network.layers))
        layer = policy.layers[list(network.layers)[row]]
        quantizer.bits = layer.activation_bits if kind else layer.weight_bits
        quantizer.searching = False
    return network.model.double().eval()


# --- the quantizer ----------------------------------------------------------------------------------------------


def test_widths_are_those_of_the_formula(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    scrambled(network)
    for kind, what in enumerate(("weight", "activation")):
        for row, layer in enumerate(network.layers.values()):
            quantizer = getattr(layer, f"{what}_quantizer")
            d, q, t = (getattr(quantizer, f"clip_{name}").item() for name in ("step", "range", "exponent"))
            assert network.relaxed_bits()[kind, row].item() == pytest.approx(
                math.log2(q**t / d + 1) + (1 - kind), rel=1e-5
            )
    assert network.relaxed_bits().min() >= 2 - 1e-5
    assert network.relaxed_bits().max() <= 8 + 1e-5


def test_a_search_starts_at_eight_bits_and_takes_the_nearest_candidates(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    assert network.relaxed_bits().flatten().tolist() == pytest.approx([8.0] * 16, abs=1e-4)
    power = network.stacked("clip_range") ** network.stacked("clip_exponent")
    for width, nearest in ((2.0, 2), (2.9, 2), (3.1, 4), (5.9, 4), (6.1, 8), (8.0, 8)):
        network.fill("clip_step", power / (2 ** (width - 1.0 * network.signed) - 1))
        decisions = network.decisions()
        assert {decision.options[decision.chosen] for decision in decisions if decision.what != "filters"} == {nearest}
        assert decisions[0].margins == pytest.approx((width - 3, width - 6), abs=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_a_fixed_width_has_its_step_from_range_and_exponent(kind: str, bits: int) -> None:
    searched = CompandedQuantizer(bits=bits, kind=kind, searching=True)  # type: ignore[arg-type]
    fixed = companded_quantizer(bits=bits, kind=kind, normalized=True)  # type: ignore[arg-type]
    levels = 2 ** (bits - (kind == "weight")) - 1
    with torch.no_grad():
        searched.clip_range.fill_(0.7)
        searched.clip_exponent.fill_(1.3)
        searched.clip_step.fill_(0.7**1.3 / levels)
    fixed.load_state_dict({"clip_range": searched.clip_range, "clip_exponent": searched.clip_exponent})
    x = torch.linspace(-1, 1, 4001)
    assert torch.allclose(fixed(x), searched(x))
    assert len(fixed(x).unique()) == (2 * levels + 1 if kind == "weight" else levels + 1)


def test_gradients_of_a_fixed_width_are_bounded() -> None:
    fixed = companded_quantizer(bits=4, kind="weight", normalized=True)
    (fixed(5 * torch.ones(100)) * 1000).sum().backward()
    assert fixed.clip_range.grad is not None
    assert fixed.clip_range.grad.item() == pytest.approx(1.0)


def test_updates_end_within_bounds(make_job: MakeJob) -> None:
    network = network_of(make_job(), exponent_bounds=(0.5, 2.0))
    wild = torch.randn(network.signed.shape, generator=torch.Generator().manual_seed(0)) * 5
    for name in ("clip_step", "clip_range", "clip_exponent"):
        network.fill(name, wild)
        wild = wild.flip(1)
    network.project()
    assert network.stacked("clip_range").min() > 0
    assert network.stacked("clip_exponent").min() >= 0.5
    assert network.stacked("clip_exponent").max() <= 2
    assert network.relaxed_bits().min() >= 2 - 1e-4
    assert network.relaxed_bits().max() <= 8 + 1e-4


# --- the gates --------------------------------------------------------------------------------------------------


def gates_of(
    means: list[float],
    log_variances: list[float],
    *,
    group_size: int = 1,
    threshold: float = 0.0,
    softness: float = 1.0,
) -> ChannelGates:
    gates = ChannelGates(len(means), CPU, group_size=group_size, threshold=threshold, softness=softness)
    with torch.no_grad():
        gates.mean.copy_(torch.tensor(means))
        gates.log_variance.copy_(torch.tensor(log_variances))
    return gates


def test_the_bottleneck_is_the_sum_of_what_channels_tell() -> None:
    means, variances = [1.0, -0.5, 0.2], [-9.0, 0.0, 1.0]
    expected = sum(0.5 * math.log(1 + m**2 / math.exp(v)) for m, v in zip(means, variances, strict=True))
    assert gates_of(means, variances).information().item() == pytest.approx(expected, rel=1e-6)


def test_channels_go_where_noise_outweighs_them() -> None:
    gates = gates_of([1.0, 1.0, 0.1, -2.0], [-1.0, 1.0, -1.0, 1.0])
    assert gates.kept().tolist() == [1, 0, 0, 1]  # log α: −1, 1, 3.6, −0.4
    assert gates.count().item() == 2
    assert gates_of([1.0, 1.0], [1.0, 0.5]).kept().tolist() == [0, 1]  # one stays
    assert gates_of([1.0, 1.0], [1.0, 0.5], threshold=0.8).kept().tolist() == [0, 1]
    assert gates_of([1.0, 1.0], [1.0, 0.5], threshold=2.0).kept().tolist() == [1, 1]
    pairs = gates_of([1.0, 1.0, 1.0, 1.0, 1.0], [-3.0, 2.0, 1.0, -0.5, -1.0], group_size=2)
    assert pairs.kept().tolist() == [1, 1, 0, 0, 1]


def test_the_count_has_the_slope_of_a_sigmoid() -> None:
    gates = gates_of([1.0, 1.0], [0.6, -2.0], softness=2.0)
    (slope,) = torch.autograd.grad(gates.count(), gates.log_variance)
    share = [1 / (1 + math.exp(value / 2)) for value in (0.6, -2.0)]
    assert slope.tolist() == pytest.approx([-s * (1 - s) / 2 for s in share], rel=1e-5)


def test_gates_multiply_by_noise_in_training_and_by_what_is_left_in_evaluation() -> None:
    gates = gates_of([1.0, 0.5], [1.0, -2.0])
    x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    gates.noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    z = torch.tensor([1.0, 0.5]) + gates.noise * torch.tensor([math.exp(0.5), math.exp(-1.0)])
    assert torch.allclose(gates(x), x * z[:, :, None, None])
    assert torch.allclose(gates.eval()(x), x * torch.tensor([0.0, 0.5])[:, None, None])


def test_every_step_has_its_own_noise(make_job: MakeJob, small_task: Task, watched: Callable[..., Task]) -> None:
    seen: list[Tensor] = []

    def look(model: nn.Module) -> None:
        gates = next(module for module in model.modules() if isinstance(module, ChannelGates))
        assert gates.noise is not None
        seen.append(gates.noise.clone())

    Djpq().search(make_job(watched(small_task, look)))
    assert len(seen) == 10
    assert all(noise.shape[0] == 28 for noise in seen)
    assert not torch.equal(seen[0], seen[1])


# --- the cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_with_whole_widths_and_channels_the_cost_is_exact(scrambled_job: SearchJob, measure: Measure) -> None:
    job = replace(scrambled_job, measure=measure)
    network = network_of(job)
    calibrate(network.model, job.task.data.calibration_batches(1, 16)[0])
    scrambled(network)
    if measure.on_accelerator:  # exact where its table has the channel count
        for gates in network.gates.values():
            gates.log_variance.data.fill_(-9.0)
    policy = network.policy(network.decisions())
    check(job.task.network, policy)
    cost = job.price(policy)
    assert network.actual_cost().item() == pytest.approx(cost, rel=1e-9)
    whole = network.candidates[network.chosen()]
    network.relaxed_bits = lambda: whole  # type: ignore[method-assign]
    assert network.relaxed_cost().item() == pytest.approx(cost, rel=1e-9)
    gone = [choice for choice in policy.layers.values() if choice.kept_filters is not None]
    assert bool(gone) != measure.on_accelerator


def test_between_candidates_the_cost_is_that_of_the_continuous_bits(make_job: MakeJob, network: NetworkShape) -> None:
    job = make_job()
    found = network_of(job)
    calibrate(found.model, job.task.data.calibration_batches(1, 16)[0])
    scrambled(found)
    for gates in found.gates.values():
        gates.log_variance.data.fill_(-9.0)
    layers = {layer.name: layer for layer in price(network, uniform(network, 8)).layers}
    total = float(sum(layer.bops for name, layer in layers.items() if name not in found.layers))
    for name, (weight, activation) in zip(found.layers, found.relaxed_bits().T.tolist(), strict=True):
        total += layers[name].macs * weight * activation
    assert found.relaxed_cost().item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("share", "acts"), [(1.1, False), (0.9, True)])
def test_what_is_added_to_the_loss(make_job: MakeJob, share: float, acts: bool) -> None:
    """In mode "hinge" nothing is, below the budget; in mode "dual" the bottleneck is not where λ is negative."""
    network = scrambled(network_of(make_job(), gamma=0.01))
    actual, relaxed = network.actual_cost().item(), network.relaxed_cost().item()
    information, maps = 0.0, {"stages.0.0.conv1": 8, "stages.1.0.conv1": 4, "stages.2.0.conv1": 2}
    assert network.gates.keys() == maps.keys()
    for name, gates in network.gates.items():
        pairs = zip(gates.mean.tolist(), gates.log_variance.tolist(), strict=True)
        told = sum(0.5 * math.log(1 + mean**2 / math.exp(log_variance)) for mean, log_variance in pairs)
        # VIBNet's code multiplies by the map's area and by one over its side.
        information += 0.01 * maps[name] ** 2 / maps[name] * told
    whole = information + 0.3 * math.log(relaxed / (share * actual))
    job = make_job(budget=share * actual)
    assert penalty(job.cost_term(), network).item() == pytest.approx(whole if acts else 0.0, rel=1e-5)
    assert penalty(replace(job, match="lambda").cost_term(), network).item() == pytest.approx(whole, rel=1e-5)
    moving = replace(job, match="dual").cost_term()
    first, second = (penalty(moving, network).item() for _ in range(2))
    weights = replace(job, match="dual").cost_term()
    expected = [weights.weight(network.actual_cost()).item() for _ in range(2)]
    assert (expected[1] > 0) == acts
    log_ratio = math.log(relaxed / (share * actual))
    assert first == pytest.approx(expected[0] * log_ratio + (information if expected[0] > 0 else 0.0), rel=1e-5)
    assert second == pytest.approx(expected[1] * log_ratio + (information if acts else 0.0), rel=1e-5)


# --- what is returned -------------------------------------------------------------------------------------------


def test_only_norms_of_their_own_carry_gates(mobile_job: SearchJob) -> None:
    shapes = mobile_job.task.network
    own = gated_norms(shapes)
    assert own["first.expand.0"] == "first.expand.1"
    assert own["narrow.0"] == "narrow.1"
    assert all(shapes[name].prunable and shapes[name].leader is None for name in own)
    assert len(own) < sum(shape.prunable for shape in shapes.layers)  # those inside squeeze-excite gates have none


@pytest.mark.parametrize("group_size", [1, 3])
def test_the_searched_network_is_the_reduced_one(scrambled_job: SearchJob, own_form: OwnForm, group_size: int) -> None:
    """Without dead channels, μ folded into the norms, behind depthwise convolutions and squeeze-excite gates."""
    job = scrambled_job
    network = network_of(job, group_size=group_size)
    images = job.task.data.calibration_batches(1, 16)[0]
    calibrate(network.model, images)
    scrambled(network)
    reestimate_norms(network.model, job.task.data, 28)
    policy = network.policy(network.decisions())
    check(job.task.network, policy)
    dropped = [name for name, layer in policy.layers.items() if layer.kept_filters is not None]
    assert dropped
    other = own_form(Djpq(), network, job, policy)
    with torch.no_grad():
        found = settled(network, policy)(images.double())
        assert found.std(0).min() > 0
        assert torch.allclose(found, other(images.double()), rtol=1e-9, atol=1e-9)
        whole = policy.with_layer(dropped[0], kept_filters=None)
        assert not torch.allclose(found, own_form(Djpq(), network, job, whole)(images.double()))


def test_repair_may_bring_filters_back_with_their_means(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    name, gates = next(iter(network.gates.items()))
    with torch.no_grad():
        gates.mean.copy_(torch.linspace(0.5, 1.5, len(gates.mean)))
        gates.log_variance[1:] = 3.0
    norm = network.norms[name]
    folded = network.state(network.policy(network.decisions()), job.pretrained)
    before = job.pretrained
    for part in ("weight", "bias"):
        assert torch.allclose(folded[f"{norm}.{part}"], before[f"{norm}.{part}"] * gates.mean)
    about = [decision for decision in network.decisions() if decision.layer == name and decision.what == "filters"]
    assert [decision.filters for decision in about] == [(index,) for index in range(1, len(gates.mean))]
    assert all(decision.chosen == 0 and decision.margins[0] < 0 for decision in about)


def test_the_cheapest_policy_is_what_everything_shut_leaves(make_job: MakeJob, network: NetworkShape) -> None:
    method = Djpq(DjpqOptions(group_size=3))
    cheapest = method.cheapest(network)
    check(network, cheapest)
    for name in gated_norms(network):
        kept = cheapest.layers[name].kept_filters
        assert kept is not None
        assert len(kept) == (network[name].out_channels % 3 or 3)
    job = make_job()
    reduced, policy = reduced_form(network, job.float_model(), cheapest, job.task.data.image_shape)
    assert price(reduced, policy).bops == price(network, cheapest).bops


# --- the search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "least"), [(1e4, True), (1e-3, False)])
def test_the_extremes_of_the_strength(make_job: MakeJob, network: NetworkShape, strength: float, least: bool) -> None:
    """A cost that outweighs everything ends at the lowest widths with one filter a layer, the one that tells most."""
    schedule = SearchSchedule(epochs=3, batch_size=28)
    job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
    method = Djpq(DjpqOptions(gamma=0.0))
    found = method.search(job)
    cost = job.price(found.policy)
    assert (cost == job.price(method.cheapest(network))) == least
    assert least or cost > job.budget
    assert all(math.isfinite(entry["loss"]) for entry in found.record["history"])


def test_the_best_of_all_policies_is_found(known_best: tuple[SearchJob, Policy]) -> None:
    job, best = known_best
    method = Djpq(DjpqOptions(bits=(2, 4), start_bits=4))
    assert method.search(replace(job, knobs={"strength": 0.1})).policy == best


def test_rounded_in_the_search_the_network_is_what_its_policy_says(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job, rounding="search")
    images = job.task.data.calibration_batches(1, 16)[0]
    calibrate(network.model, images)
    scrambled(network)
    for gates in network.gates.values():
        gates.log_variance.data.fill_(-9.0)
    policy = network.policy(network.decisions())
    assert network.relaxed_cost().item() == pytest.approx(job.price(policy), rel=1e-12)
    assert network.continuous_bits().sub(network.relaxed_bits()).abs().max() > 0.5
    network.model.double().eval()
    with torch.no_grad():
        found = network.model(images.double())
        assert torch.allclose(found, settled(network, policy)(images.double()), rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(network.relaxed_cost(), network.parameters("clip_step"))
    assert all(gradient < 0 for gradient in gradients)


def test_a_strong_bottleneck_alone_removes_channels(make_job: MakeJob) -> None:
    schedule = SearchSchedule(epochs=3, batch_size=28)
    job = make_job(knobs={"strength": 1e-9}, match="lambda", schedule=schedule)
    none = Djpq(DjpqOptions(gamma=0.0)).search(job).record["channels"]
    some = Djpq(DjpqOptions(gamma=0.1)).search(job).record["channels"]
    assert all(some[name] < none[name] for name in none)
    assert min(some.values()) >= 1


@pytest.mark.parametrize(("budget", "strength"), [("3bit", 0.4), ("4bit", 0.2)])
def test_repair_brings_a_search_within_its_budget(
    make_job: MakeJob, network: NetworkShape, budget: str, strength: float
) -> None:
    target = parse_budget(budget, network, 0.03, AcceleratorSpec())
    schedule = SearchSchedule(epochs=4, batch_size=28)
    job = make_job(knobs={"strength": strength}, budget=target.limit, schedule=schedule)
    found = Djpq().search(job)
    assert 0.5 < job.price(found.policy) / target.limit < 1.5
    repaired = repair(network, found.policy, found.decisions, target)
    assert target.matches(repaired.cost)
    check(network, repaired.policy)


@pytest.mark.parametrize("exponent", ["learned", "linear"])
def test_widths_are_candidates_and_exponents_learn_where_they_may(make_job: MakeJob, exponent: str) -> None:
    job = make_job(match="lambda")
    found = Djpq(DjpqOptions.model_validate({"exponent": exponent, "bits": (2, 3, 5)})).search(job)
    for decision in found.decisions:
        if decision.what != "filters":
            assert decision.options == (2, 3, 5)
            assert decision.options[decision.chosen] == getattr(found.policy.layers[decision.layer], decision.what)
    exponents: Mapping[str, list[float]] = found.record["exponents"]
    assert {t == 1 for pair in exponents.values() for t in pair} == {exponent == "linear"}
    assert found.state.keys() == job.pretrained.keys()


@pytest.mark.parametrize(
    "options",
    [
        {"bits": (4, 2)},
        {"bits": (1, 2)},
        {"exponent_bounds": (0.0, 2.0)},
        {"exponent_bounds": (2.0, 0.5)},
        {"gamma": -1.0},
        {"softness": 0.0},
    ],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DjpqOptions.model_validate(options)
