"""Interleaved trainings: several trainings in one process that alternate step by step, each step observed.

A training is any function that draws its batches from `TaskData.training_batches`: a loop of the harness, or one of a
method's own. It needs no special code. Its data observe when it requests the next batch: there one step ends and the
next one begins. There the training is paused until it is resumed.

All trainings run in one thread, each as a greenlet. A batch may be requested from anywhere in a training's code, where
a generator could not pause. Threads could pause, but each would have helper threads of PyTorch. If there are more of
these than cores, they sleep as soon as they wait and must be woken for every operation, which made steps of many small
operations take a third longer.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, Self

import torch
from greenlet import greenlet
from torch import Tensor, nn

from bench.data.subset import Subset
from bench.data.task_data import TaskData
from bench.diagnostics.speed.step_memory import SavedTensors
from bench.training.forward import Forward

Kind = Literal["warm-up", "counted", "timed"]
"""Kind of a step: in "counted" steps saved memory is counted, "timed" steps are timed, others are neither."""

_MANY_NETWORKS = 1000
_DEVICE_TYPES = ("cpu", "cuda")


class StepObserver(ABC):
    """Observer of the steps of one training.

    The first steps of each stage are not timed, since the compiler and the allocators work in them. In the last of
    these steps memory is counted.

    Args:
        warm_up: Number of steps that are not timed, at least one.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._to_warm_up = warm_up
        self._open: Kind | None = None

    def stage_begins(self) -> None:
        """Take note that another network is about to be trained."""
        self._to_warm_up = self._warm_up

    def batch_requested(self) -> None:
        """Take note that the training requests a batch, which ends its step."""
        if self._open is not None:
            kind, self._open = self._open, None
            self._to_warm_up = max(0, self._to_warm_up - 1)
            self.step_ended(kind)
        self.step_begins(self._next_kind())

    def batch_delivered(self) -> None:
        """Take note that the training got its batch. At the end of an epoch it gets none, and there is no step."""
        self._open = self._next_kind()
        self.step_runs(self._open)

    def _next_kind(self) -> Kind:
        return "timed" if not self._to_warm_up else "counted" if self._to_warm_up == 1 else "warm-up"

    @abstractmethod
    def step_begins(self, kind: Kind) -> None:
        """React to the beginning of a step, before its batch is made."""

    def step_runs(self, kind: Kind) -> None:  # noqa: B027  (most observers do nothing)
        """React to the training's getting its batch."""

    @abstractmethod
    def step_ended(self, kind: Kind) -> None:
        """React to the end of a step."""


