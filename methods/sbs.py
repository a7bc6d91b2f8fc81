"""Single-path Bit Sharing (SBS): joint filter pruning and mixed-precision quantization in one set of weights.

The search of the paper's Section 3. Algorithm 1 is `Algorithm1` below; its equations are in `methods/shared`:

* plain quantizer, Eqs. 1 to 4: `bench/compression/quantizer.py`;
* decomposition and quantization gates, Eqs. 8 and 10: `bit_sharing/quantization.py`;
* pruning gates, Eq. 11, and the gradient of the step function, Eq. 12: `gates.py`;
* network M with its cost R, Eq. 14: `bit_sharing/network.py`, with the layers in `bit_sharing/layer.py`.

Where the paper is silent or its letter does not work, the choice is an option (`bit_sharing/options.py`); `docs/sbs.md`
gives the reasons. Options beyond the paper are in `methods/sbs_extended.py`.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.api import (
    Capabilities,
    CostTerm,
    Meter,
    NetworkShape,
    SearchJob,
    SearchResult,
    Stateful,
    replicas,
    sgd,
    weight_groups,
)
from methods.shared.bit_sharing.layer import LayerSettings
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.bit_sharing.options import SbsOptions, search_space
from methods.shared.bit_sharing.trace import Trace
from methods.shared.search import calibrate_quantizers, result_of, start_accuracy
from methods.shared.space import FULL_PRECISION, ChoosesFromSpace, SearchSpace

_CALIBRATION_BATCHES = 4
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


class Algorithm1:
    """One search: train weights W and thresholds α by L = L_ce + λ log R (Eq. 13), then read the gates off.

    The result is a policy: bits and filters of each layer. The harness fine-tunes its network with the plain quantizer
    (end of Section 3.3.2).

    Args:
        job: Data, schedule and seed.
        space: Choices of every searched layer.
        options: Options of the method.
        start: Weights and clip values to start from.
        term: Cost term, λ log R.
        task_gradient: Whether the task loss reaches the gates.
    """

    def __init__(
        self,
        job: SearchJob,
        space: SearchSpace,
        options: SbsOptions,
        start: Start,
        term: CostTerm,
        *,
        task_gradient: bool = True,
    ) -> None:
        self.job, self.options, self.start, self.term = job, options, start, term
        # Lines 1 and 2: M has the weights of M0, and all thresholds α_w and α_x are 0.
        self.network = self.build(space, options.layer_settings(task_gradient=task_gradient))
        alpha_w, alpha_x = self.network.weight_thresholds(), self.network.activation_thresholds()
        self.threshold_rate = options.threshold_rate(job.steps)
        rate = {"lr": self.threshold_rate, "weight_decay": 0.0}
        self.sgd_w = sgd(weight_groups(self.network.model, exclude=[*alpha_w, *alpha_x]), job.schedule)
        self.sgd_alpha_w = sgd([{"params": alpha_w, **rate}], job.schedule)
        self.sgd_alpha_x = sgd([{"params": alpha_x, **rate}], job.schedule)
        self.trace = Trace(self.network, job.steps)

    def build(self, space: SearchSpace, settings: LayerSettings) -> SharedNetwork:
        """Build the compressed model M with all its candidates."""
        return SharedNetwork(self.job, space, settings, self.start)

    def run(self) -> SearchResult:
        """Search, and return the compressed model."""
        self.calibrate()
        start_top1 = start_accuracy(self.job, self.network.model)
        self.train()
        if self.options.final_gates == "majority":
            self.trace.restore_median()
        self.calibrate_metrics()
        return self.result(start_top1)

    def calibrate(self) -> None:
        """Set the clip values v, unless the paper's 1 is asked for or an earlier stage has set them."""
        if self.options.clip_init == "calibrated" and not self.start.clips:
            calibrate_quantizers(self.job, self.network.model)

    def train(self) -> None:
        """Run the two loops of Algorithm 1."""
        self.network.model.train()
        forward = self.forward()
        for epoch, batches in self.job.epochs(self.state()):  # line 3
            meter = Meter(self.job.task.device)
            for images, labels in batches:  # line 4
                logits, cost = forward(images)  # line 5: gates by Eqs. 10 and 11, and R by Eq. 14
                loss = F.cross_entropy(logits, labels)
                self.minimize(loss + self.term(cost, cost.detach()))  # Eq. 13
                meter.add(loss, logits, labels)
                self.trace.add(cost)
            figures = self.trace.end_epoch(epoch, meter.figures(), self.term)
            self.job.report({**figures, "epochs": self.job.schedule.epochs})

    def minimize(self, objective: Tensor) -> None:
        """Update W and α_x, or W and α_w, in turn (lines 6 to 10). α_w includes the thresholds of filter groups."""
        self.network.model.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        replicas.average_gradients(self.network.model.parameters())
        self.sgd_w.step()
        for optimizer in self.turn():
            optimizer.step()

    def turn(self) -> list[torch.optim.SGD]:
        """Return the optimizers of the thresholds that move in this update: α_x first, since Algorithm 1 counts from 1.

        With joint training (Table 8) both move. A search with thresholds of one kind, as SBS-P has, has no turns.
        """
        both = [optimizer for optimizer in (self.sgd_alpha_x, self.sgd_alpha_w) if _elements(optimizer)]
        if self.options.gate_training == "joint" or len(both) < 2:
            return both
        return [both[self.trace.step % 2]]

    def forward(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return the function that maps images to logits and to the cost R."""
        return self.job.in_training(self.network.with_cost())

    def state(self) -> dict[str, Stateful]:
        """Name everything that a checkpoint keeps."""
        optimizers = {"W": self.sgd_w, "alpha_w": self.sgd_alpha_w, "alpha_x": self.sgd_alpha_x}
        return {"model": self.network.model, "trace": self.trace, **optimizers}

    def calibrate_metrics(self) -> None:
        """Take the metrics Â of all gates on fixed training batches."""
        data = self.job.task.data
        self.network.calibrate_metrics(data.calibration_batches(_CALIBRATION_BATCHES, self.job.schedule.batch_size))

    def result(self, start_top1: float) -> SearchResult:
        """Decide every gate, and return the policy with the weights for fine-tuning."""
        record = {
            "start_top1": start_top1,
            "threshold_lr": self.threshold_rate,
            **self.trace.record(),
        }
        result = result_of(self.job, self.network, record)
        self.network.decide(result.policy)
        result.normalized_weights = self.options.weight_normalization
        return result


def _elements(optimizer: torch.optim.Optimizer) -> int:
    """Count the numbers that an optimizer trains."""
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


# --- the methods --------------------------------------------------------------------------------------------------


class SharingMethod(ChoosesFromSpace):
    """A method whose searches share bits."""

    deviations: ClassVar[tuple[str, ...]] = (
        "λ moves during the search by default (match = 'dual'); match = 'lambda' is the paper's constant one.",
        "Thresholds of weights and of activations take turns through the whole search; Algorithm 1 begins each epoch "
        "with those of activations.",
        "The paper states no weight decay: weights have that of the schedule; thresholds and clip values have none.",
    )
    Options = SbsOptions
    options: SbsOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options, with the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self.options.group_size or network.group_size}

    def space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of bits and filters."""
        return search_space(network, self.options, prune=True)


class Sbs(SharingMethod):
    """SBS with joint pruning and quantization."""

    summary = "Single-path bit sharing: pruning and mixed precision by learned gates in one set of weights"
    family = "learned gates"
    source = SOURCE
    deviations: ClassVar[tuple[str, ...]] = (
        *SharingMethod.deviations,
        *_OF_SEARCHES,
        *_OF_PRUNING,
        "In bottlenecks, such as those of ResNet-50, the second convolution may lose filters too; the paper prunes the "
        "first layer of each residual block.",
    )
    capabilities = Capabilities(budget="strength", prunes=True, mixed_precision=True, data_parallel=True)
    algorithm: ClassVar[type[Algorithm1]] = Algorithm1
    task_gradient = True

    def search(self, job: SearchJob) -> SearchResult:
        """Run Algorithm 1 from the pretrained weights."""
        start, space = Start(state=job.pretrained, clips={}), self.space(job.task.network)
        term, felt = job.cost_term(), self.task_gradient
        return self.algorithm(job, space, self.options, start, term, task_gradient=felt).run()


class SbsQ(Sbs):
    """SBS-Q: quantization only."""

    summary = "SBS without pruning: mixed precision by learned gates"
    source = f"{SOURCE}, SBS-Q"
    deviations: ClassVar[tuple[str, ...]] = (*SharingMethod.deviations, *_OF_SEARCHES)
    capabilities = Capabilities(budget="strength", mixed_precision=True, data_parallel=True)

    def space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of bits."""
        return search_space(network, self.options, prune=False)


class SbsP(Sbs):
    """SBS-P: pruning only, at full precision as in the paper's tables."""

    summary = "SBS without quantization: filter pruning at full precision by learned gates"
    source = f"{SOURCE}, SBS-P"
    deviations = (
        *_OF_SEARCHES[1:],
        *_OF_PRUNING,
        "Thresholds move in every update, since there are none of activations to take turns with.",
    )
    capabilities = Capabilities(budget="strength", prunes=True, full_precision=True, data_parallel=True)

    def space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of filters, at 32 bits."""
        return search_space(network, self.options, bits=FULL_PRECISION, prune=True)


_OF_CONTROLS = (
    "It shows what SBS gains by the task's gradient on its thresholds only where its searches end near the budget: "
    "after many repaired gates the policy is repair's.",
)


class CostOnly(Sbs):
    """The control: SBS whose thresholds never feel the task."""

    summary = "Control: SBS with the task's gradient on its thresholds switched off, so that cost alone decides"
    family = "control"
    source = "this project: a control, SBS without the task's gradient on its gates"
    deviations = (*_OF_CONTROLS, "Cost alone may remove filters where the task would lower bits: see cost_only_q.")
    task_gradient = False


class CostOnlyQ(SbsQ):
    """The control for SBS-Q, in whose space no pruning can hide what cost alone does to bits."""

    summary = "Control: SBS-Q with the task's gradient on its thresholds switched off"
    family = "control"
    source = "this project: a control, SBS-Q without the task's gradient on its gates"
    deviations = _OF_CONTROLS
    task_gradient = False
