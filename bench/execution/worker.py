"""The worker: works on one unit under its lease, in this process or as the whole life of a process of its own."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch

from bench.errors import StudyHaltedError, full_traceback
from bench.execution.context import UnitContext, UnitRequest
from bench.execution.records import close, new_record, recorded_outcome, valid_result, write_traceback
from bench.execution.replica_worker import perform_together
from bench.execution.stages.perform import WorkResult, failure, perform
from bench.execution.task_loader import TaskLoader
from bench.planning.builder import stored_unit
from bench.planning.units import Unit
from bench.replicas import ReplicaLostError
from bench.store.files import Store, read_stored_specification, remove
from bench.store.leases import Heartbeat, Lease, Leases, LostLeaseError
from bench.store.outcomes import Outcome, StoppedError, outcome_of_error
from bench.store.urls import without_secrets
from bench.training.checkpoints import Checkpoints

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 5.0
"""Seconds that a process whose parent died has to stop by itself."""


class HeldError(Exception):
    """Another process works on the unit."""


def work_on_unit(request: UnitRequest, lost: Callable[[], None]) -> Outcome:
    """Work on a unit in this process and write its record.

    Args:
        request: Unit to work on.
        lost: Function called from another thread when another process took the unit over.

    Raises:
        HeldError: Another process works on the unit.
        LostLeaseError: Another process took the unit over; nothing of the outcome was written.
    """
    lease = Leases(request.store).acquire(request.lease_name, request.title)
    if lease is None:
        raise HeldError(request.title)
    with Heartbeat(lease, lost):
        return _work_with_lease(request, lease)


def _work_with_lease(request: UnitRequest, lease: Lease) -> Outcome:
    store = Store(request.store)
    unit = _requested_unit(request)
    if valid_result(store, unit, request.data_checksum, request.retry)[0]:  # another process was faster
        return recorded_outcome(store.record(request.kind, request.identity))
    record = new_record(unit, request.data_checksum, store.record(request.kind, request.identity))
    store.write_record(request.kind, request.identity, record)
    remove(request.folder / "error.txt")  # of an earlier attempt
    result = _perform(request, unit, record, _ProgressWatcher(lease))
    outcome = result.outcome
    if outcome.status in ("failed", "oom") and not outcome.error:
        write_traceback(request.folder, result.traceback)
    if outcome.error == "system":
        return outcome  # nothing can be written: the record keeps "running", and the lease is released
    lease.check()
    close(result.record, outcome)
    store.write_record(request.kind, request.identity, result.record)
    if outcome.status == "done":
        Checkpoints(request.folder / "checkpoints", {}).clear()
    return outcome


def _requested_unit(request: UnitRequest) -> Unit:
    stored = read_stored_specification(request.folder)
    if stored is None:
        raise StudyHaltedError(
            f"the specification in '{request.folder}' is missing or damaged; run the study's command again"
        )
    if stored["specification"].get("devices", 1) > 1:
        torch.set_num_threads(1)  # a pool of threads would be missing in replicas that are forked from here
    return stored_unit(stored)


def _perform(request: UnitRequest, unit: Unit, record: dict[str, Any], watcher: "_ProgressWatcher") -> WorkResult:
    """Perform a unit in this process, or with replicas if the specification asks for several devices."""
    if unit.spec.devices > 1:
        return perform_together(request, unit, record, watcher)
    # With one visible GPU the specification's "cuda:1" is the first.
    device = None if request.gpu is None else torch.device("cuda")
    try:
        loader = TaskLoader(unit.spec, request.data_dir, device)
    except BaseException as error:  # tracing the network takes long enough to be interrupted
        return failure(error, record, request)
    return perform(UnitContext(request, unit, record, watcher, loader))


class _ProgressWatcher:
    """Writes the progress of a unit into its lease, where other processes see it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Add an epoch that ended."""
        shown = ("epoch", "epochs", "loss", "accuracy", "budget_share")
        numbers = {name: float(figures[name]) for name in shown if name in figures}
        earlier = self._lease.progress
        done = (
            earlier.get("done", 0) + 1 if earlier.get("phase") == phase else 1
        )  # stages of a phase count from 1 again
        self._lease.progress = {"phase": phase, "done": done, **numbers}


# --- as a process ------------------------------------------------------------------------------------------------


def process_main(request: UnitRequest, report: Connection) -> None:
    """Live the whole life of a process that works on one unit.

    Args:
        request: Unit to work on.
        report: Connection that the outcome is sent through; `None` is sent when another process works on the unit.
    """
    _become_worker(request)
    try:
        outcome = work_on_unit(request, lost=lambda: os._exit(1))
    except HeldError:
        report.send(None)
        return
    except LostLeaseError:
        return
    except ReplicaLostError as lost:
        _end_like(lost)
    except BaseException as error:
        sys.stderr.write(without_secrets(full_traceback(error)))
        outcome = outcome_of_error(error, request.store)
        if outcome.status == "failed" and not outcome.error:
            write_traceback(request.folder, full_traceback(error))
    report.send(outcome)


def _become_worker(request: UnitRequest) -> None:
    """Leave the terminal to the parent, log to a file, and stop when asked to or when the parent dies."""
    os.setsid()
    if request.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = request.gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, _stop)
    request.folder.mkdir(parents=True, exist_ok=True)
    log = request.folder / "output.log"
    if log.is_dir():
        remove(log)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.stdout, sys.stderr = (
        os.fdopen(stream, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")
        for stream in (1, 2)
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    threading.Thread(target=_watch_parent, name="parent", daemon=True).start()


def _end_like(lost: ReplicaLostError) -> NoReturn:
    """End this process as a replica ended, so that the supervisor sees the cause."""
    _log.error("%s", lost)
    if lost.exit_code < 0:
        if -lost.exit_code != signal.SIGKILL:
            signal.signal(-lost.exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -lost.exit_code)
    os._exit(abs(lost.exit_code))


def _stop(_: int, __: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise StoppedError


def _watch_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
