"""DQ, differentiable quantization (Uhlich et al. 2020, arXiv 1905.11452), in its case U3: learned step and range.

Every tensor has a step d and a range q_max, from which its number of bits follows (Section 2; a weight needs one bit
more, for its sign):

    d̂ = 2^⌊log2 d⌉        n = ⌊q_max/d̂⌉        Q(x) = sign(x) · d̂ · ⌊min(|x|, q_max)/d̂ + 1/2⌋
    b_w = ⌈log2(n + 1) + 1⌉        b_x = ⌈log2(n + 1)⌉

In the backward pass ⌊·⌉ and ⌈·⌉ are the identity. With u = min(|x|, q_max), dQ/dd̂ = (Q(x) − sign(x)·u)/d̂, and dQ/dq_max
is 0 inside the range and sign(x) outside (`methods.shared.quantizers.learned_range`). Bits have gradients too, and
through them the cost. The paper adds a squared hinge on memory to the loss. Here, as in SBS's comparison, the hinge is
on what the budget B limits, relative to the budget:

    L = L_ce + λ/2t · max(0, C/B − 1)²

C is the exact cost of the present bits (`methods.shared.networks.ranges`). The relative width t of the budget's window
(0.03) gives λ the unit that it has in all methods: just above the window the term is as steep as λ log C. The term has
this form with `match = "hinge"`; in the other modes it is λ log C, as for all methods. Weights, steps and ranges learn
in the same step.

Constants are those of the authors' code (`sony/ai-research-code`, folder `mixed-precision-dnns`).
"""

