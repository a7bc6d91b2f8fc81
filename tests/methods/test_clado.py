"""CLADO: rises of pairs, the projection, and the programme."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from methods.clado import Clado, CladoOptions, Rises, choose, clipped, matrix, measure
from methods.shared.allocation import allocate, cost_table, tied
from methods.shared.knapsack import Floats
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches
from methods.shared.quadratic_programme import value_of

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def drawn(layers: int, choices: int, seed: int) -> Rises:
    """Rises that fall with the bits, and interactions of about their size."""
    rng = np.random.default_rng(seed)
    together = rng.normal(0, 0.3, (layers, choices, layers, choices))
    together += together.transpose(2, 3, 0, 1)
    together[np.arange(layers), :, np.arange(layers), :] = 0
    return Rises(alone=-np.sort(-rng.random((layers, choices)), axis=1), together=together)


def index_of(policy: Policy, network: NetworkShape, pairs: Sequence[tuple[int, int]]) -> list[int | None]:
    """The choice of every layer; none at full precision."""
    found = [policy.layers[layer.name] for layer in network.middle]
    choices = [(choice.weight_bits, choice.activation_bits) for choice in found]
    return [pairs.index(choice) if choice in pairs else None for choice in choices]


def quadratic_losses(
    monkeypatch: pytest.MonkeyPatch, network: NetworkShape, rises: Rises, pairs: Sequence[tuple[int, int]]
) -> None:
    """Losses that are quadratic by construction, from a loss of 1.5 at full precision."""

    def of(self: PolicyLosses, policies: Sequence[Policy]) -> list[float]:
        losses = []
        for policy in policies:
            chosen = [(layer, at) for layer, at in enumerate(index_of(policy, network, pairs)) if at is not None]
            loss = 1.5 + sum(rises.alone[one] for one in chosen)
            loss += sum(rises.together[(*a, *b)] for number, a in enumerate(chosen) for b in chosen[:number])
            losses.append(float(loss))
        return losses

    monkeypatch.setattr(PolicyLosses, "of", of)


# --- measurement ----------------------------------------------------------------------------------------------------


def test_of_a_quadratic_loss_every_policy_is_predicted(
    network: NetworkShape, job: SearchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = drawn(len(network.middle), 3, seed=0)
    quadratic_losses(monkeypatch, network, truth, tied(BITS))
    found = measure(job, CladoOptions(batches=1))
    np.testing.assert_allclose(found.alone, truth.alone, atol=1e-12)
    np.testing.assert_allclose(found.together, truth.together, atol=1e-12)
    rng, losses = np.random.default_rng(1), PolicyLosses(job, uniform(network, 8), BITS, [])
    for _ in range(20):
        chosen = rng.integers(0, 3, len(network.middle))
        policy = cost_table(job, [(layer.name,) for layer in network.middle], tied(BITS)).policy(chosen)
        assert losses.of([policy])[0] - 1.5 == pytest.approx(value_of(found.alone, found.together, chosen))


@pytest.mark.parametrize("activations", ["tied", 8])
def test_a_rise_of_two_layers_is_what_both_do_beyond_each(
    network: NetworkShape, job: SearchJob, activations: str | int
) -> None:
    """From four losses, for two layers; inputs stay at full precision, or at 8 bits in all of them."""
    options = CladoOptions(bits=(2, 4), activations=activations, batches=1)  # type: ignore[arg-type]
    found = measure(job, options)
    one, other = (network.middle[number].name for number in (1, 4))
    base = uniform(network, 32)
    if activations == 8:
        for layer in network.middle:
            base = base.with_layer(layer.name, activation_bits=8)
    first, second = ({"weight_bits": b, "activation_bits": b if activations == "tied" else 8} for b in (2, 4))
    policies = [base, base.with_layer(one, **first), base.with_layer(other, **second)]
    policies.append(policies[1].with_layer(other, **second))
    unchanged, alone, next_alone, both = PolicyLosses(job, base, (2, 4), sensitivity_batches(job, 1)).of(policies)
    assert found.alone[1, 0] == pytest.approx(alone - unchanged, abs=1e-6)
    assert found.together[1, 0, 4, 1] == pytest.approx(both - alone - next_alone + unchanged, abs=1e-6)
    assert np.array_equal(found.together, found.together.transpose(2, 3, 0, 1))
    layers = np.arange(len(network.middle))
    assert not found.together[layers, :, layers, :].any()


# --- projection -------------------------------------------------------------------------------------------------------


def test_clipping_takes_away_the_negative_part_of_the_matrix() -> None:
    """Between choices of two layers and alone; against the sum over single eigenvectors."""
    rises = drawn(4, 3, seed=2)
    before = matrix(rises)
    values, vectors = np.linalg.eigh(before)
    assert values[0] < -0.1
    expected = sum(value * np.outer(v, v) for value, v in zip(values, vectors.T, strict=True) if value > 0)
    after = clipped(rises)
    np.testing.assert_allclose(2 * after.alone.ravel(), np.diag(expected), atol=1e-12)
    for i, j in product(range(4), repeat=2):
        if i != j:
            block = expected.reshape(4, 3, 4, 3)[i, :, j, :]
            np.testing.assert_allclose(after.together[i, :, j, :], block, atol=1e-12)


def test_a_matrix_without_a_negative_part_stays() -> None:
    rises = drawn(3, 3, seed=3)
    convex = Rises(alone=rises.alone + 10, together=rises.together)
    after = clipped(convex)
    np.testing.assert_allclose(after.alone, convex.alone, atol=1e-9)
    np.testing.assert_allclose(after.together, convex.together, atol=1e-9)


# --- programme --------------------------------------------------------------------------------------------------------


def literal(rises: Rises, chosen: Sequence[int]) -> float:
    total = sum(rises.alone[layer, choice] for layer, choice in enumerate(chosen))
    return float(
        total
        + sum(rises.together[i, chosen[i], j, chosen[j]] for i in range(len(chosen)) for j in range(i + 1, len(chosen)))
    )


@pytest.mark.parametrize(
    "measured", [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("projection", ["clip", "none"])
def test_a_search_has_the_least_rise_of_all_policies_in_the_window(
    network: NetworkShape, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, measured: Measure, projection: str
) -> None:
    """By enumeration of five layers. The others neither lose nor interact, and are best at their lowest bits."""
    truth = drawn(len(network.middle), 3, seed=4)
    truth.alone[5:], truth.together[5:], truth.together[:, :, 5:] = [[0.0, 50.0, 50.0]], 0.0, 0.0
    quadratic_losses(monkeypatch, network, truth, tied(BITS))
    low = measured.price(network, uniform(network, 2))
    high = measured.price(network, Clado().cheapest(network))
    for layer in network.middle[:5]:
        policy = uniform(network, 2).with_layer(layer.name, weight_bits=8, activation_bits=8)
        high += measured.price(network, policy) - low
    job = make_job(budget=low + 0.4 * (high - low), measure=measured, knobs={})
    found = Clado(CladoOptions(projection=projection)).search(job)  # type: ignore[arg-type]
    rises = clipped(truth) if projection == "clip" else truth
    inside, below = list[float](), list[float]()
    for choice in product(range(3), repeat=5):
        policy = uniform(network, 2)
        for layer, index in zip(network.middle, choice, strict=False):
            policy = policy.with_layer(layer.name, weight_bits=BITS[index], activation_bits=BITS[index])
        cost = job.price(policy)
        if cost <= job.budget:
            value = literal(rises, [*choice, *([0] * (len(network.middle) - 5))])
            (inside if cost >= (1 - job.tolerance) * job.budget else below).append(value)
    assert job.price(found.policy) <= job.budget
    assert found.record["objective"] == pytest.approx(min(inside or below), abs=1e-6)
    assert found.record["gap"] == pytest.approx(0, abs=1e-5)
    chosen = [index_of(found.policy, network, tied(BITS))[number] or 0 for number in range(len(network.middle))]
    assert found.record["predicted_rise"] == pytest.approx(literal(truth, chosen), abs=1e-9)


def test_errors_that_cancel_are_seen_only_in_pairs(
    network: NetworkShape, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers of equal cost lose much alone and nothing together; a programme without pairs lowers two others."""
    names = [layer.name for layer in network.middle]
    cost = {layer.name: layer.macs for layer in network.middle}
    same = [number for number, name in enumerate(names) if cost[name] == cost[names[1]]][:4]
    assert len(same) == 4
    truth = Rises(alone=np.zeros((len(names), 2)), together=np.zeros((len(names), 2, len(names), 2)))
    truth.alone[:, 0] = 9.0
    truth.alone[same, 0] = [1.0, 1.0, 0.8, 0.8]
    one, other = same[:2]
    truth.together[one, 0, other, 0] = truth.together[other, 0, one, 0] = -1.9
    pairs = tied((4, 8))
    quadratic_losses(monkeypatch, network, truth, pairs)
    best = uniform(network, 8)
    for number in same[:2]:
        best = best.with_layer(names[number], weight_bits=4, activation_bits=4)
    job = make_job(budget=float(price(network, best).bops), knobs={})
    found = Clado(CladoOptions(bits=(4, 8), projection="none")).search(job)
    assert found.policy == best and found.record["predicted_rise"] == pytest.approx(0.1)
    alone = allocate(job, {(name,): row for name, row in zip(names, truth.alone.tolist(), strict=True)}, pairs)
    lowered = {name for name in names if alone.layers[name].weight_bits == 4}
    assert lowered == {names[number] for number in same[2:]}


