"""Bayesian Bits (van Baalen et al. 2020, arXiv 2005.07093): bits and pruning by nested stochastic gates.

A tensor x is clipped to its range and split into its value on the coarsest grid and quantized residual errors, each on
a grid that divides the one before (Section 2 and `methods.shared.quantizers.residual_bits`; here for 2, 4 and 8 bits):

    s_2 = range/(2² − 1)            x_2 = s_2 ⌊x/s_2⌉
    s_4 = s_2/(2² + 1)              ε_4 = s_4 ⌊(x − x_2)/s_4⌉
    s_8 = s_4/(2⁴ + 1)              ε_8 = s_8 ⌊(x − x_2 − ε_4)/s_8⌉
    x_q = z_2 (x_2 + z_4 (ε_4 + z_8 ε_8))

Gates z are hard concrete (Louizos et al. 2018, arXiv 1712.01312; `methods.shared.networks.stochastic_gates`). They are
sampled in training, and open after it where P(z = 0) < 0.34. A search minimises

    CE + μ Ω,    Ω = Σ_t Σ_j b_j · MACs_t/max MACs · q(z_2) q(z_4) … q(z_j),    q = P(z > 0),

over weights and inputs t of all layers. Weights, ranges and gates learn in the same step. Constants that the paper does
not state are those of the authors' code (Qualcomm-AI-research/BayesianBits): `quantization/straight_through.py` and the
commands of its README. The harness gives λ = μ Ω_0, where Ω_0 is Ω at the start: like the λ of all methods it is then
in units of the loss.

Place of z_2. The formula has it on the weight. The normalisation that follows would undo it there: it removes any scale
of a filter, and adds its own bias to a filter that is zero. (In the authors' networks it is folded into the weight.) So
z_2 acts where the next layer that mixes channels reads the filter, after the quantizer of its input, by way of its
weight. A shut filter is then dead in the searched network exactly as in the physically reduced one, and its gate still
has a gradient of the task.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Capabilities,
    Decision,
    GeneratorState,
    LayerShape,
    NetworkShape,
    Options,
    Policy,
    QuantizerFactory,
    SearchJob,
    policy_of,
    price,
    sgd,
    uniform,
    weight_groups,
)
from bench.compression.quantizer import clip_parameters
from methods.shared.bit_sharing.quantization import check_chain
from methods.shared.decisions import gates_decision, group_decisions
from methods.shared.gates import shares
from methods.shared.history import History
from methods.shared.networks.stochastic_gates import (
    GatedLayer,
    GatedProduct,
    keep_strongest,
    margins_of,
    probability_open,
    sampled,
    thresholded,
)
from methods.shared.quantizers.residual_bits import RangeQuantizer
from methods.shared.quantizers.starts import ClipInit
from methods.shared.search import edge_layer, replace_layers
from methods.shared.space import ChoosesFromSpace, SearchSpace, grouped_space
from methods.shared.training import TrainedNetwork, TrainingMethod, train_jointly

PAPER_LR = 1e-3
"""Rate of Adam, for gates and ranges (README, ResNet-18 on ImageNet)."""

PAPER_UPDATES = 30 * 3_336
"""30 epochs on ImageNet, 1,281,167 images, with batches of 384 (README)."""

PAPER_TRAVEL = PAPER_LR * PAPER_UPDATES * (1 + 0.1 + 0.01) / 3
"""Sum of the rates over the paper's search, 37: the rate falls to a tenth after 10 and after 20 epochs."""


