"""Peak memory of a training step on a CPU, measured in a process of its own."""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
from multiprocessing.connection import Connection

import psutil
import torch

from bench.data.task_data import TaskData
from bench.diagnostics.speed.config import Candidate, SpeedConfig
from bench.diagnostics.speed.interleave import Kind, StepObserver
from bench.diagnostics.speed.step_memory import living_bytes
from bench.diagnostics.speed.trainings import random_task, watched_training
from bench.errors import BenchError
from bench.spec.seeds import start_process_deterministically
from bench.store.machine import peak_memory

_WARM_UP, _STEPS = 2, 2
_PATIENCE = 30.0
"""Seconds to wait for the end of a process that has sent its answer."""


def failure(candidate: Candidate, reason: str) -> BenchError:
    """Make the error that reports a failed training in one line."""
    return BenchError(
        f"{candidate.title} failed while it was measured: {' '.join(reason.split())}; leave it out with --methods, or "
        "find the cause with `bench run --in-process`"
    )


class PeakObserver(StepObserver):
    """Observer that measures the rise of resident memory in every step after the warm-up.

    Attributes:
        bytes: Largest rise, plus the tensors that exist between steps.
    """

    def __init__(self, data: TaskData) -> None:
        super().__init__(_WARM_UP)
        self.bytes = 0
        self._data = data
        self._before = 0
        self._block = contextlib.ExitStack()

    def step_begins(self, kind: Kind) -> None:
        """Return unused memory to the system, and reset the system's peak."""
        if kind == "timed":
            gc.collect()
            _trim()
            self._kept = living_bytes([self._data.train.tensors()[0], self._data.validation.tensors()[0]])
            self._before = psutil.Process().memory_info().rss
            self._peak = self._block.enter_context(peak_memory(torch.device("cpu")))

    def step_ended(self, kind: Kind) -> None:
        """Read the system's peak."""
        if kind == "timed":
            self._block.close()
            if self._peak.megabytes is not None:
                rise = int(self._peak.megabytes * 1e6) - self._before
                self.bytes = max(self.bytes, self._kept + rise)


def _trim() -> None:
    """Have the C library (glibc) return memory that it only keeps for later."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_in_this_process(config: SpeedConfig, candidate: Candidate) -> int:
    """Measure the peak memory of a candidate's step in bytes; return 0 if the system does not report it.

    The process must do nothing else.
    """
    start_process_deterministically(0, config.threads)
    epoch = _WARM_UP + _STEPS
    task = random_task(config, epoch)
    observer = PeakObserver(task.data)
    watched_training(candidate, task, observer, epoch, config.batch_size)[0]()
    return observer.bytes


def peak_in_another_process(config: SpeedConfig, candidate: Candidate) -> int:
    """Measure the peak memory of a candidate's step in a fresh process.

    Memory that one training leaves behind in a process would hide the memory that the next one takes.

    Raises:
        BenchError: The training failed.
    """
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(its, config, candidate), daemon=True)
    process.start()
    its.close()
    try:
        answer: int | str = mine.recv()
    except EOFError:
        answer = "its process ended by itself; it may have run out of memory"
    else:
        process.join(_PATIENCE)
    finally:
        process.kill()
        process.join()
        mine.close()
    if isinstance(answer, str):
        raise failure(candidate, answer)
    return answer


def _answer(connection: Connection, config: SpeedConfig, candidate: Candidate) -> None:
    """Send the peak memory, or the error's text. Interruptions are ignored: the parent ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: int | str
    try:
        answer = peak_in_this_process(config, candidate)
    except Exception as error:  # the parent reports it
        answer = f"{type(error).__name__}: {error}"
    connection.send(answer)
