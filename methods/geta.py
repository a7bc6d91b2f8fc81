"""GETA's optimizer QASSO: groups of filters fade away while bits are learned (Qu et al. 2025, arXiv 2502.16638).

Every tensor is quantized with a learned step d, range q and exponent t, from which its continuous bits follow, as in
DJPQ (`methods.shared.quantizers.companded`):

    Q(x) = sign(x) · d · ⌊min(|x|, q)^t / d⌉        b = log2(q^t/d + 1) + 1        (inputs: no sign, no + 1)

The problem is to minimise the loss so that K groups of filters are zero and all bits lie in [b_l, b_u]. There is no
cost term: the sparsity K and the bound b_u decide what the network costs. One training has four stages:

1. *Warm-up*: weights and quantizers learn.
2. *Projection*: after each update d is clipped to [d(b_u), d(b_l)], d(b) = q^t/(2^(b−1) − 1), while b_u falls in equal
   steps, one at the end of each period but the last.
3. *Joint stage*: at the start of a period, the groups of least saliency become redundant (`methods.shared.removal`),
   and shrink while d is chosen so that the loss falls (`methods.shared.forgetting`).
   After each update x ← x − lr·g, the redundant part of a layer forgets:

       x ← x − γ·Q(x)        (biases and normalisations: x − γ·x)

   Write Q = c + d·r, with c = sign(x) min(|x|, q)^t and r the rounding error in steps. Then the loss changes by
   −lr‖g‖² − γ⟨g, c⟩ − γ d⟨g, r⟩ to first order, and γ and d are chosen so that it falls:

       γ = 1/(P − s), linear to zero in a period of P updates      where ⟨g, c⟩ ≥ 0
       γ = −(1 − η) lr‖g‖²/⟨g, c⟩                                   else
       d = d(b_l)                                                   where ⟨g, r⟩ ≥ 0
       d = −ζ η lr‖g‖²/(γ⟨g, r⟩), at most d(b_l)                    else; while d < d(b_u): γ ← 0.8 γ, d ← d/0.8

   With both products negative, the loss falls by η (1 − ζ) lr‖g‖². At the end of a period its groups are zero.
4. *Fixed bits*: bits are rounded, d follows from q, and training goes on.

*The budget.* Pairs of K and b_u that meet a budget B lie on a curve, along which the harness tunes: b_u is the fewest
bits whose full network costs more than B, plus a headroom. Then groups are removed on the way from the cost at b_u down
to B, so that K follows from b_u, and a larger headroom means a higher sparsity. At the start of the last period, bits
are rounded, so that the groups of this period can be chosen until the cost is in the window. If the rounded bits cost
less than B by themselves, b_l rises from candidate to candidate until they do not. So one search lands, unless groups
are larger than the window.

"The code" is that of the authors, github.com/microsoft/geta.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    Decision,
    Knob,
    NetworkShape,
    Options,
    Policy,
    QuantizedLayer,
    QuantizerFactory,
    SearchJob,
    policy_of,
    sgd,
    uniform,
    weight_groups,
)
from bench.spec.schema import Match
from methods.shared.budget import unreachable
from methods.shared.forgetting import forget
from methods.shared.history import History
from methods.shared.networks.companded import COMPANDED, LINEAR, CompandedNetwork
from methods.shared.networks.ranges import SignedCandidates, range_optimizer
from methods.shared.quantizers.companded import CompandedQuantizer, companded_quantizer
from methods.shared.quantizers.starts import ClipInit
from methods.shared.removal import Periods, Removal, groups_of
from methods.shared.space import ChoosesFromSpace, SearchSpace, cheapest_policy, grouped_space
from methods.shared.training import TrainingMethod, train_jointly

EXPONENTS = (0.5, 2.0)
"""Bounds of learned exponents, as for DJPQ."""
HEADROOM = Knob(low=0.0, high=3.0)
"""Candidates, rounded down, by which b_u exceeds the fewest bits that take filters to be removed. At the cost of
uniform 4 bit, 0, 1 and 2 save a share of about 0.36, 0.56 and 0.67 by filters; the code's scripts for ResNet-56 have
sparsities of 0.1, 0.3, 0.5 and 0.7."""
COMPRESSION = Knob(low=1.0, high=100.0, log=True)
"""Ratio of the costs of the costliest policy and of the wanted one, where the budget does not give it."""


class GetaOptions(Options):
    """Options of GETA.

    Attributes:
        bits: Candidate bits for weights and activations, rising. b_l is the first of them, and b_u starts at the last.
            The one nearest to the continuous bits is chosen.
        upper_bits: b_u in the end, one of the candidates; lower where filters cannot save enough for the budget. When
            absent, the harness tunes it.
        group_size: Number of filters of a group; as the model states when absent.
        exponent: Whether t is learned, or stays 1, as by default in the code.
        clip_init: First ranges: of the least squared error ("calibrated"), or the largest values, as the code has them
            for weights ("paper").
        warmup, projected_after, pruned_after: Shares of the search at which stages 1, 2 and 3 end.
        periods: Number of periods of stages 2 and 3 each (5 in the code's example); fewer in a stage with fewer
            updates.
        range_travel: Learning rate of d, q and t × number of updates. The rate follows from the length of the search,
            and gradients are limited, as for DJPQ.
    """

    bits: SignedCandidates = (2, 3, 4, 5, 6, 7, 8)
    upper_bits: int | None = None
    group_size: Annotated[int, Field(ge=1)] | None = None
    exponent: Literal["linear", "learned"] = "linear"
    clip_init: ClipInit = "calibrated"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    projected_after: Annotated[float, Field(gt=0, lt=1)] = 0.4
    pruned_after: Annotated[float, Field(gt=0, le=1)] = 0.7
    periods: Annotated[int, Field(ge=1)] = 5
    range_travel: Annotated[float, Field(gt=0)] = 4.0

    @model_validator(mode="after")
    def _upper_bits_are_a_candidate(self) -> Self:
        if self.upper_bits is not None and self.upper_bits not in self.bits:
            raise ValueError(f"upper_bits is {self.upper_bits}; it must be one of bits, {list(self.bits)}")
        return self

    @model_validator(mode="after")
    def _stages_have_time(self) -> Self:
        if not self.warmup < self.projected_after < self.pruned_after:
            raise ValueError(
                f"warmup {self.warmup}, projected_after {self.projected_after} and pruned_after {self.pruned_after} "
                "must rise, e.g. 0.1, 0.4 and 0.7: they are the shares of the search at which stages end"
            )
        return self


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of a search.

    Attributes:
        projection: Periods in which b_u falls.
        joint: Periods in which groups are removed.
        bits: b_u at first and in the end.
    """

    projection: Periods
    joint: Periods
    bits: tuple[int, int]

    @classmethod
    def of(cls, steps: int, options: GetaOptions, bits: tuple[int, int]) -> Self:
        """Divide a search of so many updates."""
        shares = options.warmup, options.projected_after, options.pruned_after
        projection, joint = (Periods.of(steps, ends, options.periods) for ends in (shares[:2], shares[1:]))
        return cls(projection, joint, bits)

    def upper_bits(self, step: int) -> float:
        """Return b_u in an update: it falls at the end of each period but the last, and has fallen before stage 3."""
        first, last = self.bits
        drops, done = self.projection.count - 1, (step + 1 - self.projection.start) // self.projection.length
        if step + 1 >= self.joint.start or done >= max(1, drops):
            return float(last)
        return first - (first - last) * max(0, done) / drops if drops else float(first)


class Rounding:
    """The bits that were chosen at the start of the last period; a part of a search's checkpoints.

    Attributes:
        chosen: Indices of the candidates, shape (2, L); `None` before.
        margins: Distances of the continuous bits to the middles between candidates, shape (2, L, K − 1).
    """

    def __init__(self) -> None:
        self.chosen: Tensor | None = None
        self.margins: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"chosen": self.chosen, "margins": self.margins}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.chosen, self.margins = state["chosen"], state["margins"]


