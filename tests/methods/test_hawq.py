"""HAWQ: the integer programme and the search."""

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
from methods.hawq import Hawq, HawqOptions, allocate

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


@pytest.mark.parametrize("seed", range(4))
def test_allocation_is_the_best_of_all(network: NetworkShape, make_job: MakeJob, seed: int) -> None:
    rng = np.random.default_rng(seed)
    omega = {
        (layer.name, what): sorted(rng.random(3).tolist(), reverse=True)
        for layer in network.middle
        for what in ("weight_bits", "activation_bits")
    }
    macs = {
        layer.name: cost.macs
        for layer, cost in zip(network.layers, price(network, uniform(network, 2)).layers, strict=True)
    }
    edge = price(network, uniform(network, 2)).bops - sum(4 * macs[layer.name] for layer in network.middle)
    budget = float(price(network, uniform(network, 4)).bops) * rng.uniform(0.5, 2)
    choices = np.array(list(product(range(3), repeat=len(network.middle))))
    products = np.array([4, 16, 64])
    costs = edge + (products[choices] * np.array([macs[layer.name] for layer in network.middle])).sum(1)
    rises = sum(
        np.array(omega[layer.name, "weight_bits"])[choices[:, index]]
        + np.array(omega[layer.name, "activation_bits"])[choices[:, index]]
        for index, layer in enumerate(network.middle)
    )
    best = float(rises[costs <= budget].min())
    policy = allocate(make_job(budget=budget, knobs={}), omega, BITS, tied=True)
    assert price(network, policy).bops <= budget
    total = sum(
        omega[layer.name, what][BITS.index(getattr(policy.layers[layer.name], what))]
        for layer in network.middle
        for what in ("weight_bits", "activation_bits")
    )
    assert total == pytest.approx(best)
    free = allocate(make_job(budget=budget, knobs={}), omega, BITS, tied=False)
    assert price(network, free).bops <= budget
    assert (
        sum(
            omega[layer.name, what][BITS.index(getattr(free.layers[layer.name], what))]
            for layer in network.middle
            for what in ("weight_bits", "activation_bits")
        )
        <= best + 1e-9
    )


def test_a_search_falls_back_on_no_tensor_and_stays_within(network: NetworkShape, job: SearchJob) -> None:
    found = Hawq(HawqOptions(draws=3, images=32)).search(job)
    assert price(network, found.policy).bops <= job.budget
    assert len(found.record["traces"]) == len(found.decisions) == 2 * len(network.middle)
    for values in found.record["sensitivity"].values():
        assert values[0] >= values[1] >= values[2] >= 0
    for decision in found.decisions:
        assert decision.options[decision.chosen] == getattr(found.policy.layers[decision.layer], decision.what)


def test_tied_inputs_have_the_width_of_the_weights(network: NetworkShape, job: SearchJob) -> None:
    found = Hawq(HawqOptions(draws=2, images=32, activations="tied")).search(job)
    assert all(
        found.policy.layers[s.name].weight_bits == found.policy.layers[s.name].activation_bits for s in network.middle
    )
    assert found.decisions == ()


def test_budgets_of_memory_are_kept_too(network: NetworkShape, make_job: MakeJob) -> None:
    measure = Memory()
    limit = measure.price(network, uniform(network, 4))
    found = Hawq(HawqOptions(draws=2, images=32)).search(make_job(budget=limit, measure=measure, knobs={}))
    assert measure.price(network, found.policy) <= limit


def test_too_small_a_budget_is_unreachable(network: NetworkShape, make_job: MakeJob) -> None:
    least = price(network, uniform(network, 2)).bops
    with pytest.raises(UnreachableBudgetError, match="even uniform 2 bit costs") as caught:
        Hawq(HawqOptions(draws=1, images=32)).search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
