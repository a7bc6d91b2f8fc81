"""The multiple-choice knapsack problem: one option for each item, of least total value within a budget, exactly.

Dynamic programming over the items, one after the other. A state is a pair of total cost and total value of the items so
far. It is dropped if another state has neither more cost nor more value, or if even the linear relaxation of the items
that are left cannot bring it below a known solution. No other state is dropped, and sums are those of float64: there is
no gap and no tolerance but that of rounding, as solvers of integer programmes have.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_ROUNDING = 1e-12
"""Share of the budget, and of the sum of all values, by which sums may be off."""


def cheapest_choice(values: Floats, costs: Floats, budget: float) -> Indices:
    """Choose one option for each item so that the sum of values is least and that of costs at most the budget.

    Args:
        values: Values of the options, shape (items, options); negative ones are allowed.
        costs: Costs of the options, of the same shape.
        budget: Largest sum of costs.

    Returns:
        Indices of the options, shape (items,).

    Raises:
        ValueError: Even the options of least cost exceed the budget.
    """
    bounds = [_Relaxation(values[item:], costs[item:]) for item in range(len(values) + 1)]
    budget += _ROUNDING * abs(budget)
    if bounds[0].costs[0] > budget:
        raise ValueError(f"the options of least cost have {bounds[0].costs[0]}, more than the budget {budget}")
    known = bounds[0].whole_part(budget) + _ROUNDING * float(np.abs(values).sum())
    cost, value = np.zeros(1), np.zeros(1)
    steps: list[tuple[Indices, Indices]] = []
    for item, rest in enumerate(bounds[1:]):
        all_costs, all_values = np.add.outer(cost, costs[item]).ravel(), np.add.outer(value, values[item]).ravel()
        left = budget - all_costs
        promising = np.flatnonzero((left >= rest.costs[0]) & (all_values + rest.least(left) <= known))
        best = promising[_undominated(all_costs[promising], all_values[promising])]
        cost, value = all_costs[best], all_values[best]
        steps.append(np.divmod(best, costs.shape[1]))
    return _traced_back(steps, int(value.argmin()))


class _Relaxation:
    """The linear relaxation of a problem: options may be mixed, so each item takes steps along its convex hull.

    Attributes:
        costs: Costs at which the least value has corners, rising from the least possible cost.
        values: Least values at these costs.
    """

    def __init__(self, values: Floats, costs: Floats) -> None:
        hulls = [_hull(value, cost) for value, cost in zip(values, costs, strict=True)]
        steps = [np.diff(hull, axis=0) for hull in hulls]
        start = np.sum([hull[:1] for hull in hulls], axis=0) if hulls else np.zeros((1, 2))
        every = np.concatenate(steps) if steps else np.zeros((0, 2))
        every = every[np.argsort(every[:, 1] / every[:, 0], kind="stable")]
        self.costs, self.values = np.concatenate([start, every]).cumsum(0).T

    def least(self, budgets: Floats) -> Floats:
        """Compute the least value for each budget."""
        found: Floats = np.interp(budgets, self.costs, self.values)
        return found

    def whole_part(self, budget: float) -> float:
        """Return the value of a solution without mixtures: all steps, best first, up to the one that does not fit."""
        return float(self.values[self.costs <= budget][-1])


def _hull(values: Floats, costs: Floats) -> Floats:
    """Find the options on the lower convex hull, shape (corners, 2): costs that rise, and values that fall."""
    corners: list[tuple[float, float]] = []
    for cost, value in sorted(zip(costs.tolist(), values.tolist(), strict=True)):
        if corners and value >= corners[-1][1]:
            continue
        while len(corners) > 1 and _above(corners[-2], corners[-1], (cost, value)):
            corners.pop()
        corners.append((cost, value))
    return np.array(corners)


def _above(first: Sequence[float], middle: Sequence[float], last: Sequence[float]) -> bool:
    """Return whether the middle point lies on or above the line between the others."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


def _undominated(costs: Floats, values: Floats) -> Indices:
    """Find the states of which no other has at most the same cost and at most the same value, by rising cost."""
    order = np.lexsort((values, costs))
    least = np.minimum.accumulate(np.concatenate([[np.inf], values[order][:-1]]))
    return order[values[order] < least]


def _traced_back(steps: Sequence[tuple[Indices, Indices]], state: int) -> Indices:
    """Follow a state back to the start, and return the option of every item."""
    chosen = []
    for before, options in reversed(steps):
        chosen.append(options[state])
        state = int(before[state])
    return np.array(chosen[::-1], dtype=np.intp)
