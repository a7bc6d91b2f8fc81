"""FLIQS: the reward, the policy's gradient against enumeration, and known problems."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.policy import LayerPolicy, Policy, uniform
from bench.compression.shapes import trace
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from methods.fliqs import (
    Baseline,
    DrawnNetwork,
    Fliqs,
    FliqsOptions,
    absolute_reward,
    entropy,
    entropy_weight,
    objective,
)
from methods.shared.networks.paths import MixedLayer

MakeJob = Callable[..., SearchJob]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
BITS = (2, 4, 8)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# --- reward and policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cost", "penalty"), [(5.0, 0.0), (15.0, 2.0), (3.0, 0.4), (5.5, 0.1)])
def test_the_reward_falls_on_both_sides_of_the_target(cost: float, penalty: float) -> None:
    assert float(absolute_reward(scalar(-0.7), scalar(cost), 5.0, 1.0)) == pytest.approx(-0.7 - penalty)
    assert float(absolute_reward(scalar(-0.7), scalar(cost), 5.0, 3.0)) == pytest.approx(-0.7 - 3 * penalty)


def test_the_weight_of_the_entropy_follows_half_a_cosine() -> None:
    assert entropy_weight(25, 25, 125, 0.5) == 0
    assert entropy_weight(75, 25, 125, 0.5) == pytest.approx(0.25)
    assert entropy_weight(125, 25, 125, 0.5) == pytest.approx(0.5)


def test_the_advantage_is_over_a_mean_that_has_the_reward_already() -> None:
    baseline, rewards = Baseline(0.9), [2.0, 1.0, 4.0]
    found = [float(baseline.advantage(scalar(reward))) for reward in rewards]
    means = [2.0, 0.9 * 2 + 0.1 * 1, 0.9 * (0.9 * 2 + 0.1 * 1) + 0.1 * 4]
    assert found == pytest.approx([reward - mean for reward, mean in zip(rewards, means, strict=True)])
    again = Baseline(0.9)
    again.load_state_dict(baseline.state_dict())
    assert float(again.mean) == pytest.approx(means[-1])


def rewards_of(decisions: int = 3) -> dict[tuple[int, ...], float]:
    """A reward for each of 27 choices: a part of each decision's own, and a part of the choice as a whole."""
    source = torch.Generator().manual_seed(2)
    own = torch.rand(decisions, 3, generator=source, dtype=torch.float64)
    whole = torch.rand(3**decisions, generator=source, dtype=torch.float64)
    choices = product(range(3), repeat=decisions)
    return {
        choice: float(own[range(decisions), list(choice)].sum() + 0.2 * joint)
        for choice, joint in zip(choices, whole, strict=True)
    }


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_expected_update_is_the_gradient_of_the_expected_reward(baseline: float) -> None:
    """By enumeration; a baseline that does not depend on the draw changes nothing."""
    start = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = start.clone().requires_grad_()
    odds = torch.softmax(table, 1)
    expected = scalar(0.0)
    for choice, reward in rewards_of().items():
        expected = expected + reward * odds[range(3), list(choice)].prod()
    (of_reward,) = torch.autograd.grad(expected, table)

    total = torch.zeros_like(start)
    for choice, reward in rewards_of().items():
        table = start.clone().requires_grad_()
        loss = objective(table, torch.tensor(choice), scalar(reward - baseline), 0.0)
        probability = torch.softmax(start, 1)[range(3), list(choice)].prod()
        total += probability * torch.autograd.grad(loss, table)[0]
    assert torch.allclose(total, -of_reward / 3, atol=1e-12)  # the mean over three decisions


def test_the_entropy_is_punished() -> None:
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    odds = torch.softmax(table, 1)
    by_hand = -sum(p * math.log(p) for p in odds.flatten().tolist()) / 4
    assert float(entropy(table.detach())) == pytest.approx(by_hand)
    drawn = torch.zeros(4, dtype=torch.int64)
    with_entropy, without = (objective(table, drawn, scalar(0.3), weight) for weight in (0.5, 0.0))
    assert float((with_entropy - without).detach()) == pytest.approx(0.5 * by_hand)


