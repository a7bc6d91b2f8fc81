"""Work on a unit by several replicas that share its batches.

The process of the unit keeps the lease and writes the record. Replicas are its children. Each of them makes its own
context on its own device and performs the same unit. The first one writes files and reports epochs. The result is what
it would be with one process.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from bench import replicas
from bench.execution.context import UnitContext, UnitRequest, Watcher
from bench.execution.stages.perform import WorkResult, failure, perform
from bench.execution.task_loader import TaskLoader
from bench.planning.units import Unit
from bench.replicas import ReplicaLostError

_LAST_SECONDS = 2.0
"""Seconds that a failed replica waits before it ends. If it failed because another one died, the dead one is found
first."""
_LOOK_SECONDS = 0.5


def perform_together(request: UnitRequest, unit: Unit, record: dict[str, Any], watcher: Watcher) -> WorkResult:
    """Perform a unit with as many replicas as the specification says, and wait for them.

    Raises:
        ReplicaLostError: A replica died without reporting a result.
    """
    device, devices = unit.spec.device, unit.spec.devices
    pipes = [Pipe(duplex=False) for _ in range(devices)]
    inbox = _Inbox([receiving for receiving, _ in pipes], watcher)
    sending = [end for _, end in pipes]
    start = replicas.start_method(device)
    try:
        with inbox.reading(sending):
            replicas.launch(device, devices, _replica, request, unit, record, sending, start=start)
    except ReplicaLostError as lost:
        first = inbox.first_failure()
        if first is None or lost.index not in inbox.results:
            raise
        return first
    except Exception as error:
        return inbox.first_failure() or failure(error, record, request)
    except BaseException as error:  # this process was asked to stop
        return failure(error, record, request)
    return inbox.results[0][1]


def _replica(
    device: torch.device, request: UnitRequest, unit: Unit, record: dict[str, Any], ends: Sequence[Connection]
) -> None:
    """Perform a unit as one replica, and send the result through its own pipe."""
    end = ends[replicas.rank()]
    watcher = _PipeWatcher(end) if replicas.is_first() else _SilentWatcher()
    loader = TaskLoader(unit.spec, request.data_dir, device)
    result = perform(UnitContext(request, unit, record, watcher, loader))
    end.send((time.monotonic(), result))
    if result.outcome.status != "done":
        time.sleep(_LAST_SECONDS)
        os._exit(1)  # a process group that lacks a member cannot be left in order


class _SilentWatcher:
    """The watcher of all replicas but the first."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Ignore the epoch: the first replica reports it."""


class _PipeWatcher:
    """Sends epochs to the process of the unit."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch."""
        self._end.send((phase, dict(figures)))


class _Inbox:
    """Reads what replicas send, in a thread, while this process waits for them.

    Attributes:
        results: Results by replica, each with the time when it was sent, by the host's monotonic clock.
    """

    def __init__(self, ends: Sequence[Connection], watcher: Watcher) -> None:
        self._ends = ends
        self._watcher = watcher
        self.results: dict[int, tuple[float, WorkResult]] = {}

    @contextmanager
    def reading(self, sending: Sequence[Connection]) -> Iterator[None]:
        """Read during a `with` block, and after it until nothing is left.

        Args:
            sending: Other ends of the pipes. This process closes its copies after the block; replicas have ended by
                then.
        """
        thread = threading.Thread(target=self._read, name="replicas", daemon=True)
        thread.start()
        try:
            yield
        finally:
            for end in sending:
                end.close()
            thread.join()

    def _read(self) -> None:
        numbers = {end: number for number, end in enumerate(self._ends)}
        while numbers:
            ready = wait(numbers, _LOOK_SECONDS)
            for end in [end for end in numbers if end in ready]:
                try:
                    self._take(numbers[end], end.recv())
                except (EOFError, OSError):
                    del numbers[end]

    def _take(self, number: int, message: tuple[Any, Any]) -> None:
        """Handle a message: (time, result) or (phase, figures)."""
        first, second = message
        if isinstance(second, WorkResult):
            self.results[number] = (first, second)
        else:
            self._watcher.epoch(first, second)

    def first_failure(self) -> WorkResult | None:
        """Return the result of the replica that failed first: others may have failed because of it."""
        failed = [(at, result) for at, result in self.results.values() if result.outcome.status != "done"]
        return min(failed, key=lambda entry: entry[0])[1] if failed else None
