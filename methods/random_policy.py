"""A control: a policy drawn at random among all that meet the budget.

A search is worth something only if it is better than this. Every combination of bits whose cost lies inside the window
is equally likely. Layer by layer, the program counts in how many ways the layers that are left can fill what is left of
the budget, over a fine grid of costs. It draws bits with the odds that follow. A draw that lies outside the window
because costs were rounded is rejected, which leaves the others equally likely. With `draws` above 1, the best of
several policies is taken, by validation accuracy after calibration and without training.
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from bench.api import (
    EDGE_BITS,
    Capabilities,
    LayerShape,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UnreachableBudgetError,
    compress,
    uniform,
)
from methods.shared.options import Candidates, ChoosesBits
from methods.shared.search import prepare

_CELLS = 20_000
"""Cells of the grid of costs up to the budget. Before it is checked, a draw is off by at most one cell a layer."""
_ATTEMPTS = 1000
"""Largest number of draws that are rejected."""

Floats = NDArray[np.float64]


class RandomOptions(Options):
    """Options of the random control.

    Attributes:
        bits: Candidate bits for weights and activations.
        draws: Number of policies that are drawn; the best of them on validation images is taken.
    """

    bits: Candidates = (2, 4, 8)
    draws: Annotated[int, Field(ge=1)] = 1


class RandomPolicy(ChoosesBits):
    """Bits drawn uniformly among those that meet the budget."""

    summary = "Control: bits drawn at random, uniformly among all that meet the budget; or the best of several draws"
    family = "control"
    source = "this project: a control that no search should be worse than"
    deviations = (
        "Filters are kept: of all policies that may drop filters, nearly all drop about half of them.",
        "One policy is drawn and compared with no other; draws = N takes the best of N on validation images, for a "
        "control with the effort of a search.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True, data_parallel=True)
    Options = RandomOptions
    options: RandomOptions

    def search(self, job: SearchJob) -> SearchResult:
        """Draw policies, and compare several on validation images.

        Raises:
            UnreachableBudgetError: No combination of candidates lies inside the window.
        """
        space = Combinations(job, self.options.bits)
        noise = np.random.default_rng(int(torch.randint(2**31, (), generator=job.noise("random policies"))))
        policies = [space.draw(noise) for _ in range(self.options.draws)]
        accuracies = [untrained_accuracy(job, policy) for policy in policies] if len(policies) > 1 else [0.0]
        best = max(range(len(policies)), key=accuracies.__getitem__)
        record = {"ways": space.ways, "validation_top1": accuracies if len(policies) > 1 else []}
        return SearchResult(policy=policies[best], state=job.pretrained, record=record)


class Combinations:
    """All combinations of bits, counted by their cost.

    Args:
        job: Network, measure, budget and tolerance.
        bits: Candidate bits.

    Attributes:
        ways: Number of combinations inside the window, up to the rounding of costs to cells.
    """

    def __init__(self, job: SearchJob, bits: Sequence[int]) -> None:
        self._job = job
        self._pairs = list(product(bits, bits))
        network = job.task.network
        edge = uniform(network, EDGE_BITS)
        edges = [layer for layer in network.layers if layer.position != "middle"]
        rest = sum(job.measure.price_layer(edge, layer) for layer in edges) + job.measure.constant(network)
        self._cell = job.budget / _CELLS
        self._costs = [self._cells(layer) for layer in network.middle]
        slack = len(self._costs)
        first = max(0, int(((1 - job.tolerance) * job.budget - rest) / self._cell) - slack)
        last = int((job.budget - rest) / self._cell) + slack
        self._left = self._count(first, last)
        self.ways = float(self._left[0][0]) if last >= 0 else 0.0

    def _cells(self, layer: LayerShape) -> NDArray[np.int64]:
        """Compute the cost of one layer with every pair of bits, in cells."""
        network, measure = self._job.task.network, self._job.measure
        base = uniform(network, EDGE_BITS)
        policies = [base.with_layer(layer.name, weight_bits=w, activation_bits=a) for w, a in self._pairs]
        return np.array([round(measure.price_layer(policy, layer) / self._cell) for policy in policies])

    def _count(self, first: int, last: int) -> list[Floats]:
        """Count, for each layer and each cost so far, the ways in which the layers from it on end between two costs."""
        ends = np.zeros(max(last, 0) + 1)
        ends[first:] = 1
        counts = [ends]
        for costs in reversed(self._costs):
            after = counts[-1]
            ways = np.zeros_like(after)
            for cost in costs[costs < len(after)]:
                ways[: len(after) - cost] += after[cost:]
            counts.append(ways)
        return counts[::-1]

    def draw(self, noise: np.random.Generator) -> Policy:
        """Draw a policy; all inside the window are equally likely.

        Raises:
            UnreachableBudgetError: No policy lies inside the window.
        """
        job = self._job
        for _ in range(_ATTEMPTS if self.ways else 0):
            policy = _policy(job.task.network, self._draw_pairs(noise))
            if (1 - job.tolerance) * job.budget <= job.price(policy) <= job.budget:
                return policy
        cheapest = job.price(_policy(job.task.network, [self._pairs[0]] * len(self._costs)))
        raise UnreachableBudgetError("no combination of the candidate bits lies inside the budget's window", cheapest)

    def _draw_pairs(self, noise: np.random.Generator) -> list[tuple[int, int]]:
        """Draw bits layer by layer, with odds from the ways in which the layers that follow can end."""
        spent, drawn = 0, []
        for costs, after in zip(self._costs, self._left[1:], strict=True):
            totals = spent + costs
            ways = np.where(totals < len(after), after[np.minimum(totals, len(after) - 1)], 0.0)
            choice = int(noise.choice(len(ways), p=ways / ways.sum()))
            drawn.append(self._pairs[choice])
            spent = int(totals[choice])
        return drawn


def untrained_accuracy(job: SearchJob, policy: Policy) -> float:
    """Measure top-1 on validation images of the pretrained network under a policy, calibrated and not trained."""
    return prepare(job, compress(job.float_model(), job.task.network, policy))


def _policy(network: NetworkShape, pairs: Sequence[tuple[int, int]]) -> Policy:
    """Build the policy of these bits of weights and activations; the first and the last layer have 8 bits."""
    policy = uniform(network, EDGE_BITS)
    for layer, (weight, activation) in zip(network.middle, pairs, strict=True):
        policy = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
    return policy