# --- search -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["tied", 4])
def test_a_search_ends_within_the_budget_and_states_its_effort(
    network: NetworkShape, job: SearchJob, activations: str | int
) -> None:
    options = CladoOptions(bits=(2, 4, 8), activations=activations, batches=1)  # type: ignore[arg-type]
    found = Clado(options).search(job)
    layers = len(network.middle)
    count = 1 + 3 * layers + 9 * layers * (layers - 1) // 2
    assert found.record["effort"] == f"{count:,} losses on 1 training batches"
    assert found.record["evaluations"] == count and found.record["images"] == job.schedule.batch_size
    assert (1 - job.tolerance) * job.budget <= job.price(found.policy) <= job.budget
    for layer in network.middle:
        choice = found.policy.layers[layer.name]
        assert choice.activation_bits == (choice.weight_bits if activations == "tied" else activations)
    assert isinstance(found.record["highest_bits_stay_without_budget"], bool)


def test_the_best_policy_of_a_known_problem_is_found(known_best: tuple[SearchJob, Policy]) -> None:
    job, best = known_best
    for activations in ("tied", "paired"):
        found = Clado(CladoOptions(bits=(2, 4), activations=activations)).search(job)
        assert found.policy == best
    tables: list[Floats] = [np.array(row) for row in found.record["rises"].values()]
    assert len(tables) == 2


