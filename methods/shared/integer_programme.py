"""Integer programmes that `methods.shared.knapsack` does not solve: with several limits, or with limits from below.

HiGHS solves them (`scipy.optimize.milp`) without a gap. It takes a limit as met within about a millionth. So the limits
of every answer are checked again, and where one is broken, they are tightened and the programme is solved again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from methods.shared.knapsack import Floats, Indices

_SPREAD = 1e4
"""Size of the largest difference between two values as the solver sees them; it stops at a gap of 1e-6."""
_TIGHTER = (0.0, 2e-6, 2e-5)
"""Shares of a limit by which it is tightened, in one attempt after the other."""
_ROUNDING = 1e-12
"""Share of a limit by which sums may be off."""
_SOLVED, _INFEASIBLE = 0, 2


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Limits of one sum of costs.

    Attributes:
        costs: Costs of the options, shape (items, options).
        least, most: Least and largest sum that is allowed.
    """

    costs: Floats
    least: float = -np.inf
    most: float = np.inf

    def allows(self, chosen: Indices) -> bool:
        """Return whether a choice keeps both limits, up to rounding."""
        cost = float(self.costs[np.arange(len(chosen)), chosen].sum())
        return self.least - _ROUNDING * abs(self.least) <= cost <= self.most + _ROUNDING * abs(self.most)

    @property
    def scale(self) -> float:
        """Size of the sums at the limits."""
        ends = [abs(end) for end in (self.least, self.most) if np.isfinite(end) and end]
        return max(ends, default=1.0)


def least_choice(values: Floats, limits: Sequence[Limit]) -> Indices | None:
    """Choose one option for each item so that the sum of values is least and all limits are kept.

    Sums of values within 1e-10 of the largest difference between two values count as equal.

    Args:
        values: Values of the options, shape (items, options).
        limits: Limits, with costs of the same shape.

    Returns:
        Indices of the options, shape (items,); `None` when no choice keeps all limits.

    Raises:
        ArithmeticError: The solver ended without an answer, or with one that breaks a limit.
    """
    for tighter in _TIGHTER:
        chosen = _solved(values, limits, tighter)
        if chosen is None or all(limit.allows(chosen) for limit in limits):
            return chosen
    raise ArithmeticError("the solver's answers break a limit of the integer programme, also when it is tightened")


def _solved(values: Floats, limits: Sequence[Limit], tighter: float) -> Indices | None:
    """Solve the programme once, with every limit tightened by a share of its size."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, kron

    items, options = values.shape
    one_each = csr_matrix(kron(np.eye(items), np.ones((1, options))))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit in limits:
        scale = limit.scale
        least, most = limit.least / scale + tighter, limit.most / scale - tighter
        constraints.append(LinearConstraint(limit.costs.reshape(1, -1) / scale, least, most))
    lowered = values - values.min(1, keepdims=True)
    scaled = lowered * (_SPREAD / (lowered.max() or 1.0))
    result = milp(
        scaled.ravel(),
        integrality=np.ones(values.size, dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if result.status == _INFEASIBLE:
        return None
    if result.status != _SOLVED or result.x is None:
        raise ArithmeticError(f"the integer programme was not solved: {result.message}")
    return np.asarray(result.x.reshape(values.shape).argmax(1), dtype=np.intp)
