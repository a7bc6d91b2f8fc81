"""The work on a unit itself: in this process, or by replicas that share its batches.

The process of a unit keeps the lease and writes the record. Replicas are its children: each builds its own workbench
on its own device and works on the same unit, the first one writes files and tells how far it is. What becomes of
them comes back as an `WorkResult`, which is what it would be with one process.
"""

import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from bench import replicas
from bench.compression.shapes import NetworkShape
from bench.errors import BenchError
from bench.execution.context import Order, Watcher
from bench.planning.plan import Unit
from bench.replicas import ReplicaLostError
from bench.spec.schema import StudySpec
from bench.store.files import Store
from bench.store.leases import LostLeaseError
from bench.store.outcomes import Outcome, outcome_of_error

if TYPE_CHECKING:
    import torch

    from bench.data.subset import Fault

_LAST_SECONDS = 2.0
"""A replica that failed stays so long: when it failed because another one died, that one is found dead before it."""
_LOOK_SECONDS = 0.5
_NAMED_FAULTS = 100
"""Unreadable images that a record names; the output of the run names all."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A unit and all that it takes to work on it.

    Attributes:
        order: Where the unit lies.
        spec: Of the study.
        network: The shapes of the model.
        unit: It.
        record: What the store says of it.
    """

    order: Order
    spec: StudySpec
    network: NetworkShape
    unit: Unit
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WorkResult:
    """What became of the work.

    Attributes:
        ending: How it ended.
        record: The record with what was found.
        traceback: Of the error that ended it.
    """

    ending: Outcome
    record: dict[str, Any]
    traceback: str = ""


def work_alone(assignment: Assignment, watcher: Watcher, device: "torch.device | None" = None) -> WorkResult:
    """Work on a unit in this process.

    Args:
        assignment: The unit.
        watcher: Is told of epochs.
        device: That of a replica; the specification's when absent.

    Raises:
        LostLeaseError: Somebody else took the unit over.
    """
    import torch

    from bench.execution.stages import Desk, Workbench, pretrain, run, try_out

    order, spec = assignment.order, assignment.spec
    if device is None and order.card is not None:
        device = torch.device("cuda")  # "cuda:1" is the first of those that this process sees
    bench = Workbench(spec, Store(order.store), order.data_dir, assignment.network, device)
    desk = Desk(bench, assignment.unit, assignment.record, watcher)
    task = {"pretrained": pretrain, "trials": try_out, "runs": run}[order.kind]
    try:
        if bench.task.data.checksum != order.data_checksum:
            raise BenchError(f"the data of {spec.task.dataset} changed while the study ran; run its command again")
        task(desk)
    except LostLeaseError:
        raise
    except BaseException as error:
        return _failed(error, assignment)
    desk.record.update(unreadable_images(bench.task.data.faults))
    return WorkResult(ending=Outcome(status="done"), record=desk.record)


def unreadable_images(faults: "Sequence[Fault]") -> dict[str, Any]:
    """What a record says of images that could not be read, their number and the first of them; nothing of none."""
    if not faults:
        return {}
    return {"unreadable_images": {"count": len(faults), "first": [asdict(fault) for fault in faults[:_NAMED_FAULTS]]}}


def _failed(error: BaseException, assignment: Assignment) -> WorkResult:
    text = "".join(traceback.format_exception(error))
    return WorkResult(ending=outcome_of_error(error), record=assignment.record, traceback=text)


def work_together(assignment: Assignment, watcher: Watcher) -> WorkResult:
    """Work on a unit with as many replicas as the specification says; this process waits for them.

    Raises:
        ReplicaLostError: One of them died without a word.
    """
    device, devices = assignment.spec.device, assignment.spec.devices
    pipes = [Pipe(duplex=False) for _ in range(devices)]
    news = _News([receiving for receiving, _ in pipes], watcher)
    sending = [end for _, end in pipes]
    start = replicas.start_method(device)
    try:
        with news.read(sending):
            replicas.launch(device, devices, _replica, assignment, sending, start=start)
    except ReplicaLostError as lost:
        failure = news.first_failure()
        if failure is None or lost.index not in news.outcomes:
            raise
        return failure
    except Exception as error:
        return news.first_failure() or _failed(error, assignment)
    except BaseException as error:  # this process was asked to stop
        return _failed(error, assignment)
    return news.outcomes[0][1]


def _replica(device: "torch.device", assignment: Assignment, ends: Sequence[Connection]) -> None:
    """The work of one replica; it tells its outcome by its own pipe."""
    end = ends[replicas.rank()]
    watcher = _Teller(end) if replicas.is_first() else _Silent()
    outcome = work_alone(assignment, watcher, device)
    end.send((time.monotonic(), outcome))
    if outcome.ending.status != "done":
        time.sleep(_LAST_SECONDS)
        os._exit(1)  # a process group that lacks a member cannot be left in good order


class _Silent:
    """The watcher of all replicas but the first."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """The first one tells it."""


class _Teller:
    """Tells the unit's process of epochs."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """An epoch ended."""
        self._end.send((phase, dict(figures)))


class _News:
    """What replicas tell, read in a thread while this process waits for them.

    Attributes:
        outcomes: By replica: when it ended, and how. The clock is the host's, the same for all.
    """

    def __init__(self, ends: Sequence[Connection], watcher: Watcher) -> None:
        self._ends = ends
        self._watcher = watcher
        self.outcomes: dict[int, tuple[float, WorkResult]] = {}

    @contextmanager
    def read(self, sending: Sequence[Connection]) -> Iterator[None]:
        """Read while the block runs, and what is left when it has ended.

        Args:
            sending: The other ends; this process closes its own after the block, and nobody else has them then.
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

    def _take(self, number: int, told: tuple[Any, Any]) -> None:
        first, second = told
        if isinstance(second, WorkResult):
            self.outcomes[number] = (first, second)
        else:
            self._watcher.epoch(first, second)

    def first_failure(self) -> WorkResult | None:
        """The outcome of the replica that failed first: the others may have failed because of it."""
        failed = [(at, outcome) for at, outcome in self.outcomes.values() if outcome.ending.status != "done"]
        return min(failed, key=lambda told: told[0])[1] if failed else None