class GetaNetwork(CompandedNetwork):
    """A model whose searched layers have learned bits, and whose groups of filters fade away.

    Args:
        job: Model, weights, measure of cost, and the cost to reach as its budget.
        options: Options of the method.
        group_size: Number of filters of a group.
        upper: b_u in the end, one of the candidates.

    Attributes:
        removal: The groups that are removed.
        rounding: The bits that were chosen.
    """

    def __init__(self, job: SearchJob, options: GetaOptions, group_size: int, upper: int) -> None:
        linear = options.exponent == "linear"
        make = partial(CompandedQuantizer, linear=linear, clip_init=options.clip_init)
        bounds = (1.0, 1.0) if linear else EXPONENTS
        super().__init__(job, options.bits, make, exponent_bounds=bounds, start_bits=options.bits[-1])
        self._job, self._upper = job, upper
        groups = groups_of(self.network, self.model, group_size)
        self.removal, self.rounding = Removal(job, uniform(self.network, upper), groups), Rounding()
        self.stages = Stages.of(job.steps, options, (options.bits[-1], upper))
        layers = zip(self.layers.values(), self.quantizers[: len(self.layers)], strict=True)
        self._quantized = {
            layer.weight: (row, quantizer)
            for row, (layer, quantizer) in enumerate(layers)
            if isinstance(layer, QuantizedLayer)
            and isinstance(layer.weight, nn.Parameter)
            and isinstance(quantizer, CompandedQuantizer)
        }

    def advance(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Do what follows an update of weights and quantizers.

        Args:
            step: Number of the update, from 0.
            optimizer: Optimizer that has just updated the weights.
        """
        joint = self.stages.joint
        if joint.begins(step):
            if joint.is_last(step):
                self.round_bits()
            self.removal.extend(optimizer, joint.share(step), last=joint.is_last(step))
        self._bound(step)
        factor = joint.factor(step)
        if factor > 0:
            self._forget(optimizer, 1 - factor)
        self.removal.fade(float(factor > 0))

    def _bound(self, step: int) -> None:
        """Set b_l and b_u for an update."""
        if self.rounding.chosen is None:
            self.highest = self.candidates.new_full((), self.stages.upper_bits(step))
        else:
            self.lowest = self.highest = self.candidates[self.rounding.chosen]

    def _forget(self, optimizer: torch.optim.Optimizer, linear: float) -> None:
        """Shrink the redundant groups of every layer, and set d of its weights; see `forget`."""
        finest, coarsest = (bound[0] for bound in self.step_bounds())
        quantizers = {weight: quantizer for weight, (_, quantizer) in self._quantized.items()}
        for rows in self.removal.redundant.values():
            own = [self._quantized[parameter][0] for parameter, _ in rows if parameter in self._quantized]
            forget(rows, quantizers, (finest[own], coarsest[own]), optimizer, linear)

    def round_bits(self) -> None:
        """Choose the nearest candidates, none below the lowest b_l for which the network costs the budget or more."""
        margins, top = self.margins(), self.bits.index(self._upper)
        nearest = (margins > 0).sum(2).clamp(max=top)
        for lowest in range(top + 1):
            self.rounding.chosen, self.rounding.margins = nearest.clamp(min=lowest), margins
            self.removal.base = policy_of(uniform(self.network, self._upper), super().decisions())
            if self._job.price(self.removal.policy()) >= self._job.budget:
                break

    def chosen(self) -> Tensor:
        """Return the chosen candidates, or the nearest ones before."""
        return super().chosen() if self.rounding.chosen is None else self.rounding.chosen

    def margins(self) -> Tensor:
        """Compute distances to the middles between two candidates, those of the rounding after it."""
        return super().margins() if self.rounding.margins is None else self.rounding.margins

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions, without removed groups, which cannot come back."""
        return policy_of(self.removal.policy(), decisions)

    def actual_cost(self) -> Tensor:
        """Compute the cost of the policy that the search would return now, a scalar."""
        cost = self._job.price(self.policy(self.decisions()))
        return torch.tensor(cost, dtype=torch.float64, device=self.signed.device)

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by its bounds, the bits before they were rounded, and what was removed."""
        chosen, margins = self.chosen(), self.margins()
        middle = (self.candidates[0] + self.candidates[1]) / 2
        return {
            "upper_bits": self._upper,
            "lower_bits": self.bits[int(chosen.min())],
            "widths": self.by_layer(margins[:, :, 0] + middle),
            "exponents": self.by_layer(self.stacked("clip_exponent")),
            "removed": self.removal.removed(),
        }


class Geta(TrainingMethod[GetaNetwork], ChoosesFromSpace):
    """QASSO, the joint pruning and quantization of GETA."""

    summary = "GETA: groups of least saliency fade away, while steps and ranges learn bits below a falling bound"
    family = "saliency"
    source = (
        "Qu, Aponte, Banbury, Robinson, Ding, Koishida, Zharkov, Chen 2025: Automatic Joint Structured Pruning and "
        "Quantization for Efficient Neural Network Training and Compression, CVPR 2025, arXiv 2502.16638; "
        "github.com/microsoft/geta"
    )
    deviations = (
        "The text of the paper was not at hand; the algorithm is that of the code.",
        "The code is given the number of groups and b_u. Here the harness tunes b_u, as a headroom above the fewest "
        "bits at which filters have to be removed, and the number of groups follows from the budget. With match = "
        "lambda the headroom stays in the middle of its range, and the strength is the ratio of the cost at the "
        "highest bits to the wanted cost.",
        "Bits are rounded at the start of the last period, not at its end, so that its groups can be chosen to end "
        "in the budget's window. Where they cost less than the budget by themselves, b_l rises.",
        "Bits of inputs are projected like those of weights, on a grid without negative levels; in the code they are "
        "not projected, and half of the grid is unused.",
        "Ranges start at the least squared error on one batch, like those of all methods; the code starts ranges of "
        "weights at the largest value, and those of inputs at the values of the weights.",
        "b starts at the highest candidate, 8; the code's example starts b_u at 16.",
        "Groups have several filters (group_size); in the code each filter is one.",
        "Only groups that are left are ranked; in the code, removed ones stay in the ranking.",
        "Biases and normalisations count in ⟨g, c⟩ and ‖g‖². γ is at most 1. The code forgets a group at once if its "
        "weights average below zero; here nothing depends on their mean.",
        "Layers that lose filters together share γ, but each has its own d.",
        "The gradient of Q(x) with respect to x is that of its formula with rounding as the identity; the code clips "
        "it at a fixed value of x.",
        "Stages end after 10, 40 and 70 % of the search, and the network is fine-tuned at the found bits like all "
        "others; in the code's example they end after 0, 20 and 40 % of the only training.",
        "The search starts from pretrained weights. The first and the last layer stay at 8 bits, in the search with "
        "the common quantizer.",
        "One group of each layer stays.",
    )
    capabilities = Capabilities(
        budget="strength", prunes=True, mixed_precision=True, own_quantizer=True, one_stage=True, data_parallel=True
    )
    Options = GetaOptions
    options: GetaOptions

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """Return the headroom, unless b_u is an option, and the compression where the budget does not give it."""
        strength = {} if match == "dual" else {"strength": COMPRESSION}
        fixed = match == "lambda" or self.options.upper_bits is not None
        return strength if fixed else {**strength, "headroom": HEADROOM}

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options, with the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self._group_size(network)}

    def _group_size(self, network: NetworkShape) -> int:
        return self.options.group_size or network.group_size

    def space(self, network: NetworkShape) -> SearchSpace:
        """State the choices: the same bits in every layer, and groups of filters."""
        return self._space(network, self.options.bits)

    def _space(self, network: NetworkShape, bits: tuple[int, ...]) -> SearchSpace:
        return grouped_space(network, bits, self._group_size(network))

    @property
    def quantizer(self) -> QuantizerFactory:
        """The learned range and exponent at a fixed number of bits."""
        return partial(companded_quantizer, linear=self.options.exponent == "linear")

    def network(self, job: SearchJob) -> GetaNetwork:
        """Build the network of the search from the pretrained weights.

        Raises:
            UnreachableBudgetError: Even one group a layer at the lowest bits costs more than the budget.
        """
        least = job.price(self.cheapest(job.task.network))
        if job.match == "dual" and least > job.budget:
            raise unreachable(job, f"one group of filters a layer at {self.options.bits[0]} bits", least)
        wanted = job.budget
        if job.match != "dual":
            wanted = max(least, job.price(self.costliest(job.task.network)) / job.knobs["strength"])
        upper = self._upper_bits(job, wanted)
        return GetaNetwork(replace(job, budget=wanted), self.options, self._group_size(job.task.network), upper)

    def _upper_bits(self, job: SearchJob, wanted: float) -> int:
        """Choose b_u in the end, among the candidates from which filters can save enough."""
        network, bits = job.task.network, self.options.bits
        reached = [job.price(cheapest_policy(network, self._space(network, (own,)))) <= wanted for own in bits]
        above = [job.price(uniform(network, own)) > wanted for own in bits]
        index = above.index(True) if any(above) else len(bits) - 1
        index += int(job.knobs.get("headroom", HEADROOM.middle))
        if self.options.upper_bits is not None:
            index = bits.index(self.options.upper_bits)
        return bits[min(index, sum(reached) - 1)]

    def rates(self, job: SearchJob) -> dict[str, float]:
        """State the learning rate of steps, ranges and exponents."""
        return {"range_lr": self.options.range_travel / job.steps}

    def train(self, job: SearchJob, network: GetaNetwork) -> History:
        """Train weights and quantizers together, and remove groups while they learn."""
        learned = LINEAR if self.options.exponent == "linear" else COMPANDED
        of_ranges, rates = range_optimizer(job, network, learned, self.options.range_travel)
        of_weights = sgd(weight_groups(network.model, exclude=network.parameters(*COMPANDED)), job.schedule)
        return train_jointly(
            job,
            network,
            {"of_weights": of_weights, "of_ranges": of_ranges},
            after=lambda step: network.advance(step, of_weights),
            rates=rates,
            others={"removal": network.removal, "rounding": network.rounding},
        )
