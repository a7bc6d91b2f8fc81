"""Bayesian Bits: the decomposition, the gates, the regulariser, and what searches make of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, calibrate, compress
from bench.compression.kernels import Kind
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import Shifted, clip_parameters
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.method import SearchJob, SearchResult, Task
from bench.spec.schema import Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import evaluate, fit, reestimate_norms, weight_groups
from methods.bayesian_bits import (
    FIRST_PHI,
    LAST_OPEN_PHI,
    PAPER_TRAVEL,
    BayesianBits,
    BayesianBitsOptions,
    BayesianNetwork,
    expected_bits,
    hard_concrete,
    keep_strongest,
    probability_open,
    thresholded,
)
from methods.shared.quantizers.residual_bits import RangeQuantizer, gated_quantization, residuals, step_sizes

MakeJob = Callable[..., SearchJob]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
CHAINS = [(2, 4, 8), (4, 8), (2, 6), (3, 6, 12), (8,)]
KINDS: Sequence[Kind] = ("weight", "activation")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --- the decomposition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", CHAINS)
def test_the_first_parts_are_plain_rounding_at_each_width(bits: tuple[int, ...], kind: Kind) -> None:
    x, clip = normal(5_000), 1.7
    parts = residuals(x, number(clip), bits, kind)
    low = -clip if kind == "weight" else 0.0
    clipped = np.clip(x.numpy(), low * (1 - 1e-7), clip * (1 - 1e-7))
    for count, width in enumerate(bits, start=1):
        step = (clip - low) / (2**width - 1)
        found = torch.stack(parts[:count]).sum(0)
        assert found.numpy() == pytest.approx(step * np.rint(clipped / step), abs=1e-12)


@pytest.mark.parametrize(("kind", "fewer"), [("weight", 1), ("activation", 0)])
def test_grids_of_signed_tensors_have_one_level_less_and_zero(kind: Kind, fewer: int) -> None:
    clip = torch.tensor(0.7)
    low = -1.0 if kind == "weight" else 0.0
    bounds = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    x = 0.7 * torch.cat([torch.linspace(low, 1, 20_000), bounds])
    for gates, width in ((torch.zeros(2), 2), (torch.tensor([1.0, 0.0]), 4), (torch.ones(2), 8)):
        step = step_sizes(clip, (2, 4, 8), kind)[(2, 4, 8).index(width)]
        codes = gated_quantization(x, clip, gates, (2, 4, 8), kind) / step
        assert codes.sub(codes.round()).abs().max() < 1e-3
        levels = torch.unique(codes.round())
        assert len(levels) == 2**width - fewer
        assert 0 in levels
        if kind == "weight":
            assert torch.equal(levels, -levels.flip(0))


def test_bounds_of_a_range_never_leave_the_grid_in_single_precision() -> None:
    source = torch.Generator().manual_seed(0)
    for clip in 10 ** (4 * torch.rand(500, generator=source) - 3):
        for count, width in enumerate((2, 4, 8), start=1):
            top = torch.stack(residuals(clip.view(1), clip, (2, 4, 8), "weight")[:count]).sum()
            assert float(top / clip) == pytest.approx((2**width - 2) / (2**width - 1), abs=1e-5)


class _Round(torch.autograd.Function):
    """Rounding with the identity's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return grads[0]  # type: ignore[no-any-return]


