"""The multiple-choice knapsack against enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.shared.knapsack import Floats, cheapest_choice


def enumerated(values: Floats, costs: Floats, budget: float) -> float:
    """The least value of all choices within the budget."""
    choices = np.array(list(product(range(values.shape[1]), repeat=len(values))))
    items = np.arange(len(values))
    return float(values[items, choices].sum(1)[costs[items, choices].sum(1) <= budget].min())


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    whole=st.booleans(),
    signed=st.booleans(),
    share=st.floats(0, 1.1),
)
def test_the_choice_is_the_best_of_all(seed: int, spread: float, whole: bool, signed: bool, share: float) -> None:
    """For values of one size and of many, costs with and without ties, and values that rise with the cost."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(0, spread, (5, 4)))
    values = values * rng.choice([-1, 1], values.shape) if signed else values
    costs = rng.integers(0, 6, (5, 4)).astype(float) if whole else rng.random((5, 4))
    budget = float(costs.min(1).sum() + share * (costs.max(1) - costs.min(1)).sum())
    chosen = cheapest_choice(values, costs, budget)
    items = np.arange(5)
    assert costs[items, chosen].sum() <= budget + 1e-12
    assert values[items, chosen].sum() == pytest.approx(enumerated(values, costs, budget + 1e-12), rel=1e-9)


def test_a_choice_within_a_ten_thousandth_of_the_best_is_not_enough() -> None:
    """One large value that nothing can change hides the small ones from a solver that stops at a relative gap."""
    values = np.array([[1e6, 1e6], [2.0, 1.0], [2.5, 1.0]])
    costs = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert cheapest_choice(values, costs, 1.0).tolist()[1:] == [0, 1]


def test_sixty_items_of_nine_options_are_solved() -> None:
    rng = np.random.default_rng(0)
    values, costs = -np.sort(rng.random((60, 9)), axis=1), np.sort(rng.random((60, 9)), axis=1)
    chosen = cheapest_choice(values, costs, 30.0)
    assert costs[np.arange(60), chosen].sum() <= 30.0


def test_a_budget_below_the_least_cost_is_refused() -> None:
    with pytest.raises(ValueError, match=r"least cost have 3.0, more than the budget 2.5"):
        cheapest_choice(np.zeros((2, 2)), np.array([[1.0, 2.0], [2.0, 5.0]]), 2.5)
