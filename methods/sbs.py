"""Single-path Bit Sharing (SBS): joint filter pruning and mixed-precision quantization in one set of weights.

The search of the paper's Section 3 and Algorithm 1. Equations are where they are used:

* quantizer, Eqs. 1–4: `bench.compression.quantizer`;
* decomposition, Theorem 1 and Eq. 8, and gated quantization, Eq. 10: `methods.shared.bit_sharing.quantization`;
* pruning gates, Eq. 11, and the surrogate gradient, Eq. 12: `methods.shared.gates`;
* layers, and the network of them with its cost R, Eq. 14: `layer` and `network` in `methods.shared.bit_sharing`;
* L = L_ce + λ log R, Eq. 13, and Algorithm 1: here.

Where the paper is silent or its letter does not work, the choice is an option below; `docs/sbs.md` says why.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    CostTerm,
    GeneratorState,
    Knob,
    LayerSpace,
    Match,
    Meter,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    Stateful,
    calibrate,
    evaluate,
    policy_of,
    reestimate_norms,
    replicas,
    sgd,
    weight_groups,
)
from methods.shared.bit_sharing.gate_initialisation import MetricScale, scale_metrics, shut_bits
from methods.shared.bit_sharing.layer import (
    ClipSharing,
    GatePlace,
    GroupMetric,
    LayerSettings,
)
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.bit_sharing.quantization import check_chain
from methods.shared.space import FULL_PRECISION, SearchSpace, cheapest_policy

PAPER_THRESHOLD_LR = 1e-3
PAPER_UPDATES = 10_530
"""Updates of the paper's search: 30 epochs of 351 batches of 128 (45,000 images). A threshold's way is rate × updates,
so a strength λ keeps its meaning over schedules only when their product is kept."""

QUANTIZATION_STRENGTH = Knob(low=0.01, high=2.0, log=True)
"""Below 0.01 no gate moves at the paper's rate × updates. A task that is learned well resists: from a ResNet-20 of 59 %
on CIFAR-100, searches for the cost of uniform 3 bit at 0.35 end at 1.2 to 1.5 times that."""

PRUNING_STRENGTH = Knob(low=0.05, high=10.0, log=True)
"""The task pulls a shut group open with a gradient of about 0.1, ten times a shut width's."""

_CALIBRATION_BATCHES = 4
_DECIDING_SHARE = 0.1


SOURCE = "Liu, Zhuang, Chen et al., Single-path Bit Sharing for Automatic Loss-aware Model Compression"

_OF_SEARCHES = (
    "Clip values start at the least squared error on one batch, normalisation statistics re-estimated; "
    "clip_init = 'paper' starts them at 1.",
    "Thresholds have the paper's rate × updates in a search of any length; threshold_lr = 'paper' is its 1e-3.",
    "Each gate is decided by majority over the last tenth of the search; final_gates = 'last' takes its last state.",
)
_OF_PRUNING = (
    "A pruning gate acts where the next convolution reads the filters; gate_place = 'weight' is the letter of Eq. 11, "
    "with which the searched network is not the reduced one.",
    "The strongest group of a layer never closes.",
)


