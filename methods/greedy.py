"""A baseline: bits by sensitivity, taken away greedily.

Every weight and every input of a searched layer is quantized alone, at every candidate, and the rise of the training
loss is measured, without training. The search starts from the highest candidates everywhere. It takes the step down
that raises the loss least for the cost that it saves, until the network fits the budget: the greedy solution of a
knapsack problem. It ignores that errors of several tensors do not simply add up to a loss.
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
    Options,
    Policy,
    SearchJob,
    SearchResult,
    calibrate,
    compress,
    generator,
    policy_of,
    uniform,
)
from methods.shared.budget import unreachable
from methods.shared.decisions import What, bits_decision
from methods.shared.options import Candidates, ChoosesBits

_WHAT: tuple[What, What] = ("weight_bits", "activation_bits")

Losses = Mapping[tuple[str, What], Sequence[float]]
"""Losses with one tensor quantized alone at every candidate, by layer and tensor."""


class GreedyOptions(Options):
    """Options of the greedy baseline.

    Attributes:
        bits: Candidate bits for weights and activations.
        batches: Number of training batches on which losses are measured.
    """

    bits: Candidates = (2, 4, 8)
    batches: Annotated[int, Field(ge=1)] = 4


class Greedy(ChoosesBits):
    """Sensitivity tensor by tensor, then a greedy knapsack."""

    summary = "Sensitivity of every tensor at every candidate, then steps down in the order of loss per saved cost"
    source = "this project: a baseline, sensitivities and a greedy knapsack as in common use"
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = GreedyOptions
    options: GreedyOptions

    def search(self, job: SearchJob) -> SearchResult:
        """Measure sensitivities, then step down.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        network, bits = job.task.network, tuple(sorted(self.options.bits))
        losses = sensitivities(job, bits, self.options.batches)
        highest = [
            bits_decision(layer, what, bits, [-loss for loss in by_bits], chosen=len(bits) - 1)
            for (layer, what), by_bits in losses.items()
        ]
        decisions = step_down(job, uniform(network, bits[-1]), highest, losses)
        return SearchResult(
            policy=policy_of(uniform(network, bits[-1]), decisions),
            state=job.pretrained,
            decisions=decisions,
            record={"sensitivity": {f"{layer}.{what}": list(by_bits) for (layer, what), by_bits in losses.items()}},
        )


def sensitivities(job: SearchJob, bits: Sequence[int], batches: int) -> Losses:
    """Measure the training loss with one tensor quantized and all others at full precision.

    Args:
        job: Data and pretrained weights.
        bits: Candidate bits, rising.
        batches: Number of training batches.
    """
    network = job.task.network
    float_policy = uniform(network, FULL_PRECISION_BITS)
    data = _batches(job, batches)
    return {
        (layer.name, what): [_loss(job, float_policy.with_layer(layer.name, **{what: b}), data) for b in bits]
        for layer in network.middle
        for what in _WHAT
    }


def _batches(job: SearchJob, count: int) -> Sequence[tuple[Tensor, Tensor]]:
    """Draw the training batches that all networks see."""
    order = generator("sensitivity", job.seed)
    stream = job.task.data.training_batches(job.schedule.batch_size, order)
    return [batch for batch, _ in zip(stream, range(count), strict=False)]


@torch.no_grad()
def _loss(job: SearchJob, policy: Policy, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Compute the mean cross-entropy under a policy.

    Normalisations use the statistics of each batch, since standardised weights change the scale of a layer.
    """
    network: nn.Module = compress(job.float_model(), job.task.network, policy).train()
    calibrate(network, batches[0][0])
    return sum(float(F.cross_entropy(network(images), labels)) for images, labels in batches) / len(batches)


def step_down(job: SearchJob, base: Policy, decisions: Sequence[Decision], losses: Losses) -> list[Decision]:
    """Take the step that raises the loss least for the cost that it saves, until the network fits the budget.

    Args:
        job: Measure and budget.
        base: Policy that the decisions change.
        decisions: Choices to start from.
        losses: Losses of every tensor at every candidate.

    Raises:
        UnreachableBudgetError: No step is left, and the network still costs more than the budget.
    """
    current, policy = list(decisions), policy_of(base, decisions)
    while (cost := job.price(policy)) > job.budget:
        steps = [(_rate(job, policy, decision, losses), index) for index, decision in enumerate(current)]
        rate, index = min(steps)
        if rate == float("inf"):
            raise unreachable(job, "the policy of the lowest candidates", cost)
        current[index] = replace(current[index], chosen=current[index].chosen - 1)
        policy = policy_of(base, current)
    return current


def _rate(job: SearchJob, before: Policy, decision: Decision, losses: Losses) -> float:
    """Compute the rise of the loss in one step down, for each unit of saved cost; infinite where nothing is saved."""
    if decision.chosen == 0 or decision.what == "filters":
        return float("inf")
    by_bits = losses[decision.layer, decision.what]
    layer = job.task.network[decision.layer]
    after = before.with_layer(decision.layer, **{decision.what: decision.options[decision.chosen - 1]})
    saved = job.measure.price_layer(before, layer) - job.measure.price_layer(after, layer)
    return (by_bits[decision.chosen - 1] - by_bits[decision.chosen]) / saved if saved > 0 else float("inf")