class WatchedData(TaskData):
    """Training data that report every batch to a `StepObserver`, with epochs of limited length."""

    observer: StepObserver
    epoch: int

    @classmethod
    def watching(cls, data: TaskData, observer: StepObserver, epoch: int) -> Self:
        """Make watched data that share the tensors of other data.

        Args:
            data: Data to share.
            observer: Observer of every batch.
            epoch: Largest number of batches of an epoch.
        """
        watched = cls.__new__(cls)
        vars(watched).update(vars(data))
        watched.observer, watched.epoch = observer, epoch
        return watched

    def training_batches(
        self,
        batch_size: int,
        order: torch.Generator,
        *,
        subset: Subset | None = None,
        skip: int = 0,
        purpose: str = "training",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same batches as the original data, and report each to the observer."""
        batches = super().training_batches(batch_size, order, subset=subset, skip=skip, purpose=purpose)
        while True:
            self.observer.batch_requested()
            batch = next(batches, None)
            if batch is None:
                return
            self.observer.batch_delivered()
            yield batch

    def batches_per_epoch(self, batch_size: int, subset: Subset | None = None) -> int:
        """Count the batches of an epoch, at most `epoch`."""
        return min(self.epoch, super().batches_per_epoch(batch_size, subset))


class WatchedForward(Forward):
    """Preparation of networks that reports each network to a `StepObserver` as the beginning of a stage."""

    observer: StepObserver | None = None

    def prepare(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., object]:
        """Prepare the network like `Forward`, and begin a stage."""
        if self.observer is not None:
            self.observer.stage_begins()
        if self._compiling == "on":
            from torch._dynamo import config

            # The networks of all trainings share their code, and the compiler would give up after a few of them. The
            # limit is set here since a greenlet, like a thread, does not see settings that were made outside of it.
            config.recompile_limit = _MANY_NETWORKS
        return super().prepare(network, stage, multiplications)


@contextmanager
def _own_modes() -> Iterator[None]:
    """Restore this training's modes of PyTorch after other trainings have run in the same thread.

    A training may be inside a mode, e.g. autocast, when it is paused.
    """
    grad_enabled = torch.is_grad_enabled()
    autocast = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _DEVICE_TYPES]
    try:
        yield
    finally:
        torch.set_grad_enabled(grad_enabled)
        for kind, enabled, dtype in autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.clear_autocast_cache()  # it holds copies of weights that other trainings may have changed


class Stopped(BaseException):
    """End of a training from inside. As it is no `Exception`, `except Exception` does not catch it."""


class InterleavedTraining(StepObserver):
    """A training that is paused before every timed step until it is resumed.

    Attributes:
        seconds: Time of every timed step, including the making of its batch.
        saved_bytes: Bytes that autograd kept in a step, the largest number of all counted steps.
        peak_bytes: Peak memory in a step on a CUDA device, including what the training holds between its steps; 0 on
            other devices.
    """

    def __init__(self, warm_up: int, device: torch.device) -> None:
        super().__init__(warm_up)
        self.seconds: list[float] = []
        self.saved_bytes = 0
        self.peak_bytes = 0
        self._saved = SavedTensors()
        self._device = device
        self._ready = False
        self._greenlet: greenlet | None = None
        self._began = 0.0
        self._own_bytes = 0  # memory that the training holds while it is paused

    # Called from outside the training.

    @property
    def finished(self) -> bool:
        """Whether the training has ended."""
        return self._greenlet is None or self._greenlet.dead

    def start(self, training: Callable[[], object]) -> None:
        """Start a training; return when it is ready for its first timed step, or has ended."""
        self._greenlet = greenlet(training)
        self._resume()

    def step(self) -> bool:
        """Run the training through its next timed step; return whether it made one.

        Raises:
            Exception: An exception of the training.
        """
        before = len(self.seconds)
        if not self.finished:
            self._resume()
        return len(self.seconds) > before

    def stop(self) -> None:
        """End the training at its current step, and stop counting saved memory."""
        self._saved.close()
        if self._greenlet is not None and not self._greenlet.dead:
            with suppress(Stopped), _own_modes():
                self._greenlet.throw(Stopped)

    def _resume(self) -> None:
        if self._greenlet is None:
            raise RuntimeError("the training was not started")
        before = self._allocated()
        with _own_modes():
            self._greenlet.switch()
        self._own_bytes += self._allocated() - before

    # Called from inside the training.

    def _pause(self) -> None:
        """Return control, and wait until the training is resumed."""
        if self._greenlet is None or self._greenlet.parent is None:
            raise RuntimeError("the training requests a batch although it is not running")
        with _own_modes():
            self._greenlet.parent.switch()

    def step_begins(self, kind: Kind) -> None:
        """Pause before the first timed step; then start the clock."""
        if kind == "timed" and not self._ready:
            self._ready = True
            self._pause()
        self._synchronize()
        if kind == "timed" and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._held = self._allocated()
        self._began = time.perf_counter()

    def step_runs(self, kind: Kind) -> None:
        """Begin to count saved memory in a counted step."""
        if kind == "counted":
            self._saved.begin()

    def step_ended(self, kind: Kind) -> None:
        """Stop the clock; after a timed step, pause."""
        self._synchronize()
        seconds = time.perf_counter() - self._began
        if kind == "counted":
            self.saved_bytes = max(self.saved_bytes, self._saved.end())
        if kind == "timed":
            self.seconds.append(seconds)
            if self._device.type == "cuda":
                rise = torch.cuda.max_memory_allocated(self._device) - self._held
                self.peak_bytes = max(self.peak_bytes, self._own_bytes + rise)
            self._pause()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