class SbsOptions(Options):
    """Options of SBS. The value `paper` means: as the paper states it.

    Attributes:
        bits: Candidates for weights and activations, each a multiple of the one before.
        group_size: Filters a pruning group, B; as the model states when absent (paper, Section 4.2: 4 for the networks
            on CIFAR, 16 for ResNet-18, 8 for MobileNetV2).
        gate_training: Thresholds of weights and activations take turns (Algorithm 1) or move together.
        gate_place: Where a pruning gate acts: on the quantized input of the next convolution; after the
            normalisation; or on the weight, the letter of Eq. 11. The last two are there to show why not.
        group_metric: Mean absolute value of raw weights, or of normalised ones.
        threshold_lr: Rate of the thresholds: "scaled" keeps rate × updates at the paper's, "paper" is 1e-3.
        clip_init: Clip values from the least squared error at 4 bits on a batch, or 1 ("paper").
        final_gates: Each gate by majority over the last tenth of the search, or its last state; both on the
            metric of a calibration pass.
        weight_normalization: Standardise weights that a normalisation follows before they are quantized.
        search_downsampling: Search the 1×1 convolutions of shortcuts like any other layer, or fix them at
            the widest candidate.
        finetune_from: Fine-tune the searched weights, or the pretrained ones again.
        gate_start: All gates start open, as in the paper, or those of bits shut.
        clip_sharing: One clip value a tensor, as in the paper, or one for each candidate.
        metric_scale: The paper's metrics; or all alike at the start of a search; or by second-order sensitivity.
        threshold_decay: A constant rate of the thresholds, as in the paper, or one that falls to 0 at the end, over the
            same way.
        gate_probes: The share of the gates of bits that each update takes for shut, open or not, so that the task
            tells what closing them costs; 0, as in the paper, for none.
    """

    bits: tuple[Annotated[int, Field(ge=1, le=16)], ...] = (2, 4, 8)
    group_size: Annotated[int, Field(ge=1)] | None = None
    gate_training: Literal["alternating", "joint"] = "alternating"
    gate_place: GatePlace = "next_input"
    group_metric: GroupMetric = "raw"
    threshold_lr: Literal["scaled", "paper"] | Annotated[float, Field(gt=0)] = "scaled"
    clip_init: Literal["calibrated", "paper"] = "calibrated"
    final_gates: Literal["majority", "last"] = "majority"
    weight_normalization: bool = True
    search_downsampling: bool = True
    finetune_from: Literal["searched", "pretrained"] = "searched"
    gate_start: Literal["open", "shut"] = "open"
    clip_sharing: ClipSharing = "one"
    metric_scale: MetricScale = "plain"
    threshold_decay: Literal["constant", "linear"] = "constant"
    gate_probes: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda value: value == 0)] = 0.0

    @model_validator(mode="after")
    def _bits_form_a_chain(self) -> Self:
        check_chain(self.bits)
        return self


def threshold_rate(options: SbsOptions, steps: int) -> float:
    """The thresholds' learning rate, its mean over a search of `steps` updates."""
    if options.threshold_lr == "paper":
        return PAPER_THRESHOLD_LR
    if options.threshold_lr == "scaled":
        return PAPER_THRESHOLD_LR * PAPER_UPDATES / steps
    return options.threshold_lr


def layer_settings(options: SbsOptions, *, task_gradient: bool = True) -> LayerSettings:
    """How the shared layers of a search behave.

    Args:
        options: See `SbsOptions`.
        task_gradient: Whether the task loss reaches the gates.
    """
    return LayerSettings(
        gate_place=options.gate_place,
        group_metric=options.group_metric,
        weight_normalization=options.weight_normalization,
        task_gradient=task_gradient,
        calibration_bits=4,
        clip_sharing=options.clip_sharing,
    )


def share_bits(
    job: SearchJob,
    space: SearchSpace,
    options: SbsOptions,
    start: Start,
    term: CostTerm,
    *,
    task_gradient: bool = True,
) -> SearchResult:
    """Algorithm 1: train weights and thresholds by L = L_ce + λ log R, then read off the gates.

    Args:
        job: Data, schedule and seed.
        space: What may be chosen, layer by layer.
        options: See `SbsOptions`.
        start: Weights and clip values to start from.
        term: The cost term.
        task_gradient: Whether the task loss reaches the gates.
    """
    settings = layer_settings(options, task_gradient=task_gradient)
    network = SharedNetwork(job, space, settings, start)
    data = job.task.data
    if options.clip_init == "calibrated" and not start.clips:
        calibrate(network.model, data.calibration_batches(1, job.schedule.batch_size)[0])
    if options.metric_scale != "plain":
        scale_metrics(job, network, _calibrated_metrics(job, network), options.metric_scale)
    if options.gate_start == "shut":
        shut_bits(network, _calibrated_metrics(job, network))
    reestimate_norms(network.model, data, job.schedule.batch_size)
    start_top1 = evaluate(network.model, data, data.validation).top1
    trace = _train(job, network, options, term)
    if options.final_gates == "majority":
        trace.restore_median()
    decisions = network.decisions(_calibrated_metrics(job, network))
    policy = policy_of(network.base_policy(space), decisions)
    network.decide(policy)
    rate = threshold_rate(options, job.steps)
    searched = options.finetune_from == "searched"
    return SearchResult(
        policy=policy,
        state=network.state(job.pretrained) if searched else job.pretrained,
        clips=network.clips() if searched else {},
        normalized_weights=options.weight_normalization,
        decisions=decisions,
        record={
            "start_top1": start_top1,
            "threshold_lr": rate,
            "drive": term.strength * rate * job.steps,
            "history": trace.history,
            "cost_per_step": trace.costs,
            "bits_per_epoch": trace.bits,
        },
    )


