"""Multi-path search: separate weights for each candidate number of bits (DNAS, Wu et al. 2018, arXiv 1812.00090).

Each layer has one weight and one clip value for each candidate, for weights and for activations independently. They are
mixed by the probabilities of a Gumbel-softmax over the layer's logits θ, with noise g and a temperature τ that falls
during the search:

    p = softmax((θ + g)/τ)

The mixed layer and its cost at the expected bits are in `methods.shared.networks.paths`. Weights learn on one part of
the training data by L_ce. Logits learn on the rest by L_ce plus the cost term; the largest ones give the found bits.

`multi_path` has SBS's quantizer: it is the SBS paper's "without bit sharing" (Section 5.1). `dnas` differs in its
quantizers.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from bench.api import (
    BatchStream,
    GeneratorState,
    Meter,
    QuantizerFactory,
    SearchJob,
    Stateful,
    UniformQuantizer,
    generator,
    replicas,
    sgd,
    weight_groups,
)
from methods.shared.history import History
from methods.shared.networks.paths import PathMethod, PathNetwork, PathOptions
from methods.shared.quantizers.starts import ClipInit

CHOICES = (
    "Published sources differ or say nothing on some points. Here a layer is a soft mixture of its paths, with one "
    "Gumbel draw for each layer in each step, and all paths start from the pretrained weights.",
    "Clip values start at the least squared error on one batch, in each path at its own bits; "
    "clip_init = 'paper' starts them at 1.",
    "Logits start at 0. They learn on a fifth of the training data, and weights learn on the rest.",
)
"""Choices of multi-path searches where the published sources leave room."""


class MultiPathOptions(PathOptions):
    """Options of multi-path search, in addition to `PathOptions`.

    Attributes:
        architecture_share: Share of the training data on which the logits learn.
        warmup_share: Share of the search in which only weights learn.
        temperature_start, temperature_end: First and last temperature of the Gumbel-softmax, which falls exponentially.
        clip_init: First clip value of every path: that of the least squared error on a batch at the bits of the path
            ("calibrated"), or 1, as in Appendix F of the SBS paper ("paper").
    """

    architecture_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    temperature_start: Annotated[float, Field(gt=0)] = 5.0
    temperature_end: Annotated[float, Field(gt=0)] = 0.5
    clip_init: ClipInit = "calibrated"

    def temperature(self, share: float) -> float:
        """Return τ after a share of the search."""
        fall: float = (self.temperature_end / self.temperature_start) ** share
        return self.temperature_start * fall

    @property
    def period(self) -> int:
        """Number of updates from one update of the logits to the next; they are in the ratio of the two parts."""
        return max(2, round(1 / self.architecture_share))

    def moves_logits(self, step: int, steps: int) -> bool:
        """Return whether an update is one of the logits, given its number and the number of updates of the search."""
        return step >= round(self.warmup_share * steps) and step % self.period == self.period - 1


class MultiPath(PathMethod):
    """Multi-path search with SBS's quantizer."""

    summary = "SBS without bit sharing: separate weights for each candidate, Gumbel-softmax, the common quantizer"
    family = "multi-path"
    source = "the SBS paper's Section 5.1, 'without bit sharing': the scheme of DNAS with the quantizer of SBS"
    deviations: ClassVar[tuple[str, ...]] = (
        *CHOICES,
        "Logits learn by Adam without weight decay, at a rate that follows from the length of the search, after a "
        "tenth of it in which only weights learn.",
        "The temperature falls from 5 to 0.5 over a search of any length; in DNAS it is 5 exp(-0.025 epoch), as we "
        "recall it.",
        "The bits of weights and inputs of a layer are chosen apart, by default among 2, 4 and 8.",
    )
    Options = MultiPathOptions
    options: MultiPathOptions

    @property
    def search_quantizer(self) -> QuantizerFactory:
        """Quantizer of every path."""
        return UniformQuantizer

    def network(self, job: SearchJob) -> PathNetwork:
        """Build a network in which every path has a weight of its own."""
        return PathNetwork(job, self.options.bits, self.search_quantizer)

    def calibrate(self, job: SearchJob, network: PathNetwork) -> None:
        """Set the clip values of all paths, unless the paper's 1 is asked for."""
        if self.options.clip_init == "calibrated":
            super().calibrate(job, network)

    def train(self, job: SearchJob, network: PathNetwork) -> History:
        """Train weights on one part of the data and logits on the other, in turn."""
        options, noise, history = self.options, job.noise("gumbel"), History()
        weights, logits = _sides(job, network, options)
        term = job.cost_term(updates=sum(options.moves_logits(step, job.steps) for step in range(job.steps)))
        per_epoch = job.task.data.batches_per_epoch(job.schedule.batch_size)
        network.model.train()
        forward = job.in_training(network.model)
        state: dict[str, Stateful] = {"model": network.model, "history": history, "noise": GeneratorState(noise)}
        state |= {"of_weights": weights.optimizer, "for_weights": weights.batches}
        state |= {"of_logits": logits.optimizer, "for_logits": logits.batches}
        for epoch in job.numbered_epochs(state):
            meter = Meter(job.task.device)
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
                temperature = options.temperature(step / job.steps)
                network.draw(temperature, noise)
                side = logits if options.moves_logits(step, job.steps) else weights
                images, labels = next(side.batches)
                outputs = forward(images)
                task_loss = F.cross_entropy(outputs, labels)
                loss = task_loss
                if side is logits:
                    loss = task_loss + term(network.expected_cost(), network.actual_cost())
                network.model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                replicas.average_gradients(side.parameters)
                side.optimizer.step()
                meter.add(task_loss, outputs, labels)
            history.end_epoch(job, network, epoch, {**meter.figures(), "temperature": temperature})
        return history


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The weights or the logits, with the part of the training data on which they learn."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    batches: BatchStream


def _sides(job: SearchJob, network: PathNetwork, options: MultiPathOptions) -> tuple[_Side, _Side]:
    """Return the side of the weights and that of the logits."""
    logits = network.logits()
    of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
    weights = [parameter for group in of_weights.param_groups for parameter in group["params"]]
    of_logits = torch.optim.Adam(logits, lr=options.logit_travel / max(1, job.steps // options.period))
    for_weights, for_logits = _streams(job, options.architecture_share)
    return (
        _Side(parameters=weights, optimizer=of_weights, batches=for_weights),
        _Side(parameters=logits, optimizer=of_logits, batches=for_logits),
    )


def _streams(job: SearchJob, share: float) -> tuple[BatchStream, BatchStream]:
    """Return batches for weights and for logits, from two parts of the training data that depend on the seed alone."""
    data, size = job.task.data, job.schedule.batch_size
    order = torch.randperm(len(data.train), generator=generator("architecture-part", job.seed)).to(job.task.device)
    cut = max(1, round(share * len(data.train)))
    weights, architecture = data.train.take(order[cut:]), data.train.take(order[:cut])
    return (
        BatchStream(data, size, job.order("search"), weights),
        BatchStream(data, size, job.order("architecture"), architecture, purpose="architecture"),
    )
