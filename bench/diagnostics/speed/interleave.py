"""Lets several trainings take turns, one step each, in one process, and watches each single step.

A training is any function that draws its batches from `TaskData.training_batches`: a loop of the harness or one that a
method brings along. Nobody has to cooperate: the data that it is given notices when it asks for the next batch, which
is where a step ends and the next one begins. There it is held until its turn comes.

All run in one thread, each as a greenlet: a step may be asked for from anywhere in a training's own code, where a
generator could not pause. Threads could, but each would bring PyTorch's helpers along: where there are more of these
than cores, they fall asleep at once when they wait and must be woken for every operation, which made steps of many
small operations take a third longer.
"""

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, Self

import torch
from greenlet import greenlet
from torch import Tensor, nn

from bench.data.subset import Subset
from bench.data.task_data import TaskData
from bench.training.forward import Forward

Kind = Literal["warm-up", "counted", "timed"]
"""Of a step: it prepares, or memory is counted in it, or its time is taken."""

_MANY_NETWORKS = 1000
_DEVICE_TYPES = ("cpu", "cuda")


class StepObserver(ABC):
    """The steps of one training, as its data see them.

    After each beginning of a stage some steps are not timed: the compiler and the allocators are at work in them. In
    the last one of these memory is counted.

    Args:
        warm_up: Steps that are not timed, at least one.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._to_warm_up = warm_up
        self._open: Kind | None = None

    def stage(self) -> None:
        """A stage begins: another network is about to be trained."""
        self._to_warm_up = self._warm_up

    def asked(self) -> None:
        """The training wants a batch: what it did since it was handed one was a step."""
        if self._open is not None:
            kind, self._open = self._open, None
            self._to_warm_up = max(0, self._to_warm_up - 1)
            self.ended(kind)
        self.begins(self._next_kind())

    def handed_out(self) -> None:
        """The training has its batch; without this, e.g. at the end of an epoch, what it does is no step."""
        self._open = self._next_kind()
        self.under_way(self._open)

    def _next_kind(self) -> Kind:
        return "timed" if not self._to_warm_up else "counted" if self._to_warm_up == 1 else "warm-up"

    @abstractmethod
    def begins(self, kind: Kind) -> None:
        """A step is to begin; its batch is made next."""

    def under_way(self, kind: Kind) -> None:  # noqa: B027  (most have nothing to do)
        """The batch is handed out."""

    @abstractmethod
    def ended(self, kind: Kind) -> None:
        """A step ended."""


class WatchedData(TaskData):
    """Training data that tell `StepObserver` of every batch, with epochs of a given length at most."""

    steps: StepObserver
    epoch: int

    @classmethod
    def of(cls, data: TaskData, steps: StepObserver, epoch: int) -> Self:
        """The same data, watched.

        Args:
            data: Their tensors are shared.
            steps: Is told.
            epoch: Batches of an epoch at most.
        """
        watched = cls.__new__(cls)
        vars(watched).update(vars(data))
        watched.steps, watched.epoch = steps, epoch
        return watched

    def training_batches(
        self, batch_size: int, order: torch.Generator, *, subset: Subset | None = None, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as ever, each at the moment that `StepObserver` chooses."""
        batches = super().training_batches(batch_size, order, subset=subset, skip=skip)
        while True:
            self.steps.asked()
            batch = next(batches, None)
            if batch is None:
                return
            self.steps.handed_out()
            yield batch

    def batches_per_epoch(self, batch_size: int, subset: Subset | None = None) -> int:
        """As ever, but short."""
        return min(self.epoch, super().batches_per_epoch(batch_size, subset))


class WatchedForward(Forward):
    """Tells `StepObserver` of every network that is made ready for training: with each a stage begins."""

    steps: StepObserver | None = None

    def prepare(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., object]:
        """As ever."""
        if self.steps is not None:
            self.steps.stage()
        if self._compiling != "off":
            from torch._dynamo import config

            # The networks of all trainings share their code, for which the compiler would give up after a few. Here,
            # since a greenlet, like a thread, sees nothing of what was set outside of it.
            config.recompile_limit = _MANY_NETWORKS
        return super().prepare(network, stage, multiplications)


# --- memory of one step ---------------------------------------------------------------------------------------------


