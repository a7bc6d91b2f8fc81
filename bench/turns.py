"""Lets several trainings take turns, one step each, in one process, and watches each single step.

A training is any function that draws its batches from `TaskData.training_batches`: a loop of the harness or one that a
method brings along. Nobody has to cooperate: the data that it is given notices when it asks for the next batch, which
is where a step ends and the next one begins. There it is held until its turn comes.

Each training has a thread of its own, of which only one runs at any time. Threads rather than generators, because a
step may be asked for from anywhere in a training's own code.
"""

import gc
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Literal, Self

import psutil
import torch
from torch import Tensor, nn

from bench.data import Subset, TaskData
from bench.forward import Forward

Kind = Literal["warm-up", "counted", "timed"]
"""Of a step: it prepares, or memory is counted in it, or its time is taken."""

_MANY_NETWORKS = 1000
_PATIENCE = 600.0
"""Seconds for a training to reach the end of its step; the compiler may be at work in it."""
_PATIENCE_FOR_SYSTEM, _GLANCE = 5.0, 0.002
"""Seconds."""


class Steps(ABC):
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
    """Training data that tell `Steps` of every batch, with epochs of a given length at most."""

    steps: Steps
    epoch: int

    @classmethod
    def of(cls, data: TaskData, steps: Steps, epoch: int) -> Self:
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
        self, batch_size: int, order: torch.Generator, *, subset: Subset | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as ever, each at the moment that `Steps` chooses."""
        batches = super().training_batches(batch_size, order, subset=subset)
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
    """Tells `Steps` of every network that is made ready for training: with each a stage begins."""

    steps: Steps | None = None

    def of(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., object]:
        """As ever."""
        if self.steps is not None:
            self.steps.stage()
        return super().of(network, stage, multiplications)


# --- memory of one step ---------------------------------------------------------------------------------------------


class SavedTensors:
    """Counts what autograd keeps for the backward pass, from `begin` to `end` in one thread.

    Bytes of different storages, other than those of parameters.
    """

    def __init__(self) -> None:
        self._block = ExitStack()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def begin(self) -> None:
        """Count from here."""
        self._block.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, _unchanged))

    def end(self) -> int:
        """Bytes since `begin`."""
        self._block.close()
        of_parameters = _storages(tensor for tensor in _living_tensors() if isinstance(tensor, nn.Parameter))
        bytes_ = sum(storage.nbytes() for place, storage in self._storages.items() if place not in of_parameters)
        self._storages.clear()
        return bytes_

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


# --- turns ----------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ends a training from inside; no error, and so out of reach of `except Exception`."""


class Turns(Steps):
    """The steps of a training that runs in a thread of its own and waits for its turns.

    Attributes:
        seconds: Of every timed step, with the making of its batch.
        saved_bytes: What autograd kept in a step, the largest of the counted ones.
        over: Whether the training has ended.
        peak_bytes: The largest amount of memory in a step on a CUDA device, with what the training holds between its
            steps; 0 elsewhere.
    """

    def __init__(self, warm_up: int, device: torch.device, threads: int) -> None:
        super().__init__(warm_up)
        self.seconds: list[float] = []
        self.saved_bytes = 0
        self.peak_bytes = 0
        self.over = False
        self._saved = SavedTensors()
        self._device = device
        self._threads = threads
        self._ready = False
        self._stopping = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._began = 0.0
        self._own_bytes = 0  # what the training holds between its turns

    # What the one who gives turns calls.

    def start(self, training: Callable[[], object]) -> None:
        """Begin a training; returns when it is ready for its first timed step, or has ended."""
        self._thread = threading.Thread(target=self._work, args=(training,), daemon=True)
        self._thread.start()
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
        """End the training at its present step; returns when its thread is gone."""
        self._stopping = True
        if self._thread is not None:
            self._go.release()
            self._thread.join(_PATIENCE)
            _wait_for_system(self._thread.native_id)

    def _turn(self) -> None:
        before = self._allocated()
        self._go.release()
        self._back.acquire()
        self._own_bytes += self._allocated() - before
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # What happens in the training's thread.

    def _work(self, training: Callable[[], object]) -> None:
        self._go.acquire()
        try:
            self._set_up_thread()
            if not self._stopping:
                training()
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.over = True
            self._back.release()

    def _set_up_thread(self) -> None:
        """What belongs to a thread: the number of its helpers, and settings of the compiler."""
        torch.set_num_threads(self._threads)
        # The networks of all trainings share their code, for which the compiler would give up after a few.
        if "torch._dynamo" in sys.modules:
            torch._dynamo.config.recompile_limit = _MANY_NETWORKS

    def _wait(self) -> None:
        """Hand the turn back, and wait for the next one."""
        self._back.release()
        self._go.acquire()
        if self._stopping:
            raise Stopped

    def begins(self, kind: Kind) -> None:
        """Wait before the first timed step; then start the clock."""
        if self._stopping:
            raise Stopped
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


def _wait_for_system(thread: int | None) -> None:
    """Wait until the system has no such thread any more.

    A thread that Python has done with still frees PyTorch's objects, for which it needs Python; if that is about to end
    the process, it aborts it.
    """
    until = time.monotonic() + _PATIENCE_FOR_SYSTEM
    while time.monotonic() < until and any(other.id == thread for other in psutil.Process().threads()):
        time.sleep(_GLANCE)
