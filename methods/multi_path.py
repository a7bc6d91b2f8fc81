"""Multi-path search: a separate set of weights per candidate width (DNAS, Wu et al. 2018, arXiv 1812.00090).

Each layer holds one weight tensor and one clip value per candidate width, for weights and for activations
independently, mixed by Gumbel-softmax probabilities. Convolution is linear in its weight and in its input, so
the sum over all (weight, activation) paths Σ_ij p_i q_j conv(x_j, w_i) equals one convolution of the mixed input
with the mixed weight; that is computed, and it is the same function at a fraction of the price.

The cost R is the product of expected widths; the final width is the argmax.

`multi_path` is this scheme with SBS's quantizer: the paper's "without bit sharing" (Section 5.1). `dnas` differs in
its quantizers.
"""

from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    BatchStream,
    Capabilities,
    Decision,
    GeneratorState,
    Knob,
    LayerShape,
    LayerSpace,
    Match,
    Meter,
    Method,
    NetworkShape,
    Options,
    Policy,
    QuantizedLayer,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    Stateful,
    UniformQuantizer,
    calibrate,
    evaluate,
    generator,
    geometry_of,
    input_quantizer,
    policy_of,
    reestimate_norms,
    replace_layer,
    replicas,
    sgd,
    uniform,
    weight_groups,
)
from bench.compression.kernels import blocks, gradients, in_one, quantized, steps
from bench.compression.quantizer import clips_of, positive, read_clips
from methods.shared.decisions import bits_decision
from methods.shared.history import History
from methods.shared.search import edge_layer

CHOICES = (
    "Where sources differ or are silent: soft mixtures, one Gumbel draw a layer and step; all paths start from the "
    "pretrained weights.",
    "Logits start at 0 and learn on a held-out fifth of the training data, weights on the rest.",
)
"""Of multi-path searches, where what is published leaves a choice."""


class PathOptions(Options):
    """Options of every search in a network with all paths.

    Attributes:
        bits: Candidates for weights and activations.
        logit_travel: Rate × updates of the logits (Adam); the rate follows from the length of the search.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=2)] = (2, 4, 8)
    logit_travel: Annotated[float, Field(gt=0)] = 6.0

    @model_validator(mode="after")
    def _bits_rise(self) -> Self:
        if any(high <= low for low, high in pairwise(self.bits)):
            raise ValueError(f"bit candidates {list(self.bits)} must rise, e.g. [2, 4, 8]")
        return self


class MultiPathOptions(PathOptions):
    """Options of multi-path search, besides those of all.

    Attributes:
        architecture_share: Part of the training data on which the logits learn.
        warmup_share: Part of the search in which only weights learn.
        temperature_start, temperature_end: Of the Gumbel-softmax, falling exponentially.
    """

    architecture_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    temperature_start: Annotated[float, Field(gt=0)] = 5.0
    temperature_end: Annotated[float, Field(gt=0)] = 0.5

    def temperature(self, share: float) -> float:
        """The temperature after a share of the search."""
        fall: float = (self.temperature_end / self.temperature_start) ** share
        return self.temperature_start * fall


class _Mixture(torch.autograd.Function):
    """Σ p_j Q_j(x) in one pass over x, and back in one; it keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clips: Tensor, probabilities: Tensor, bits: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, clips, probabilities)
        ctx.bits = bits
        paths = list(zip(clips, probabilities, bits, strict=True))
        result = None if in_one(x) else torch.empty_like(x)
        mixed = x
        for block, place in blocks(x, result):
            mixed = torch.zeros_like(block) if place is None else place.zero_()
            for clip, probability, width in paths:
                mixed += probability * quantized(block, clip, steps(width), "activation")
        return mixed if result is None else result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, clips, probabilities = ctx.saved_tensors
        result = None if in_one(x) else torch.empty_like(x)
        to_x, sums = x, torch.zeros(2, len(clips), dtype=clips.dtype, device=x.device)
        for block, upstream, place in blocks(x, grads[0], result):
            to_x = torch.zeros_like(block) if place is None else place.zero_()
            parts = []
            for clip, probability, width in zip(clips, probabilities, ctx.bits, strict=True):
                values = quantized(block, clip, steps(width), "activation")
                found = gradients(upstream, block, values, clip, "activation")
                to_x += probability * found.to_x
                parts.append(torch.stack([probability * found.to_clip, found.value]))
            sums += torch.stack(parts, dim=1)
        return to_x if result is None else result, sums[0], sums[1], None