class BayesianBitsOptions(Options):
    """Options of Bayesian Bits. The value `paper` means: as stated in the paper.

    Attributes:
        bits: Candidate bits for weights and inputs, each a multiple of the one before: (2^c − 1)/(2^b − 1) is whole
            exactly where b divides c, and grids are nested then. With 1 bit, a signed grid would have only zero.
        group_size: Filters that share a gate z_2; 1 in the paper. When absent, it is that of the model.
        gate_lr: Adam's rate for the gates: "scaled" keeps its sum over the search at that of the paper, "paper" is
            1e-3.
        range_lr: Adam's rate for the ranges. It is not scaled, since ranges have the units of their tensors.
        clip_init: First values of the ranges: of the least squared error on a batch, at the candidate nearest to 4 bits
            ("calibrated"), or the largest value of each tensor, as in the authors' code ("paper").
    """

    bits: Annotated[
        tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), AfterValidator(check_chain)
    ] = (2, 4, 8)
    group_size: Annotated[int, Field(ge=1)] | None = None
    gate_lr: Literal["scaled", "paper"] | Annotated[float, Field(gt=0)] = "scaled"
    range_lr: Annotated[float, Field(gt=0)] = PAPER_LR
    clip_init: ClipInit = "calibrated"

    def gate_rate(self, updates: int) -> float:
        """Return the learning rate of the gates for a search of so many updates."""
        if self.gate_lr == "paper":
            return PAPER_LR
        return PAPER_TRAVEL / updates if self.gate_lr == "scaled" else self.gate_lr


def expected_bits(open_: Tensor, bits: Sequence[int]) -> Tensor:
    """Compute Σ_j b_j q(z_4) … q(z_j) of every tensor, shape (T,).

    Args:
        open_: q = P(z > 0) of each tensor's gates, shape (T, K − 1).
        bits: Chain of candidate bits, K of them.
    """
    candidates = open_.new_tensor(bits)
    return candidates[0] + (open_.cumprod(1) * candidates[1:]).sum(1)


Gated = GatedLayer | GatedProduct


