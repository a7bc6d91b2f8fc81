"""SBS with options beyond the paper. None of them improved accuracy in our studies (`docs/results/earlier.md`).

The search is Algorithm 1 of `methods/sbs.py`, changed at three points: the quantizers of the network, the start of the
gates, and what happens before each update.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from bench.api import GeneratorState, SearchJob, Stateful
from methods.sbs import Algorithm1, Sbs
from methods.shared.bit_sharing.extended import ExtendedNetwork, ScaledQuantizer, SeparateClipsQuantizer
from methods.shared.bit_sharing.gate_initialisation import MetricScale, scale_metrics, shut_bits
from methods.shared.bit_sharing.layer import LayerSettings
from methods.shared.bit_sharing.options import SbsOptions
from methods.shared.space import SearchSpace


class SbsExtendedOptions(SbsOptions):
    """Options of SBS, and those beyond the paper. Their defaults are the paper's choice.

    Attributes:
        gate_start: State in which the gates of bits start: open, as in the paper, or shut.
        clip_sharing: One clip value for each tensor, as in the paper, or one for each candidate of `bits`.
        metric_scale: Scale of the metrics: the paper's ("plain"); the same for all gates at the start of the search; or
            by second-order sensitivity.
        threshold_decay: Rate of the thresholds: constant, as in the paper, or falling linearly to 0 with the same mean.
        gate_probes: Share of the gates of bits that act as if they were shut, drawn for each update, so that open gates
            feel what closing them costs; 0, as in the paper, for none.
    """

    gate_start: Literal["open", "shut"] = "open"
    clip_sharing: Literal["one", "per_width"] = "one"
    metric_scale: MetricScale = "plain"
    threshold_decay: Literal["constant", "linear"] = "constant"
    gate_probes: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda value: value == 0)] = 0.0


class ExtendedSearch(Algorithm1):
    """Algorithm 1 with the options beyond the paper."""

    options: SbsExtendedOptions
    network: ExtendedNetwork

    def __init__(self, job: SearchJob, *args: Any, **kwargs: Any) -> None:
        super().__init__(job, *args, **kwargs)
        self.noise = job.noise("probes")

    def build(self, space: SearchSpace, settings: LayerSettings) -> ExtendedNetwork:
        """Build the network with scaled quantizers, or with a clip value for each candidate of `bits`."""
        quantizer = ScaledQuantizer if self.options.clip_sharing == "one" else SeparateClipsQuantizer
        return ExtendedNetwork(self.job, space, settings, self.start, quantizer=quantizer)

    def calibrate(self) -> None:
        """Set clip values, then the scales of the metrics and the first state of the gates."""
        super().calibrate()
        if self.options.metric_scale != "plain":
            self.calibrate_metrics()
            scale_metrics(self.job, self.network, self.options.metric_scale)
        if self.options.gate_start == "shut":
            self.calibrate_metrics()
            shut_bits(self.network)

    def train(self) -> None:
        """Train as Algorithm 1 does, and end probing."""
        super().train()
        self.network.probe(0, self.noise)

    def forward(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Draw probes and set the rate of the thresholds before each forward pass."""
        plain = super().forward()

        def probing(images: Tensor) -> tuple[Tensor, Tensor]:
            if self.options.threshold_decay == "linear":
                self.set_threshold_rate(2 * (1 - self.trace.step / self.job.steps) * self.threshold_rate)
            self.network.probe(self.options.gate_probes, self.noise)
            return plain(images)

        return probing

    def set_threshold_rate(self, rate: float) -> None:
        """Set the learning rate of all thresholds."""
        for optimizer in (self.sgd_alpha_w, self.sgd_alpha_x):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def state(self) -> dict[str, Stateful]:
        """Name everything that a checkpoint keeps."""
        return {**super().state(), "noise": GeneratorState(self.noise)}


class SbsExtended(Sbs):
    """SBS with options beyond the paper."""

    summary = "SBS with options beyond the paper: other starts, scales, clip values and rates of gates, and probes"
    source = "this project: variants of SBS"
    deviations = (*Sbs.deviations, "All options beyond the paper are switched off by default.")
    Options = SbsExtendedOptions
    options: SbsExtendedOptions
    algorithm: ClassVar[type[Algorithm1]] = ExtendedSearch
