"""HAWQ: the integer programme and the search."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import BOPS, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from methods.hawq import Hawq, HawqOptions, allocate
from methods.shared.decisions import What

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def total(policy: Policy, omega: Mapping[tuple[str, What], list[float]], *whats: What) -> float:
    """Sum Ω of some kinds over the searched layers."""
    return sum(
        values[BITS.index(getattr(policy.layers[layer], what))]
        for (layer, what), values in omega.items()
        if what in whats
    )


def all_policies(network: NetworkShape, layers: Sequence[str], *, tied: bool) -> Iterator[Policy]:
    """Every combination of bits of some layers; all others stay at 2."""
    pairs = [(b, b) for b in BITS] if tied else list(product(BITS, BITS))
    for chosen in product(pairs, repeat=len(layers)):
        policy = uniform(network, 2)
        for layer, (weight, activation) in zip(layers, chosen, strict=True):
            policy = policy.with_layer(layer, weight_bits=weight, activation_bits=activation)
        yield policy


def drawn_omega(network: NetworkShape, free: Sequence[str], seed: int) -> dict[tuple[str, What], list[float]]:
    """Falling sensitivities of very different sizes, as traces have; layers that are not free gain nothing by bits."""
    rng = np.random.default_rng(seed)
    whats: tuple[What, What] = ("weight_bits", "activation_bits")
    return {
        (layer.name, what): sorted(np.exp(rng.normal(0, 4, 3)).tolist(), reverse=True)
        if layer.name in free
        else [0.0, 0.0, 0.0]
        for layer in network.middle
        for what in whats
    }


@pytest.mark.parametrize("seed", range(3))
def test_tied_allocation_is_the_best_of_all(network: NetworkShape, make_job: MakeJob, seed: int) -> None:
    """By the sensitivities of weights alone; those of inputs are drawn too, and must not count."""
    layers = [layer.name for layer in network.middle]
    omega = drawn_omega(network, layers, seed)
    job = make_job(budget=np.random.default_rng(seed).uniform(0.5, 2) * price(network, uniform(network, 4)).bops)
    allowed = [policy for policy in all_policies(network, layers, tied=True) if job.price(policy) <= job.budget]
    best = min(total(policy, omega, "weight_bits") for policy in allowed)
    found = allocate(job, omega, BITS, tied=True)
    assert job.price(found) <= job.budget
    assert total(found, omega, "weight_bits") == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("measure", [BOPS, Memory()], ids=["bops", "memory"])
def test_allocation_is_the_best_of_all(network: NetworkShape, make_job: MakeJob, seed: int, measure: Measure) -> None:
    free = [layer.name for layer in network.middle][1:5]
    omega = drawn_omega(network, free, seed)
    low, high = (measure.price(network, uniform(network, bits)) for bits in (2, 4))
    budget = low + np.random.default_rng(seed).uniform(0.1, 0.9) * (high - low)
    job = make_job(budget=budget, measure=measure)
    allowed = [policy for policy in all_policies(network, free, tied=False) if job.price(policy) <= budget]
    best = min(total(policy, omega, "weight_bits", "activation_bits") for policy in allowed)
    found = allocate(job, omega, BITS, tied=False)
    assert job.price(found) <= budget
    assert total(found, omega, "weight_bits", "activation_bits") == pytest.approx(best, rel=1e-12)


def test_a_search_falls_back_on_no_tensor_and_stays_within(network: NetworkShape, job: SearchJob) -> None:
    found = Hawq(HawqOptions(draws=3, images=32)).search(job)
    assert price(network, found.policy).bops <= job.budget
    assert len(found.record["traces"]) == len(found.decisions) == 2 * len(network.middle)
    assert found.record["traces"].keys() == found.record["standard_errors"].keys()
    assert all(error > 0 for error in found.record["standard_errors"].values())
    assert found.record["effort"] == "3 Hessian-vector products on 32 images"
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
        Hawq(HawqOptions(draws=2, images=32)).search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
