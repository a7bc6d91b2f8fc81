"""DQ, differentiable quantization (Uhlich et al. 2020, arXiv 1905.11452), with its case U3: learned step and range.

Every tensor has a step d and a range q_max, from which its width follows (Section 2; b_w has a bit for the sign):

    d̂ = 2^⌊log2 d⌉        q̂ = n·d̂, n = ⌊q_max/d̂⌉        Q(x) = sign(x) · min(d̂·⌊|x|/d̂ + 1/2⌋, q̂)
    b_w = ⌈log2(q̂/d̂ + 1) + 1⌉        b_x = ⌈log2(q̂/d̂ + 1)⌉

⌊·⌉ and ⌈·⌉ are the identity in the backward pass. Then dQ/dd̂ = (Q(x) − x)/d̂ inside the range and 0 outside, dQ/dq̂ is
0 inside and sign(x) outside; and since widths have gradients, so has the cost. The paper adds a squared hinge on
memory to the loss; as in SBS's comparison it is put on what the budget limits, here relative to the budget:

    L = L_ce + λ · max(0, C/B − 1)²

C is the exact cost of the policy that the steps and ranges stand for now. With `match = "lambda"` the term is λ log C
as for all methods.

Constants are those of the authors' code (`sony/ai-research-code`, folder `mixed-precision-dnns`), the first values
those of the SBS paper's Appendix F, which are the same.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.api import (
    Capabilities,
    Knob,
    Match,
    Method,
    NetworkShape,
    Policy,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    sgd,
    uniform,
    weight_groups,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import positive
from methods.shared.quantizers import learned_range
from methods.shared.quantizers.learned_range import (
    LearnedQuantizer,
    RangeNetwork,
    WidthCandidates,
    WidthOptions,
    bounded,
    least_error,
    levels_of,
    passed_on,
    quantize,
    range_optimizer,
)

_STEPS = (2.0**-8, 1.0)
"""Bounds of d (authors' code)."""
_LEAST_RANGE, _LARGEST_RANGE_SIGNED, _LARGEST_RANGE = 2.0**-8, 127.0, 255.0
"""Bounds of q_max (authors' code)."""
_FIRST_STEP_OF_INPUTS = 2.0**-3
"""Appendix F of the SBS paper."""
_ROUNDED_DOWN = 4
"""Up to this width the first step of weights is rounded down to a power of two, above it up (authors' code)."""
_LEARNED = ("clip_step", "clip_range")
_CALIBRATED_POWERS = 7
"""How many powers of two are tried for the step of a tensor whose width is fixed."""

STRENGTH = Knob(low=3.0, high=3_000.0, log=True)
"""Gradients are cut off, so that λ says which of cost and task decides a step's sign, not how far it goes: from 10 on,
searches of ResNet-8 on digits end within a few per cent of budgets of 3 and 4 bit. The paper's 0.1 on its targets of
some 70 and 92 KB is 500 to 850 relative to them."""
LOG_STRENGTH = Knob(low=0.01, high=1.0, log=True)
"""On digits 0.01 costs twice what 4 bits do, 1 costs half."""


class DqOptions(WidthOptions):
    """Options of DQ.

    Attributes:
        bits: Candidate widths for weights and activations, rising. The paper has all from 2 to 8; a width between two
            of others counts as the higher.
        start_bits: The width at which steps and ranges start (Appendix F of the SBS paper).
        start: First values by Appendix F of the SBS paper, or those of least squared error on a batch.
        range_travel: Rate × updates of d and q_max; the rate follows from the length of the search. Our choice: the
            paper's rate of 0.03 over 80 epochs of 391 updates is a way that no short search can go, and at the rate of
            the weights nothing would move in one.
    """

    bits: WidthCandidates = (2, 3, 4, 5, 6, 7, 8)
    start_bits: Annotated[int, Field(ge=2, le=16)] = 4
    start: Literal["paper", "calibrated"] = "paper"
    range_travel: Annotated[float, Field(gt=0)] = 4.0


def grid(step: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """d̂, the power of two nearest to d, and n, how often it goes into q_max, once at least.

    Args:
        step: d, of any shape.
        limit: q_max, of the same shape.
    """
    exponent = torch.log2(step)
    power = torch.exp2(passed_on(torch.round(exponent), exponent))
    count = limit / power
    return power, passed_on(torch.round(count).clamp_min(1), count)


class DqQuantizer(LearnedQuantizer):
    """Q of case U3. In fine-tuning its width is fixed: q_max takes no more levels than there are.

    Args:
        bits: Of the start of a search, or fixed.
        kind: Weights or activations.
        searching: Whether the width is still to be found.
        start: How a search starts; see `DqOptions`.
    """

    def __init__(
        self, *, bits: int, kind: Kind, searching: bool = False, start: Literal["paper", "calibrated"] = "calibrated"
    ) -> None:
        super().__init__(bits=bits, kind=kind, searching=searching)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        if self.searching:
            step, count = grid(self.clip_step, self.clip_range)
        else:
            bound = positive(self.clip_step)
            step, count = grid(positive(bounded(self.clip_step, bound)), positive(bounded(self.clip_range, bound)))
            count = count.clamp_max(levels_of(self.bits, self.signed))
        return quantize(x, step, step * count, signed=self.signed)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set d and q_max for the width, with all its levels."""
        levels = levels_of(self.bits, self.signed)
        step = self._first_step(x) if self.start == "paper" else self._best_step(x)
        self.clip_step.fill_(step)
        self.clip_range.fill_(step * levels)

    def _first_step(self, x: Tensor) -> float:
        if not self.signed:
            return _FIRST_STEP_OF_INPUTS
        rounded = math.floor if self.bits <= _ROUNDED_DOWN else math.ceil
        return float(2.0 ** rounded(self._exponent(x)))

    def _exponent(self, x: Tensor) -> float:
        """Log2 of the step that reaches the largest value."""
        return math.log2(max(float(x.abs().max()), _LEAST_RANGE) / levels_of(self.bits, self.signed))

    def _best_step(self, x: Tensor) -> float:
        """The power of two with the least squared error."""
        levels, highest = levels_of(self.bits, self.signed), math.ceil(self._exponent(x))
        steps = [2.0 ** (highest - down) for down in range(_CALIBRATED_POWERS)]
        return least_error(x, [(step, step * levels) for step in steps], signed=self.signed)[0]


def dq_quantizer(*, bits: int, kind: Kind, normalized: bool) -> DqQuantizer:
    """DQ's quantizer at a fixed width; weights are not standardised, their range is learned."""
    return DqQuantizer(bits=bits, kind=kind)


class DqNetwork(RangeNetwork):
    """A model whose searched layers have the quantizers of DQ."""

    def _grid(self) -> tuple[Tensor, Tensor]:
        return grid(self.stacked("clip_step"), self.stacked("clip_range"))

    def continuous_widths(self) -> Tensor:
        """Log2(q̂/d̂ + 1), and 1 more for weights, shape (2, L), differentiable."""
        _, count = self._grid()
        return torch.log2(count + 1) + self.signed

    def widths(self) -> Tensor:
        """The lowest candidates that hold all levels, with the gradient of what is rounded up."""
        chosen = self.candidates[self.chosen()]
        return passed_on(chosen, self.continuous_widths().double())

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """By counting levels, which are whole numbers: logarithms of them need not be exact."""
        _, count = self._grid()
        held = levels_of(self.candidates[:-1], self.signed.unsqueeze(2))
        return (count.unsqueeze(2) > held).sum(2)

    @torch.no_grad()
    def margins(self) -> Tensor:
        """With q_max as it is before it is rounded to a multiple of d̂."""
        step, limit = self.stacked("clip_step"), self.stacked("clip_range")
        power, _ = grid(step, limit)
        widths = torch.log2(limit / power + 1).double() + self.signed
        return widths.unsqueeze(2) - self.candidates[:-1]

    @torch.no_grad()
    def project(self) -> None:
        """Clip d and q_max to their bounds, swap them where they cross, and keep widths between the candidates."""
        step = self.stacked("clip_step").clamp(*_STEPS)
        largest = torch.where(self.signed, _LARGEST_RANGE_SIGNED, _LARGEST_RANGE)
        limit = self.stacked("clip_range").clamp_min(_LEAST_RANGE).minimum(largest)
        step, limit = torch.minimum(step, limit), torch.maximum(step, limit)
        power, _ = grid(step, limit)
        fewest, most = (levels_of(self.bits[end], self.signed) for end in (0, -1))
        self.fill("clip_step", step)
        self.fill("clip_range", torch.clamp(limit, fewest * power, most * power))

    @torch.no_grad()
    def bound_gradients(self) -> None:
        """|grad d| ≤ d and |grad q_max| ≤ d (authors' code)."""
        for quantizer in self.quantizers:
            bound = quantizer.clip_step.detach()
            for parameter in (quantizer.clip_step, quantizer.clip_range):
                if parameter.grad is not None:
                    parameter.grad.clamp_(-bound, bound)


def squared_hinge(cost: Tensor, budget: float) -> Tensor:
    """max(0, C/B − 1)²."""
    return F.relu(cost / budget - 1).square()


class Dq(Method):
    """DQ with case U3."""

    summary = "DQ: learned step and range of every tensor, widths follow from them, squared hinge on the cost"
    source = "Uhlich et al., Mixed Precision DNNs: All you need is a good parametrization, ICLR 2020, arXiv 1905.11452"
    deviations = (
        "The squared hinge is on what the budget limits, one for weights and inputs together, relative to the budget; "
        "the paper has one on the memory of each.",
        'With match = "lambda" the term is λ log C, as for all methods.',
        "The cost's slope at a width is that of the step down to the next candidate; the paper's is a smooth one.",
        "First and last layer have 8 bits, and biases are not quantized; the paper learns the widths of all.",
        "Widths stay between the lowest and the highest candidate; the paper's form can exceed 8 bits.",
        "Steps and ranges have a rate of their own, which follows from the length of the search.",
        "The network is fine-tuned at the found widths like all others; the paper trains once.",
        "Where an input can be negative it has a learned offset, as in SBS's Appendix G.",
    )
    capabilities = Capabilities(
        budget="strength", mixed_precision=True, own_quantizer=True, one_stage=True, data_parallel=True
    )
    Options = DqOptions
    options: DqOptions

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """λ of the squared hinge, or of λ log C."""
        return {"strength": STRENGTH if match == "hinge" else LOG_STRENGTH}

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    @property
    def quantizer(self) -> QuantizerFactory:
        """Case U3 at a fixed width."""
        return dq_quantizer

    def network(self, job: SearchJob) -> DqNetwork:
        """The network that is searched in, from the pretrained weights."""
        make = partial(DqQuantizer, start=self.options.start)
        return DqNetwork(job, self.options.bits, make, start_bits=self.options.start_bits)

    def search(self, job: SearchJob) -> SearchResult:
        """Train weights, steps and ranges together, then read the widths off."""
        network = self.network(job)
        start_top1 = learned_range.start(job, network)
        of_ranges, rates = range_optimizer(job, network, _LEARNED, self.options.range_travel)
        of_weights = sgd(weight_groups(network.model, exclude=network.parameters(*_LEARNED)), job.schedule)
        optimizers = {"of_weights": of_weights, "of_ranges": of_ranges}
        history = learned_range.train(job, network, optimizers, rates, penalty=lambda: penalty(job, network))
        decisions = network.decisions()
        return SearchResult(
            policy=network.policy(decisions),
            state=network.state(job.pretrained),
            quantizers=network.learned(),
            decisions=decisions,
            record={
                "start_top1": start_top1,
                "range_lr": self.options.range_travel / job.steps,
                "history": history.entries,
                **network.figures(),
            },
        )


def penalty(job: SearchJob, network: DqNetwork) -> Tensor:
    """What is added to the cross-entropy, a scalar."""
    cost = network.relaxed_cost()
    if job.match == "hinge":
        return job.knobs["strength"] * squared_hinge(cost, job.budget)
    return job.cost_term()(cost, cost.detach())