class _Trace:
    """What is kept of a search: figures by epoch, cost by step, thresholds over the deciding last part."""

    def __init__(self, network: SharedNetwork, steps: int) -> None:
        self._network = network
        self._deciding_from = steps - max(1, round(_DECIDING_SHARE * steps))
        self._kept: list[list[Tensor]] = []
        self._recent: list[Tensor] = []
        self.history: list[dict[str, float]] = []
        self.costs: list[float] = []
        self.bits: list[dict[str, list[float]]] = []
        self._step = 0

    def _thresholds(self) -> list[nn.Parameter]:
        return [
            p for name, p in self._network.model.named_parameters() if name.rpartition(".")[2].startswith("threshold")
        ]

    def add(self, cost: Tensor) -> None:
        """Keep one step."""
        self._recent.append(cost.detach())
        if self._step >= self._deciding_from:
            self._kept.append([threshold.detach().clone() for threshold in self._thresholds()])
        self._step += 1

    def end_epoch(self, epoch: int, figures: Mapping[str, float], term: CostTerm) -> dict[str, float]:
        """Keep one epoch's figures."""
        self.costs += torch.stack(self._recent).tolist()
        self._recent = []
        cost = self.costs[-1]
        entry = {"epoch": epoch + 1, **figures, "cost": cost, "budget_share": cost / term.budget}
        self.history.append(entry)
        self.bits.append(
            {
                name: [part.item() for part in (*layer.bits(), layer.filters())]
                for name, layer in self._network.layers.items()
            }
        )
        return entry

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"kept": self._kept, "history": self.history, "costs": self.costs, "bits": self.bits, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        device = self._thresholds()[0].device
        self._kept = [[threshold.to(device) for threshold in kept] for kept in state["kept"]]
        self.history, self.costs, self.bits = state["history"], state["costs"], state["bits"]
        self._step = state["step"]

    @property
    def step(self) -> int:
        """Updates that were made."""
        return self._step

    @torch.no_grad()
    def restore_median(self) -> None:
        """Set each threshold to its median over the last part: a gate is then its majority on a fixed metric."""
        for threshold, values in zip(self._thresholds(), zip(*self._kept, strict=True), strict=True):
            threshold.copy_(torch.stack(values).median(0).values)


def _train(job: SearchJob, network: SharedNetwork, options: SbsOptions, term: CostTerm) -> _Trace:
    """The loop of Algorithm 1."""
    trace, noise = _Trace(network, job.steps), job.noise("probes")
    weights, of_weights, of_activations = _optimizers(job, network, options)
    rate = threshold_rate(options, job.steps)
    network.model.train()
    forward = job.in_training(network.with_cost())
    carried: dict[str, Stateful] = {"model": network.model, "trace": trace, "weights": weights}
    carried |= {"of_weights": of_weights, "of_activations": of_activations}
    carried |= {"noise": GeneratorState(noise)}
    for epoch, batches in job.epochs(carried):
        meter = Meter(job.task.device)
        for images, labels in batches:
            if options.threshold_decay == "linear":
                _set_rate((of_weights, of_activations), 2 * (1 - trace.step / job.steps) * rate)
            network.probe(options.gate_probes, noise)
            logits, cost = forward(images)
            loss = F.cross_entropy(logits, labels)
            network.model.zero_grad(set_to_none=True)
            (loss + term(cost, cost.detach())).backward()  # type: ignore[no-untyped-call]
            replicas.average_gradients(network.model.parameters())
            weights.step()
            if options.gate_training == "joint" or trace.step % 2 == 0:
                of_weights.step()
            if options.gate_training == "joint" or trace.step % 2 == 1:
                of_activations.step()
            meter.add(loss, logits, labels)
            trace.add(cost)
        job.report({**trace.end_epoch(epoch, meter.figures(), term), "epochs": job.schedule.epochs})
    network.probe(0, noise)
    return trace


def _optimizers(job: SearchJob, network: SharedNetwork, options: SbsOptions) -> tuple[torch.optim.SGD, ...]:
    """One for weights and clip values, one for α of weights and filters, one for α of activations; all SGD."""
    layers = network.layers.values()
    filters = [layer.threshold_filters for layer in layers if layer.threshold_filters is not None]
    of_weights = [layer.thresholds_weight for layer in layers] + filters
    of_activations = [layer.thresholds_activation for layer in layers]
    rate = {"lr": threshold_rate(options, job.steps), "weight_decay": 0.0}
    schedule = job.schedule
    return (
        sgd(weight_groups(network.model, exclude=[*of_weights, *of_activations]), schedule),
        sgd([{"params": of_weights, **rate}], schedule),
        sgd([{"params": of_activations, **rate}], schedule),
    )


