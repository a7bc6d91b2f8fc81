"""DJPQ, differentiable joint pruning and quantization (Wang et al. 2020, arXiv 2007.10463).

Quantizer: step d, range q and exponent t of every tensor, all learned, and a width that follows from them and is
continuous in training,

    Q(x) = sign(x) · d · ⌊min(|x|, q)^t / d⌉        b = log2(q^t/d + 1) + 1        (inputs: no sign, no + 1)

with the gradients of `methods.shared.quantizers.learned_range`: dQ/dd the rounding error, dQ/dq = sign(x)·t·q^(t−1) outside the
range, dQ/dt = sign(x)·|x|^t·log|x|.

Pruning: the variational information bottleneck of VIBNet (Dai et al. 2018, arXiv 1802.10399). Each channel that may go
is multiplied by z = μ + ε·σ, ε normal, between its normalisation and its activation; in evaluation by μ, or by 0 where
log α = log(σ²/μ²) exceeds a threshold. What a channel tells is bounded by ½ log(1 + μ²/σ²), and

    L = L_ce + γ · Σ ½ log(1 + μ²/σ²) + λ · log R

with R the cost of the continuous widths and of the channels that are left, in and out. Folded into the normalisation's
weight and bias, μ costs nothing afterwards.

No code of the authors is known; the nearest is GETA's (`microsoft/geta`), which cites the paper for the quantizer's
gradients. Start and rule of the gates are VIBNet's. Everything else that no source fixes is an option below.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    Decision,
    GeneratorState,
    Knob,
    LayerShape,
    Match,
    Method,
    NetworkShape,
    Policy,
    QuantizedLayer,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    replicas,
    sgd,
    uniform,
    weight_groups,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import positive
from methods.shared.gates import FilterGroups, gate
from methods.shared.quantizers import learned_range
from methods.shared.quantizers.learned_range import (
    SMALLEST,
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

_FIRST_MEAN, _FIRST_LOG_VARIANCE = 1.0, -9.0
"""VIBNet draws them around these values with a deviation of 0.01; here they are these values."""
_LINEAR = ("clip_step", "clip_range")
_ALL = (*_LINEAR, "clip_exponent")
_FIXED = ("clip_range", "clip_exponent")
"""What a quantizer of fixed width has."""
STRENGTH = Knob(low=0.03, high=1.0, log=True)
"""On digits with ResNet-8 and plain λ log R, 0.01 ends at 1.5 × what 4 bits cost, 0.1 at as much and 1 at a tenth.
Budgets of 3 bit need more than 0.3, where on so short a search widths fall faster than the weights can follow."""
_RANGES = 20
"""How many ranges up to the largest value are tried in calibration."""


class DjpqOptions(WidthOptions):
    """Options of DJPQ. Defaults are our choice where nothing else is said: no source fixes them.

    Attributes:
        bits: Candidate widths for weights and activations, rising; the nearest to the continuous width is taken. Powers
            of two are the paper's restricted variant (DJPQ-restrict), all from 2 to 8 its unrestricted one.
        rounding: Whether continuous widths are rounded when the search ends, or in every step of it (straight-through):
            then its network has and costs what a policy says, but learns less of the widths between.
        exponent: Whether t is learned, or stays 1: the paper's non-linear and linear quantizers.
        exponent_bounds: Between which t is kept; 1 lies between them.
        start_bits: The width at which steps and ranges start, with the range of least squared error.
        gamma: γ, weight of the information bottleneck. With `match = "hinge"` it acts above the budget only, like λ.
        threshold: The log α above which a channel goes (VIBNet: 0).
        softness: Width of the sigmoid whose slope stands for that of the threshold in the gradient of the cost.
        group_size: Filters that go together, by the mean of their log α; the paper takes single ones.
        range_travel: Rate × updates of d, q and t; the rate follows from the length of the search. Their gradients have
            at most the size of the parameter itself, as DQ bounds them.
        mean_travel, variance_travel: The same of μ and of log σ² (Adam); log σ² starts at −9 and has a long way to go.
    """

    bits: WidthCandidates = (2, 4, 8)
    rounding: Literal["end", "search"] = "end"
    exponent: Literal["learned", "linear"] = "learned"
    exponent_bounds: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    start_bits: Annotated[int, Field(ge=2, le=16)] = 8
    gamma: Annotated[float, Field(ge=0)] = 5e-4
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


# --- the quantizer ----------------------------------------------------------------------------------------------


class DjpqQuantizer(LearnedQuantizer):
    """Q with a learned exponent. At a fixed width the step is q^t over the number of levels, as the paper sets it.

    Args:
        bits: Of the start of a search, or fixed.
        kind: Weights or activations.
        searching: Whether the width is still to be found.
        candidates: The widths to which a search rounds the present one; it does not when absent.

    Attributes:
        clip_exponent: t.
    """

    def __init__(
        self, *, bits: int, kind: Kind, searching: bool = False, candidates: tuple[int, ...] | None = None
    ) -> None:
        super().__init__(bits=bits, kind=kind, searching=searching)
        self.clip_exponent = nn.Parameter(torch.ones(()))
        self.levels: Tensor | None
        held = None if candidates is None else [float(levels_of(width, self.signed)) for width in candidates]
        self.register_buffer("levels", None if held is None else torch.tensor(held), persistent=False)
        if not searching:
            del self.clip_step

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        if self.searching:
            return quantize(x, self._searched_step(), self.clip_range, self.clip_exponent, signed=self.signed)
        limit, exponent = (positive(bounded(p, positive(p))) for p in (self.clip_range, self.clip_exponent))
        step = limit**exponent / levels_of(self.bits, self.signed)
        return quantize(x, step, limit, exponent, signed=self.signed)

    def _searched_step(self) -> Tensor:
        """D, or that of the nearest candidate, with the gradient of d."""
        if self.levels is None:
            return self.clip_step
        power = self.clip_range.detach() ** self.clip_exponent.detach()
        widths = torch.log2(self.levels + 1)
        nearest = (widths - torch.log2(power / self.clip_step.detach() + 1)).abs().argmin()
        return passed_on(power / self.levels[nearest], self.clip_step)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """The linear grid (t = 1) of least squared error."""
        levels, largest = levels_of(self.bits, self.signed), max(float(x.abs().max()), SMALLEST)
        ranges = [largest * (number + 1) / _RANGES for number in range(_RANGES)]
        step, limit = least_error(x, [(range_ / levels, range_) for range_ in ranges], signed=self.signed)
        self.clip_range.fill_(limit)
        self.clip_exponent.fill_(1.0)
        if self.searching:
            self.clip_step.fill_(step)


def djpq_quantizer(*, bits: int, kind: Kind, normalized: bool) -> DjpqQuantizer:
    """DJPQ's quantizer at a fixed width; weights are not standardised, their range is learned."""
    return DjpqQuantizer(bits=bits, kind=kind)


