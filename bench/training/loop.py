"""Training and evaluation: the loop of pretraining and fine-tuning, and building blocks for searches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, OneCycleLR

from bench import replicas
from bench.compression.quantizer import clip_parameters
from bench.data.subset import UNREADABLE, Subset
from bench.data.task_data import TaskData
from bench.errors import NonFiniteLossError
from bench.spec.schema import Schedule, SearchSchedule
from bench.training.checkpoints import UNINTERRUPTED, GeneratorState, Stage, Stateful

EpochCallback = Callable[[Mapping[str, float]], None]
"""Function that is called after each epoch with figures to show and keep."""

_STATISTICS_BATCHES = 10
_ONE_CYCLE_WARMUP = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracy on a subset.

    Attributes:
        top1, top5: Accuracy in percent.
        loss: Mean cross-entropy.
    """

    top1: float
    top5: float
    loss: float


class Meter:
    """Mean loss and accuracy of an epoch over all replicas, counted on the device without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device, dtype=torch.float64)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._images = 0
        self._batches = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add one batch."""
        self._loss += loss.detach()
        self._correct += (logits.detach().argmax(1) == labels).sum()
        self._images += len(labels)
        self._batches += 1

    def figures(self) -> dict[str, float]:
        """Return mean training loss and accuracy in percent.

        Raises:
            NonFiniteLossError: The loss became NaN or infinite during the epoch.
        """
        loss = float(replicas.mean(self._loss)) / self._batches
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the training loss became {loss}; a smaller learning rate (lr) or a limit of gradients "
                "(max_grad_norm) may help"
            )
        images = self._images * replicas.count()
        return {"loss": loss, "accuracy": 100 * int(replicas.total(self._correct)) / images}


def sgd(groups: Iterable[Mapping[str, object]], schedule: Schedule | SearchSchedule) -> torch.optim.SGD:
    """Make an SGD optimizer with a schedule's rate, momentum, weight decay and limit of gradients.

    Args:
        groups: Parameter groups; their own settings take precedence over those of the schedule.
        schedule: Schedule.
    """
    optimizer = torch.optim.SGD(
        [dict(group) for group in groups],
        lr=schedule.lr,
        momentum=schedule.momentum,
        nesterov=schedule.nesterov and schedule.momentum > 0,
        weight_decay=schedule.weight_decay,
        fused=True,  # one pass over all parameters, of which networks have a hundred or more small ones
    )
    optimizer.register_step_pre_hook(_complete_momentum)
    if schedule.max_grad_norm is not None:
        limit_gradients(optimizer, schedule.max_grad_norm)
    return optimizer


