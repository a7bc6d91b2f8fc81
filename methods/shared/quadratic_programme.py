"""Programmes in which two choices have a value together, besides those that each has alone.

    min Σ_i v_i(c_i) + Σ_{i<j} u_ij(c_i, c_j)  subject to limits of a sum of costs, one choice for each item

With x for the choices and y for pairs of them, this is a linear integer programme: y_ij(m, n) adds up to x_i(m) over n
and to x_j(n) over m, so that whole x make whole y. Nothing has to be convex. The solver has a number of nodes, which
unlike a limit of time gives the same answer each time.

A local search changes one or two items at once, from the best choices for v alone and for v with noise. Its answer
stands where the solver finds none that is better, and in programmes that are too large for the solver.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from methods.shared.integer_programme import TIGHTER, Limit, least_choice, solve
from methods.shared.knapsack import Floats, Indices

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LARGEST = 3000
"""Largest number of pairs of options (of two items) for which the solver is called; it takes seconds there."""
NODES = 1000
"""Largest number of nodes of the solver's branch and bound."""

_STARTS, _NOISE = 20, 0.5
"""Number of starts of the local search, and deviation of the logarithm of the factors that values have in them."""
_LEAST_GAIN = 1e-12
"""Gain of a step of the local search, as a share of all values, below which it is rounding."""


@dataclass(frozen=True, kw_only=True)
class QuadraticChoice:
    """Answer of a programme.

    Attributes:
        chosen: Indices of the options, shape (items,).
        value: Value of the choice.
        bound: Value that no choice within the limits is below, up to the solver's rounding; minus infinity when the
            programme is too large for the solver.
    """

    chosen: Indices
    value: float
    bound: float


def value_of(values: Floats, together: Floats, chosen: Indices) -> float:
    """Compute the value of a choice; arguments are those of `least_quadratic_choice`."""
    items = np.arange(len(chosen))
    of_pairs = together[items[:, None], chosen[:, None], items[None, :], chosen[None, :]]
    return float(values[items, chosen].sum() + np.triu(of_pairs, 1).sum())


def least_quadratic_choice(values: Floats, together: Floats, limit: Limit) -> QuadraticChoice | None:
    """Choose one option for each item so that the value is least within the limit.

    Args:
        values: Values v of the options, shape (items, options).
        together: Values u of two options together, shape (items, options, items, options), symmetric. Those of an item
            with itself are not read.
        limit: Limit of the sum of costs.

    Returns:
        The best choice that was found; `None` when no choice keeps the limit.

    Raises:
        ArithmeticError: The solver ended without an answer.
    """
    if (start := least_choice(values, [limit])) is None:
        return None
    found = [improved(values, together, limit, chosen) for chosen in [start, *_other_starts(values, limit)]]
    answer, bound = _solved(values, together, limit)
    best = min(found if answer is None else [*found, answer], key=lambda chosen: value_of(values, together, chosen))
    value = value_of(values, together, best)
    return QuadraticChoice(chosen=best, value=value, bound=min(value, bound))


def _other_starts(values: Floats, limit: Limit) -> list[Indices]:
    """Find the best choices for values with noise, which is the same on every call."""
    noise = np.random.default_rng(0)
    found = [least_choice(values * np.exp(noise.normal(0, _NOISE, values.shape)), [limit]) for _ in range(_STARTS - 1)]
    return [chosen for chosen in found if chosen is not None]


def _solved(values: Floats, together: Floats, limit: Limit) -> tuple[Indices | None, float]:
    """Return the solver's choice, if it found one, and its bound."""
    first, second = np.array(list(combinations(range(len(values)), 2)), dtype=np.intp).reshape(-1, 2).T
    further = together[first, :, second, :].ravel()
    if further.size > LARGEST:
        return None, -np.inf
    links, bounds = _links(values.shape, first, second), list[float]()
    for tighter in TIGHTER:
        answer = solve(values, [limit], tighter, further=further, links=links, nodes=NODES)
        bounds.append(answer.bound)
        if answer.chosen is None or limit.allows(answer.chosen):
            return answer.chosen, bounds[0]
    return None, bounds[0]


def _links(shape: tuple[int, ...], first: Indices, second: Indices) -> "csr_matrix":
    """Link pairs of options to the options: Σ_n y_ij(m, n) − x_i(m) = 0 and Σ_m y_ij(m, n) − x_j(n) = 0.

    Args:
        shape: Items and options.
        first: First item of each pair, shape (pairs,).
        second: Second item of each pair, shape (pairs,).
    """
    from scipy.sparse import csr_matrix, eye, hstack, kron, vstack

    items, options = shape
    count = len(first)
    each, ones = eye(options), np.ones((1, options))
    blocks = []
    for members, sums in ((first, kron(each, ones)), (second, kron(ones, each))):
        of_item = csr_matrix((np.ones(count), (np.arange(count), members)), shape=(count, items))
        blocks.append(hstack([-kron(of_item, each), kron(eye(count), sums)]))
    return csr_matrix(vstack(blocks))


def improved(values: Floats, together: Floats, limit: Limit, start: Indices) -> Indices:
    """Change one or two items at once, the best change first, until no change within the limit lowers the value.

    Args:
        values: Values v, shape (items, options).
        together: Values u, shape (items, options, items, options).
        limit: Limit of the sum of costs.
        start: Choice within the limit, shape (items,).
    """
    every = np.arange(len(values))
    own = together.copy()
    own[every, :, every, :] = 0
    least = _LEAST_GAIN * float(np.abs(values).sum() + np.abs(own).sum())
    chosen = start
    while True:
        changes = _changes(values, own, chosen)
        costs = limit.costs - limit.costs[every, chosen][:, None]
        totals = limit.costs[every, chosen].sum() + costs[:, :, None, None] + costs[None, None, :, :]
        changes[(totals > limit.most) | (totals < limit.least)] = np.inf
        changes[every, :, every, :] = np.inf
        best = int(changes.argmin())
        if changes.flat[best] >= -least:
            return chosen
        one, option, other, of_other = np.unravel_index(best, changes.shape)
        chosen = chosen.copy()
        chosen[one], chosen[other] = option, of_other


def _changes(values: Floats, together: Floats, chosen: Indices) -> Floats:
    """Compute by how much the value rises when two items change, shape (items, options, items, options).

    Where the option of one of them is the present one, only the other changes.
    """
    every = np.arange(len(values))
    with_present = together[:, :, every, chosen]  # of each option with the present ones of all items
    alone = values + with_present.sum(2)
    rise = alone - alone[every, chosen][:, None]
    of_present = with_present[every, chosen]
    rises: Floats = (
        rise[:, :, None, None]
        + rise[None, None, :, :]
        + together
        - with_present[:, :, :, None]
        - with_present.transpose(2, 0, 1)[:, None, :, :]
        + of_present[:, None, :, None]
    )
    return rises
