"""Integer programmes with several limits against enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.shared.integer_programme import Limit, least_choice


def all_choices(items: int, options: int) -> np.ndarray:
    return np.array(list(product(range(options), repeat=items)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    whole=st.booleans(),
    share=st.floats(0, 1),
    width=st.floats(0, 0.5),
)
def test_the_choice_is_the_best_of_all(seed: int, spread: float, whole: bool, share: float, width: float) -> None:
    """With a window for one sum of costs and an upper limit for another; also where nothing is allowed."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(0, spread, (4, 4))) * rng.choice([-1, 1], (4, 4))
    costs = rng.integers(0, 6, (2, 4, 4)).astype(float) if whole else 1e9 * rng.random((2, 4, 4))
    ends = costs.min(2).sum(1), costs.max(2).sum(1)
    most = ends[0] + np.array([share, 0.7]) * (ends[1] - ends[0])
    limits = [
        Limit(costs=costs[0], least=most[0] - width * (ends[1] - ends[0])[0], most=most[0]),
        Limit(costs=costs[1], most=most[1]),
    ]
    items, choices = np.arange(4), all_choices(4, 4)
    allowed = [choice for choice in choices if all(limit.allows(choice) for limit in limits)]
    found = least_choice(values, limits)
    if not allowed:
        assert found is None
        return
    assert found is not None and all(limit.allows(found) for limit in limits)
    least = min(float(values[items, choice].sum()) for choice in allowed)
    assert float(values[items, found].sum()) == pytest.approx(least, rel=1e-8, abs=1e-8 * np.abs(values).max())


def test_a_sum_just_above_the_limit_is_refused() -> None:
    """The solver alone takes it as met."""
    values = np.array([[1.0, 0.0], [1.0, 0.0]])
    costs = np.array([[0.0, 1.0], [0.0, 1.0 + 1e-9]])
    found = least_choice(values, [Limit(costs=costs, most=2.0)])
    assert found is not None and sorted(found.tolist()) == [0, 1]