def _complete_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give a parameter whose first gradient comes later than those of others a momentum of 0, which changes nothing.

    The fused update takes either all momenta or none.
    """
    for group in optimizer.param_groups:
        if group["momentum"] == 0:
            continue
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        late = [parameter for parameter in parameters if optimizer.state[parameter].get("momentum_buffer") is None]
        for parameter in late if len(late) < len(parameters) else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def limit_gradients(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Before each update, scale the gradients of all parameters down so that their common norm is at most `norm`.

    The output of a filter whose quantized weights are all 0 has no variance. Batch normalisation multiplies the
    gradient of such an output by 1/√ε, about 300. In depthwise layers, of which MobileNets have many in a row, such
    filters are common at few bits.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def limit(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters, norm)

    optimizer.register_step_pre_hook(limit)


def weight_groups(model: nn.Module, exclude: Iterable[nn.Parameter] = ()) -> Sequence[Mapping[str, object]]:
    """Make parameter groups of a network: weights with decay, clip values without.

    Args:
        model: Network.
        exclude: Parameters that another optimizer trains.
    """
    excluded = {id(parameter) for parameter in exclude}
    clips = [clip for clip in clip_parameters(model) if id(clip) not in excluded]
    taken = {id(clip) for clip in clips} | excluded
    weights = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    groups: list[Mapping[str, object]] = [{"params": weights}]
    if clips:
        groups.append({"params": clips, "weight_decay": 0.0})
    return groups


def rate_schedule(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps_per_epoch: int, updates: int | None = None
) -> LRScheduler:
    """Make the schedule of the learning rate, which advances after every update.

    Args:
        optimizer: Optimizer whose rate follows the schedule.
        schedule: Schedule.
        steps_per_epoch: Updates in an epoch.
        updates: Number of updates over which the course of the rate is stretched; that of the schedule by default.
    """
    scheduled = schedule.epochs * steps_per_epoch
    total = scheduled if updates is None else updates
    if schedule.decay == "cosine":
        return CosineAnnealingLR(optimizer, total)
    if schedule.decay == "one_cycle":
        # PyTorch divides by the length of the warm-up, which would be 0 for three updates.
        warmup = _ONE_CYCLE_WARMUP if total != 3 else 1.5 * _ONE_CYCLE_WARMUP
        return OneCycleLR(optimizer, schedule.lr, total_steps=total + 1, pct_start=warmup, cycle_momentum=False)
    return MultiStepLR(optimizer, [round(epoch * steps_per_epoch * total / scheduled) for epoch in schedule.milestones])


def fit(
    model: nn.Module,
    data: TaskData,
    schedule: Schedule,
    order: torch.Generator,
    report: EpochCallback,
    stage: Stage = UNINTERRUPTED,
    call: Callable[..., Tensor] | None = None,
    updates: int | None = None,
) -> None:
    """Train a network by cross-entropy, in place.

    Args:
        model: Network on the data's device.
        data: Data; only the training part is used.
        schedule: Length, learning rates and weight decay.
        order: Generator of the order of the images and of their augmentation.
        report: Function that is called after each epoch with loss, accuracy (percent) and learning rate.
        stage: Stage that keeps checkpoints.
        call: Function for the forward pass, e.g. the compiled network (`bench.training.forward`); `model` by default.
        updates: Number of updates, at least one; that of the schedule by default. The last epoch may be a part of one.

    Raises:
        NonFiniteLossError: Training diverged.
    """
    per_epoch = data.batches_per_epoch(schedule.batch_size)
    total = schedule.epochs * per_epoch if updates is None else updates
    optimizer = sgd(weight_groups(model), schedule)
    rates = rate_schedule(optimizer, schedule, per_epoch, total)
    model.train()
    forward = model if call is None else call

    def update(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        replicas.average_gradients(model.parameters())
        optimizer.step()
        rates.step()
        return loss, logits

    kept: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "rates": rates, "order": GeneratorState(order)}
    epochs = math.ceil(total / per_epoch)
    for epoch in stage.epochs(epochs, kept):
        meter, left = Meter(data.device), total - epoch * per_epoch
        batches = data.training_batches(schedule.batch_size, order)
        for images, labels in batches if left >= per_epoch else islice(batches, left):
            meter.add(*update(images, labels), labels)
        report({"epoch": epoch + 1, "epochs": epochs, **meter.figures(), "lr": float(rates.get_last_lr()[0])})


@torch.no_grad()
def evaluate(model: nn.Module, data: TaskData, subset: Subset) -> Evaluation:
    """Evaluate a network on a subset, in evaluation mode.

    An image that cannot be read counts as wrong; the loss is the mean over the others. With fewer than five classes,
    top-5 accuracy is over all of them.
    """
    counted = torch.zeros(4, dtype=torch.float64, device=data.device)
    with evaluating(model):
        for images, labels in data.evaluation_batches(subset):
            logits = model(images)
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            readable = (labels != UNREADABLE).sum()
            counted += torch.stack([ranked[:, 0].sum(), ranked.any(1).sum(), loss, readable])
    top1, top5, total, readable_images = replicas.total(counted).tolist()
    count = len(subset)
    return Evaluation(top1=100 * top1 / count, top5=100 * top5 / count, loss=total / readable_images)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside the block, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def reestimate_norms(model: nn.Module, data: TaskData, batch_size: int) -> None:
    """Replace the stored statistics of all batch normalisations by the mean over a few training batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    was_training = model.training
    model.train()
    with replicas.alone():
        for images in data.calibration_batches(_STATISTICS_BATCHES, batch_size):
            model(images)
    replicas.share_state(model)
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
