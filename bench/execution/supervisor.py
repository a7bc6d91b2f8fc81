"""The supervisor: starts the process of one unit, ends it when it must end, and records its outcome if it cannot.

Processes are forked from a server that has imported PyTorch and in which nothing else has happened. A new process takes
hundredths of a second, and no unit inherits anything from the one before it.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Protocol

from bench.errors import full_traceback
from bench.execution.context import UnitRequest
from bench.execution.records import close, new_record, recorded_outcome, write_traceback
from bench.execution.settings import Limits
from bench.execution.worker import HeldError, process_main, work_on_unit
from bench.planning.builder import stored_unit
from bench.store.files import Store, read_stored_specification
from bench.store.leases import Leases, LostLeaseError
from bench.store.outcomes import INTERRUPTED, Outcome, outcome_of_error

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 10.0
"""Seconds that a process has to stop after it was asked to."""
_ATTEMPTS = 2
"""Number of attempts at a unit whose process dies."""
_START_PAUSES = (0.1, 0.5, 2.0)
"""Pauses in seconds between attempts to start a process: a server that was killed still exists for a moment."""
_MAIN_MODULE = threading.Lock()
"""Held while the main module is replaced; several threads start processes."""
_PRELOADED = (
    "torch",
    "torch._inductor",  # which `torch.use_deterministic_algorithms` imports
    "bench.execution.stages",
    "bench.execution.records",
)


class Stop(Protocol):
    """Function that returns whether the study is to stop."""

    def __call__(self) -> bool:
        """Return whether it is."""
        ...


def work_in_this_process(request: UnitRequest) -> Outcome:
    """Work on a unit in this process and without limits, for debuggers and tests.

    Raises:
        HeldError: Another process works on the unit.
    """

    def lost() -> None:
        _log.error("%s was taken over by another process", request.title)

    attempts_before = _attempts(request)
    try:
        outcome = work_on_unit(request, lost)
    except (HeldError, LostLeaseError):
        raise
    except Exception as error:  # e.g. its record cannot be written
        outcome = outcome_of_error(error, request.store)
        if not outcome.error:
            write_traceback(request.folder, full_traceback(error))
            outcome = _record_outcome(request, outcome, attempts_before)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    return outcome


def supervise(request: UnitRequest, limits: Limits, stop: Stop, preload: Sequence[str] = ()) -> Outcome:
    """Work on a unit in a process of its own, and once more when that process dies.

    Args:
        request: Unit to work on.
        limits: Limits of the process.
        stop: Function that returns whether the study is to stop.
        preload: Modules that the server of processes imports once, besides the harness's own.

    Raises:
        HeldError: Another process works on the unit.
    """
    outcome = INTERRUPTED
    for attempt in range(_ATTEMPTS):
        outcome = _attempt(request, limits, stop, preload)
        died = outcome.status == "killed" or (outcome.status == "interrupted" and not stop())
        if not died or attempt == _ATTEMPTS - 1:
            break
        _log.warning("%s: %s; trying once more", request.title, outcome.reason)
    return outcome


def _attempt(request: UnitRequest, limits: Limits, stop: Stop, preload: Sequence[str]) -> Outcome:
    """Supervise one process from its start to its end."""
    _allow_children()
    kernel_kills, attempts_before = _kernel_kills(), _attempts(request)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = _context(preload).Process(target=process_main, args=(request, sending), name=request.title)
    with sending:
        _start(process)
    with receiving:
        try:
            verdict = _watch(process, limits, stop)
        except BaseException:  # Ctrl-C
            _end(process, grace=_GRACE_SECONDS)
            raise
        report = _reported(receiving)
    if report is _HELD:
        raise HeldError(request.title)
    if isinstance(report, Outcome):
        complete = report.status == "done" or report.error
        return report if complete else _record_outcome(request, report, attempts_before)
    _end(process, grace=0)  # if the server of processes died, its children may still be alive
    outcome = verdict or _cause_of_death(process, _kernel_kills() - kernel_kills)
    return _record_outcome(request, outcome, attempts_before)


# --- processes -----------------------------------------------------------------------------------------------------


def _start(process: ForkServerProcess) -> None:
    """Start a process, also when the server of processes has just died: the next attempt starts a new server.

    Raises:
        ConnectionError, EOFError: Servers die again and again.
    """
    with _without_main_module():
        for pause in _START_PAUSES:
            try:
                process.start()
            except (ConnectionError, EOFError):
                time.sleep(pause)
            else:
                return
        process.start()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep new processes from importing the main module, during a `with` block.

    They do not need it. It may be a user's script that runs a study, which would then run the study again.
    """
    with _MAIN_MODULE:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _context(preload: Sequence[str]) -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *preload])
    return context