# --- the gates --------------------------------------------------------------------------------------------------


class ChannelGates(nn.Module):
    """z = μ + ε·σ for each channel of a layer.

    Args:
        channels: Of the layer.
        options: Threshold, softness, and size of a group.
        device: Where they live.

    Attributes:
        mean, log_variance: μ and log σ², shape (channels,).
        noise: ε of the next training step, shape (images, channels); none when absent.
    """

    def __init__(self, channels: int, options: DjpqOptions, device: torch.device) -> None:
        super().__init__()
        self.groups = FilterGroups(channels, options.group_size, device)
        self._threshold, self._softness = options.threshold, options.softness
        self.mean = nn.Parameter(torch.full((channels,), _FIRST_MEAN, device=device))
        self.log_variance = nn.Parameter(torch.full((channels,), _FIRST_LOG_VARIANCE, device=device))
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels of (N, C, H, W)."""
        if not self.training:
            return x * (self.mean * self.kept().detach()).view(1, -1, 1, 1)
        if self.noise is None:
            return x * self.mean.view(1, -1, 1, 1)
        z = self.mean + self.noise * torch.exp(self.log_variance / 2)
        return x * z.unsqueeze(2).unsqueeze(3)

    def information(self) -> Tensor:
        """Σ ½ log(1 + μ²/σ²), a scalar."""
        return torch.log1p(self.mean.square() * torch.exp(-self.log_variance)).sum() / 2

    def excess(self) -> Tensor:
        """By how much the log α of each group exceeds the threshold, shape (G,)."""
        log_alpha = self.log_variance - torch.log(self.mean.square().clamp_min(SMALLEST**2))
        sizes = self.groups.sizes.to(log_alpha.dtype)
        return torch.zeros_like(sizes).index_add(0, self.groups.owner, log_alpha) / sizes - self._threshold

    def opened(self) -> Tensor:
        """1 for groups that stay, shape (G,), the most telling one among them always; with a sigmoid's slope."""
        excess = self.excess() / self._softness
        telling = nn.functional.one_hot(excess.argmin(), len(excess)).to(excess.dtype)
        open_ = gate(torch.zeros_like(excess), excess)
        return open_ + telling * (1 - open_.detach())

    def kept(self) -> Tensor:
        """The same for each filter, shape (channels,)."""
        return self.groups.spread(self.opened())

    def count(self) -> Tensor:
        """How many filters stay, a scalar."""
        return (self.opened() * self.groups.sizes).sum()


