"""The integer programme over measured losses."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from methods import ip
from methods.ip import LEAST_RISE, Ip, IpOptions, measured_rises
from methods.shared.allocation import Pair, tied
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)
PAIRS = list(product(BITS, BITS))


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def test_a_rise_is_that_over_the_highest_bits(network: NetworkShape, job: SearchJob) -> None:
    """All other layers, and the other tensor of the pair, are at 8 bits, not at full precision."""
    base, found = measured_rises(job, PAIRS, batches=1)
    name = network.middle[2].name
    highest = uniform(network, 8)
    changed = highest.with_layer(name, weight_bits=2, activation_bits=4)
    expected = PolicyLosses(job, highest, BITS, sensitivity_batches(job, 1)).of([highest, changed])
    assert base == expected[0]
    assert found[(name,)][PAIRS.index((2, 4))] == pytest.approx(expected[1] - expected[0], rel=1e-6)
    assert all(rises[-1] == 0 and min(rises[:-1]) >= LEAST_RISE for rises in found.values())
    assert len(found) == len(network.middle)


@pytest.mark.parametrize("activations", ["paired", "tied"])
@pytest.mark.parametrize(
    "measure", [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())], ids=lambda kind: kind.name
)
def test_a_search_has_the_least_rise_of_all_policies_in_the_window(
    make_job: MakeJob, network: NetworkShape, measure: Measure, activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By enumeration of four layers; the other layers have no rise at their lowest bits, and a large one above."""
    pairs = tied(BITS) if activations == "tied" else PAIRS
    free = [layer.name for layer in network.middle][1 : 4 if activations == "paired" else 5]
    draws = torch.Generator().manual_seed(0)

    def rises(job: SearchJob, pairs: Sequence[Pair], batches: int) -> tuple[float, dict[tuple[str, ...], list[float]]]:
        table: dict[tuple[str, ...], list[float]] = {}
        for layer in network.middle:
            values = torch.rand(len(pairs), generator=draws).sort(descending=True).values.tolist()
            table[(layer.name,)] = values if layer.name in free else [0.0] + [100.0] * (len(pairs) - 1)
        made.append(table)
        return 0.0, table

    made: list[dict[tuple[str, ...], list[float]]] = []
    monkeypatch.setattr(ip, "measured_rises", rises)
    low, high = (measure.price(network, _with(network, free, pair)) for pair in (pairs[0], pairs[-1]))
    job = make_job(budget=low + 0.4 * (high - low), measure=measure, knobs={})
    found = Ip(IpOptions(activations=activations)).search(job).policy  # type: ignore[arg-type]
    totals = {True: [100.0], False: [100.0]}
    for choice in product(range(len(pairs)), repeat=len(free)):
        policy = uniform(network, 2)
        for name, index in zip(free, choice, strict=True):
            policy = policy.with_layer(name, weight_bits=pairs[index][0], activation_bits=pairs[index][1])
        cost = job.price(policy)
        if cost <= job.budget:
            inside = cost >= (1 - job.tolerance) * job.budget
            totals[inside].append(sum(made[0][(name,)][index] for name, index in zip(free, choice, strict=True)))
    best = min(totals[True]) if len(totals[True]) > 1 else min(totals[False])
    total = sum(
        made[0][(name,)][pairs.index((found.layers[name].weight_bits, found.layers[name].activation_bits))]
        for name in (layer.name for layer in network.middle)
    )
    assert job.price(found) <= job.budget
    assert total == pytest.approx(best, rel=1e-9)


def _with(network: NetworkShape, names: Sequence[str], pair: Pair) -> Policy:
    policy = uniform(network, 2)
    for name in names:
        policy = policy.with_layer(name, weight_bits=pair[0], activation_bits=pair[1])
    return policy


@pytest.mark.parametrize("activations", ["paired", "tied"])
def test_a_search_ends_in_the_window_and_states_its_effort(
    network: NetworkShape, job: SearchJob, activations: str
) -> None:
    found = Ip(IpOptions(activations=activations, batches=1)).search(job)  # type: ignore[arg-type]
    assert (1 - job.tolerance) * job.budget <= job.price(found.policy) <= job.budget
    evaluations = 1 + len(network.middle) * (8 if activations == "paired" else 2)
    assert found.record["effort"] == f"{evaluations} losses on 1 training batches"
    assert found.record["evaluations"] == evaluations and found.record["images"] == job.schedule.batch_size
    if activations == "tied":
        layers = [found.policy.layers[layer.name] for layer in network.middle]
        assert all(layer.weight_bits == layer.activation_bits for layer in layers)


def test_the_best_policy_of_a_known_problem_is_found(known_best: tuple[SearchJob, Policy]) -> None:
    """The rises of a network with an idle layer add up, and the exact programme finds what enumeration finds."""
    job, best = known_best
    found = Ip(IpOptions(bits=(2, 4))).search(job)
    assert found.policy == best
    assert max(found.record["rises"]["idle"]) == LEAST_RISE < min(found.record["rises"]["busy"][:-1])


def test_a_rise_below_zero_counts_as_almost_none(
    job: SearchJob, network: NetworkShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PolicyLosses, "of", lambda _, policies: [1.0 - 0.1 * number for number in range(len(policies))])
    _, found = measured_rises(job, tied(BITS), batches=1)
    assert found == {(layer.name,): [LEAST_RISE, LEAST_RISE, 0.0] for layer in network.middle}


def test_too_small_a_budget_is_unreachable(network: NetworkShape, make_job: MakeJob) -> None:
    least = price(network, uniform(network, 2)).bops
    with pytest.raises(UnreachableBudgetError, match="even uniform 2 bit costs") as caught:
        Ip(IpOptions(batches=1)).search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