import math
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.api import (
    Capabilities,
    CostTerm,
    Options,
    QuantizerFactory,
    SearchJob,
    clamped,
    sgd,
    weight_groups,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import positive
from methods.shared.history import History
from methods.shared.networks.ranges import RangeNetwork, SignedCandidates, range_optimizer
from methods.shared.options import ChoosesBits
from methods.shared.quantizers.learned_range import (
    LearnedQuantizer,
    bounded,
    least_error,
    levels_of,
    passed_on,
    quantize,
)
from methods.shared.quantizers.starts import ClipInit
from methods.shared.training import TrainingMethod, train_jointly

_STEPS = (2.0**-8, 1.0)
"""Bounds of d (authors' code)."""
_LEAST_RANGE, _LARGEST_RANGE_SIGNED, _LARGEST_RANGE = 2.0**-8, 127.0, 255.0
"""Bounds of q_max (authors' code)."""
_FIRST_STEP_OF_INPUTS = 2.0**-3
"""First d of inputs (Appendix F of the SBS paper)."""
_ROUNDED_DOWN = 4
"""Largest number of bits at which the first step of weights is rounded down to a power of two; above it is rounded up
(authors' code)."""
_LEARNED = ("clip_step", "clip_range")
_CALIBRATED_POWERS = 7
"""Number of powers of two that are tried for the step of a tensor whose number of bits is fixed."""


class DqOptions(Options):
    """Options of DQ.

    Attributes:
        bits: Candidate bits for weights and activations, rising. The paper has all from 2 to 8. A tensor whose bits lie
            between two candidates has the higher one.
        start_bits: Bits at which steps and ranges start (Appendix F of the SBS paper).
        clip_init: First values of steps and ranges: the power of two with the least squared error on a batch
            ("calibrated"), or those of Appendix F of the SBS paper, which are the authors' ("paper").
        range_travel: Learning rate of d and q_max × number of updates. The rate follows from the length of the search.
            This is our choice. The paper's product, 0.03 over 80 epochs of 391 updates, is out of reach of a short
            search, and at the rate of the weights nothing would move in one.
    """

    bits: SignedCandidates = (2, 3, 4, 5, 6, 7, 8)
    start_bits: Annotated[int, Field(ge=2, le=16)] = 4
    clip_init: ClipInit = "calibrated"
    range_travel: Annotated[float, Field(gt=0)] = 4.0


def power_of_two(step: Tensor) -> Tensor:
    """Compute d̂, the power of two nearest to d, of any shape."""
    exponent = torch.log2(step)
    return torch.exp2(passed_on(torch.round(exponent), exponent))


def grid(step: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Compute d̂ and n = ⌊q_max/d̂⌉, at least 1. Bits follow from n; values are clipped at q_max itself.

    Args:
        step: Steps d, of any shape.
        limit: Ranges q_max, of the same shape.
    """
    power = power_of_two(step)
    count = limit / power
    return power, passed_on(torch.round(count.detach()).clamp_min(1), count)


class DqQuantizer(LearnedQuantizer):
    """Q of case U3. In fine-tuning the number of bits is fixed, and with it the largest q_max.

    Args:
        bits: Number of bits at which a search starts, or the fixed number.
        kind: Weights or activations.
        searching: Whether the number of bits is searched.
        clip_init: First values of a search; see `DqOptions`.
    """

    def __init__(self, *, bits: int, kind: Kind, searching: bool = False, clip_init: ClipInit = "calibrated") -> None:
        super().__init__(bits=bits, kind=kind, searching=searching)
        self.clip_init = clip_init

    def forward(self, x: Tensor) -> Tensor:
        """Compute Q(x) for a tensor of any shape."""
        step, limit = (power_of_two(self.clip_step), self.clip_range) if self.searching else self._fixed_grid()
        return quantize(x, step, limit, signed=self.signed)

    def _fixed_grid(self) -> tuple[Tensor, Tensor]:
        """Return d̂, and q_max between one step and all steps that the number of bits has."""
        bound = positive(self.clip_step)
        step = power_of_two(positive(bounded(self.clip_step, bound)))
        limit = positive(bounded(self.clip_range, bound))
        return step, clamped(limit, step, step * levels_of(self.bits, self.signed))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set d and q_max for a tensor of any shape, with all levels of `bits`."""
        levels = levels_of(self.bits, self.signed)
        step = self._first_step(x) if self.clip_init == "paper" else self._best_step(x)
        self.clip_step.fill_(step)
        self.clip_range.fill_(step * levels)

    def _first_step(self, x: Tensor) -> float:
        if not self.signed:
            return _FIRST_STEP_OF_INPUTS
        rounded = math.floor if self.bits <= _ROUNDED_DOWN else math.ceil
        return float(2.0 ** rounded(self._exponent(x)))

    def _exponent(self, x: Tensor) -> float:
        """Compute log2 of the step that reaches the largest value."""
        return math.log2(max(float(x.abs().max()), _LEAST_RANGE) / levels_of(self.bits, self.signed))

    def _best_step(self, x: Tensor) -> float:
        """Choose the power of two with the least squared error."""
        levels, highest = levels_of(self.bits, self.signed), math.ceil(self._exponent(x))
        steps = [2.0 ** (highest - down) for down in range(_CALIBRATED_POWERS)]
        return least_error(x, [(step, step * levels) for step in steps], signed=self.signed)[0]


def dq_quantizer(*, bits: int, kind: Kind, normalized: bool) -> DqQuantizer:
    """Make DQ's quantizer for a fixed number of bits; weights are not standardised, since their range is learned."""
    return DqQuantizer(bits=bits, kind=kind)


class DqNetwork(RangeNetwork):
    """A model whose searched layers have the quantizers of DQ."""

    def _grid(self) -> tuple[Tensor, Tensor]:
        return grid(self.stacked("clip_step"), self.stacked("clip_range"))

    def continuous_bits(self) -> Tensor:
        """Compute log2(n + 1), and 1 more for weights, shape (2, L), differentiable."""
        _, count = self._grid()
        return torch.log2(count + 1) + self.signed

    def relaxed_bits(self) -> Tensor:
        """Compute b: the lowest candidate that has all levels, with the gradient of the continuous bits."""
        chosen = self.candidates[self.chosen()]
        return passed_on(chosen, self.continuous_bits().double())

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """Find the lowest candidate by counting levels: these are whole numbers, and their logarithms need not be."""
        _, count = self._grid()
        held = levels_of(self.candidates[:-1], self.signed.unsqueeze(2))
        return (count.unsqueeze(2) > held).sum(2)

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Compute distances to the borders of the candidates, in bits, with q_max before it is rounded to n·d̂.

        A candidate ends half a level above its last one, where n is rounded to the next. With the last level as the
        border, choices within this half would have a margin of the wrong sign.
        """
        step, limit = self.stacked("clip_step"), self.stacked("clip_range")
        power, _ = grid(step, limit)
        borders = levels_of(self.candidates[:-1], self.signed.unsqueeze(2)) + 0.5
        return torch.log2((limit / power).double() + 1).unsqueeze(2) - torch.log2(borders.double() + 1)

    @torch.no_grad()
    def project(self) -> None:
        """Clip d and q_max to their bounds, swap them where d > q_max, and keep bits between the candidates."""
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
        """Clip gradients so that |grad d| ≤ d and |grad q_max| ≤ d (authors' code)."""
        for quantizer in self.quantizers:
            bound = quantizer.clip_step.detach()
            for parameter in (quantizer.clip_step, quantizer.clip_range):
                if parameter.grad is not None:
                    parameter.grad.clamp_(-bound, bound)


def squared_hinge(cost: Tensor, budget: float, tolerance: float) -> Tensor:
    """Compute max(0, C/B − 1)² / 2t; at 1 + t times the budget its slope is that of C/B."""
    return F.relu(cost / budget - 1).square() / (2 * tolerance)


def penalty(term: CostTerm, network: DqNetwork, tolerance: float) -> Tensor:
    """Compute the term that is added to the cross-entropy, a scalar."""
    cost = network.relaxed_cost()
    if term.mode == "hinge":
        return term.weight(cost.detach()) * squared_hinge(cost, term.budget, tolerance)
    return term(cost, cost.detach())


class Dq(TrainingMethod[DqNetwork], ChoosesBits):
    """DQ with case U3."""

    summary = "DQ: learned step and range of every tensor, from which its number of bits follows"
    family = "learned ranges"
    source = "Uhlich et al., Mixed Precision DNNs: All you need is a good parametrization, ICLR 2020, arXiv 1905.11452"
    deviations = (
        "One squared hinge is on what the budget limits, for weights and inputs together and relative to the budget; "
        "the paper has one hinge on the memory of weights and one on the memory of inputs.",
        "The squared hinge is used with match = 'hinge' alone; with match = 'dual', the default, and with match = "
        "'lambda' the term is λ log C, as for all methods.",
        "The slope of the cost at a candidate is that of the step down to the next one; the paper's cost is smooth.",
        "The first and the last layer have 8 bits, in the search with the common quantizer, and biases are not "
        "quantized; the paper learns the bits of all.",
        "Bits stay between the lowest and the highest candidate; the paper's form can exceed 8 bits.",
        "Weights have the learning rate of the schedule; steps and ranges have one of their own, which follows from "
        "the length of the search. The authors' code has one rate for all.",
        "The network is fine-tuned at the found bits like all others; the paper trains once.",
        "An input that can be negative has a learned offset, as in SBS's Appendix G.",
        "Steps and ranges start at the least squared error on one batch, like the clip values of all methods; "
        "clip_init = 'paper' starts them as the paper does.",
        "Steps and ranges have no weight decay, like the clip values of all methods; the authors' code decays all "
        "parameters by 2e-4.",
    )
    capabilities = Capabilities(
        budget="strength", mixed_precision=True, own_quantizer=True, one_stage=True, data_parallel=True
    )
    Options = DqOptions
    options: DqOptions

    @property
    def quantizer(self) -> QuantizerFactory:
        """Case U3 at a fixed number of bits."""
        return dq_quantizer

    def network(self, job: SearchJob) -> DqNetwork:
        """Build the network of the search from the pretrained weights."""
        make = partial(DqQuantizer, clip_init=self.options.clip_init)
        return DqNetwork(job, self.options.bits, make, start_bits=self.options.start_bits)

    def rates(self, job: SearchJob) -> dict[str, float]:
        """State the learning rate of steps and ranges."""
        return {"range_lr": self.options.range_travel / job.steps}

    def train(self, job: SearchJob, network: DqNetwork) -> History:
        """Train weights, steps and ranges together."""
        of_ranges, rates = range_optimizer(job, network, _LEARNED, self.options.range_travel)
        of_weights = sgd(weight_groups(network.model, exclude=network.parameters(*_LEARNED)), job.schedule)
        optimizers = {"of_weights": of_weights, "of_ranges": of_ranges}
        term = job.cost_term()
        return train_jointly(
            job, network, optimizers, penalty=lambda: penalty(term, network, job.tolerance), rates=rates
        )