def _allow_children() -> None:
    """Let this process have children, also when it is itself a worker of joblib or of a cluster.

    A cluster marks its workers as processes that may have none. Loky hands on a start method that only loky knows.
    """
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("forkserver", force=True)


def _watch(process: ForkServerProcess, limits: Limits, stop: Stop) -> Outcome | None:
    """Wait for a process to end, and end it when it exceeds a limit or the study stops.

    Returns:
        The outcome if this function ended the process; `None` if it ended by itself.
    """
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    while not wait([process.sentinel], timeout=_POLL_SECONDS):
        if stop():
            _end(process, grace=_GRACE_SECONDS)
            return INTERRUPTED
        if deadline is not None and time.monotonic() > deadline:
            _end(process, grace=0)
            return Outcome(status="timeout", reason=f"not done after {limits.seconds:.0f} s")
        if limits.memory_bytes is not None and (used := _resident(process.pid)) > limits.memory_bytes:
            _end(process, grace=0)
            reason = f"out of memory: {used / 1e9:.2f} GB used, {limits.memory_bytes / 1e9:.2f} GB allowed"
            return Outcome(status="oom", reason=reason)
    process.join()
    return None


def _end(process: ForkServerProcess, *, grace: float) -> None:
    """End a process and everything that it started.

    Args:
        process: Process to end.
        grace: Seconds between asking it to stop and killing it; 0 to kill it at once.
    """
    if grace:
        process.terminate()
        wait([process.sentinel], timeout=grace)
    if process.pid is not None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()
    process.join()


def _resident(pid: int | None) -> int:
    """Return the resident memory of a process and its children in bytes; 0 when it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in family)
    except psutil.Error:
        return 0


# --- outcomes ------------------------------------------------------------------------------------------------------

_HELD = "held"


def _reported(receiving: Connection) -> object:
    """Return what a process reported at its end: an outcome, `_HELD`, or `None` if it reported nothing."""
    try:
        if not receiving.poll():
            return None
        message = receiving.recv()
    except (EOFError, OSError):
        return None
    return _HELD if message is None else message


def _cause_of_death(process: ForkServerProcess, kernel_kills: int) -> Outcome:
    """Infer the outcome of a process that exited without reporting one.

    Args:
        process: Process that exited.
        kernel_kills: Number of processes that the kernel killed meanwhile because memory ran out.
    """
    code = process.exitcode
    if code == -signal.SIGKILL and kernel_kills:
        return Outcome(status="oom", reason="out of memory: the system killed its process")
    if code is None or code >= 0:
        return Outcome(status="killed", reason=f"its process died (exit status {code})")
    return Outcome(status="killed", reason=f"its process was killed by {signal.Signals(-code).name}")


def _kernel_kills() -> int:
    """Return how many processes the kernel has killed so far because memory ran out (Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _attempts(request: UnitRequest) -> int:
    """Return how many attempts at a unit have begun so far."""
    return int((Store(request.store).record(request.kind, request.identity) or {}).get("attempt", 0))


def _record_outcome(request: UnitRequest, outcome: Outcome, attempts_before: int) -> Outcome:
    """Enter the outcome of a process into the unit's record, unless the process did so itself before it died.

    Returns:
        The outcome that the record states.
    """
    lease = Leases(request.store).acquire(request.lease_name, request.title)
    if lease is None:  # another process works on the unit by now
        return outcome
    with lease:
        store = Store(request.store)
        record = store.record(request.kind, request.identity)
        if record is None or record["attempt"] == attempts_before:  # the process died before it wrote anything
            stored = read_stored_specification(request.folder)
            if stored is None:
                return outcome
            record = new_record(stored_unit(stored), request.data_checksum, record)
        elif record["status"] != "running":
            return recorded_outcome(record)
        close(record, outcome)
        store.write_record(request.kind, request.identity, record)
    return outcome
