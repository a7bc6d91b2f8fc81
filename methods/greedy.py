"""A baseline: widths by sensitivity, taken away greedily.

Every weight and every input of a searched layer is quantized alone, at every candidate width, and the rise of the
training loss is noted, without training. From the widest candidates everywhere, the step down whose rise costs least
for what it saves is taken until the network fits the budget: the greedy answer to a knapsack. What sensitivities of
single tensors leave out is that errors add up otherwise than losses do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    FULL_PRECISION_BITS,
    Capabilities,
    Decision,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UnreachableBudgetError,
    calibrate,
    compress,
    generator,
    policy_of,
    uniform,
)
from methods.shared.decisions import What, bits_decision

_WHAT: tuple[What, What] = ("weight_bits", "activation_bits")


class GreedyOptions(Options):
    """Options of the greedy baseline.

    Attributes:
        bits: Candidates for weights and activations, rising.
        batches: Training batches on which losses are measured.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (2, 4, 8)
    batches: Annotated[int, Field(ge=1)] = 4


class Greedy(Method):
    """Sensitivity tensor by tensor, then a greedy knapsack."""

    summary = "Sensitivity of every tensor at every width, then steps down in the order of loss per saved cost"
    source = "this project: a baseline, sensitivities and a greedy knapsack as in common use"
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = GreedyOptions
    options: GreedyOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    def search(self, job: SearchJob) -> SearchResult:
        """Measure, then step down.

        Raises:
            UnreachableBudgetError: Even the least widths cost more than the budget.
        """
        network, bits = job.task.network, tuple(sorted(self.options.bits))
        losses = sensitivities(job, bits, self.options.batches)
        widest = [
            bits_decision(layer, what, bits, [-loss for loss in rises], chosen=len(bits) - 1)
            for (layer, what), rises in losses.items()
        ]
        decisions = step_down(job, uniform(network, bits[-1]), widest, losses)
        return SearchResult(
            policy=policy_of(uniform(network, bits[-1]), decisions),
            state=job.pretrained,
            decisions=decisions,
            record={"sensitivity": {f"{layer}.{what}": list(rises) for (layer, what), rises in losses.items()}},
        )


Losses = Mapping[tuple[str, What], Sequence[float]]
"""By layer and tensor: the loss with this tensor alone at every candidate width."""


def sensitivities(job: SearchJob, bits: Sequence[int], batches: int) -> Losses:
    """The training loss with one tensor quantized and everything else at full precision, for every tensor and width."""
    network = job.task.network
    float_policy = uniform(network, FULL_PRECISION_BITS)
    data = list(_batches(job, batches))
    return {
        (layer.name, what): [_loss(job, float_policy.with_layer(layer.name, **{what: width}), data) for width in bits]
        for layer in network.middle
        for what in _WHAT
    }


def _batches(job: SearchJob, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    """The same training batches for every network."""
    order = generator("sensitivity", job.seed)
    stream = job.task.data.training_batches(job.schedule.batch_size, order)
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


@torch.no_grad()
def _loss(job: SearchJob, policy: Policy, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean cross-entropy with the statistics of each batch, since standardised weights change a layer's scale."""
    network: nn.Module = compress(job.float_model(), job.task.network, policy).train()
    calibrate(network, batches[0][0])
    return sum(float(F.cross_entropy(network(images), labels)) for images, labels in batches) / len(batches)


def step_down(job: SearchJob, base: Policy, decisions: Sequence[Decision], losses: Losses) -> list[Decision]:
    """Take the step of least rise in loss for what it saves, until the network fits the budget.

    Raises:
        UnreachableBudgetError: No step is left, and it still costs more.
    """
    current, policy = list(decisions), policy_of(base, decisions)
    while (cost := job.price(policy)) > job.budget:
        steps = [(_rate(job, policy, decision, losses), index) for index, decision in enumerate(current)]
        rate, index = min(steps)
        if rate == float("inf"):
            raise UnreachableBudgetError(f"the least widths cost {cost / job.budget:.2f} × the budget", cost)
        current[index] = replace(current[index], chosen=current[index].chosen - 1)
        policy = policy_of(base, current)
    return current


def _rate(job: SearchJob, before: Policy, decision: Decision, losses: Losses) -> float:
    """The rise of the loss that one step down costs, for each unit that it saves; infinite where there is none."""
    if decision.chosen == 0 or decision.what == "filters":
        return float("inf")
    rises = losses[decision.layer, decision.what]
    layer = job.task.network[decision.layer]
    after = before.with_layer(decision.layer, **{decision.what: decision.options[decision.chosen - 1]})
    saved = job.measure.price_layer(before, layer) - job.measure.price_layer(after, layer)
    return (rises[decision.chosen - 1] - rises[decision.chosen]) / saved if saved > 0 else float("inf")
