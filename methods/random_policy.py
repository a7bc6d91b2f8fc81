"""A control: a policy drawn at random among all that meet the budget.

What no search is better than. Every combination of widths whose cost lies inside the window is equally likely: the
number of ways in which the layers that are left can fill what is left of the budget is counted layer by layer (over a
fine grid of costs), and widths are drawn with the odds that follow. A draw that rounding has put outside is rejected,
which leaves the rest equally likely. With `draws` above 1 the best of several is taken, by validation accuracy after
calibration and without training.
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
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UnreachableBudgetError,
    calibrate,
    compress,
    evaluate,
    reestimate_norms,
    uniform,
)

_CELLS = 20_000
"""Cells of the grid of costs up to the budget. A draw is off by at most one cell a layer before it is checked."""
_TRIES = 1000

Floats = NDArray[np.float64]


class RandomOptions(Options):
    """Options of the random control.

    Attributes:
        bits: Candidates for weights and activations.
        draws: Policies that are drawn; of several the best on validation images is taken.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (2, 4, 8)
    draws: Annotated[int, Field(ge=1)] = 1


class RandomPolicy(Method):
    """Widths drawn uniformly among those that meet the budget."""

    summary = "Control: widths drawn at random, uniformly among all that meet the budget; or the best of several"
    source = "this project: a control, what no search should be worse than"
    deviations = ("Filters are kept: among policies that may drop any, nearly all drop about half.",)
    capabilities = Capabilities(budget="direct", mixed_precision=True, data_parallel=True)
    Options = RandomOptions
    options: RandomOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    def search(self, job: SearchJob) -> SearchResult:
        """Draw, and with several draws compare on validation images.

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
    """All combinations of widths, counted by what they cost.

    Attributes:
        ways: How many lie inside the window, but for the rounding of costs to cells.
    """

    def __init__(self, job: SearchJob, bits: Sequence[int]) -> None:
        self._job = job
        self._pairs = list(product(bits, bits))
        network = job.task.network
        edge = uniform(network, EDGE_BITS)
        rest = sum(job.measure.price_layer(edge, layer) for layer in network.layers if layer.position != "middle")
        self._cell = job.budget / _CELLS
        self._costs = [self._cells(layer) for layer in network.middle]
        slack = len(self._costs)
        first = max(0, int(((1 - job.tolerance) * job.budget - rest) / self._cell) - slack)
        last = int((job.budget - rest) / self._cell) + slack
        self._left = self._count(first, last)
        self.ways = float(self._left[0][0]) if last >= 0 else 0.0

    def _cells(self, layer: LayerShape) -> NDArray[np.int64]:
        """What every pair of widths costs in one layer, in cells."""
        network, measure = self._job.task.network, self._job.measure
        base = uniform(network, EDGE_BITS)
        policies = [base.with_layer(layer.name, weight_bits=w, activation_bits=a) for w, a in self._pairs]
        return np.array([round(measure.price_layer(policy, layer) / self._cell) for policy in policies])

    def _count(self, first: int, last: int) -> list[Floats]:
        """For each layer and each cost so far, in how many ways it and those after it end between two costs."""
        ends = np.zeros(max(last, 0) + 1)
        ends[first:] = 1
        found = [ends]
        for costs in reversed(self._costs):
            after = found[-1]
            ways = np.zeros_like(after)
            for cost in costs[costs < len(after)]:
                ways[: len(after) - cost] += after[cost:]
            found.append(ways)
        return found[::-1]

    def draw(self, noise: np.random.Generator) -> Policy:
        """One policy, every one inside the window with equal odds.

        Raises:
            UnreachableBudgetError: There is none.
        """
        job = self._job
        for _ in range(_TRIES if self.ways else 0):
            policy = _policy(job.task.network, self._pairs_drawn(noise))
            if (1 - job.tolerance) * job.budget <= job.price(policy) <= job.budget:
                return policy
        cheapest = job.price(_policy(job.task.network, [self._pairs[0]] * len(self._costs)))
        raise UnreachableBudgetError("no combination of the candidate widths lies inside the budget's window", cheapest)

    def _pairs_drawn(self, noise: np.random.Generator) -> list[tuple[int, int]]:
        """Widths layer by layer, with the odds that the ways of what follows give them."""
        spent, drawn = 0, []
        for costs, after in zip(self._costs, self._left[1:], strict=True):
            totals = spent + costs
            ways = np.where(totals < len(after), after[np.minimum(totals, len(after) - 1)], 0.0)
            choice = int(noise.choice(len(ways), p=ways / ways.sum()))
            drawn.append(self._pairs[choice])
            spent = int(totals[choice])
        return drawn


def untrained_accuracy(job: SearchJob, policy: Policy) -> float:
    """Top-1 on validation images of the pretrained network under a policy, calibrated and not trained."""
    data, batch = job.task.data, job.schedule.batch_size
    network = compress(job.float_model(), job.task.network, policy)
    calibrate(network, data.calibration_batches(1, batch)[0])
    reestimate_norms(network, data, batch)
    return evaluate(network, data, data.validation).top1


def _policy(network: NetworkShape, pairs: Sequence[tuple[int, int]]) -> Policy:
    """Widths of weights and activations for the searched layers; first and last layer at 8 bits."""
    policy = uniform(network, EDGE_BITS)
    for layer, (weight, activation) in zip(network.middle, pairs, strict=True):
        policy = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
    return policy
