"""A baseline: bits by sensitivity, taken away greedily.

Every weight and every input of a searched layer is quantized alone, at every candidate, and the rise of the training
loss is measured, without training. The search starts from the highest candidates everywhere. It takes the step down
that raises the loss least for the cost that it saves, until the network fits the budget: the greedy solution of a
knapsack problem. It ignores that errors of several tensors do not simply add up to a loss.

The last step can overshoot. If the cost is below the window then, repair goes up again by the step that lowers the
measured loss most. The record lists every step down, with what it cost and what it saved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import Field

from bench.api import (
    FULL_PRECISION_BITS,
    Capabilities,
    Decision,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    policy_of,
    uniform,
)
from methods.shared.budget import unreachable
from methods.shared.decisions import What, bits_decision
from methods.shared.options import Candidates, ChoosesBits
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches

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
    family = "sensitivity"
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
        decisions, steps = step_down(job, uniform(network, bits[-1]), highest, losses)
        return SearchResult(
            policy=policy_of(uniform(network, bits[-1]), decisions),
            state=job.pretrained,
            decisions=decisions,
            record={
                "effort": f"{len(losses) * len(bits)} losses on {self.options.batches} training batches",
                "sensitivity": {f"{layer}.{what}": list(by_bits) for (layer, what), by_bits in losses.items()},
                "steps": [asdict(step) for step in steps],
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step down, which raises the loss least for the cost that it saves.

    Attributes:
        layer, what: Tensor of the layer.
        before, after: Bits before and after.
        rise: Rise of the measured loss.
        saved: Cost that is saved, in the unit of the budget.
        cost: Cost of the network after the step.
    """

    layer: str
    what: What
    before: int
    after: int
    rise: float
    saved: float
    cost: float

    @property
    def rate(self) -> float:
        """Rise of the loss for each unit of saved cost."""
        return self.rise / self.saved


def sensitivities(job: SearchJob, bits: Sequence[int], batches: int) -> Losses:
    """Measure the training loss with one tensor quantized and all others at full precision.

    Args:
        job: Data and pretrained weights.
        bits: Candidate bits, rising.
        batches: Number of training batches.
    """
    float_policy = uniform(job.task.network, FULL_PRECISION_BITS)
    tensors = [(layer.name, what) for layer in job.task.network.middle for what in _WHAT]
    policies = [float_policy.with_layer(layer, **{what: b}) for layer, what in tensors for b in bits]
    measured = PolicyLosses(job, float_policy, bits, sensitivity_batches(job, batches)).of(policies)
    return {tensor: measured[number * len(bits) : (number + 1) * len(bits)] for number, tensor in enumerate(tensors)}


def step_down(
    job: SearchJob, base: Policy, decisions: Sequence[Decision], losses: Losses
) -> tuple[list[Decision], list[Step]]:
    """Take the step that raises the loss least for the cost that it saves, until the network fits the budget.

    Args:
        job: Measure and budget.
        base: Policy that the decisions change.
        decisions: Choices to start from.
        losses: Losses of every tensor at every candidate.

    Returns:
        The choices, and the steps in their order.

    Raises:
        UnreachableBudgetError: No step is left, and the network still costs more than the budget.
    """
    current, policy, taken = list(decisions), policy_of(base, decisions), list[Step]()
    while (cost := job.price(policy)) > job.budget:
        possible = [
            (step, index) for index in range(len(current)) if (step := _step(job, policy, current[index], losses))
        ]
        if not possible:
            raise unreachable(job, "the policy of the lowest candidates", cost)
        step, index = min(possible, key=lambda found: (found[0].rate, found[1]))
        current[index] = replace(current[index], chosen=current[index].chosen - 1)
        policy = policy_of(base, current)
        taken.append(step)
    return current, taken


def _step(job: SearchJob, policy: Policy, decision: Decision, losses: Losses) -> Step | None:
    """Describe the step down of a decision; `None` at the lowest candidate, and where nothing is saved."""
    if decision.chosen == 0 or decision.what == "filters":
        return None
    lower, layer = decision.chosen - 1, job.task.network[decision.layer]
    after = policy.with_layer(layer.name, **{decision.what: decision.options[lower]})
    saved = job.measure.price_layer(policy, layer) - job.measure.price_layer(after, layer)
    by_bits = losses[layer.name, decision.what]
    if saved <= 0:
        return None
    return Step(
        layer=layer.name,
        what=decision.what,
        before=decision.options[decision.chosen],
        after=decision.options[lower],
        rise=by_bits[lower] - by_bits[decision.chosen],
        saved=saved,
        cost=job.price(after),
    )
