"""Bits of least total value within a budget: what methods do that value every choice first and choose afterwards.

Each group of layers takes one pair of bits, of its weights and of its inputs. Most groups are single layers. Costs of
layers add up in every measure, so the choice is a multiple-choice knapsack, which is solved exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.api import EDGE_BITS, NetworkShape, Policy, SearchJob, uniform
from methods.shared.budget import unreachable
from methods.shared.integer_programme import Limit, least_choice
from methods.shared.knapsack import Floats, Indices, cheapest_choice

Pair = tuple[int, int]
"""Bits of a layer's weights and of its inputs."""
Group = tuple[str, ...]
"""Names of layers that have the same pair of bits."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of all choices, above the policy of the first pair.

    Attributes:
        base: Policy with the first pair in all searched layers.
        groups: Groups of layers.
        pairs: Pairs among which each group chooses.
        rises: Costs of the pairs above that of the first one, shape (groups, pairs).
        least: Sum of rises at which the window of the budget begins.
        most: Sum of rises that the budget allows.
    """

    base: Policy
    groups: Sequence[Group]
    pairs: Sequence[Pair]
    rises: Floats
    least: float
    most: float

    def policy(self, chosen: Indices) -> Policy:
        """Build the policy of the pairs with these indices, shape (groups,)."""
        policy = self.base
        for group, index in zip(self.groups, chosen.tolist(), strict=True):
            policy = _with_pair(policy, group, self.pairs[index])
        return policy

    def rise(self, chosen: Indices) -> float:
        """Return the sum of rises of the pairs with these indices, shape (groups,)."""
        return float(self.rises[np.arange(len(chosen)), chosen].sum())


def tied(bits: Sequence[int]) -> list[Pair]:
    """List the pairs of inputs with the bits of the weights."""
    return [(b, b) for b in bits]


def policy_of_pair(network: NetworkShape, pair: Pair) -> Policy:
    """Give a pair of bits to all layers but the first and the last, which have 8."""
    return _with_pair(uniform(network, EDGE_BITS), [layer.name for layer in network.middle], pair)


def cost_table(job: SearchJob, groups: Sequence[Group], pairs: Sequence[Pair]) -> CostTable:
    """Price every pair for every group.

    Args:
        job: Network, measure and budget.
        groups: Groups that have all searched layers.
        pairs: Pairs among which each group chooses, the cheapest first.

    Raises:
        UnreachableBudgetError: Even the first pair everywhere costs more than the budget.
    """
    network = job.task.network
    base = policy_of_pair(network, pairs[0])
    least = job.price(base)
    if least > job.budget:
        raise unreachable(job, _in_words(pairs[0]), least)
    costs = [
        [
            sum(job.measure.price_layer(_with_pair(base, [name], pair), network[name]) for name in group)
            for pair in pairs
        ]
        for group in groups
    ]
    rises = np.array([[cost - row[0] for cost in row] for row in costs], dtype=np.float64)
    return CostTable(
        base=base,
        groups=groups,
        pairs=pairs,
        rises=rises.reshape(len(groups), len(pairs)),
        least=(1 - job.tolerance) * job.budget - least,
        most=job.budget - least,
    )


def allocate(
    job: SearchJob, values: Mapping[Group, Sequence[float]], pairs: Sequence[Pair], *, in_window: bool = True
) -> Policy:
    """Find the pairs of least total value within the budget, exactly.

    Args:
        job: Network, measure and budget.
        values: Value of every pair, by group; the groups have all searched layers.
        pairs: Pairs among which each group chooses, the cheapest first.
        in_window: Whether pairs that cost less than the window of the budget give way to the best ones inside it, if
            there are any. Searches with decisions leave that to repair.

    Raises:
        UnreachableBudgetError: Even the first pair everywhere costs more than the budget.
    """
    table = cost_table(job, list(values), pairs)
    matrix = np.array(list(values.values()), dtype=np.float64).reshape(table.rises.shape)
    chosen = cheapest_choice(matrix, table.rises, table.most)
    if in_window and table.rise(chosen) < table.least:
        inside = least_choice(matrix, [Limit(costs=table.rises, least=table.least, most=table.most)])
        chosen = chosen if inside is None else inside
    return table.policy(chosen)


def _with_pair(policy: Policy, names: Sequence[str], pair: Pair) -> Policy:
    """Give a pair of bits to some layers."""
    for name in names:
        policy = policy.with_layer(name, weight_bits=pair[0], activation_bits=pair[1])
    return policy


def _in_words(pair: Pair) -> str:
    """Name the policy with one pair in all searched layers."""
    weight, activation = pair
    return f"uniform {weight} bit" if weight == activation else f"{weight} bit weights with {activation} bit inputs"
