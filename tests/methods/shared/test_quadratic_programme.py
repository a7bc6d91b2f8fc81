"""Quadratic programmes against enumeration."""

from itertools import product

import numpy as np
import pytest

from methods.shared import quadratic_programme
from methods.shared.integer_programme import Limit
from methods.shared.knapsack import Floats, Indices
from methods.shared.quadratic_programme import improved, least_quadratic_choice, value_of

ITEMS, OPTIONS = 5, 3


def drawn(seed: int) -> tuple[Floats, Floats, Floats]:
    """Values, values of pairs, and costs; what an item has with itself is drawn too, and must not count."""
    rng = np.random.default_rng(seed)
    values, costs = rng.normal(size=(ITEMS, OPTIONS)), np.sort(rng.random((ITEMS, OPTIONS)), axis=1)
    together = rng.normal(size=(ITEMS, OPTIONS, ITEMS, OPTIONS))
    return values, together + together.transpose(2, 3, 0, 1), costs


def literal_value(values: Floats, together: Floats, choice: tuple[int, ...]) -> float:
    total = 0.0
    for i, option in enumerate(choice):
        total += values[i, option]
        for j in range(i + 1, len(choice)):
            total += together[i, option, j, choice[j]]
    return total


def every_choice() -> list[tuple[int, ...]]:
    return list(product(range(OPTIONS), repeat=ITEMS))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("least", "most"), [(-np.inf, np.inf), (-np.inf, 0.4), (0.35, 0.4)])
def test_the_choice_is_the_best_of_all(seed: int, least: float, most: float) -> None:
    """Without a limit, with one from above, and inside a window."""
    values, together, costs = drawn(seed)
    low, high = costs.min(1).sum(), costs.max(1).sum()
    limit = Limit(costs=costs, least=low + least * (high - low), most=low + most * (high - low))
    allowed = [choice for choice in every_choice() if limit.allows(np.array(choice))]
    found = least_quadratic_choice(values, together, limit)
    assert allowed and found is not None and limit.allows(found.chosen)
    best = min(literal_value(values, together, choice) for choice in allowed)
    assert found.value == pytest.approx(best, rel=1e-9)
    assert found.value == pytest.approx(literal_value(values, together, tuple(found.chosen.tolist())), rel=1e-12)
    assert found.bound == pytest.approx(found.value, abs=1e-6)


@pytest.mark.parametrize("solver", ["stopped", "not called"])
def test_without_the_solver_the_answer_is_that_of_the_local_search_with_an_honest_bound(
    monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    monkeypatch.setattr(quadratic_programme, *(("NODES", 0) if solver == "stopped" else ("LARGEST", 10)))
    values, together, costs = drawn(11)
    limit = Limit(costs=costs, most=0.5 * costs.max(1).sum())
    found = least_quadratic_choice(values, together, limit)
    best = min(literal_value(values, together, choice) for choice in every_choice() if limit.allows(np.array(choice)))
    assert found is not None and found.bound <= best + 1e-9 <= found.value + 2e-9
    assert (found.bound == -np.inf) == (solver == "not called")


@pytest.mark.parametrize("seed", range(10))
def test_many_starts_of_the_local_search_find_the_best(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """In problems of this size, with interactions as large as the values."""
    monkeypatch.setattr(quadratic_programme, "LARGEST", 0)
    values, together, costs = drawn(seed)
    limit = Limit(costs=costs, most=0.6 * costs.max(1).sum())
    found = least_quadratic_choice(values, together, limit)
    best = min(literal_value(values, together, choice) for choice in every_choice() if limit.allows(np.array(choice)))
    assert found is not None and found.value == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_local_search_ends_where_no_change_of_two_items_helps(seed: int) -> None:
    values, together, costs = drawn(seed)
    limit = Limit(costs=costs, most=0.6 * costs.max(1).sum())
    start: Indices = costs.argmin(1)
    found = improved(values, together, limit, start)
    own = value_of(values, together, found)
    assert limit.allows(found) and own <= value_of(values, together, start)
    for i, j in product(range(ITEMS), repeat=2):
        for m, n in product(range(OPTIONS), repeat=2):
            other = found.copy()
            other[i], other[j] = m, n
            if limit.allows(other):
                assert value_of(values, together, other) >= own - 1e-9


def test_nothing_within_the_limit() -> None:
    values, together, costs = drawn(0)
    assert least_quadratic_choice(values, together, Limit(costs=costs, most=-1.0)) is None


def test_one_item_has_no_pairs() -> None:
    limit = Limit(costs=np.array([[0.0, 1.0]]), most=1.0)
    found = least_quadratic_choice(np.array([[2.0, 1.0]]), np.zeros((1, 2, 1, 2)), limit)
    assert found is not None and found.chosen.tolist() == [1] and found.value == 1.0