class SavedTensors:
    """Counts what autograd keeps for the backward pass, from `begin` to `end`.

    Bytes of different storages, other than those of parameters.
    """

    def __init__(self) -> None:
        self._block = ExitStack()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def begin(self) -> None:
        """Count from here."""
        self._block.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, _unchanged))

    def end(self) -> int:
        """Bytes since `begin`; 0 when nothing was begun."""
        self._block.close()
        of_parameters = _storages(tensor for tensor in _living_tensors() if isinstance(tensor, nn.Parameter))
        bytes_ = sum(storage.nbytes() for place, storage in self._storages.items() if place not in of_parameters)
        self._storages.clear()
        return bytes_

    def close(self) -> None:
        """Count no more, and forget."""
        self._block.close()
        self._storages.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        # A storage that is held cannot be followed by another one at the same place.
        storage = tensor.untyped_storage()
        self._storages.setdefault(storage.data_ptr(), storage)
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def living_bytes(but: Iterable[Tensor]) -> int:
    """Bytes of all tensors that Python knows of, with their gradients, other than some."""
    tensors = _living_tensors()
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    left_out = _storages(but)
    return sum(bytes_ for place, bytes_ in _storages([*tensors, *gradients]).items() if place not in left_out)


def _living_tensors() -> list[Tensor]:
    """All tensors of this process that Python knows of and that lie in memory."""
    # Not `isinstance`, which asks objects for their class and so wakes modules that are imported lazily; nor tensors of
    # other classes, which stand for others.
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the storages of tensors, by where they lie."""
    found = {}
    for tensor in tensors:
        with suppress(RuntimeError):  # the compiler's stand-ins have none
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@contextmanager
def _own_modes() -> Iterator[None]:
    """Takes back, after others had their turn, the modes of PyTorch that belong to a thread.

    A training may have a mode around its whole loop, and hands its turn over in the midst of it.
    """
    of_gradients = torch.is_grad_enabled()
    of_precision = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _DEVICE_TYPES]
    try:
        yield
    finally:
        torch.set_grad_enabled(of_gradients)
        for kind, enabled, dtype in of_precision:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.clear_autocast_cache()  # copies of weights that others may have changed since


# --- turns ----------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ends a training from inside; no error, and so out of reach of `except Exception`."""


class InterleavedTraining(StepObserver):
    """The steps of a training that waits for its turns.

    Attributes:
        seconds: Of every timed step, with the making of its batch.
        saved_bytes: What autograd kept in a step, the largest of the counted ones.
        peak_bytes: The largest amount of memory in a step on a CUDA device, with what the training holds between its
            steps; 0 elsewhere.
    """

    def __init__(self, warm_up: int, device: torch.device) -> None:
        super().__init__(warm_up)
        self.seconds: list[float] = []
        self.saved_bytes = 0
        self.peak_bytes = 0
        self._saved = SavedTensors()
        self._device = device
        self._ready = False
        self._training: greenlet | None = None
        self._began = 0.0
        self._own_bytes = 0  # what the training holds between its turns

    # What the one who gives turns calls.

    @property
    def over(self) -> bool:
        """Whether the training has ended."""
        return self._training is None or self._training.dead

    def start(self, training: Callable[[], object]) -> None:
        """Begin a training; returns when it is ready for its first timed step, or has ended."""
        self._training = greenlet(training)
        self._turn()

    def step(self) -> bool:
        """Let the training make one timed step, and what lies before it; whether it did.

        Raises:
            Exception: The training's own.
        """
        before = len(self.seconds)
        if not self.over:
            self._turn()
        return len(self.seconds) > before

    def stop(self) -> None:
        """End the training at its present step; one that failed in a counted step is no longer counted."""
        self._saved.close()
        if self._training is not None and not self._training.dead:
            with suppress(Stopped), _own_modes():
                self._training.throw(Stopped)

    def _turn(self) -> None:
        if self._training is None:
            raise RuntimeError("a training that was not started has no turns")
        before = self._allocated()
        with _own_modes():
            self._training.switch()
        self._own_bytes += self._allocated() - before

    # What happens inside the training.

    def _wait(self) -> None:
        """Hand the turn back, and wait for the next one."""
        if self._training is None or self._training.parent is None:
            raise RuntimeError("a training outside of its turns asks for a batch")
        with _own_modes():
            self._training.parent.switch()

    def begins(self, kind: Kind) -> None:
        """Wait before the first timed step; then start the clock."""
        if kind == "timed" and not self._ready:
            self._ready = True
            self._wait()
        self._synchronize()
        if kind == "timed" and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._held = self._allocated()
        self._began = time.perf_counter()

    def under_way(self, kind: Kind) -> None:
        """Count what is saved from now on."""
        if kind == "counted":
            self._saved.begin()

    def ended(self, kind: Kind) -> None:
        """Stop the clock, and wait for the next turn."""
        self._synchronize()
        seconds = time.perf_counter() - self._began
        if kind == "counted":
            self.saved_bytes = max(self.saved_bytes, self._saved.end())
        if kind == "timed":
            self.seconds.append(seconds)
            if self._device.type == "cuda":
                rise = torch.cuda.max_memory_allocated(self._device) - self._held
                self.peak_bytes = max(self.peak_bytes, self._own_bytes + rise)
            self._wait()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