class GatedLayer(QuantizedLayer):
    """A searched layer, with gates for its own channels where these may go.

    In evaluation it reads nothing from channels that are gone, exactly as when they were not there: what is set to zero
    after its normalisation does not stay zero on its way through a depthwise convolution or a grid with an offset.

    Args:
        module: The float layer.
        weight, activation: Its quantizers.
        gates: Of its channels, where these may go.
        producer: The gates of its inputs; `None` when none may go, or when it does not mix them.
    """

    def __init__(
        self,
        module: nn.Module,
        weight: nn.Module,
        activation: nn.Module,
        gates: ChannelGates | None,
        producer: ChannelGates | None,
    ) -> None:
        super().__init__(module, weight, activation)
        self.gates = gates
        self._producer = (producer,)  # a tuple keeps it from becoming a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a quantized input with the quantized weight."""
        weight, producer = self.weight_quantizer(self.weight), self._producer[0]
        if producer is not None and not self.training:
            weight = weight * producer.kept().detach().view(1, -1, *[1] * (weight.ndim - 2))
        return self.geometry.convolve(self.activation_quantizer(x), weight, self.bias)


def gated_norms(network: NetworkShape) -> dict[str, str]:
    """The normalisation of each layer that may lose filters and has one of its own: the first that shrinks with it."""
    own: dict[str, str] = {}
    for norm, layer in network.norms:
        if network[layer].normalized and network[layer].prunable:
            own.setdefault(layer, norm)
    return own


# --- the network ------------------------------------------------------------------------------------------------


