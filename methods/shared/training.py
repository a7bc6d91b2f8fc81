"""The frame of methods that find a policy by training, and the loop of those that train everything in the same step."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.api import Meter, Method, SearchJob, SearchResult, Stateful, replicas
from methods.shared.history import History
from methods.shared.search import SearchNetwork, calibrate_quantizers, result_of, start_accuracy

Optimizers = Mapping[str, torch.optim.Optimizer]


class TrainedNetwork(SearchNetwork):
    """A network whose policy is found by training."""

    @abstractmethod
    def actual_cost(self) -> Tensor:
        """Compute the cost of the discrete network that the search would return now, a scalar."""

    def bound_gradients(self) -> None:
        """Limit gradients before an update; without limits by default."""

    def project(self) -> None:
        """Move parameters back into their bounds after an update; without bounds by default."""

    def figures(self) -> dict[str, Any]:
        """Describe the trained network for the record of the search; by default with nothing."""
        return {}


Network = TypeVar("Network", bound=TrainedNetwork)


class TrainingMethod(Method, Generic[Network]):
    """A method that trains a network and reads the policy off it; a subclass names the network and its training."""

    @abstractmethod
    def network(self, job: SearchJob) -> Network:
        """Build the network of the search from the pretrained weights."""

    @abstractmethod
    def train(self, job: SearchJob, network: Network) -> History:
        """Train the network."""

    def calibrate(self, job: SearchJob, network: Network) -> None:
        """Set the first values of all quantizers: by default those of the least squared error on one batch."""
        calibrate_quantizers(job, network.model)

    def rates(self, job: SearchJob) -> dict[str, float]:
        """State the learning rates that follow from the length of the search, for its record; none by default."""
        return {}

    def search(self, job: SearchJob) -> SearchResult:
        """Prepare the network, train it, and read policy and weights off it."""
        network = self.network(job)
        self.calibrate(job, network)
        network.project()
        start_top1 = start_accuracy(job, network.model)
        history = self.train(job, network)
        record = {"start_top1": start_top1, **self.rates(job), "history": history.entries, **network.figures()}
        return result_of(job, network, record)


def train_jointly(
    job: SearchJob,
    network: TrainedNetwork,
    optimizers: Optimizers,
    penalty: Callable[[], Tensor] | None = None,
    *,
    draw: Callable[[int], None] | None = None,
    rates: torch.optim.lr_scheduler.LRScheduler | None = None,
    after: Callable[[int], None] | None = None,
    others: Mapping[str, Stateful] | None = None,
) -> History:
    """Train all parameters in the same step, by cross-entropy plus a penalty.

    Args:
        job: Data and schedule.
        network: Network to train.
        optimizers: Optimizers of all its parameters, by name.
        penalty: Function that returns the term added to the cross-entropy, a scalar, after the forward pass.
        draw: Called before each forward pass, with the number of images of the batch.
        rates: Schedule of learning rates, advanced after each update.
        after: Function for the end of each update, before parameters are moved into their bounds; gets its number.
        others: Objects of the method, such as generators, whose state a checkpoint must keep, by name.
    """
    history = History()
    network.model.train()
    forward = job.in_training(network.model)
    state: dict[str, Stateful] = {"model": network.model, "history": history, **optimizers, **(others or {})}
    state |= {} if rates is None else {"rates": rates}
    per_epoch = job.task.data.batches_per_epoch(job.schedule.batch_size)
    for epoch, batches in job.epochs(state):
        meter = Meter(job.task.device)
        for step, (images, labels) in enumerate(batches, epoch * per_epoch):
            if draw is not None:
                draw(len(images))
            outputs = forward(images)
            loss = F.cross_entropy(outputs, labels)
            network.model.zero_grad(set_to_none=True)
            (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]
            replicas.average_gradients(network.model.parameters())
            network.bound_gradients()
            for optimizer in optimizers.values():
                optimizer.step()
            if rates is not None:
                rates.step()
            if after is not None:
                after(step)
            network.project()
            meter.add(loss, outputs, labels)
        history.end_epoch(job, network, epoch, meter.figures())
    return history
