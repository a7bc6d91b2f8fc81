"""Options of SBS, and the search space that they describe."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from bench.api import LayerSpace, NetworkShape, Options
from methods.shared.bit_sharing.layer import GatePlace, GroupMetric, LayerSettings
from methods.shared.bit_sharing.quantization import check_chain
from methods.shared.quantizers.starts import ClipInit

PAPER_THRESHOLD_LR = 1e-3
PAPER_UPDATES = 10_530
"""Updates of the paper's search: 30 epochs of 351 batches of 128 (45,000 images). A threshold moves by rate × updates,
so that a strength λ keeps its meaning for other lengths of search only when this product is kept."""


class SbsOptions(Options):
    """Options of SBS. The value `paper` means: as the paper states it.

    Attributes:
        bits: Candidates for weights and activations, each a multiple of the one before.
        group_size: Number of filters of a pruning group, B; as the model states when absent (paper, Section 4.2: 4 for
            the networks on CIFAR, 16 for ResNet-18, 8 for MobileNetV2).
        gate_training: Alternating updates of activation and weight thresholds (Algorithm 1), or joint ones (Table 8).
        gate_place: Place where a pruning gate acts: on the quantized input of the next convolution; after the
            normalisation; or on the weight, the letter of Eq. 11. The last two are there to show why not.
        group_metric: Mean absolute value of raw weights, or of normalised ones.
        threshold_lr: Rate of the thresholds: "scaled" keeps rate × updates at the paper's, "paper" is 1e-3.
        clip_init: Clip values of least squared error at 4 bits on a batch ("calibrated"), or 1 ("paper").
        final_gates: State of each gate by majority over the last tenth of the search, or its last state; both on the
            metric of a calibration pass.
        weight_normalization: Whether weights that a normalisation follows are standardised before they are quantized.
        search_downsampling: Whether the 1×1 convolutions of shortcuts are searched like any other layer; otherwise they
            have the highest candidate.
    """

    elsewhere = dict.fromkeys(
        ("gate_start", "clip_sharing", "metric_scale", "threshold_decay", "gate_probes"), "sbs_extended"
    )
    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], AfterValidator(check_chain)] = (2, 4, 8)
    group_size: Annotated[int, Field(ge=1)] | None = None
    gate_training: Literal["alternating", "joint"] = "alternating"
    gate_place: GatePlace = "next_input"
    group_metric: GroupMetric = "raw"
    threshold_lr: Literal["scaled", "paper"] | Annotated[float, Field(gt=0)] = "scaled"
    clip_init: ClipInit = "calibrated"
    final_gates: Literal["majority", "last"] = "majority"
    weight_normalization: bool = True
    search_downsampling: bool = True

    def threshold_rate(self, steps: int) -> float:
        """Compute the learning rate of the thresholds for a search of so many updates."""
        if self.threshold_lr == "paper":
            return PAPER_THRESHOLD_LR
        return PAPER_THRESHOLD_LR * PAPER_UPDATES / steps if self.threshold_lr == "scaled" else self.threshold_lr

    def layer_settings(self, *, task_gradient: bool = True) -> LayerSettings:
        """Collect the settings of the shared layers; without `task_gradient` gates feel the cost alone."""
        return LayerSettings(
            gate_place=self.gate_place,
            group_metric=self.group_metric,
            weight_normalization=self.weight_normalization,
            task_gradient=task_gradient,
        )


def search_space(
    network: NetworkShape, options: SbsOptions, *, bits: tuple[int, ...] | None = None, prune: bool
) -> dict[str, LayerSpace]:
    """Build the space of one search: the same candidates in every layer.

    Args:
        network: Shapes of the model.
        options: Candidates, group size, and whether shortcuts are searched.
        bits: Candidates that replace those of the options.
        prune: Whether the search may drop filters.
    """
    chain = options.bits if bits is None else bits
    space = {}
    for layer in network.middle:
        candidates = chain[-1:] if layer.shortcut and not options.search_downsampling else chain
        size = (options.group_size or network.group_size) if prune and layer.prunable else 0
        space[layer.name] = LayerSpace(weight_bits=candidates, activation_bits=candidates, group_size=size)
    return space