def learned(seed: int, punished: float, *, steps: int = 800, delay: int = 100) -> Tensor:
    """A policy that learns from noisy rewards of 27 choices."""
    noise, known = torch.Generator().manual_seed(seed), rewards_of()
    table = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer, baseline = torch.optim.Adam([table], lr=6.0 / (steps - delay)), Baseline(0.97)
    for step in range(steps):
        odds = torch.softmax(table.detach(), 1) if step >= delay else torch.full((3, 3), 1 / 3)
        drawn = torch.multinomial(odds, 1, generator=noise).flatten()
        reward = known[tuple(drawn.tolist())] + 0.05 * float(torch.randn((), generator=noise))
        advantage = baseline.advantage(scalar(reward))
        if step >= delay:
            optimizer.zero_grad()
            objective(table, drawn, advantage, entropy_weight(step, delay, steps, punished)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return table.detach()


def test_a_policy_learns_the_best_of_all_choices_and_becomes_sure() -> None:
    known = rewards_of()
    best = max(known, key=known.__getitem__)
    tables = [learned(seed, 0.5) for seed in range(5)]
    found = [tuple(table.argmax(1).tolist()) for table in tables]
    assert sum(choice == best for choice in found) >= 4
    assert all(known[choice] >= sorted(known.values())[-3] for choice in found)
    for seed, table in enumerate(tables):
        assert float(entropy(table)) < min(0.2, float(entropy(learned(seed, 0.0))) / 2)


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_draw_costs_what_its_policy_costs(mobile_job: SearchJob, measure: Measure, tied: bool) -> None:
    job = replace(mobile_job, measure=measure)
    network, noise = DrawnNetwork(job, BITS, tied=tied), torch.Generator().manual_seed(0)
    for _ in range(3):
        network.draw_bits(noise, uniform=True)
        chosen = network.drawn.view(-1, len(network.layers)).expand(2, -1).T.tolist()
        policy = uniform(job.task.network, 8)
        for name, (weight, activation) in zip(network.layers, chosen, strict=True):
            policy = policy.with_layer(name, weight_bits=BITS[weight], activation_bits=BITS[activation])
        assert float(network.expected_cost()) == pytest.approx(job.price(policy), rel=1e-6)


def test_bits_are_drawn_by_the_policy_or_uniformly(make_job: MakeJob) -> None:
    network, noise = DrawnNetwork(make_job(), BITS, tied=False), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in network.logits():
            logits.copy_(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    for even, expected in ((False, torch.softmax(torch.tensor([2.0, 0, 0]), 0)), (True, torch.full((3,), 1 / 3))):
        counts = torch.zeros(2, 3)
        for _ in range(200):
            network.draw_bits(noise, uniform=even)
            drawn = network.drawn.view(2, -1)
            counts += torch.stack([row.bincount(minlength=3) for row in drawn])
        shares = counts / counts.sum(1, keepdim=True)
        assert torch.allclose(shares[0], expected, atol=0.05)
        assert torch.allclose(shares[1], expected.flip(0), atol=0.05)


def test_every_step_has_one_number_of_bits_a_tensor_and_the_policy_waits(
    make_job: MakeJob, small_task: Task, watched: Watched
) -> None:
    seen: list[list[Tensor]] = []

    def look(model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, MixedLayer)]
        values = [torch.stack([value for layer in layers for value in kind(layer)]) for kind in (odds, logits, weights)]
        seen.append([value.detach().clone() for value in values])

    def odds(layer: MixedLayer) -> Tensor:
        return layer.probabilities

    def logits(layer: MixedLayer) -> Tensor:
        return layer.logits

    def weights(layer: MixedLayer) -> Tensor:
        return torch.stack([layer.weight[0].sum()])

    Fliqs(FliqsOptions(delay=0.4)).search(make_job(task=watched(small_task, look)))
    assert len(seen) == 10
    assert all(set(step[0].flatten().tolist()) == {0.0, 1.0} and bool((step[0].sum(1) == 1).all()) for step in seen)
    assert len({tuple(step[0].flatten().tolist()) for step in seen[:4]}) == 4  # before the policy becomes sure
    moved = [not torch.equal(before[1], after[1]) for before, after in itertools.pairwise(seen)]
    assert moved == [False] * 4 + [True] * 5  # the fifth update, of number 4, is the first of the policy
    assert all(not torch.equal(before[2], after[2]) for before, after in itertools.pairwise(seen))


def test_tied_bits_are_the_same_for_both_tensors(make_job: MakeJob) -> None:
    result = Fliqs(FliqsOptions(activations="tied")).search(make_job())
    for of_weights, of_inputs in result.record["logits"].values():
        assert of_weights == of_inputs and len(set(of_weights)) > 1
    assert all(choice.weight_bits == choice.activation_bits for choice in result.policy.layers.values())
    apart = Fliqs().search(make_job())
    assert any(of_weights != of_inputs for of_weights, of_inputs in apart.record["logits"].values())


# --- the search ---------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Five equal layers between the first and the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.chain = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5)))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.chain(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_the_best_of_59_049_policies_is_found(
    small_task: Task, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost exceeds the target by an error for each tensor and candidate, which outweighs the loss."""
    shapes = trace(Chain(), (1, 8, 8), name="chain", dataset="digits")
    task, schedule = replace(small_task, network=shapes, make_model=Chain), SearchSchedule(epochs=24, batch_size=28)
    job = make_job(task, state=Chain().state_dict(), schedule=schedule)
    source = torch.Generator().manual_seed(3)
    errors = torch.stack([torch.tensor([0.0, 0.1, 0.3])[torch.randperm(3, generator=source)] for _ in range(10)])

    def cost(network: DrawnNetwork) -> Tensor:
        return job.budget * math.sqrt(1 - job.tolerance) * (1 + errors.gather(1, network.drawn.unsqueeze(1)).sum())

    monkeypatch.setattr(DrawnNetwork, "expected_cost", cost)
    found = Fliqs(FliqsOptions(cost_weight=10.0)).search(job)
    best = errors.argmin(1).view(2, 5).T.tolist()
    chosen = [[BITS.index(choice.weight_bits), BITS.index(choice.activation_bits)] for choice in middle(found.policy)]
    assert chosen == best


def middle(policy: Policy) -> list[LayerPolicy]:
    return list(policy.layers.values())[1:-1]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_search_is_led_towards_its_budget(make_job: MakeJob, share: float) -> None:
    job = make_job(schedule=SearchSchedule(epochs=8, batch_size=28))
    low, high = (job.price(uniform(job.task.network, bits)) for bits in (2, 8))
    job = replace(job, budget=low * (high / low) ** share)
    cost = job.price(Fliqs().search(job).policy)
    assert cost == pytest.approx(job.budget, rel=0.25)


def test_too_small_a_budget_is_unreachable(make_job: MakeJob) -> None:
    job = make_job()
    least = job.price(uniform(job.task.network, 2))
    with pytest.raises(UnreachableBudgetError, match="even uniform 2 bit costs") as caught:
        Fliqs().search(replace(job, budget=least - 1))
    assert caught.value.nearest == least


def test_the_baseline_averages_over_a_share_of_the_search(make_job: MakeJob) -> None:
    job = make_job()
    assert Fliqs()._decay(job) == 0.75  # of ten updates
    long = replace(job, schedule=SearchSchedule(epochs=50, batch_size=28))
    assert Fliqs()._decay(long) == pytest.approx(1 - 1 / 20)
    longest = replace(job, schedule=SearchSchedule(epochs=1000, batch_size=28))
    assert Fliqs()._decay(longest) == pytest.approx(0.99)
    assert Fliqs(FliqsOptions(baseline_decay=0.5))._decay(job) == 0.5


@pytest.mark.parametrize("changes", [{"delay": 1.0}, {"cost_weight": 0.0}, {"baseline_decay": 1.0}])
def test_options_have_bounds(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FliqsOptions.model_validate(changes)
