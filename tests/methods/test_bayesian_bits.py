"""Bayesian Bits: the regulariser, the network, and searches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, calibrate, compress
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import Shifted, clip_parameters
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.method import SearchJob, SearchResult, Task
from bench.spec.schema import Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import evaluate, fit, reestimate_norms, weight_groups
from methods.bayesian_bits import PAPER_TRAVEL, BayesianBits, BayesianBitsOptions, BayesianNetwork, expected_bits
from methods.shared.networks.stochastic_gates import FIRST_PHI, LAST_OPEN_PHI
from methods.shared.quantizers.residual_bits import RangeQuantizer

MakeJob = Callable[..., SearchJob]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]


def test_expected_bits_are_the_sum_over_levels() -> None:
    open_ = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [2 + 4 * q4 + 8 * q4 * q8 for q4, q8 in open_.tolist()]
    assert expected_bits(open_, (2, 4, 8)).tolist() == pytest.approx(expected)
    assert expected_bits(open_[:, :0], (8,)).tolist() == [8] * 4


# --- the network ----------------------------------------------------------------------------------------------------


def network_of(job: SearchJob, **options: Any) -> BayesianNetwork:
    """A network with ranges and norms that suit it, in float64."""
    network = BayesianBits(BayesianBitsOptions(**options)).network(job)
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
    model.load_state_dict(network.state(policy, job.pretrained))
    found = compress(model, job.task.network, policy, quantizer=BayesianBits().quantizer).double()
    assert found.load_state_dict(network.learned(policy), strict=False).unexpected_keys == []
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
    total, phis = 0.0, network.figures()["phi"]
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
    network = network_of(job, clip_init="paper")
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


@pytest.mark.parametrize("strength", [0.16, 0.32])
def test_a_search_finds_the_best_of_all_policies_within_budget(
    branches: tuple[Task, Mapping[str, Tensor]], make_job: MakeJob, strength: float
) -> None:
    """Of two branches alike in all that costs, the one that decides keeps its bits; the weights stay as they are.

    Ranges hold all values, so that the error of clipping does not hide what 8 bits are worth.
    """
    task, state = branches
    budget = float(price(task.network, of_branches(task.network, (8, 8, 2, 2))).bops)
    schedule = SearchSchedule(epochs=4, batch_size=28, lr=1e-6)
    job = make_job(task, state, budget=budget, knobs={"strength": strength}, schedule=schedule)
    every = losses(job)
    affordable = {w: loss for w, loss in every.items() if job.price(of_branches(task.network, w)) <= budget}
    best = min(affordable, key=affordable.__getitem__)
    assert 10 < len(affordable) < len(every) == 81
    assert sorted(affordable.values())[1] > 1.001 * affordable[best]
    assert searched(job, clip_init="paper").policy == of_branches(task.network, best)


def searched(job: SearchJob, **options: Any) -> SearchResult:
    return BayesianBits(BayesianBitsOptions(**options)).search(job)


def test_the_extremes_of_the_strength(make_job: MakeJob, network: NetworkShape) -> None:
    """A regulariser that outweighs everything ends at the cheapest policy; none leaves a network that is dear."""
    schedule = SearchSchedule(epochs=2, batch_size=28)
    shares = []
    for strength in (0.0, 1e4):
        job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
        found = searched(job)
        shares.append(job.price(found.policy) / job.budget)
        assert all(math.isfinite(entry["loss"]) for entry in found.record["history"])
    cheapest = price(network, BayesianBits().cheapest(network)).bops
    assert shares[0] > 2
    assert shares[1] * job.budget == cheapest


def test_with_a_hinge_the_regulariser_acts_above_the_budget_alone(make_job: MakeJob) -> None:
    job = make_job(budget=1e12, knobs={"strength": 1e4})
    within, without = searched(job), searched(make_job(knobs={"strength": 0.0}))
    assert within.policy == without.policy
    assert within.record["phi"] == without.record["phi"]
    acting = searched(make_job(knobs={"strength": 1e4}))
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
    found = searched(make_job(knobs={"strength": 1e6}, match="lambda"), gate_lr=asked)
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
    found = searched(make_job(knobs={"strength": 1e4}, match="lambda"), bits=(8,))
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
    assert "2005.07093" in method.source
    assert all(sentence.endswith(".") for sentence in method.deviations)