class BayesianNetwork(TrainedNetwork):
    """A model whose searched layers have gates, with its regulariser, cost and decisions.

    Args:
        job: Model, weights and measure of cost.
        space: Choices of every searched layer; the bits are the same in all layers.
        clip_init: First values of the ranges.

    Attributes:
        pruned: The layers that may lose filters, by name.
        bits: Chain of candidate bits.
    """

    layers: dict[str, Gated]

    def __init__(self, job: SearchJob, space: SearchSpace, clip_init: ClipInit = "calibrated") -> None:
        def gated(module: nn.Module, shape: LayerShape, before: Mapping[str, Gated]) -> Gated:
            choice, producer = space[shape.name], before.get(shape.producer or "")
            if shape.kind == "matmul":
                return GatedProduct(module, shape, choice.weight_bits, clip_init)
            gates = producer if isinstance(producer, GatedLayer) else None
            return GatedLayer(module, shape, choice.weight_bits, choice.group_size, gates, clip_init)

        self.network = job.task.network
        self.model = job.float_model()
        edge = partial(edge_layer, quantizer=partial(RangeQuantizer, clip_init=clip_init))
        self.layers = replace_layers(self.model, self.network, gated, edge)
        self.pruned = {name: layer for name, layer in self.layers.items() if layer.phi_filters is not None}
        self.bits = next(iter(space.values())).weight_bits
        self._mac_shares = self._shares_of_macs(job.task.device)
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)
        self.threshold()

    def _shares_of_macs(self, device: torch.device) -> Tensor:
        """Compute MACs of each searched layer over those of the layer with most, shape (L,)."""
        macs = {layer.name: layer.macs for layer in price(self.network, uniform(self.network, EDGE_BITS)).layers}
        return torch.tensor([macs[name] / max(macs.values()) for name in self.layers], device=device)

    def gate_parameters(self) -> list[nn.Parameter]:
        """List φ of all gates."""
        return [*self._phi_bits(), *self._phi_filters()]

    def range_parameters(self) -> list[nn.Parameter]:
        """List the ranges of all quantizers, and the offsets of those whose input can be negative."""
        return list(clip_parameters(self.model))

    def _phi_bits(self) -> tuple[nn.Parameter, ...]:
        return tuple(quantizer.phi for layer in self.layers.values() for quantizer in layer.quantizers())

    def _phi_filters(self) -> tuple[nn.Parameter, ...]:
        return tuple(layer.phi_filters for layer in self.pruned.values() if layer.phi_filters is not None)

    def draw(self, noise: torch.Generator) -> None:
        """Sample all gates, differentiably."""
        self._set_gates(lambda phi: sampled(phi, noise))

    @torch.no_grad()
    def threshold(self) -> None:
        """Set all gates to those of the discrete network."""
        self._set_gates(thresholded)

    def _set_gates(self, gates_of: Callable[[Tensor], Tensor]) -> None:
        """Compute the gates of bits in one call and those of filters in another: networks have some hundred gates."""
        of_bits = gates_of(torch.stack(self._phi_bits())).unbind()
        quantizers = [quantizer for layer in self.layers.values() for quantizer in layer.quantizers()]
        for quantizer, gates in zip(quantizers, of_bits, strict=True):
            quantizer.gates = gates
        phis = self._phi_filters()
        of_filters = torch.split(gates_of(torch.cat(phis)), [len(phi) for phi in phis]) if phis else ()
        for layer, gates, phi in zip(self.pruned.values(), of_filters, phis, strict=True):
            layer.channel_gates = layer.groups.spread(keep_strongest(gates, phi))  # type: ignore[union-attr]

    def regulariser(self) -> Tensor:
        """Compute Σ_t Σ_j b_j · MACs_t/max MACs · q(z_2) q(z_4) … q(z_j), a scalar; of q(z_2) the mean over filters."""
        bits = expected_bits(probability_open(torch.stack(self._phi_bits())), self.bits)
        of_weights, of_inputs = bits[0::2], bits[1::2]
        kept = torch.stack([layer.filters(probability_open) / layer.shape.filters for layer in self.layers.values()])
        return (self._mac_shares * (kept * of_weights + of_inputs)).sum()

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """Compute the cost of the discrete network, a scalar."""
        chosen = shares(list(thresholded(torch.stack(self._phi_bits())).unbind()))
        filters = {
            name: layer.filters(lambda phi: keep_strongest(thresholded(phi), phi)).double()
            for name, layer in self.pruned.items()
        }
        return self._relaxed(chosen[0::2], chosen[1::2], **self._relaxed.channels(filters))

    def decisions(self) -> list[Decision]:
        """List every gate; the strongest group of a layer always stays."""
        decisions: list[Decision] = []
        for name, layer in self.layers.items():
            of_weight, of_input = layer.quantizers()
            decisions += gates_decision(name, "weight_bits", self.bits, margins_of(of_weight.phi))
            decisions += gates_decision(name, "activation_bits", self.bits, margins_of(of_input.phi))
            if layer.groups is not None and layer.phi_filters is not None:
                strongest = int(layer.phi_filters.argmax())
                decisions += group_decisions(name, layer.groups.members, margins_of(layer.phi_filters), strongest)
        return decisions

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions; the first and the last layer have 8 bits."""
        base = uniform(self.network, EDGE_BITS)
        for name, layer in self.pruned.items():
            base = base.with_layer(name, kept_filters=tuple(range(layer.shape.filters)))
        for name in self.layers:
            base = base.with_layer(name, weight_bits=self.bits[0], activation_bits=self.bits[0])
        return policy_of(base, decisions)

    def learned(self, policy: Policy) -> dict[str, Tensor]:
        """Copy ranges and offsets, under the names that they have in the compressed network."""
        return {name: value.detach().clone() for name, value in self._named(self.range_parameters()).items()}

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by φ of every gate, by the name of its parameter."""
        return {"phi": {name: phi.tolist() for name, phi in self._named(self.gate_parameters()).items()}}

    def _named(self, parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
        chosen = {id(parameter) for parameter in parameters}
        return {name: parameter for name, parameter in self.model.named_parameters() if id(parameter) in chosen}


class BayesianBits(TrainingMethod[BayesianNetwork], ChoosesFromSpace):
    """Bayesian Bits with groups of filters."""

    summary = "Bayesian Bits: pruning and mixed precision by nested stochastic gates over quantized residual errors"
    family = "learned gates"
    source = (
        "van Baalen, Louizos, Nagel, Amjad, Wang, Blankevoort and Welling, Bayesian Bits: Unifying Quantization and "
        "Pruning, NeurIPS 2020, arXiv 2005.07093; code: Qualcomm-AI-research/BayesianBits"
    )
    deviations = (
        "Candidates are those of the option bits, 2, 4 and 8 by default; the paper goes on to 16 and 32.",
        "Filters share a gate z_2 in groups of the size that SBS has; in the paper each filter has its own, as with "
        "group_size = 1.",
        "z_2 acts where the next layer reads a filter, and not on the filter's weight; normalisations are not folded "
        "into weights.",
        "The most probable group of a layer never closes.",
        "Inputs are quantized where layers read them, each with a range, gates and MACs of its own; the paper has one "
        "quantizer for all layers that read a tensor.",
        "An input that can be negative has a learned offset on an unsigned grid; the paper takes a signed grid.",
        "The first and the last layer are fixed at 8 bits.",
        "Ranges start at the least squared error on one batch, like the clip values of all methods; "
        "clip_init = 'paper' starts them at the largest value.",
        "Only filters that every method here may remove have gates z_2; the paper has them on every weight tensor.",
        "The learning rate of the gates is constant, and its sum over the search is that of the paper, whose search is "
        "far longer.",
        "Gates with phi below -2 are sampled like all others; the authors' code skips them, which keeps them shut.",
        "The weight μ of the regulariser is the harness's: with match = 'dual' it moves, and is negative while the "
        "network costs too little; with match = 'hinge' it is 0 while the network fits the budget; with match = "
        "'lambda' it is constant, as in the paper.",
        "In the search, weights have the decay and rate of the schedule; the paper has no decay and a rate of 3e-3.",
        "In fine-tuning, ranges are trained by SGD like clip values; the paper keeps Adam.",
        "The regulariser is weighted by MACs, whatever the budget limits.",
    )
    capabilities = Capabilities(
        budget="strength", prunes=True, mixed_precision=True, own_quantizer=True, data_parallel=True
    )
    Options = BayesianBitsOptions
    options: BayesianBitsOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Fill in the group size of the network where no other is set."""
        return {**super().stated_options(network), "group_size": self.options.group_size or network.group_size}

    def space(self, network: NetworkShape) -> SearchSpace:
        """State the choices: the same bits in every layer, and groups of filters in prunable layers."""
        return grouped_space(network, self.options.bits, self.options.group_size or network.group_size)

    @property
    def quantizer(self) -> QuantizerFactory:
        """The learned range at a fixed number of bits."""
        return RangeQuantizer

    def network(self, job: SearchJob) -> BayesianNetwork:
        """Build the network of the search from the pretrained weights."""
        return BayesianNetwork(job, self.space(job.task.network), self.options.clip_init)

    def rates(self, job: SearchJob) -> dict[str, float]:
        """State the learning rate of the gates."""
        return {"gate_lr": self.options.gate_rate(job.steps)}

    def train(self, job: SearchJob, network: BayesianNetwork) -> History:
        """Train weights by SGD, gates and ranges by Adam, in the same step; then set the gates to the discrete ones."""
        term, noise = job.cost_term(), job.noise("gates")
        start = float(network.regulariser().detach())
        gates, ranges = network.gate_parameters(), network.range_parameters()
        of_weights = sgd(weight_groups(network.model, exclude=[*gates, *ranges]), job.schedule)
        of_gates = torch.optim.Adam(
            [
                {"params": gates, "lr": self.options.gate_rate(job.steps)},
                {"params": ranges, "lr": self.options.range_lr},
            ]
        )
        history = train_jointly(
            job,
            network,
            {"of_weights": of_weights, "of_gates": of_gates},
            penalty=lambda: term.weight(network.actual_cost()) * network.regulariser() / start,
            draw=lambda _: network.draw(noise),
            others={"noise": GeneratorState(noise)},
        )
        network.threshold()
        return history
