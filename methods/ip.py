"""Measured sensitivities and an exact integer programme (Hubara et al. 2020, arXiv 2006.10518).

The network starts at the highest candidates in all layers. Every layer alone is given every other choice of bits, and
the rise of the training loss is measured, without training. The programme takes one choice a layer, of least total rise
within the budget:

    d_l(c) = max(L(layer l at c, all others at the highest bits) − L(all at the highest bits), 1e-6)
    min Σ_l d_l(c_l)  subject to  Σ_l cost_l(c_l) ≤ budget.

The highest bits have d = 0. So does the authors' code, github.com/itayhubara/CalibTIP.

In the paper the weights and the input of a layer have the same bits (`activations = "tied"`). By default all pairs of
bits are measured, so that the method chooses among the same policies as the others here.
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from bench.api import Capabilities, Options, SearchJob, SearchResult, uniform
from methods.shared.allocation import Group, Pair, allocate, tied
from methods.shared.options import Candidates, ChoosesBits
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches

LEAST_RISE = 1e-6
"""Rise of a choice whose measured loss is no higher than that of the highest bits (the code)."""


class IpOptions(Options):
    """Options of the integer programme over measured losses.

    Attributes:
        bits: Candidate bits for weights and activations (4 and 8 in the paper).
        activations: Whether all pairs of bits of a layer's weights and input are measured ("paired"), or the input has
            the bits of the weights ("tied", as published).
        batches: Number of training batches on which losses are measured.
    """

    bits: Candidates = (2, 4, 8)
    activations: Literal["paired", "tied"] = "paired"
    batches: Annotated[int, Field(ge=1)] = 4


class Ip(ChoosesBits):
    """Sensitivity layer by layer, then an exact knapsack."""

    summary = "IP: rise of the loss with one layer at fewer bits, measured, and bits by an exact integer programme"
    family = "sensitivity"
    source = (
        "Hubara, Nahshan, Hanani, Banner, Soudry 2020, Improving Post Training Neural Quantization: Layer-wise "
        "Calibration and Integer Programming, arXiv 2006.10518; github.com/itayhubara/CalibTIP"
    )
    deviations = (
        "Pairs of bits of a layer's weights and input are measured and chosen together; activations = 'tied' gives the "
        "input the bits of the weights, as published.",
        "Candidates are by default 2, 4 and 8 bits; most of the paper has 4 and 8.",
        "Losses are of four training batches with labels; the paper's are of a calibration set of about 1,000 images.",
        "Quantizers are the common ones, at the least squared error. The paper's layer-wise calibration (AdaQuant) and "
        "its tuning of biases and normalisations are left out, since all networks are fine-tuned here.",
        "Normalisations use the statistics of each batch while losses are measured.",
        "Where the best policy costs less than the window of the budget, the best one inside the window is taken.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = IpOptions
    options: IpOptions

    def search(self, job: SearchJob) -> SearchResult:
        """Measure the rise of the loss for every choice in every layer, then solve the integer programme.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        bits = tuple(sorted(self.options.bits))
        pairs = tied(bits) if self.options.activations == "tied" else list(product(bits, bits))
        base, measured = measured_rises(job, pairs, self.options.batches)
        policy = allocate(job, measured, pairs)
        count = 1 + len(measured) * (len(pairs) - 1)
        images = self.options.batches * job.schedule.batch_size
        return SearchResult(
            policy=policy,
            state=job.pretrained,
            record={
                "effort": f"{count} losses on {self.options.batches} training batches",
                "evaluations": count,
                "images": images,
                "loss_at_highest_bits": base,
                "pairs": [list(pair) for pair in pairs],
                "rises": {name: list(rises) for (name,), rises in measured.items()},
            },
        )


def measured_rises(job: SearchJob, pairs: Sequence[Pair], batches: int) -> tuple[float, dict[Group, list[float]]]:
    """Measure d for every pair of bits in every searched layer.

    Args:
        job: Data and pretrained weights.
        pairs: Pairs of bits of weights and inputs; the last one is that of the network in which others are measured.
        batches: Number of training batches.

    Returns:
        The loss with the last pair in all layers, and d of every pair by layer.
    """
    names = [layer.name for layer in job.task.network.middle]
    highest = uniform(job.task.network, pairs[-1][0])
    policies = [highest] + [
        highest.with_layer(name, weight_bits=weight, activation_bits=activation)
        for name in names
        for weight, activation in pairs[:-1]
    ]
    used = {width for pair in pairs for width in pair}
    base, *losses = PolicyLosses(job, highest, sorted(used), sensitivity_batches(job, batches)).of(policies)
    rises = [max(loss - base, LEAST_RISE) for loss in losses]
    count = len(pairs) - 1
    return base, {(name,): [*rises[row * count : (row + 1) * count], 0.0] for row, name in enumerate(names)}