def mixture(x: Tensor, clips: Tensor, probabilities: Tensor, bits: tuple[int, ...]) -> Tensor:
    """The input that all paths of activations make together, Σ p_j Q_j(x).

    Args:
        x: Any shape.
        clips: v of each path, positive, shape (K,).
        probabilities: Of each path, shape (K,).
        bits: The width of each path.
    """
    result: Tensor = _Mixture.apply(x, clips, probabilities, bits)  # type: ignore[no-untyped-call]
    return result


class MixedLayer(nn.Module):
    """A convolution or linear layer with one weight per candidate width, or one for all.

    Args:
        module: The float layer.
        shape: What is known of it.
        bits: The candidates.
        quantizer: Of every path.
        shared: Whether all paths have the same weight.

    Attributes:
        logits: Architecture parameters, shape (2, K): weights, activations.
        probabilities: Of the present step, shape (2, K); set by the search before each forward pass.
    """

    bias: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        shape: LayerShape,
        bits: tuple[int, ...],
        quantizer: QuantizerFactory,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = geometry_of(module)
        self.bits = bits
        weight: Tensor = module.weight  # type: ignore[assignment]
        copies = [nn.Parameter(weight.detach().clone()) for _ in (bits[:1] if shared else bits)]
        self.weight = nn.ParameterList(copies * len(bits) if shared else copies)
        self.bias = module.bias  # type: ignore[assignment]
        self.weight_quantizers = nn.ModuleList(
            [quantizer(bits=width, kind="weight", normalized=shape.normalized) for width in bits]
        )
        self.activation_quantizers = nn.ModuleList([input_quantizer(shape, width, quantizer) for width in bits])
        self.logits = nn.Parameter(torch.zeros(2, len(bits)))
        self.to(weight.device)
        self.probabilities = torch.full((2, len(bits)), 1 / len(bits), device=weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the mixed input with the mixed weight."""
        of_weights, of_inputs = self.probabilities
        weights = zip(of_weights, self.weight_quantizers, self.weight, strict=True)
        weight = sum((p * quantizer(w) for p, quantizer, w in weights), start=x.new_zeros(()))
        return self.geometry.convolve(self._mixed_input(x, of_inputs), weight, self.bias)

    def _mixed_input(self, x: Tensor, probabilities: Tensor) -> Tensor:
        quantizers = list(self.activation_quantizers)
        if all(isinstance(quantizer, UniformQuantizer) for quantizer in quantizers):
            clips = torch.stack([positive(quantizer.clip) for quantizer in quantizers])  # type: ignore[arg-type]
            return mixture(x, clips, probabilities, self.bits)
        paths = zip(probabilities, quantizers, strict=True)
        return sum((p * quantizer(x) for p, quantizer in paths), start=x.new_zeros(()))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set every candidate's quantizer for its own width."""
        for quantizer, weight in zip(self.weight_quantizers, self.weight, strict=True):
            quantizer.calibrate(weight)  # type: ignore[operator]
        for quantizer in self.activation_quantizers:
            quantizer.calibrate(x)  # type: ignore[operator]


class PathNetwork:
    """A model whose searched layers have all paths.

    Attributes:
        model: The network.
        layers: The searched layers by name, in order of execution.
    """

    def __init__(
        self, job: SearchJob, bits: tuple[int, ...], quantizer: QuantizerFactory, *, shared: bool = False
    ) -> None:
        self.bits = bits
        self.network = job.task.network
        self.model = job.float_model()
        self.layers: dict[str, MixedLayer] = {}
        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            if shape.position == "middle":
                self.layers[shape.name] = MixedLayer(module, shape, bits, quantizer, shared=shared)
                replace_layer(self.model, shape.name, self.layers[shape.name])
            else:
                replace_layer(self.model, shape.name, edge_layer(module, shape))
        space = dict.fromkeys(self.layers, LayerSpace(weight_bits=bits, activation_bits=bits))
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)

    def logits(self) -> list[nn.Parameter]:
        """All architecture parameters."""
        return [layer.logits for layer in self.layers.values()]

    def draw(self, temperature: float, noise: torch.Generator | None) -> None:
        """Set every layer's probabilities: Gumbel-softmax with noise, plain softmax without."""
        for layer in self.layers.values():
            scores: Tensor = layer.logits
            if noise is not None:
                uniform = torch.rand(scores.shape, generator=noise).clamp(1e-9, 1 - 1e-9)
                scores = scores - torch.log(-torch.log(uniform)).to(scores.device)
            layer.probabilities = torch.softmax(scores / temperature, dim=1)

    def expected_cost(self) -> Tensor:
        """R under the present probabilities of the widths."""
        shares = torch.stack([layer.probabilities for layer in self.layers.values()])
        return self._relaxed(shares[:, 0], shares[:, 1])

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """R of the widths that the argmax picks now."""
        chosen = torch.stack([layer.logits.argmax(1) for layer in self.layers.values()])
        shares = F.one_hot(chosen, len(self.bits)).double()
        return self._relaxed(shares[:, 0], shares[:, 1])

    def decisions(self) -> list[Decision]:
        """Every layer's choice, with differences of logits as margins."""
        found = []
        for name, layer in self.layers.items():
            of_weights, of_inputs = layer.logits.tolist()
            found.append(bits_decision(name, "weight_bits", self.bits, of_weights))
            found.append(bits_decision(name, "activation_bits", self.bits, of_inputs))
        return found

    def policy(self, decisions: list[Decision]) -> Policy:
        """The policy of these decisions; first and last layer at 8 bits."""
        return policy_of(uniform(self.network, EDGE_BITS), decisions)

    def state(self, policy: Policy, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the chosen paths, under the float model's names."""
        mine = self.model.state_dict()
        state = {name: mine[name].detach().clone() for name in names if name in mine}
        for name, layer in self.layers.items():
            chosen = self.bits.index(policy.layers[name].weight_bits)
            state[f"{name}.weight"] = layer.weight[chosen].detach().clone()
        return state

    def clips(self, policy: Policy) -> dict[str, float]:
        """Clip values of the chosen paths and of the edges, where the common quantizer was searched with."""
        found = []
        for name, layer in self.layers.items():
            choice = policy.layers[name]
            weight = layer.weight_quantizers[self.bits.index(choice.weight_bits)]
            activation = layer.activation_quantizers[self.bits.index(choice.activation_bits)]
            found += clips_of(name, weight, activation)
        return read_clips([*found, *self._edge_clips()]) if found else {}

    def _edge_clips(self) -> list[tuple[str, nn.Parameter]]:
        """Clip values of the first and the last layer."""
        names = [shape.name for shape in self.network.layers if shape.position != "middle"]
        edges = {name: self.model.get_submodule(name) for name in names}
        return [
            clip
            for name, edge in edges.items()
            if isinstance(edge, QuantizedLayer)
            for clip in clips_of(name, edge.weight_quantizer, edge.activation_quantizer)
        ]


class PathMethod(Method):
    """A search that trains a network with all paths and takes the argmax."""

    capabilities = Capabilities(budget="strength", mixed_precision=True, data_parallel=True)
    Options = PathOptions
    options: PathOptions

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """λ."""
        return {"strength": Knob(low=0.01, high=1.0, log=True)}

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    @abstractmethod
    def network(self, job: SearchJob) -> PathNetwork:
        """The network that is searched in, from the pretrained weights."""

    @abstractmethod
    def train(self, job: SearchJob, network: PathNetwork) -> History:
        """Train weights and logits."""

    def search(self, job: SearchJob) -> SearchResult:
        """Train, then take the argmax."""
        network = self.network(job)
        data = job.task.data
        calibrate(network.model, data.calibration_batches(1, job.schedule.batch_size)[0])
        reestimate_norms(network.model, data, job.schedule.batch_size)
        start_top1 = evaluate(network.model, data, data.validation).top1
        history = self.train(job, network)
        decisions = network.decisions()
        policy = network.policy(decisions)
        return SearchResult(
            policy=policy,
            state=network.state(policy, job.pretrained),
            clips=network.clips(policy),
            decisions=decisions,
            record={
                "start_top1": start_top1,
                "history": history.entries,
                "logits": {name: layer.logits.tolist() for name, layer in network.layers.items()},
            },
        )


class MultiPath(PathMethod):
    """Multi-path search with SBS's quantizer."""

    summary = "SBS without bit sharing: separate weights per candidate, Gumbel-softmax, the common quantizer"
    source = "the SBS paper's Section 5.1, 'without bit sharing': the scheme of DNAS with the quantizer of SBS"
    deviations: ClassVar[tuple[str, ...]] = CHOICES
    Options = MultiPathOptions
    options: MultiPathOptions

    def network(self, job: SearchJob) -> PathNetwork:
        """With weights of its own in every path."""
        return PathNetwork(job, self.options.bits, self.search_quantizer)

    def train(self, job: SearchJob, network: PathNetwork) -> History:
        """Paths and logits in turn."""
        return _train(job, network, self.options)

    @property
    def search_quantizer(self) -> QuantizerFactory:
        """The quantizer of every path."""
        return UniformQuantizer


def _train(job: SearchJob, network: PathNetwork, options: MultiPathOptions) -> History:
    """Weights on one part of the training data, logits on the other, in the ratio of the parts."""
    noise = job.noise("gumbel")
    term = job.cost_term()
    logits = network.logits()
    of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
    weights = [parameter for group in of_weights.param_groups for parameter in group["params"]]
    period = max(2, round(1 / options.architecture_share))
    of_logits = torch.optim.Adam(logits, lr=options.logit_travel / max(1, job.steps // period))
    for_weights, for_logits = _streams(job, options.architecture_share)
    warmup = round(options.warmup_share * job.steps)
    per_epoch = job.task.data.batches_per_epoch(job.schedule.batch_size)
    history = History()
    network.model.train()
    forward = job.in_training(network.model)
    parts: dict[str, Stateful] = {"model": network.model, "history": history}
    parts |= {"of_weights": of_weights, "of_logits": of_logits}
    parts |= {"noise": GeneratorState(noise), "for_weights": for_weights, "for_logits": for_logits}
    for epoch in job.numbered_epochs(parts):
        meter = Meter(job.task.device)
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            temperature = options.temperature(step / job.steps)
            network.draw(temperature, noise)
            logits_turn = step >= warmup and step % period == period - 1
            images, labels = next(for_logits if logits_turn else for_weights)
            outputs = forward(images)
            loss = F.cross_entropy(outputs, labels)
            network.model.zero_grad(set_to_none=True)
            if logits_turn:
                (loss + term(network.expected_cost(), network.actual_cost())).backward()  # type: ignore[no-untyped-call]
                replicas.average_gradients(logits)
                of_logits.step()
            else:
                loss.backward()  # type: ignore[no-untyped-call]
                replicas.average_gradients(weights)
                of_weights.step()
            meter.add(loss, outputs, labels)
        history.end_epoch(job, network, epoch, {**meter.figures(), "temperature": temperature})
    return history


def _streams(job: SearchJob, share: float) -> tuple[BatchStream, BatchStream]:
    """Batches for weights and for logits, from two parts of the training data that are the same for all of a seed."""
    data, size = job.task.data, job.schedule.batch_size
    order = torch.randperm(len(data.train), generator=generator("architecture-part", job.seed)).to(job.task.device)
    cut = max(1, round(share * len(data.train)))
    weights, architecture = data.train.take(order[cut:]), data.train.take(order[:cut])
    return (
        BatchStream(data, size, job.order("search"), weights),
        BatchStream(data, size, job.order("architecture"), architecture),
    )


__all__ = ["History", "MixedLayer", "MultiPath", "MultiPathOptions", "PathMethod", "PathNetwork", "PathOptions"]