def literal(x: Tensor, clip: Tensor, gates: Tensor, bits: Sequence[int], kind: Kind) -> Tensor:
    """Term by term, for autograd: clipped like PACT, residual errors of plain roundings."""
    high = (1 - 1e-7) * clip
    low = -high if kind == "weight" else torch.zeros_like(clip)
    u = high - F.relu(high - low - F.relu(x - low))
    full = clip * (2 if kind == "weight" else 1)
    total, product_of_gates = torch.zeros_like(u), torch.ones_like(clip)
    below = torch.zeros_like(u)
    for index, width in enumerate(bits):
        step = full / (2**width - 1)
        part = step * _Round.apply((u - below) / step)  # type: ignore[no-untyped-call]
        product_of_gates = product_of_gates * (gates[index - 1] if index else 1)
        total = total + product_of_gates * part
        below = below + part
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", CHAINS)
def test_gradients_are_those_of_straight_through_rounding(bits: tuple[int, ...], kind: Kind) -> None:
    values = [normal(7, 50), number(1.3), torch.linspace(0.3, 0.9, len(bits) - 1, dtype=torch.float64)]
    upstream = normal(7, 50, seed=1)
    results = []
    for form in (gated_quantization, literal):
        leaves = [value.clone().requires_grad_() for value in values]
        found = form(leaves[0], leaves[1], leaves[2], bits, kind)
        results.append([found.detach(), *torch.autograd.grad((found * upstream).sum(), leaves, allow_unused=True)])
    for mine, expected in zip(*results, strict=True):
        assert torch.allclose(mine, torch.zeros_like(mine) if expected is None else expected, atol=1e-10)
    assert results[0][1].eq(0).any() and results[0][1].ne(0).any()


@pytest.mark.parametrize("gates", [(0.0, 0.7), (1.0, 0.0)])
def test_a_gate_feels_what_its_opening_would_bring_and_nothing_behind_a_shut_one(gates: tuple[float, float]) -> None:
    x, clip, upstream = normal(200), number(1.5), normal(200, seed=1)
    z = torch.tensor(gates, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad((gated_quantization(x, clip, z, (2, 4, 8), "weight") * upstream).sum(), z)
    _, four, eight = residuals(x, clip, (2, 4, 8), "weight")
    first, second = gates
    assert found.tolist() == pytest.approx(
        [float((upstream * (four + second * eight)).sum()), first * float((upstream * eight).sum())]
    )


def test_large_tensors_are_worked_on_in_blocks_with_the_same_result() -> None:
    x = normal(3, 100_000)
    leaves = [x.requires_grad_(), number(2.0).requires_grad_(), torch.tensor([0.8, 0.4]).double().requires_grad_()]
    whole = [*leaves[:1], *leaves[1:]]
    upstream = normal(3, 100_000, seed=1)
    found = gated_quantization(whole[0], whole[1], whole[2], (2, 4, 8), "activation")
    expected = literal(whole[0], whole[1], whole[2], (2, 4, 8), "activation")
    assert torch.allclose(found, expected, atol=1e-12)
    for mine, other in zip(
        torch.autograd.grad((found * upstream).sum(), leaves),
        torch.autograd.grad((expected * upstream).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9)


def test_half_precision_is_computed_in_single() -> None:
    x = torch.linspace(-1, 1, 999).bfloat16()
    found = gated_quantization(x, torch.tensor(1.0), torch.ones(2), (2, 4, 8), "weight")
    assert found.dtype == torch.bfloat16
    assert torch.equal(
        found, gated_quantization(x.float(), torch.tensor(1.0), torch.ones(2), (2, 4, 8), "weight").bfloat16()
    )


def test_ranges_start_at_the_least_and_the_largest_value() -> None:
    weight, activation = RangeQuantizer(bits=4, kind="weight"), RangeQuantizer(bits=4, kind="activation")
    weight.calibrate(torch.tensor([-3.0, 2.0]))
    activation.calibrate(torch.tensor([0.0, 2.5]))
    assert (weight.clip.item(), activation.clip.item()) == (3.0, 2.5)
    activation.calibrate(torch.zeros(3))
    assert activation.clip.item() == 1.0


# --- the gates ------------------------------------------------------------------------------------------------------

PHIS = (-4.0, -1.6, -0.9, 0.0, 1.5, 6.0)
DRAWS = 200_000


def quantiles() -> Tensor:
    """Uniform draws as they would be with infinite luck."""
    return (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS


@pytest.mark.parametrize("phi", PHIS)
def test_a_sample_is_the_formulas(phi: float) -> None:
    uniform_draws = [0.001, 0.2, 0.5, 0.7, 0.999]
    expected = []
    for u in uniform_draws:
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + phi) / (2 / 3)))
        expected.append(min(1.0, max(0.0, s * 1.2 - 0.1)))
    found = hard_concrete(torch.full((5,), phi, dtype=torch.float64), torch.tensor(uniform_draws, dtype=torch.float64))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("phi", PHIS)