class DjpqNetwork(RangeNetwork):
    """A model whose searched layers have the quantizers and gates of DJPQ.

    Args:
        job: The search.
        options: Of the method.

    Attributes:
        gates: By layer.
    """

    def __init__(self, job: SearchJob, options: DjpqOptions) -> None:
        self.options = options
        self.norms = gated_norms(job.task.network)
        self.gates: dict[str, ChannelGates] = {
            name: ChannelGates(job.task.network[name].out_channels, options, job.task.device) for name in self.norms
        }
        super().__init__(
            job,
            options.bits,
            partial(DjpqQuantizer, candidates=options.bits if options.rounding == "search" else None),
            start_bits=options.start_bits,
            layer=self._gated,
            pruned=self.gates,
        )
        for name, norm in self.norms.items():
            self.model.get_submodule(norm).register_forward_hook(_multiplied_by(self.gates[name]))

    def _gated(self, module: nn.Module, shape: LayerShape, weight: nn.Module, activation: nn.Module) -> GatedLayer:
        producer = None if shape.depthwise else self.gates.get(shape.producer or "")
        return GatedLayer(module, weight, activation, self.gates.get(shape.name), producer)

    def draw(self, noise: torch.Generator, images: int) -> None:
        """Draw ε for a batch, the same for the whole batch whoever has which share of it."""
        for gates in self.gates.values():
            drawn = torch.randn(images * replicas.count(), len(gates.mean), generator=noise)
            gates.noise = replicas.mine(drawn).to(gates.mean.device)

    def information(self) -> Tensor:
        """The information bottleneck's term without its weight, a scalar."""
        found = [gates.information() for gates in self.gates.values()]
        return torch.stack(found).sum() if found else torch.zeros((), device=self.signed.device)

    def widths(self) -> Tensor:
        """The continuous widths, or the candidates to which the search rounds them."""
        widths = self.continuous_widths()
        if self.options.rounding == "end":
            return widths
        return passed_on(self.candidates[self.chosen()], widths)

    def continuous_widths(self) -> Tensor:
        """Log2(q^t/d + 1), and 1 more for weights, shape (2, L), differentiable."""
        step, limit, exponent = (self.stacked(name) for name in _ALL)
        return (torch.log2(limit**exponent / step + 1) + self.signed).double()

    @torch.no_grad()
    def margins(self) -> Tensor:
        """From the middle between two candidates."""
        middles = (self.candidates[1:] + self.candidates[:-1]) / 2
        return self.continuous_widths().unsqueeze(2) - middles

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """The nearest candidates, of two the lower."""
        return (self.margins() > 0).sum(2)

    @torch.no_grad()
    def project(self) -> None:
        """Keep parameters positive, t in its bounds, and widths between the candidates' ends by way of d."""
        limit = self.stacked("clip_range").clamp_min(SMALLEST)
        exponent = self.stacked("clip_exponent").clamp(*self.options.exponent_bounds)
        fewest, most = (levels_of(self.bits[end], self.signed) for end in (0, -1))
        power = limit**exponent
        self.fill("clip_range", limit)
        self.fill("clip_exponent", exponent)
        self.fill("clip_step", torch.clamp(self.stacked("clip_step"), power / most, power / fewest))

    @torch.no_grad()
    def bound_gradients(self) -> None:
        """No gradient is larger than its parameter."""
        for parameter in self.parameters(*_ALL):
            if parameter.grad is not None:
                parameter.grad.clamp_(-parameter, parameter)

    def channels(self) -> dict[str, Tensor]:
        """Channels that are left, as functions of the gates; all of the layers that have none."""
        if not self.gates:
            return {}
        counts = {name: gates.count().double() for name, gates in self.gates.items()}
        layers = list(zip(self.relaxed.layers, self.relaxed.in_channels, self.relaxed.out_channels, strict=True))
        inputs = [counts.get(shape.producer or "", full) for shape, full, _ in layers]
        outputs = [counts.get(shape.leader or shape.name, full) for shape, _, full in layers]
        return {"in_channels": torch.stack(inputs), "out_channels": torch.stack(outputs)}

    @torch.no_grad()
    def decisions(self) -> list[Decision]:
        """Widths, and every group of filters but the most telling of its layer, which stays."""
        found = super().decisions()
        for name, gates in self.gates.items():
            excess = gates.excess().tolist()
            telling = min(range(len(excess)), key=excess.__getitem__)
            found += [
                _filter_decision(name, members, -excess[group])
                for group, members in enumerate(gates.groups.members)
                if group != telling
            ]
        return found

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Weights and buffers under the float model's names, μ folded into the normalisations."""
        state = super().state(names)
        for name, norm in self.norms.items():
            for part in ("weight", "bias"):
                state[f"{norm}.{part}"] *= self.gates[name].mean.detach()
        return state

    def figures(self) -> dict[str, Any]:
        """Widths, exponents, and the channels that are left."""
        exponents = self.stacked("clip_exponent").T.tolist()
        channels = {name: int(gates.count()) for name, gates in self.gates.items()}
        widths = self.continuous_widths().T.tolist()
        return {
            "widths": dict(zip(self.layers, widths, strict=True)),
            "exponents": dict(zip(self.layers, exponents, strict=True)),
            "channels": channels,
        }


def _multiplied_by(gates: ChannelGates) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        multiplied: Tensor = gates(output)
        return multiplied

    return hook


