"""Policies drawn at random: all inside the window, all equally likely."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from methods.random_policy import Combinations, RandomOptions, RandomPolicy

MakeJob = Callable[..., SearchJob]
BITS = (2, 8)


def all_costs(network: NetworkShape) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Every combination of widths of the searched layers, and what each costs, counted one layer at a time."""
    pairs = list(product(BITS, BITS))
    edge = sum(layer.bops for layer in price(network, uniform(network, 8)).layers) - sum(
        price(network, uniform(network, 8)).layers[index].bops
        for index, layer in enumerate(network.layers)
        if layer.position == "middle"
    )
    macs = [
        cost.macs
        for layer, cost in zip(network.layers, price(network, uniform(network, 8)).layers, strict=True)
        if layer.position == "middle"
    ]
    choices = list(product(range(len(pairs)), repeat=len(macs)))
    products = np.array([weight * activation for weight, activation in pairs])
    return choices, edge + (products[np.array(choices)] * np.array(macs)).sum(1)


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At a budget that some thousand of the 65,536 combinations meet."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def test_ways_are_those_of_enumeration(network: NetworkShape, job: SearchJob) -> None:
    _, costs = all_costs(network)
    inside = int(((costs >= 0.97 * job.budget) & (costs <= job.budget)).sum())
    slack = len(network.middle) * job.budget / 20_000
    near = int(((costs >= 0.97 * job.budget - 2 * slack) & (costs <= job.budget + 2 * slack)).sum())
    assert 0 < inside <= Combinations(job, BITS).ways <= near < len(costs) / 2


def test_every_policy_of_the_window_is_as_likely_as_any_other(network: NetworkShape, job: SearchJob) -> None:
    choices, costs = all_costs(network)
    inside = np.array(choices)[(costs >= 0.97 * job.budget) & (costs <= job.budget)]
    space, noise = Combinations(job, BITS), np.random.default_rng(0)
    pairs = list(product(BITS, BITS))
    draws = 600
    drawn = [space.draw(noise) for _ in range(draws)]
    assert all(0.97 * job.budget <= price(network, policy).bops <= job.budget for policy in drawn)
    for position, layer in enumerate(network.middle):
        found = Counter(
            pairs.index((policy.layers[layer.name].weight_bits, policy.layers[layer.name].activation_bits))
            for policy in drawn
        )
        for choice in range(len(pairs)):
            share = float((inside[:, position] == choice).mean())
            deviation = (draws * share * (1 - share)) ** 0.5
            assert abs(found[choice] - draws * share) <= 4.5 * deviation + 1e-9


def test_a_seed_draws_the_same_again_and_another_another(make_job: MakeJob, job: SearchJob) -> None:
    method = RandomPolicy(RandomOptions())
    first = method.search(job).policy
    assert method.search(job).policy == first
    assert method.search(make_job(budget=job.budget, knobs={}, seed=job.seed + 1)).policy != first


def test_of_several_draws_the_best_on_validation_is_taken(job: SearchJob) -> None:
    found = RandomPolicy(RandomOptions(draws=3)).search(job)
    accuracies = found.record["validation_top1"]
    assert len(accuracies) == 3
    singles = [RandomPolicy(RandomOptions(draws=count)).search(job).policy for count in (1, 2, 3)]
    assert found.policy == singles[2]
    assert accuracies[0] < max(accuracies) or found.policy == singles[0]


def test_other_measures_have_windows_of_their_own(network: NetworkShape, make_job: MakeJob) -> None:
    memory = Memory()
    limit = memory.price(network, uniform(network, 4))
    job = make_job(budget=limit, measure=memory, knobs={})
    policy = RandomPolicy(RandomOptions()).search(job).policy
    assert 0.97 * limit <= memory.price(network, policy) <= limit


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_window_that_no_combination_meets_is_unreachable(
    network: NetworkShape, make_job: MakeJob, share: float
) -> None:
    ends = price(network, uniform(network, 2)).bops, price(network, uniform(network, 8)).bops
    budget = share * ends[0] if share < 1 else share * ends[1]
    with pytest.raises(UnreachableBudgetError, match="no combination of the candidate bits"):
        RandomPolicy(RandomOptions(bits=BITS)).search(make_job(budget=float(budget), knobs={}))