def test_probability_of_an_open_gate_is_the_share_of_samples_above_zero(phi: float) -> None:
    samples = hard_concrete(torch.full((DRAWS,), phi, dtype=torch.float64), quantiles())
    assert float(probability_open(number(phi))) == pytest.approx(float((samples > 0).double().mean()), abs=2 / DRAWS)


def test_a_gate_is_open_where_less_than_34_percent_of_samples_are_zero() -> None:
    shut = {}
    for phi in (LAST_OPEN_PHI - 1e-3, LAST_OPEN_PHI + 1e-3):
        samples = hard_concrete(torch.full((DRAWS,), phi, dtype=torch.float64), quantiles())
        shut[phi] = float((samples == 0).double().mean())
        assert float(thresholded(number(phi))) == float(shut[phi] < 0.34)
    assert min(shut.values()) < 0.34 < max(shut.values())
    assert max(shut.values()) - min(shut.values()) < 1e-3
    assert thresholded(torch.tensor([-9.0, FIRST_PHI])).tolist() == [0, 1]


def test_the_strongest_group_stays() -> None:
    phi = torch.tensor([-5.0, -3.0, -4.0], requires_grad=True)
    gates = hard_concrete(phi, torch.tensor([0.9, 0.5, 0.01]))
    assert keep_strongest(torch.zeros(3), phi).tolist() == [0, 1, 0]
    kept = keep_strongest(gates, phi)
    assert kept[1] == 1
    assert torch.equal(kept[[0, 2]], gates[[0, 2]])


def test_expected_bits_are_the_sum_over_levels() -> None:
    open_ = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [2 + 4 * q4 + 8 * q4 * q8 for q4, q8 in open_.tolist()]
    assert expected_bits(open_, (2, 4, 8)).tolist() == pytest.approx(expected)
    assert expected_bits(open_[:, :0], (8,)).tolist() == [8] * 4


# --- the network ----------------------------------------------------------------------------------------------------


def network_of(job: SearchJob, **options: Any) -> BayesianNetwork:
    """A network with ranges and norms that suit it, in float64."""
    method = BayesianBits(BayesianBitsOptions(**options))
    network = BayesianNetwork(job, method.space(job.task.network))
    calibrate(network.model, job.task.data.calibration_batches(1, 8)[0])
    reestimate_norms(network.model, job.task.data, 8)
    network.model.double()
    return network


@torch.no_grad()
def mix(network: BayesianNetwork, seed: int) -> None:
    """Gates at random on both sides of the threshold; the most probable group of some layers below it too."""
    source = torch.Generator().manual_seed(seed)
    for phi in network.gate_parameters():
        phi.copy_(2 * torch.randn(phi.shape, generator=source) - 1.2)
    network.threshold()


def images(job: SearchJob, count: int = 8) -> Tensor:
    return job.task.data.calibration_batches(1, count)[0].double()


def reduced(job: SearchJob, network: BayesianNetwork, policy: Policy) -> nn.Module:
    """The compressed network of a policy, with the paper's quantizer and the searched ranges."""
    model = job.task.make_model()
    model.load_state_dict(network.state(job.pretrained))
    found = compress(model, job.task.network, policy, quantizer=BayesianBits().quantizer).double()
    assert found.load_state_dict(network.ranges(), strict=False).unexpected_keys == []
    return found.eval()


@pytest.mark.parametrize("seed", range(3))
def test_the_searched_network_is_the_reduced_one(scrambled_job: SearchJob, seed: int) -> None:
    network = network_of(scrambled_job)
    mix(network, seed)
    policy = network.policy(network.decisions())
    gone = [layer for layer, choice in policy.layers.items() if choice.kept_filters is not None]
    assert gone
    with torch.no_grad():
        found = network.model.eval()(images(scrambled_job))
        expected = reduced(scrambled_job, network, policy)(images(scrambled_job))
        unpruned = policy
        for layer in gone:
            unpruned = unpruned.with_layer(layer, kept_filters=None)
        other = reduced(scrambled_job, network, unpruned)(images(scrambled_job))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_the_cost_is_that_of_the_policy(scrambled_job: SearchJob, seed: int) -> None:
    network = network_of(scrambled_job)
    mix(network, seed)
    policy = network.policy(network.decisions())
    assert float(network.actual_cost()) == pytest.approx(scrambled_job.price(policy), rel=1e-6)


