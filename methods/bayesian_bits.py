"""Bayesian Bits (van Baalen et al. 2020, arXiv 2005.07093): widths and pruning by nested stochastic gates.

A tensor x is clipped to its range and split into what the narrowest grid makes of it and quantized residual errors,
each on a grid that divides the one before (the paper's Section 2; for the candidates 2, 4, 8):

    s_2 = range/(2² − 1)            x_2 = s_2 ⌊x/s_2⌉
    s_4 = s_2/(2² + 1)              ε_4 = s_4 ⌊(x − x_2)/s_4⌉
    s_8 = s_4/(2⁴ + 1)              ε_8 = s_8 ⌊(x − x_2 − ε_4)/s_8⌉
    x_q = z_2 (x_2 + z_4 (ε_4 + z_8 ε_8))

Gates z are hard concrete (Louizos et al. 2018, arXiv 1712.01312): sampled in training, and open at the end where
P(z = 0) < 0.34. A search minimises

    CE + μ Σ_t Σ_j b_j · MACs_t/max MACs · q(z_2) q(z_4) … q(z_j),    q = P(z > 0),

over weights and inputs t of all layers. Constants that the paper leaves to the code are those of the authors' code
(Qualcomm-AI-research/BayesianBits): `quantization/straight_through.py` and the commands of its README.

Where z_2 acts. On the weight, as the formula says, the normalisation that follows would undo it: it takes any scale of
a filter out, and puts its own bias in the place of one that is zero. (The authors' networks have it folded into the
weight.) So z_2 stands where the next layer that mixes channels reads the filter, after the quantizer of its input, by
way of its weight: a filter is dead in the searched network exactly as in the physically reduced one, and its gate feels
the task.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
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
    calibrate,
    evaluate,
    policy_of,
    price,
    reestimate_norms,
    replace_layer,
    replicas,
    sgd,
    uniform,
    weight_groups,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted, clip_parameters, positive
from methods.shared.bit_sharing.quantization import check_chain
from methods.shared.decisions import gates_decision, group_decisions
from methods.shared.gates import FilterGroups, shares
from methods.shared.history import History
from methods.shared.quantizers.residual_bits import RangeQuantizer, gated_quantization
from methods.shared.search import edge_layer
from methods.shared.space import cheapest_policy

BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1
"""Temperature and stretch of the hard-concrete distribution (Louizos et al., Section 4.1; the authors' code)."""

SHUT_FROM = 0.34
"""A gate is shut at the end unless P(z = 0) is below this (the authors' `hc_thres`)."""

FIRST_PHI = 6.0
"""Where all gates start: open with probability 0.9995 (the authors' `--gamma-4-init` and its like)."""

_OFFSET = BETA * math.log(-GAMMA / ZETA)
LAST_OPEN_PHI = _OFFSET - math.log(SHUT_FROM / (1 - SHUT_FROM))
"""The φ at which P(z = 0) is exactly that, −0.935: margins of decisions are counted from here."""

PAPER_LR = 1e-3
"""Adam, of gates and ranges (README, ResNet-18 on ImageNet)."""

PAPER_UPDATES = 30 * 3_336
"""30 epochs on ImageNet, 1,281,167 images, with batches of 384 (README)."""

PAPER_TRAVEL = PAPER_LR * PAPER_UPDATES * (1 + 0.1 + 0.01) / 3
"""The way that Adam can take a gate in the paper's search, 37: its rate falls to a tenth after 10 and 20 epochs."""

STRENGTH: Mapping[Match, Knob] = {
    "hinge": Knob(low=0.003, high=0.3, log=True),
    "lambda": Knob(low=3e-4, high=3.0, log=True),
}
"""The paper's μ are 0.01 to 0.2 (README). On digits (80 updates at the default rate) searches for the cost of uniform
4 bit end near it at 0.01 to 0.05, and at 0.1 to 0.4 of it at 0.2. Where μ alone brackets the cost it must reach both
ends."""


class BayesianBitsOptions(Options):
    """Options of Bayesian Bits. The value `paper` means: as the paper states it.

    Attributes:
        bits: Candidates for weights and inputs, each a multiple of the one before.
        group_size: Filters that share a gate z_2; as the model states when absent, 1 in the paper.
        gate_lr: Adam's rate for the gates: "scaled" keeps its sum over the search at the paper's, "paper" is 1e-3.
        range_lr: Adam's rate for the ranges. It is not scaled: ranges are in the units of their tensors.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1)] = (2, 4, 8)
    group_size: Annotated[int, Field(ge=1)] | None = None
    gate_lr: Literal["scaled", "paper"] | Annotated[float, Field(gt=0)] = "scaled"
    range_lr: Annotated[float, Field(gt=0)] = PAPER_LR

    @model_validator(mode="after")
    def _grids_are_nested(self) -> Self:
        """(2^c − 1)/(2^b − 1) is whole exactly where b divides c; a single bit has no signed grid but zero."""
        check_chain(self.bits)
        return self

    def gate_rate(self, updates: int) -> float:
        """The gates' learning rate for a search of so many updates."""
        if self.gate_lr == "paper":
            return PAPER_LR
        return PAPER_TRAVEL / updates if self.gate_lr == "scaled" else self.gate_lr


# --- the gates (Louizos et al., Sections 2.2 and 4.1) ---------------------------------------------------------------


def hard_concrete(phi: Tensor, uniform: Tensor) -> Tensor:
    """A sample z = min(1, max(0, s (ζ − γ) + γ)) with s = sigmoid((log u − log(1 − u) + φ)/β).

    Args:
        phi: Any shape.
        uniform: u, uniform on (0, 1), the same shape.
    """
    stretched = torch.sigmoid((torch.logit(uniform) + phi) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def probability_open(phi: Tensor) -> Tensor:
    """P(z > 0) = sigmoid(φ − β log(−γ/ζ)), any shape."""
    return torch.sigmoid(phi - _OFFSET)


def thresholded(phi: Tensor) -> Tensor:
    """The gates of the discrete network: 1 where P(z = 0) = sigmoid(β log(−γ/ζ) − φ) is below 0.34, else 0."""
    return (torch.sigmoid(_OFFSET - phi) < SHUT_FROM).to(phi.dtype)


def keep_strongest(gates: Tensor, phi: Tensor) -> Tensor:
    """Gates of a layer's groups of which the most probable never closes: a layer without filters is no layer.

    Args:
        gates: Shape (G,).
        phi: Theirs.
    """
    strongest = F.one_hot(phi.argmax(), len(phi)).to(gates.dtype)
    return gates + (strongest * (1 - gates)).detach()


def expected_bits(open_: Tensor, bits: Sequence[int]) -> Tensor:
    """Σ_j b_j q(z_4) … q(z_j) of every tensor, shape (T,): a width counts in full for every gate up to its own.

    Args:
        open_: P(z > 0) of each tensor's gates, shape (T, K − 1).
        bits: The chain of candidates, K of them.
    """
    widths = open_.new_tensor(bits)
    return widths[0] + (open_.cumprod(1) * widths[1:]).sum(1)


# --- the network ----------------------------------------------------------------------------------------------------


class GatedQuantizer(RangeQuantizer):
    """The same at all widths of a chain.

    Args:
        bits: The chain of candidates, K of them.
        kind: Weights or activations.

    Attributes:
        phi: φ_4, φ_8, …, shape (K − 1,).
        gates: z_4, z_8, … of the present step, shape (K − 1,); set by the network before each forward pass.
    """

    def __init__(self, *, bits: tuple[int, ...], kind: Kind) -> None:
        super().__init__(bits=bits[-1], kind=kind)
        self.chain = bits
        self.phi = nn.Parameter(torch.full((len(bits) - 1,), FIRST_PHI))
        self.gates = torch.ones(len(bits) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        return gated_quantization(x, positive(self.clip), self.gates.to(self.clip), self.chain, self.kind)


class GatedLayer(QuantizedLayer):
    """A convolution or linear layer whose widths and filters are chosen by gates.

    Args:
        module: The float layer.
        shape: What is known of it.
        bits: The chain of candidates.
        group_size: Filters that share a gate; 0 when the layer is not pruned.
        producer: The layer whose gates are those of its inputs.

    Attributes:
        phi_filters: φ_2 of each group, shape (G,).
        groups: The groups of filters.
        channel_gates: z_2 of each filter in the present step; `None` when all are there.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: LayerShape,
        bits: tuple[int, ...],
        group_size: int,
        producer: "GatedLayer | None",
    ) -> None:
        of_input = GatedQuantizer(bits=bits, kind="activation")
        super().__init__(
            module, GatedQuantizer(bits=bits, kind="weight"), Shifted(of_input) if shape.signed_input else of_input
        )
        self._reads = (None if shape.depthwise else producer,)  # a tuple keeps it from becoming a submodule
        self.phi_filters: nn.Parameter | None = None
        self.groups: FilterGroups | None = None
        self.channel_gates: Tensor | None = None
        if group_size:
            self.groups = FilterGroups(len(self.weight), group_size, self.weight.device)
            self.phi_filters = nn.Parameter(self.weight.new_full((len(self.groups.members),), FIRST_PHI))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to what its producer's gates leave of its input; see the module on where z_2 acts."""
        weight = self.weight_quantizer(self.weight)
        producer = self._reads[0]
        if producer is not None and producer.channel_gates is not None:
            # The same function as masking the quantized input, with the same gradients, on a far smaller tensor.
            weight = weight * producer.channel_gates.to(weight).view(1, -1, *[1] * (weight.ndim - 2))
        return self.geometry.convolve(self.activation_quantizer(x), weight, self.bias)

    def quantizers(self) -> tuple[GatedQuantizer, GatedQuantizer]:
        """Of the weight and of the input."""
        of_input = self.activation_quantizer
        inside = of_input.quantizer if isinstance(of_input, Shifted) else of_input
        return self.weight_quantizer, inside  # type: ignore[return-value]


class BayesianNetwork:
    """A model whose searched layers have gates, with its regulariser, cost and decisions.

    Args:
        job: Model, weights and measure.
        space: What may be chosen, layer by layer; the same widths everywhere.

    Attributes:
        model: The network.
        layers: The searched layers by name, in order of execution.
    """

    def __init__(self, job: SearchJob, space: Mapping[str, LayerSpace]) -> None:
        self.network = job.task.network
        self.model = job.float_model()
        self.layers: dict[str, GatedLayer] = {}
        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            layer: nn.Module = edge_layer(module, shape, quantizer=RangeQuantizer)
            if shape.position == "middle":
                choice, producer = space[shape.name], self.layers.get(shape.producer or "")
                layer = GatedLayer(module, shape, choice.weight_bits, choice.group_size, producer)
                self.layers[shape.name] = layer
            replace_layer(self.model, shape.name, layer)
        self.pruned = {name: layer for name, layer in self.layers.items() if layer.phi_filters is not None}
        self.bits = next(iter(space.values())).weight_bits
        self._mac_shares = self._shares_of_macs().to(job.task.device)
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)
        self.threshold()

    def _shares_of_macs(self) -> Tensor:
        """MACs of each searched layer over those of the layer with most, shape (L,)."""
        macs = {layer.name: layer.macs for layer in price(self.network, uniform(self.network, EDGE_BITS)).layers}
        return torch.tensor([macs[name] / max(macs.values()) for name in self.layers])

    def gate_parameters(self) -> list[nn.Parameter]:
        """φ of all gates."""
        return [*self._phi_bits(), *self._phi_filters()]

    def range_parameters(self) -> list[nn.Parameter]:
        """Ranges of all quantizers, and offsets of those whose input can be negative."""
        return list(clip_parameters(self.model))

    def _phi_bits(self) -> tuple[nn.Parameter, ...]:
        return tuple(quantizer.phi for layer in self.layers.values() for quantizer in layer.quantizers())

    def _phi_filters(self) -> tuple[nn.Parameter, ...]:
        return tuple(layer.phi_filters for layer in self.pruned.values() if layer.phi_filters is not None)

    def draw(self, noise: torch.Generator) -> None:
        """Sample all gates, differentiably; the draws are made in single precision on the processor."""

        def sample(phi: Tensor) -> Tensor:
            smallest = torch.finfo(torch.float32).eps
            uniform = torch.rand(phi.shape, generator=noise).clamp(smallest, 1 - smallest)
            return hard_concrete(phi, uniform.to(phi))

        self._set_gates(sample)

    @torch.no_grad()
    def threshold(self) -> None:
        """Set all gates to those of the discrete network."""
        self._set_gates(thresholded)

    def _set_gates(self, gates_of: Callable[[Tensor], Tensor]) -> None:
        """All in one call for bits and one for filters: networks have some hundred gates."""
        of_bits = gates_of(torch.stack(self._phi_bits())).unbind()
        quantizers = [quantizer for layer in self.layers.values() for quantizer in layer.quantizers()]
        for quantizer, gates in zip(quantizers, of_bits, strict=True):
            quantizer.gates = gates
        phis = self._phi_filters()
        of_filters = torch.split(gates_of(torch.cat(phis)), [len(phi) for phi in phis]) if phis else ()
        for layer, gates, phi in zip(self.pruned.values(), of_filters, phis, strict=True):
            layer.channel_gates = layer.groups.spread(keep_strongest(gates, phi))  # type: ignore[union-attr]

    def regulariser(self) -> Tensor:
        """Σ_t Σ_j b_j · MACs_t/max MACs · q(z_2) q(z_4) … q(z_j), a scalar; of z_2 the mean over filters."""
        widths = expected_bits(probability_open(torch.stack(self._phi_bits())), self.bits)
        kept = self._shares_of_filters(probability_open)
        return (self._mac_shares * (kept * widths[0::2] + widths[1::2])).sum()

    def _shares_of_filters(self, gates_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The part of each layer's filters that gates leave, shape (L,)."""
        parts = []
        for layer in self.layers.values():
            if layer.groups is None or layer.phi_filters is None:
                parts.append(self._mac_shares.new_ones(()))
            else:
                parts.append((gates_of(layer.phi_filters) * layer.groups.sizes).sum() / len(layer.weight))
        return torch.stack(parts)

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """The cost of the discrete network, a scalar."""
        chosen = shares(list(thresholded(torch.stack(self._phi_bits())).unbind()))
        left = dict(
            zip(self.layers, self._shares_of_filters(lambda phi: keep_strongest(thresholded(phi), phi)), strict=True)
        )
        rows = self._relaxed.layers
        one = self._mac_shares.new_ones(())
        outputs = torch.stack([left[row.leader or row.name] for row in rows])
        inputs = torch.stack([left.get(row.producer or "", one) for row in rows])
        return self._relaxed(
            chosen[0::2],
            chosen[1::2],
            in_channels=(inputs * self._relaxed.in_channels).round(),
            out_channels=(outputs * self._relaxed.out_channels).round(),
        )

    def decisions(self) -> list[Decision]:
        """Every gate, with φ less the value at which it closes as its margin; a layer's strongest group stays."""
        found: list[Decision] = []
        for name, layer in self.layers.items():
            of_weight, of_input = layer.quantizers()
            found += gates_decision(name, "weight_bits", self.bits, _margins(of_weight.phi))
            found += gates_decision(name, "activation_bits", self.bits, _margins(of_input.phi))
            if layer.groups is not None and layer.phi_filters is not None:
                strongest = int(layer.phi_filters.argmax())
                found += group_decisions(name, layer.groups.members, _margins(layer.phi_filters), strongest)
        return found

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """The policy of these decisions; first and last layer at 8 bits."""
        base = uniform(self.network, EDGE_BITS)
        for name, layer in self.pruned.items():
            base = base.with_layer(name, kept_filters=tuple(range(len(layer.weight))))
        for name in self.layers:
            base = base.with_layer(name, weight_bits=self.bits[0], activation_bits=self.bits[0])
        return policy_of(base, decisions)

    def state(self, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights and buffers under the float model's names."""
        mine = self.model.state_dict()
        return {name: mine[name].detach().clone() for name in names}

    def phi(self) -> dict[str, list[float]]:
        """φ of every gate, by the name of its parameter."""
        chosen = {id(parameter) for parameter in self.gate_parameters()}
        return {
            name: parameter.tolist() for name, parameter in self.model.named_parameters() if id(parameter) in chosen
        }

    def ranges(self) -> dict[str, Tensor]:
        """Ranges and offsets, under the names that they have in the compressed network."""
        chosen = {id(parameter) for parameter in self.range_parameters()}
        return {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if id(parameter) in chosen
        }


def _margins(phi: Tensor) -> list[float]:
    """How far gates are from closing; at 0 and above they are open."""
    margins: list[float] = (phi.detach().double() - LAST_OPEN_PHI).tolist()
    return margins


# --- the search -----------------------------------------------------------------------------------------------------


class BayesianBits(Method):
    """Bayesian Bits with groups of filters."""

    summary = "Bayesian Bits: pruning and mixed precision by nested stochastic gates over quantized residual errors"
    source = (
        "van Baalen, Louizos, Nagel, Amjad, Wang, Blankevoort and Welling, Bayesian Bits: Unifying Quantization and "
        "Pruning, NeurIPS 2020, arXiv 2005.07093; code: Qualcomm-AI-research/BayesianBits"
    )
    deviations = (
        "Candidates are those of the option bits, 2, 4 and 8 by default; the paper goes on to 16 and 32.",
        "Filters share a gate z_2 by groups, as in all methods that prune here; in the paper each filter has its own.",
        "z_2 acts where the next layer reads a filter and not on its weight; norms are not folded into weights.",
        "The most probable group of a layer never closes.",
        "Inputs are quantized where layers read them, each with its own range, gates and MACs; the paper has one "
        "quantizer for all layers that read a tensor.",
        "An input that can be negative has a learned offset on an unsigned grid; the paper takes a signed grid.",
        "First and last layer are fixed at 8 bits.",
        "The rate of the gates is constant, and scaled so that its sum over the search is the paper's; a search is a "
        "great deal shorter.",
        "Gates with phi below -2 are sampled like all others; the authors' code skips them, which freezes them shut.",
        "With match = hinge the regulariser acts only while the discrete network costs more than the budget.",
        "Weights have the schedule's decay and rate in the search; the paper has none and 3e-3.",
        "In fine-tuning ranges are trained by SGD like clip values; the paper keeps Adam.",
        "MACs weigh the regulariser whatever the budget limits.",
    )
    capabilities = Capabilities(
        budget="strength", prunes=True, mixed_precision=True, own_quantizer=True, data_parallel=True
    )
    Options = BayesianBitsOptions
    options: BayesianBitsOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """With the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self.options.group_size or network.group_size}

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """The paper's μ."""
        return {"strength": STRENGTH[match]}

    def space(self, network: NetworkShape) -> dict[str, LayerSpace]:
        """What the search may choose: the same widths everywhere, and groups of filters where filters may go."""
        size = self.options.group_size or network.group_size
        bits = self.options.bits
        return {
            layer.name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=size if layer.prunable else 0)
            for layer in network.middle
        }

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere, one group a layer."""
        return cheapest_policy(network, self.space(network))

    @property
    def quantizer(self) -> QuantizerFactory:
        """A learned range."""
        return RangeQuantizer

    def search(self, job: SearchJob) -> SearchResult:
        """Train weights, ranges and gates together, then read off the gates."""
        network = BayesianNetwork(job, self.space(job.task.network))
        data = job.task.data
        calibrate(network.model, data.calibration_batches(1, job.schedule.batch_size)[0])
        reestimate_norms(network.model, data, job.schedule.batch_size)
        start_top1 = evaluate(network.model, data, data.validation).top1
        history = _train(job, network, self.options)
        decisions = network.decisions()
        return SearchResult(
            policy=network.policy(decisions),
            state=network.state(job.pretrained),
            quantizers=network.ranges(),
            normalized_weights=True,  # of the common recipe, as for everybody; the paper's quantizer takes them raw
            decisions=decisions,
            record={
                "start_top1": start_top1,
                "gate_lr": self.options.gate_rate(job.steps),
                "history": history.entries,
                "phi": network.phi(),
            },
        )


def _train(job: SearchJob, network: BayesianNetwork, options: BayesianBitsOptions) -> History:
    """Weights by SGD, gates and ranges by Adam, in the same step."""
    term, noise, history = job.cost_term(), job.noise("gates"), History()
    gates, ranges = network.gate_parameters(), network.range_parameters()
    of_weights = sgd(weight_groups(network.model, exclude=[*gates, *ranges]), job.schedule)
    of_gates = torch.optim.Adam(
        [{"params": gates, "lr": options.gate_rate(job.steps)}, {"params": ranges, "lr": options.range_lr}]
    )
    network.model.train()
    forward = job.in_training(network.model)
    parts: dict[str, Stateful] = {"model": network.model, "history": history, "noise": GeneratorState(noise)}
    parts |= {"of_weights": of_weights, "of_gates": of_gates}
    for epoch, batches in job.epochs(parts):
        meter = Meter(job.task.device)
        for images, labels in batches:
            network.draw(noise)
            outputs = forward(images)
            loss = F.cross_entropy(outputs, labels)
            network.model.zero_grad(set_to_none=True)
            cost = term.strength * network.regulariser() * term.is_active(network.actual_cost())
            (loss + cost).backward()  # type: ignore[no-untyped-call]
            replicas.average_gradients(network.model.parameters())
            of_weights.step()
            of_gates.step()
            meter.add(loss, outputs, labels)
        history.end_epoch(job, network, epoch, meter.figures())
    network.threshold()
    return history
