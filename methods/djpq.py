"""DJPQ, differentiable joint pruning and quantization (Wang et al. 2020, arXiv 2007.10463).

Quantizer. Step d, range q and exponent t of every tensor are learned. They give a number of bits b, which is continuous
in training:

    Q(x) = sign(x) · d · ⌊min(|x|, q)^t / d⌉        b = log2(q^t/d + 1) + 1        (inputs: no sign, no + 1)

`methods.shared.quantizers.learned_range` has Q with its gradients: dQ/dd is the rounding error,
dQ/dq = sign(x)·t·q^(t−1) outside the range, and dQ/dt = sign(x)·|x|^t·log|x|.

Pruning. Channels pass the information bottleneck of VIBNet (`methods.shared.networks.bottleneck`): each is multiplied
by z = μ + ε·σ, ε normal, between its normalisation and its activation, and is removed where log(σ²/μ²) exceeds a
threshold.

Loss. Weights, quantizers and gates learn in the same step by

    L = L_ce + γ · Σ_l s_l Σ_c ½ log(1 + μ²/σ²) + λ · log R

where s_l is the side of layer l's map in pixels, as in VIBNet's code (the map's area times a factor of 1/32, 1/16 and
1/8 for sides of 32, 16 and 8), and R is the cost at the continuous bits and at the channels that are left, in and out.
After the search, μ is folded into the weight and bias of the normalisation and costs nothing.

No code of the authors is known. The nearest is GETA's (`microsoft/geta`), which cites the paper for the gradients of
its quantizer. First values and rule of the gates are VIBNet's. Everything else that no source fixes is an option below.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    CostTerm,
    Decision,
    GeneratorState,
    LayerShape,
    NetworkShape,
    Options,
    Policy,
    QuantizerFactory,
    SearchJob,
    sgd,
    weight_groups,
)
from methods.shared.decisions import group_decisions
from methods.shared.history import History
from methods.shared.networks.bottleneck import BottleneckLayer, ChannelGates, gated_norms, insert_gates
from methods.shared.networks.companded import COMPANDED, LINEAR, CompandedNetwork
from methods.shared.networks.ranges import SignedCandidates, range_optimizer
from methods.shared.quantizers.companded import CompandedQuantizer, companded_quantizer
from methods.shared.quantizers.learned_range import passed_on
from methods.shared.space import ChoosesFromSpace, SearchSpace, uniform_space
from methods.shared.training import TrainingMethod, train_jointly


class DjpqOptions(Options):
    """Options of DJPQ. Where no source is named, the default is our choice.

    Attributes:
        bits: Candidate bits for weights and activations, rising. The one nearest to the continuous bits is chosen.
            Powers of two are the paper's restricted variant (DJPQ-restrict), all from 2 to 8 the unrestricted one.
        rounding: Whether continuous bits are rounded at the end of the search, or in each of its steps
            (straight-through). In the second case the network has the bits and the cost of its policy, but learns less
            about the bits in between.
        exponent: Whether t is learned, or stays 1: the paper's non-linear and linear quantizers.
        exponent_bounds: Lower and upper bound of t; 1 lies between them.
        start_bits: Bits at which steps and ranges start, with the range of the least squared error.
        gamma: Weight γ of the information bottleneck, for a map of one pixel. It acts only while λ is positive, so with
            `match = "hinge"` only above the budget.
        threshold: Value of log α = log(σ²/μ²) above which a channel is removed (VIBNet: 0).
        softness: Width of the sigmoid whose slope replaces that of the threshold in the gradient of the cost.
        group_size: Filters that are removed together, by the mean of their log α; the paper removes single ones.
        range_travel: Learning rate of d, q and t × number of updates. The rate follows from the length of the search.
            Their gradients are at most as large as the parameter itself, as DQ bounds them.
        mean_travel, variance_travel: The same for μ and for log σ² (Adam). The latter starts at −9, far from the
            threshold.
    """

    bits: SignedCandidates = (2, 4, 8)
    rounding: Literal["end", "search"] = "end"
    exponent: Literal["learned", "linear"] = "learned"
    exponent_bounds: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    start_bits: Annotated[int, Field(ge=2, le=16)] = 8
    gamma: Annotated[float, Field(ge=0)] = 1e-5
    threshold: float = 0.0
    softness: Annotated[float, Field(gt=0)] = 1.0
    group_size: Annotated[int, Field(ge=1)] = 1
    range_travel: Annotated[float, Field(gt=0)] = 4.0
    mean_travel: Annotated[float, Field(gt=0)] = 2.0
    variance_travel: Annotated[float, Field(gt=0)] = 18.0

    @model_validator(mode="after")
    def _exponents_start_inside(self) -> Self:
        low, high = self.exponent_bounds
        if not low <= 1 <= high:
            raise ValueError(f"exponent_bounds {[low, high]} must enclose 1, where exponents start, e.g. [0.5, 2.0]")
        return self


class DjpqNetwork(CompandedNetwork):
    """A model whose searched layers have the quantizers and gates of DJPQ.

    Args:
        job: Model, weights and measure of cost.
        options: Options of the method.

    Attributes:
        norms: Name of the normalisation behind each layer that has gates.
        gates: Gates by layer.
        sides: Side of the map that the gates of a layer multiply, √(height · width), by layer.
    """

    def __init__(self, job: SearchJob, options: DjpqOptions) -> None:
        self.options = options
        self.norms = gated_norms(job.task.network)
        make = partial(
            ChannelGates,
            device=job.task.device,
            group_size=options.group_size,
            threshold=options.threshold,
            softness=options.softness,
        )
        self.gates = {name: make(job.task.network[name].out_channels) for name in self.norms}
        self.sides = {name: math.sqrt(math.prod(job.task.network[name].out_size)) for name in self.norms}
        super().__init__(
            job,
            options.bits,
            partial(
                CompandedQuantizer,
                candidates=options.bits if options.rounding == "search" else None,
                linear=options.exponent == "linear",
            ),
            exponent_bounds=options.exponent_bounds,
            start_bits=options.start_bits,
            layer=self._gated,
            pruned=self.gates,
        )
        for name, norm in self.norms.items():
            insert_gates(self.model.get_submodule(norm), self.gates[name])

    def _gated(self, module: nn.Module, shape: LayerShape, weight: nn.Module, activation: nn.Module) -> BottleneckLayer:
        producer = None if shape.depthwise else self.gates.get(shape.producer or "")
        return BottleneckLayer(module, weight, activation, self.gates.get(shape.name), producer)

    def draw(self, noise: torch.Generator, images: int) -> None:
        """Draw ε of all gates for a batch."""
        for gates in self.gates.values():
            gates.draw(noise, images)

    def information(self) -> Tensor:
        """Compute Σ_l s_l Σ_c ½ log(1 + μ²/σ²), a scalar."""
        terms = [self.sides[name] * gates.information() for name, gates in self.gates.items()]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.signed.device)

    def relaxed_bits(self) -> Tensor:
        """Compute the continuous bits, or the candidates to which the search rounds them."""
        bits = super().relaxed_bits()
        if self.options.rounding == "end":
            return bits
        return passed_on(self.candidates[self.chosen()], bits)

    def channels(self) -> dict[str, Tensor]:
        """Count the channels that are left, as functions of the gates."""
        if not self.gates:
            return {}
        return self.relaxed.channels({name: gates.count().double() for name, gates in self.gates.items()})

    @torch.no_grad()
    def decisions(self) -> list[Decision]:
        """List every choice of bits and every group of filters; the group of least log α in a layer always stays."""
        decisions = super().decisions()
        for name, gates in self.gates.items():
            margins = (-gates.excess()).tolist()
            strongest = max(range(len(margins)), key=margins.__getitem__)
            decisions += group_decisions(name, gates.groups.members, margins, strongest)
        return decisions

    def state(self, policy: Policy, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy weights and buffers under the names of the float model, and fold μ into the normalisations."""
        state = super().state(policy, names)
        for name, norm in self.norms.items():
            for parameter in ("weight", "bias"):
                state[f"{norm}.{parameter}"] *= self.gates[name].mean.detach()
        return state

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by its continuous bits, exponents, and channels that are left."""
        return {
            "widths": self.by_layer(self.continuous_bits()),
            "exponents": self.by_layer(self.stacked("clip_exponent")),
            "channels": {name: int(gates.count()) for name, gates in self.gates.items()},
        }


def penalty(term: CostTerm, network: DjpqNetwork) -> Tensor:
    """Compute γ · Σ_l s_l Σ_c ½ log(1 + μ²/σ²) + λ · log R, a scalar; the information only where λ is positive."""
    weight = term.weight(network.actual_cost())
    information = network.options.gamma * network.information() * (weight > 0)
    return information + weight * term.log_ratio(network.relaxed_cost())


class Djpq(TrainingMethod[DjpqNetwork], ChoosesFromSpace):
    """DJPQ."""

    summary = "DJPQ: learned step, range and exponent of every tensor, and an information bottleneck on channels"
    family = "learned ranges"
    source = (
        "Wang et al., Differentiable Joint Pruning and Quantization for Hardware Efficiency, 2020, arXiv 2007.10463"
    )
    deviations = (
        "No code of the authors is known. Options without a source have defaults of our choice, and their descriptions "
        "say so.",
        "The cost term is the harness's, λ log R. The first and the last layer stay at 8 bits, in the search with the "
        "common quantizer.",
        "The information bottleneck acts only while λ is positive; with match = hinge that is above the budget.",
        "Gates stand before the activation function, where μ can be folded into the normalisation, and start alike; "
        "VIBNet's stand behind it, and start around the same values at random.",
        "No source states where steps and ranges start. They start at the least squared error on one batch, like the "
        "clip values of all methods.",
        "A layer loses filters only when it has a normalisation of its own, into which μ is folded, and when it may "
        "lose filters in every method.",
        "Continuous bits stay between the lowest and the highest candidate; the step is changed to keep them there.",
        "Steps, ranges, exponents and gates have learning rates of their own, which follow from the length of the "
        "search.",
        "The gradient of Q near 0 is bounded for exponents below 1.",
        "Filters are removed one by one by default, and by SBS in groups; group_size sets the size of groups.",
        "The network is fine-tuned at the found bits like all others.",
    )
    capabilities = Capabilities(
        budget="strength", prunes=True, mixed_precision=True, own_quantizer=True, data_parallel=True
    )
    Options = DjpqOptions
    options: DjpqOptions

    def space(self, network: NetworkShape) -> SearchSpace:
        """State the choices: the same bits in every layer, and groups of filters in layers with gates."""
        return uniform_space(network, self.options.bits, dict.fromkeys(gated_norms(network), self.options.group_size))

    @property
    def quantizer(self) -> QuantizerFactory:
        """The learned range and exponent at a fixed number of bits."""
        return partial(companded_quantizer, linear=self.options.exponent == "linear")

    def network(self, job: SearchJob) -> DjpqNetwork:
        """Build the network of the search from the pretrained weights."""
        return DjpqNetwork(job, self.options)

    def train(self, job: SearchJob, network: DjpqNetwork) -> History:
        """Train weights, quantizers and gates together."""
        noise, term = job.noise("channels"), job.cost_term()
        optimizers, rates = _optimizers(job, network)
        return train_jointly(
            job,
            network,
            optimizers,
            penalty=lambda: penalty(term, network),
            draw=lambda images: network.draw(noise, images),
            rates=rates,
            others={"noise": GeneratorState(noise)},
        )


def _optimizers(
    job: SearchJob, network: DjpqNetwork
) -> tuple[dict[str, torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    """Make the optimizers of weights, quantizers and gates, and the rates of the quantizers."""
    options, gates = network.options, list(network.gates.values())
    means, variances = [gate.mean for gate in gates], [gate.log_variance for gate in gates]
    learned = LINEAR if options.exponent == "linear" else COMPANDED
    of_ranges, rates = range_optimizer(job, network, learned, options.range_travel)
    apart = [*network.parameters(*COMPANDED), *means, *variances]
    optimizers = {"of_weights": sgd(weight_groups(network.model, exclude=apart), job.schedule), "of_ranges": of_ranges}
    if gates:
        of_gates = [
            {"params": means, "lr": options.mean_travel / job.steps},
            {"params": variances, "lr": options.variance_travel / job.steps},
        ]
        optimizers["of_gates"] = torch.optim.Adam(of_gates)
    return optimizers, rates