def test_the_regulariser_is_the_sum_over_tensors_and_levels(scrambled_job: SearchJob) -> None:
    shapes = scrambled_job.task.network
    network = network_of(scrambled_job)
    mix(network, 0)

    def q(phi: float) -> float:
        return 1 / (1 + math.exp((2 / 3) * math.log(0.1 / 1.1) - phi))

    macs = {layer.name: layer.macs for layer in price(shapes, uniform(shapes, 8)).layers}
    total, phis = 0.0, network.phi()
    for shape in shapes.middle:
        share = macs[shape.name] / max(macs.values())
        filters = phis.get(f"{shape.name}.phi_filters")
        kept = 1.0
        if filters is not None:
            kept = (
                sum(q(filters[index // shapes.group_size]) for index in range(shape.out_channels)) / shape.out_channels
            )
        inner = "quantizer.phi" if shape.signed_input else "phi"
        for name, z_2 in (
            (f"{shape.name}.weight_quantizer.phi", kept),
            (f"{shape.name}.activation_quantizer.{inner}", 1.0),
        ):
            q_4, q_8 = map(q, phis[name])
            total += share * (2 * z_2 + 4 * z_2 * q_4 + 8 * z_2 * q_4 * q_8)
    assert float(network.regulariser().detach()) == pytest.approx(total, rel=1e-6)
    assert sum(shape.prunable for shape in shapes.middle) == len([key for key in phis if key.endswith("filters")]) >= 3


def test_only_prunable_layers_have_gates_of_filters_in_groups(mobile_job: SearchJob) -> None:
    network = network_of(mobile_job, group_size=3)
    for shape in mobile_job.task.network.middle:
        layer = network.layers[shape.name]
        phi = layer.phi_filters
        assert (None if phi is None else len(phi)) == (-(-shape.out_channels // 3) if shape.prunable else None)
        assert isinstance(layer.activation_quantizer, Shifted) == shape.signed_input


def test_a_shut_group_feels_the_task_in_samples_that_are_not_clamped(scrambled_job: SearchJob) -> None:
    """The hard-concrete distribution itself gives no gradient where a sample is exactly 0 or 1."""
    network = network_of(scrambled_job)
    with torch.no_grad():
        for layer in network.pruned.values():
            layer.phi_filters.copy_(torch.linspace(-1.2, -2.0, len(layer.phi_filters)))  # type: ignore[union-attr, arg-type]
    noise, between = torch.Generator().manual_seed(0), 0
    for _ in range(3):
        network.draw(noise)
        loss = F.cross_entropy(network.model.train()(images(scrambled_job)), torch.arange(8))
        gates = [layer.channel_gates for layer in network.pruned.values()]
        phis = [layer.phi_filters for layer in network.pruned.values()]
        found = torch.autograd.grad(loss, [*gates, *phis])  # type: ignore[arg-type]
        for gate, to_gate, to_phi, layer in zip(
            gates, found[: len(gates)], found[len(gates) :], network.pruned.values(), strict=True
        ):
            reached = torch.stack([to_gate[list(group)].abs().sum() for group in layer.groups.members])  # type: ignore[union-attr]
            assert bool((reached != 0).all())  # of shut ones too: the next layer would read them
            z = torch.stack([gate[group[0]] for group in layer.groups.members])  # type: ignore[index, union-attr]
            free = (z > 0) & (z < 1)
            between += int(free.sum())
            assert bool((to_phi[free] != 0).all())
            assert bool((to_phi[~free][1:] == 0).all())
    assert between > 10


def test_decisions_are_margins_from_the_threshold(mobile_job: SearchJob) -> None:
    network = network_of(mobile_job)
    mix(network, 4)
    decisions = network.decisions()
    policy = network.policy(decisions)
    for name, layer in network.layers.items():
        for what, quantizer in zip(("weight_bits", "activation_bits"), layer.quantizers(), strict=True):
            (decision,) = [made for made in decisions if made.layer == name and made.what == what]
            assert decision.margins == pytest.approx([phi - LAST_OPEN_PHI for phi in quantizer.phi.tolist()])
            four, eight = (margin > 0 for margin in decision.margins)
            assert (
                decision.options[decision.chosen]
                == getattr(policy.layers[name], what)
                == (8 if four and eight else 4 if four else 2)
            )
    for name, layer in network.pruned.items():
        made = [decision for decision in decisions if decision.layer == name and decision.what == "filters"]
        strongest = int(layer.phi_filters.argmax())  # type: ignore[union-attr]
        members = layer.groups.members  # type: ignore[union-attr]
        assert [decision.filters for decision in made] == [m for index, m in enumerate(members) if index != strongest]
        assert [decision.chosen for decision in made] == [int(decision.margins[0] > 0) for decision in made]


def test_no_layer_loses_all_its_groups(mobile_job: SearchJob) -> None:
    network = network_of(mobile_job)
    with torch.no_grad():
        for phi in network.gate_parameters():
            phi.fill_(-9.0)
    network.threshold()
    policy = network.policy(network.decisions())
    assert all(len(policy.layers[name].kept_filters or ()) == 4 for name in network.pruned)
    assert float(network.actual_cost()) == pytest.approx(mobile_job.price(policy))
    network.draw(torch.Generator().manual_seed(0))
    assert all(float(layer.channel_gates.detach().sum()) >= 4 for layer in network.pruned.values())  # type: ignore[union-attr]


def test_first_and_last_layer_have_the_papers_quantizer_at_8_bits(make_job: MakeJob, network: NetworkShape) -> None:
    model = network_of(make_job()).model
    for shape in (network.layers[0], network.layers[-1]):
        edge = model.get_submodule(shape.name)
        assert isinstance(edge, QuantizedLayer)
        assert isinstance(edge.weight_quantizer, RangeQuantizer)
        assert edge.weight_quantizer.bits == 8


def test_ranges_and_gates_are_not_among_the_weights(make_job: MakeJob) -> None:
    network = network_of(make_job())
    others = [*network.gate_parameters(), *network.range_parameters()]
    groups = weight_groups(network.model, exclude=others)
    taken = {id(parameter) for group in groups for parameter in group["params"]}  # type: ignore[attr-defined]
    assert taken.isdisjoint(id(parameter) for parameter in others)
    assert len(taken) + len(others) == len(list(network.model.parameters()))
    assert len(clip_parameters(network.model)) == len(network.range_parameters()) == 2 * len(network.layers) + 3


# --- searches -------------------------------------------------------------------------------------------------------


class _TwoBranches(nn.Module):
    """A branch that decides and one that does nothing: its weights are 0."""

    prunable = ()

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.decides, self.after = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.idle = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.fc(F.relu(self.after(self.decides(x)) + self.idle(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def branches(small_task: Task) -> tuple[Task, Mapping[str, Tensor]]:
    """A trained network of two branches, its outputs sharp enough that errors of 4 bits cost something."""
    shapes = trace(_TwoBranches(), small_task.data.image_shape, name="branches", dataset="digits")
    task = Task(data=small_task.data, network=shapes, make_model=_TwoBranches)
    torch.manual_seed(0)
    model = _TwoBranches()
    nn.init.zeros_(model.idle.weight)
    schedule = Schedule(epochs=12, batch_size=32, lr=0.05, decay="one_cycle")
    fit(model, task.data, schedule, generator("tests"), lambda _: None)
    with torch.no_grad():
        model.idle.weight.zero_()
        model.fc.weight.mul_(8)
        model.fc.bias.mul_(8)
    return task, model.state_dict()


Widths = tuple[int, int, int, int]


def of_branches(shapes: NetworkShape, widths: Widths) -> Policy:
    policy = uniform(shapes, 8).with_layer("decides", weight_bits=widths[0], activation_bits=widths[1])
    return policy.with_layer("idle", weight_bits=widths[2], activation_bits=widths[3])


def losses(job: SearchJob) -> dict[Widths, float]:
    """The training loss of every policy."""
    network = network_of(job)
    network.model.float()
    found: dict[Widths, float] = {}
    for widths in product((2, 4, 8), repeat=4):
        quantizers = [quantizer for layer in network.layers.values() for quantizer in layer.quantizers()]
        with torch.no_grad():
            for quantizer, width in zip(quantizers, widths, strict=True):
                quantizer.phi.copy_(torch.tensor([6.0 if width >= reached else -9.0 for reached in (4, 8)]))
        network.threshold()
        found[widths[0], widths[1], widths[2], widths[3]] = evaluate(
            network.model, job.task.data, job.task.data.train
        ).loss
    return found


@pytest.mark.parametrize("strength", [0.005, 0.01])
def test_a_search_finds_the_best_of_all_policies_within_budget(
    branches: tuple[Task, Mapping[str, Tensor]], make_job: MakeJob, strength: float
) -> None:
    """Of two branches alike in all that costs, the one that decides keeps its bits; the weights stay as they are."""
    task, state = branches
    budget = float(price(task.network, of_branches(task.network, (8, 8, 2, 2))).bops)
    schedule = SearchSchedule(epochs=4, batch_size=28, lr=1e-6)
    job = make_job(task, state, budget=budget, knobs={"strength": strength}, schedule=schedule)
    every = losses(job)
    affordable = {w: loss for w, loss in every.items() if job.price(of_branches(task.network, w)) <= budget}
    best = min(affordable, key=affordable.__getitem__)
    assert 10 < len(affordable) < len(every) == 81
    assert sorted(affordable.values())[1] > 1.001 * affordable[best]
    assert BayesianBits().search(job).policy == of_branches(task.network, best)


def searched(job: SearchJob, **options: Any) -> SearchResult:
    return BayesianBits(BayesianBitsOptions(**options)).search(job)


def test_the_extremes_of_the_strength(make_job: MakeJob, network: NetworkShape) -> None:
    """A regulariser that outweighs everything ends at the cheapest policy; none leaves a network that is dear."""
    schedule = SearchSchedule(epochs=2, batch_size=28)
    shares = []
    for strength in (0.0, 100.0):
        job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
        found = searched(job)
        shares.append(job.price(found.policy) / job.budget)
        assert all(math.isfinite(entry["loss"]) for entry in found.record["history"])
    cheapest = price(network, BayesianBits().cheapest(network)).bops
    assert shares[0] > 2
    assert shares[1] * job.budget == cheapest


def test_with_a_hinge_the_regulariser_acts_above_the_budget_alone(make_job: MakeJob) -> None:
    job = make_job(budget=1e12, knobs={"strength": 100.0})
    within, without = searched(job), searched(make_job(knobs={"strength": 0.0}))
    assert within.policy == without.policy
    assert within.record["phi"] == without.record["phi"]
    acting = searched(make_job(knobs={"strength": 100.0}))
    assert job.price(acting.policy) < job.price(within.policy) / 2
    always = searched(replace(job, match="lambda"))
    assert always.policy == acting.policy or job.price(always.policy) <= job.price(acting.policy)


def test_a_search_returns_all_that_follows_it(make_job: MakeJob, network: NetworkShape) -> None:
    job = make_job()
    found = searched(job)
    assert found.state.keys() == job.pretrained.keys()
    assert found.clips == {}
    assert found.normalized_weights
    assert found.record["history"][-1]["budget_share"] == pytest.approx(job.price(found.policy) / job.budget)
    assert found.record["start_top1"] > 80
    made = compress(job.float_model(), network, found.policy, quantizer=BayesianBits().quantizer)
    assert found.quantizers.keys() == {name for name, _ in made.named_parameters() if name.endswith("clip")}
    again = searched(make_job())
    assert again.policy == found.policy
    assert again.record == found.record
    assert searched(make_job(seed=1)).record["phi"] != found.record["phi"]


@pytest.mark.parametrize(("asked", "rate"), [("scaled", PAPER_TRAVEL / 10), ("paper", 1e-3), (0.25, 0.25)])
def test_rate_of_the_gates(make_job: MakeJob, asked: Any, rate: float) -> None:
    """Ten updates. Where the regulariser alone acts, Adam moves a gate by its rate."""
    assert pytest.approx(1e-3 * 10 * 3336 * 1.11) == PAPER_TRAVEL
    assert BayesianBitsOptions(gate_lr=asked).gate_rate(10) == pytest.approx(rate)
    found = searched(make_job(knobs={"strength": 1e4}, match="lambda"), gate_lr=asked)
    assert found.record["gate_lr"] == pytest.approx(rate)
    if asked == "paper":
        moved = FIRST_PHI - torch.tensor([phi for values in found.record["phi"].values() for phi in values])
        assert torch.allclose(moved, torch.tensor(10 * rate), rtol=1e-2)


@pytest.mark.parametrize("rate", [1e-9, 1e-2])
def test_ranges_learn_at_a_rate_of_their_own(make_job: MakeJob, rate: float) -> None:
    found = searched(make_job(), range_lr=rate)
    network = network_of(make_job())
    start = network.layers["stages.0.0.conv1"].quantizers()[0].clip.item()
    moved = abs(float(found.quantizers["stages.0.0.conv1.weight_quantizer.clip"]) - start)
    assert moved < 1e-6 if rate < 1e-6 else 0.01 < moved < 0.1


def test_gates_stay_where_their_rate_is_nothing(make_job: MakeJob, network: NetworkShape) -> None:
    found = searched(make_job(), gate_lr=1e-9)
    assert found.policy == uniform(network, 8)
    assert {phi for values in found.record["phi"].values() for phi in values} == {6.0}


def test_a_single_width_leaves_filters_to_choose(make_job: MakeJob, network: NetworkShape) -> None:
    found = searched(make_job(knobs={"strength": 100.0}, match="lambda"), bits=(8,))
    assert {decision.what for decision in found.decisions} == {"filters"}
    assert all(choice.weight_bits == choice.activation_bits == 8 for choice in found.policy.layers.values())
    cheapest = BayesianBits(BayesianBitsOptions(bits=(8,))).cheapest(network)
    assert price(network, found.policy).bops == price(network, cheapest).bops


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (2, 3)}, "3 is not a multiple of 2"),
        ({"bits": (4, 2)}, "2 is not a multiple of 4"),
        ({"bits": (1, 2)}, "greater than or equal to 2"),
        ({"bits": ()}, "at least 1"),
        ({"group_size": 0}, "greater than or equal to 1"),
        ({"gate_lr": 0.0}, "greater than 0"),
        ({"gate_lr": "slow"}, "'scaled' or 'paper'"),
        ({"range_lr": -1.0}, "greater than 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BayesianBitsOptions(**options)


def test_what_the_method_says_of_itself(network: NetworkShape) -> None:
    method = BayesianBits(BayesianBitsOptions(bits=(4, 8), group_size=8))
    cheapest = method.cheapest(network)
    for shape in network.middle:
        choice = cheapest.layers[shape.name]
        assert (choice.weight_bits, choice.activation_bits) == (4, 4)
        assert (choice.kept_filters is not None and len(choice.kept_filters) == 8) == shape.prunable
    assert BayesianBits().stated_options(network)["group_size"] == network.group_size
    assert method.stated_options(network)["group_size"] == 8
    assert method.quantizer is RangeQuantizer
    hinge, bracketed = method.knobs("hinge")["strength"], method.knobs("lambda")["strength"]
    assert bracketed.low < hinge.low < 0.01  # the paper's strengths
    assert bracketed.high > hinge.high > 0.2
    assert "2005.07093" in method.source
    assert all(sentence.endswith(".") for sentence in method.deviations)
