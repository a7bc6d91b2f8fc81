"""Sensitivities tensor by tensor, and the greedy knapsack."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.policy import uniform
from bench.compression.quantizer import best_clip, quantize_literal, standardize
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.errors import UnreachableBudgetError
from bench.matching.repair import policy_of
from bench.method import SearchJob, Task
from methods.greedy import Greedy, GreedyOptions, Losses, sensitivities, step_down
from methods.shared.decisions import bits_decision
from methods.shared.policy_losses import sensitivity_batches

MakeJob = Callable[..., SearchJob]


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def test_a_sensitivity_is_the_loss_with_this_tensor_quantized(network: NetworkShape, job: SearchJob) -> None:
    found = sensitivities(job, (2, 8), batches=2)
    assert len(found) == 2 * len(network.middle)
    layer = network.middle[1].name
    losses = []
    for images, labels in sensitivity_batches(job, 2):
        model = job.float_model().train()
        weight = model.get_submodule(layer).weight
        standard = standardize(weight.detach())
        clip = torch.tensor(best_clip(standard, 2, "weight"))
        with torch.no_grad():
            weight.copy_(quantize_literal(standard, clip, 2, "weight"))
            losses.append(float(F.cross_entropy(model(images), labels)))
    assert found[layer, "weight_bits"][0] == pytest.approx(sum(losses) / 2, abs=1e-4)


class Dropping(nn.Module):
    """A network that leaves out values at random before its classifier, as MobileNets do."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.dropout, self.fc = nn.Dropout(share), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(F.relu(self.norm(self.stem(x)))))))
        return self.fc(self.dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


def test_what_a_network_leaves_out_at_random_does_not_disturb_the_measurement(
    small_task: Task, make_job: MakeJob
) -> None:
    state = Dropping(0.0).state_dict()
    shapes = trace(Dropping(0.0), (1, 8, 8), name="dropping", dataset="digits")

    def measured(share: float) -> Losses:
        task = replace(small_task, network=shapes, make_model=lambda: Dropping(share))
        return sensitivities(make_job(task, state=state), (2, 8), batches=2)

    assert measured(0.5) == measured(0.0)


def test_a_small_problem_is_solved_as_enumeration_does(network: NetworkShape, job: SearchJob) -> None:
    """Three layers may go from 8 to 4 bits; room must be made for what the first saves."""
    base, names = uniform(network, 8), [layer.name for layer in network.middle[:3]]
    losses: Losses = {(name, "weight_bits"): (0.1 * (rank + 1), 0.0) for rank, name in enumerate(names)}
    decisions = [
        bits_decision(name, "weight_bits", (4, 8), [-loss for loss in losses[name, "weight_bits"]]) for name in names
    ]
    full = price(network, base).bops
    saved = full - price(network, base.with_layer(names[0], weight_bits=4)).bops

    def outcome(choice: tuple[int, ...]) -> tuple[float, int]:
        picked = [replace(decision, chosen=chosen) for decision, chosen in zip(decisions, choice, strict=True)]
        rise = sum(losses[decision.layer, "weight_bits"][decision.chosen] for decision in picked)
        return rise, price(network, policy_of(base, picked)).bops

    outcomes = {choice: outcome(choice) for choice in product(range(2), repeat=3)}
    allowed = [choice for choice, (_, cost) in outcomes.items() if cost <= full - saved]
    found, _ = step_down(replace(job, budget=float(full - saved)), base, decisions, losses)
    assert tuple(decision.chosen for decision in found) == min(allowed, key=lambda choice: outcomes[choice][0])


def test_a_search_ends_below_the_budget_with_decisions_for_repair(network: NetworkShape, job: SearchJob) -> None:
    found = Greedy(GreedyOptions(batches=1)).search(job)
    assert price(network, found.policy).bops <= job.budget
    assert found.policy == policy_of(uniform(network, 8), found.decisions)


def test_every_step_is_the_one_of_least_rise_per_saved_cost(network: NetworkShape, job: SearchJob) -> None:
    """By whole prices of all policies one step below, from the measured losses in the record."""
    bits = (2, 4, 8)
    found = Greedy(GreedyOptions(batches=1)).search(job)
    losses, steps, policy = found.record["sensitivity"], found.record["steps"], uniform(network, 8)
    assert steps and found.record["effort"] == f"{2 * 3 * len(network.middle)} losses on 1 training batches"
    for step in steps:
        cost, rates = price(network, policy).bops, {}
        assert cost > job.budget
        for layer, what in product([shape.name for shape in network.middle], ("weight_bits", "activation_bits")):
            place = bits.index(getattr(policy.layers[layer], what))
            if place:
                lower = policy.with_layer(layer, **{what: bits[place - 1]})
                rise = losses[f"{layer}.{what}"][place - 1] - losses[f"{layer}.{what}"][place]
                rates[layer, what] = rise / (cost - price(network, lower).bops)
        assert (step["layer"], step["what"]) == min(rates, key=rates.__getitem__)
        assert step["rise"] / step["saved"] == pytest.approx(min(rates.values()))
        assert getattr(policy.layers[step["layer"]], step["what"]) == step["before"]
        policy = policy.with_layer(step["layer"], **{step["what"]: step["after"]})
        assert step["cost"] == price(network, policy).bops == cost - step["saved"]
    assert policy == found.policy


def test_nothing_is_taken_that_fits(network: NetworkShape, make_job: MakeJob) -> None:
    found = Greedy(GreedyOptions(batches=1)).search(make_job(budget=1e12, knobs={}))
    assert found.policy == uniform(network, 8)


def test_too_small_a_budget_is_unreachable(network: NetworkShape, make_job: MakeJob) -> None:
    least = price(network, uniform(network, 2)).bops
    with pytest.raises(UnreachableBudgetError, match="even the policy of the lowest candidates costs") as caught:
        Greedy(GreedyOptions(batches=1)).search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