def test_extremes_follow_the_inputs(network: NetworkShape) -> None:
    fixed = Clado(CladoOptions(activations=8))
    assert {layer.activation_bits for layer in fixed.cheapest(network).layers.values()} == {8}
    assert {fixed.cheapest(network).layers[layer.name].weight_bits for layer in network.middle} == {2}
    assert fixed.costliest(network) == uniform(network, 8)
    assert Clado().cheapest(network) == uniform(network, 2)


def test_inputs_of_8_bits_leave_few_bit_operations_out_of_reach(network: NetworkShape, job: SearchJob) -> None:
    low = job.price(Clado(CladoOptions(activations=8)).cheapest(network))
    small = replace(job, budget=low - 1)
    with pytest.raises(UnreachableBudgetError, match="even 2 bit weights with 8 bit inputs costs") as caught:
        Clado(CladoOptions(activations=8, batches=1)).search(small)
    assert caught.value.nearest == low


def test_no_choice_in_the_window_leaves_the_best_one_below(network: NetworkShape, make_job: MakeJob) -> None:
    job = make_job(budget=1e12, knobs={})
    table = cost_table(job, [(layer.name,) for layer in network.middle], tied(BITS))
    alone = np.tile([2.0, 1.0, 0.0], (len(network.middle), 1))
    rises = Rises(alone=alone, together=np.zeros((*alone.shape, *alone.shape)))
    assert table.policy(choose(rises, table).chosen) == uniform(network, 8)
