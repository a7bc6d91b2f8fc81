"""Bits of least total value within a budget, against enumeration."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from methods.shared.allocation import Group, allocate, tied
from methods.shared.readers import readers

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "measure",
    [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())],
    ids=["bops", "memory", "latency", "energy"],
)
def test_the_programme_is_as_good_as_the_best_policy_with_these_ties(
    network: NetworkShape, make_job: MakeJob, seed: int, measure: Measure
) -> None:
    """Inside the window of the budget where a policy is inside, and below the budget otherwise; by enumeration."""
    rng = np.random.default_rng(seed)
    low, high = (measure.price(network, uniform(network, bits)) for bits in (2, 8))
    job = make_job(budget=low + rng.uniform(0.1, 0.6) * (high - low), measure=measure)
    groups = readers(job)
    drawn = {group: sorted(np.exp(rng.normal(0, 2, 3)).tolist(), reverse=True) for group in groups}
    costs, totals = [], []
    for choice in product(range(3), repeat=len(groups)):
        policy = uniform(network, 2)
        for group, index in zip(groups, choice, strict=True):
            for name in group:
                policy = policy.with_layer(name, weight_bits=BITS[index], activation_bits=BITS[index])
        costs.append(job.price(policy))
        totals.append(sum(drawn[group][index] for group, index in zip(groups, choice, strict=True)))
    inside = [t for c, t in zip(costs, totals, strict=True) if (1 - job.tolerance) * job.budget <= c <= job.budget]
    below = [total for cost, total in zip(costs, totals, strict=True) if cost <= job.budget]
    for in_window, best in ((True, min(inside or below)), (False, min(below))):
        found = allocate(job, drawn, tied(BITS), in_window=in_window)
        assert job.price(found) <= job.budget
        total = sum(drawn[group][BITS.index(found.layers[group[0]].weight_bits)] for group in groups)
        assert total == pytest.approx(best, rel=1e-9)
        assert all(len({found.layers[name].weight_bits for name in group}) == 1 for group in groups)


def test_pairs_are_chosen_for_each_layer(network: NetworkShape, make_job: MakeJob) -> None:
    """A budget that has room for one step; the step of largest gain has more bits for inputs than for weights."""
    pairs = [(2, 2), (2, 4), (4, 2)]
    names = [layer.name for layer in network.middle]
    base = uniform(network, 2)
    wanted = base.with_layer(names[0], activation_bits=4)
    values: dict[Group, list[float]] = {
        (name,): [1.0, 0.5, 0.6] if name == names[0] else [0.0, 0.0, 0.0] for name in names
    }
    job = make_job(budget=BOPS.price(network, wanted))
    assert allocate(job, values, pairs, in_window=False) == wanted


def test_the_cheapest_pairs_are_named_where_they_cost_too_much(network: NetworkShape, make_job: MakeJob) -> None:
    values: dict[Group, list[float]] = {(layer.name,): [1.0, 0.5] for layer in network.middle}
    with pytest.raises(UnreachableBudgetError, match="even 2 bit weights with 8 bit inputs costs"):
        allocate(make_job(budget=1.0), values, [(2, 8), (4, 8)])