def _set_rate(optimizers: Iterable[torch.optim.SGD], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


@torch.no_grad()
def _calibrated_metrics(job: SearchJob, network: SharedNetwork) -> dict[str, Tensor]:
    """Activation metrics as means over fixed training batches."""
    batches = job.task.data.calibration_batches(_CALIBRATION_BATCHES, job.schedule.batch_size)
    sums = {name: torch.zeros_like(layer.thresholds_activation) for name, layer in network.layers.items()}
    network.model.train()  # batch statistics, as the gates met them during the search
    with replicas.alone():
        for images in batches:
            network.model(images)
            for name, layer in network.layers.items():
                sums[name] += layer.activation_metric
    replicas.share([*sums.values(), *network.model.buffers()])
    return {name: total / len(batches) for name, total in sums.items()}


def search_space(
    network: NetworkShape, options: SbsOptions, *, bits: tuple[int, ...] | None = None, prune: bool
) -> dict[str, LayerSpace]:
    """The space of one search: the same candidates everywhere.

    Args:
        network: The shapes.
        options: Candidates, group size, and whether shortcuts are searched.
        bits: Candidates in place of the options'.
        prune: Whether filters may go.
    """
    chain = options.bits if bits is None else bits
    space = {}
    for layer in network.middle:
        fixed = layer.shortcut and not options.search_downsampling
        candidates = chain[-1:] if fixed else chain
        space[layer.name] = LayerSpace(
            weight_bits=candidates,
            activation_bits=candidates,
            group_size=(options.group_size or network.group_size) if prune and layer.prunable else 0,
        )
    return space


class SharingMethod(Method):
    """A method whose searches share bits."""

    Options = SbsOptions
    options: SbsOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """With the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self.options.group_size or network.group_size}


class Sbs(SharingMethod):
    """SBS with joint pruning and quantization."""

    summary = "Single-path bit sharing: pruning and mixed precision by learned gates in one set of weights"
    source = SOURCE
    deviations: ClassVar[tuple[str, ...]] = (*_OF_SEARCHES, *_OF_PRUNING)
    capabilities = Capabilities(budget="strength", prunes=True, mixed_precision=True, data_parallel=True)
    task_gradient = True

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """λ for quantization gates, which move before pruning gates do."""
        return {"strength": QUANTIZATION_STRENGTH}

    def space(self, network: NetworkShape) -> dict[str, LayerSpace]:
        """What the search may choose."""
        return search_space(network, self.options, prune=True)

    def cheapest(self, network: NetworkShape) -> Policy:
        """Lowest candidates everywhere, one group a layer."""
        return cheapest_policy(network, self.space(network))

    def search(self, job: SearchJob) -> SearchResult:
        """Algorithm 1 from the pretrained weights."""
        start = Start(state=job.pretrained, clips={})
        space = self.space(job.task.network)
        return share_bits(job, space, self.options, start, job.cost_term(), task_gradient=self.task_gradient)


class SbsQ(Sbs):
    """SBS-Q: quantization only."""

    summary = "SBS without pruning: mixed precision by learned gates"
    source = f"{SOURCE}, SBS-Q"
    deviations = _OF_SEARCHES
    capabilities = Capabilities(budget="strength", mixed_precision=True, data_parallel=True)

    def space(self, network: NetworkShape) -> dict[str, LayerSpace]:
        """Bits only."""
        return search_space(network, self.options, prune=False)


class SbsP(Sbs):
    """SBS-P: pruning only, at full precision as in the paper's tables."""

    summary = "SBS without quantization: filter pruning at full precision by learned gates"
    source = f"{SOURCE}, SBS-P"
    deviations = (*_OF_SEARCHES[1:], *_OF_PRUNING)
    capabilities = Capabilities(budget="strength", prunes=True, full_precision=True, data_parallel=True)

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """λ for pruning gates."""
        return {"strength": PRUNING_STRENGTH}

    def space(self, network: NetworkShape) -> dict[str, LayerSpace]:
        """Filters only, at 32 bits."""
        return search_space(network, self.options, bits=FULL_PRECISION, prune=True)


class CostOnly(Sbs):
    """The control: SBS whose thresholds never feel the task."""

    summary = "Control: SBS with the task's gradient on its thresholds switched off, so that cost alone decides"
    source = "this project: a control, SBS without what the task tells its gates"
    deviations = ()
    task_gradient = False