def _filter_decision(layer: str, filters: tuple[int, ...], margin: float) -> Decision:
    chosen = int(margin >= 0)
    return Decision(layer=layer, what="filters", options=(0, 1), chosen=chosen, margins=(margin,), filters=filters)


# --- the method -------------------------------------------------------------------------------------------------


class Djpq(Method):
    """DJPQ."""

    summary = "DJPQ: learned step, range and exponent of every tensor, and an information bottleneck on channels"
    source = (
        "Wang et al., Differentiable Joint Pruning and Quantization for Hardware Efficiency, 2020, arXiv 2007.10463"
    )
    deviations = (
        "No code of the authors is known: options without a source have defaults of our choice, and say so.",
        "The cost is the harness's, λ log R, counted with first and last layer at 8 bits, which stay as they are.",
        'With match = "hinge" the information bottleneck acts above the budget only, like the cost.',
        "Only layers with a normalisation of their own lose filters, since μ is folded into it, and of them those that "
        "may lose filters in every method.",
        "Continuous widths stay between the lowest and the highest candidate, by way of the step.",
        "Steps, ranges, exponents and gates have rates of their own, which follow from the length of the search.",
        "The gradient of Q near 0 is bounded for exponents below 1.",
        "The network is fine-tuned at the found widths like all others.",
    )
    capabilities = Capabilities(
        budget="strength", prunes=True, mixed_precision=True, own_quantizer=True, data_parallel=True
    )
    Options = DjpqOptions
    options: DjpqOptions

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """λ."""
        return {"strength": STRENGTH}

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere, and of every layer that may lose filters one group, the smallest."""
        policy, size = uniform(network, min(self.options.bits)), self.options.group_size
        for name in gated_norms(network):
            filters = network[name].out_channels
            policy = policy.with_layer(name, kept_filters=tuple(range((filters - 1) // size * size, filters)))
        return policy

    @property
    def quantizer(self) -> QuantizerFactory:
        """The learned range and exponent at a fixed width."""
        return djpq_quantizer

    def network(self, job: SearchJob) -> DjpqNetwork:
        """The network that is searched in, from the pretrained weights."""
        return DjpqNetwork(job, self.options)

    def search(self, job: SearchJob) -> SearchResult:
        """Train weights, quantizers and gates together, then read widths and channels off."""
        network, noise = self.network(job), job.noise("channels")
        start_top1 = learned_range.start(job, network)
        optimizers, rates = _optimizers(job, network)
        history = learned_range.train(
            job,
            network,
            optimizers,
            rates,
            penalty=lambda: penalty(job, network),
            carried={"noise": GeneratorState(noise)},
            before=lambda images: network.draw(noise, images),
        )
        decisions = network.decisions()
        return SearchResult(
            policy=network.policy(decisions),
            state=network.state(job.pretrained),
            quantizers=network.learned(_FIXED),
            decisions=decisions,
            record={"start_top1": start_top1, "history": history.entries, **network.figures()},
        )


def _optimizers(
    job: SearchJob, network: DjpqNetwork
) -> tuple[dict[str, torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    """Of weights, of the quantizers with its rates, and of the gates."""
    options, gates = network.options, list(network.gates.values())
    means, variances = [gate_.mean for gate_ in gates], [gate_.log_variance for gate_ in gates]
    apart = [*network.parameters(*_ALL), *means, *variances]
    linear = options.exponent == "linear"
    of_ranges, rates = range_optimizer(job, network, _LINEAR if linear else _ALL, options.range_travel)
    optimizers = {"of_weights": sgd(weight_groups(network.model, exclude=apart), job.schedule), "of_ranges": of_ranges}
    if gates:
        of_gates = [
            {"params": means, "lr": options.mean_travel / job.steps},
            {"params": variances, "lr": options.variance_travel / job.steps},
        ]
        optimizers["of_gates"] = torch.optim.Adam(of_gates)
    return optimizers, rates


def penalty(job: SearchJob, network: DjpqNetwork) -> Tensor:
    """What is added to the cross-entropy, a scalar."""
    term, actual = job.cost_term(), network.actual_cost()
    information = network.options.gamma * network.information() * term.is_active(actual)
    return information + term(network.relaxed_cost(), actual)
