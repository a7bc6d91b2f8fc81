"""Integer programmes that `methods.shared.knapsack` does not solve: with several limits, or with limits from below.

HiGHS solves them (`scipy.optimize.milp`) without a gap. It takes a limit as met within about a millionth. So the limits
of every answer are checked again, and where one is broken, they are tightened and the programme is solved again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from methods.shared.knapsack import Floats, Indices

if TYPE_CHECKING:
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_matrix

TIGHTER = (0.0, 2e-6, 2e-5)
"""Shares of a limit by which it is tightened, in one attempt after the other."""

_SPREAD = 1e4
"""Size of the largest difference between two values as the solver sees them; it stops at a gap of 1e-6."""
_ROUNDING = 1e-12
"""Share of a limit by which sums may be off."""
_SOLVED, _STOPPED, _INFEASIBLE = 0, 1, 2
"""Statuses of the solver: stopped is at a limit of nodes."""


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


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the solver says.

    Attributes:
        chosen: Indices of the options, shape (items,); `None` when nothing was found.
        bound: Value that no choice within the limits is below; infinite when there is none.
    """

    chosen: Indices | None
    bound: float


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
    for tighter in TIGHTER:
        chosen = solve(values, limits, tighter).chosen
        if chosen is None or all(limit.allows(chosen) for limit in limits):
            return chosen
    raise ArithmeticError("the solver's answers break a limit of the integer programme, also when it is tightened")


def solve(
    values: Floats,
    limits: Sequence[Limit],
    tighter: float,
    *,
    further: Floats | None = None,
    links: "csr_matrix | None" = None,
    nodes: int | None = None,
) -> Answer:
    """Solve a programme once, with every limit tightened by a share of its size.

    Args:
        values: Values of the options, shape (items, options).
        limits: Limits of the options' costs.
        tighter: Share of the limits.
        further: Values of further variables, which are at least 0 and need not be whole, shape (further,).
        links: Combinations of options and further variables that must be 0, shape (links, items · options + further).
        nodes: Largest number of nodes of branch and bound; any by default.

    Raises:
        ArithmeticError: The solver ended without an answer.
    """
    from scipy.optimize import Bounds, milp

    further = np.zeros(0) if further is None else further
    lowest = values.min(1, keepdims=True)
    objective = np.concatenate([(values - lowest).ravel(), further])
    scale = _SPREAD / (np.abs(objective).max() or 1.0)
    result = milp(
        scale * objective,
        integrality=np.concatenate([np.ones(values.size, dtype=np.int64), np.zeros(len(further), dtype=np.int64)]),
        bounds=Bounds(0, 1),
        constraints=_constraints(values.shape, limits, tighter, links, len(further)),
        options={"mip_rel_gap": 0.0} if nodes is None else {"mip_rel_gap": 0.0, "node_limit": nodes},
    )
    if result.status == _INFEASIBLE:
        return Answer(chosen=None, bound=np.inf)
    if result.status not in (_SOLVED, _STOPPED):
        raise ArithmeticError(f"the integer programme was not solved: {result.message}")
    bound = -np.inf if result.mip_dual_bound is None else result.mip_dual_bound / scale + float(lowest.sum())
    if result.x is None:
        return Answer(chosen=None, bound=bound)
    shares = result.x[: values.size].reshape(values.shape)
    return Answer(chosen=np.asarray(shares.argmax(1), dtype=np.intp), bound=bound)


def _constraints(
    shape: tuple[int, ...], limits: Sequence[Limit], tighter: float, links: "csr_matrix | None", further: int
) -> "list[LinearConstraint]":
    """List the constraints of a programme: one option for each item, the limits, and the links."""
    from scipy.optimize import LinearConstraint
    from scipy.sparse import csr_matrix, hstack, kron

    items, options = shape
    one_each = kron(np.eye(items), np.ones((1, options)))
    constraints = [LinearConstraint(csr_matrix(hstack([one_each, csr_matrix((items, further))])), 1, 1)]
    for limit in limits:
        row = np.concatenate([limit.costs.ravel() / limit.scale, np.zeros(further)])
        least, most = limit.least / limit.scale + tighter, limit.most / limit.scale - tighter
        constraints.append(LinearConstraint(row[None, :], least, most))
    return constraints if links is None else [*constraints, LinearConstraint(links, 0, 0)]
