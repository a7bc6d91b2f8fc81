"""Supervises the process of one unit: starts it, ends it when it must end, and says how it ended if it cannot.

Processes are forked from a server that has imported PyTorch and nothing else has happened in: a fresh one costs
hundredths of a second, and no unit inherits anything from the one before it.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from bench.execution.context import Order
from bench.execution.settings import Limits
from bench.execution.worker import HeldError, process_main, work
from bench.store.files import Store, read_checked
from bench.store.leases import Leases
from bench.store.outcomes import Outcome

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 10.0
"""Between asking a process to stop and making it stop."""
_ATTEMPTS = 2
"""A process that is lost costs its unit one more attempt."""
_START_PAUSES = (0.1, 0.5, 2.0)
"""Between tries to start a process: a server that was killed is still there for a moment."""
_PRELOADED = (
    "torch",
    "torch._inductor",  # which `torch.use_deterministic_algorithms` imports
    "bench.execution.stages",
    "bench.execution.records",
)


class Stop(Protocol):
    """Tells whether the study is to stop."""

    def __call__(self) -> bool:
        """Whether it is."""
        ...


def work_here(order: Order) -> Outcome:
    """Work on a unit in this process, without limits: for debuggers, and for tests that look inside.

    Raises:
        HeldError: Somebody else works on it.
    """

    def lost() -> None:
        _log.error("%s was taken over by another process", order.title)

    ending = work(order, lost)
    if ending.status == "interrupted":
        raise KeyboardInterrupt
    return ending


def supervise(order: Order, limits: Limits, stop: Stop, preload: Sequence[str] = ()) -> Outcome:
    """Work on a unit in a process of its own, and once more when that process is lost.

    Args:
        order: What to work on.
        limits: Of the process.
        stop: Whether the study is to stop.
        preload: Modules that the server of processes imports once for all, besides the harness's own.

    Raises:
        HeldError: Somebody else works on the unit.
    """
    ending = Outcome(status="interrupted")
    for attempt in range(_ATTEMPTS):
        ending = _attempt(order, limits, stop, preload)
        lost = ending.status == "killed" or (ending.status == "interrupted" and not stop())
        if not lost or attempt == _ATTEMPTS - 1:
            break
        _log.warning("%s: %s; trying once more", order.title, ending.reason)
    return ending


def _attempt(order: Order, limits: Limits, stop: Stop, preload: Sequence[str]) -> Outcome:
    """One process, from start to end."""
    _allow_children()
    kernel_kills, attempts_before = _kernel_kills(), _attempts(order)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = _context(preload).Process(target=process_main, args=(order, sending), name=order.title)
    with sending:
        _start(process)
    with receiving:
        try:
            verdict = _watch(process, limits, stop)
        except BaseException:  # Ctrl-C
            _end(process, grace=_GRACE_SECONDS)
            raise
        told = _told(receiving)
    if told is _HELD:
        raise HeldError(order.title)
    if isinstance(told, Outcome):
        return told
    _end(process, grace=0)  # when the server of processes was lost, its children may have survived it
    ending = verdict or _cause_of_death(process, _kernel_kills() - kernel_kills)
    return _entered(order, ending, attempts_before)


def _start(process: ForkServerProcess) -> None:
    """Start a process, also when the server of processes is lost this moment: the next try starts a new one.

    Raises:
        ConnectionError, EOFError: Servers are lost again and again.
    """
    for pause in _START_PAUSES:
        try:
            process.start()
        except (ConnectionError, EOFError):
            time.sleep(pause)
        else:
            return
    process.start()


def _context(preload: Sequence[str]) -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *preload])
    return context


def _allow_children() -> None:
    """Let this process have children, also when it is itself a worker of joblib's or of a cluster's.

    A cluster's workers are marked as processes that may have none; loky's pass on a way of starting processes that
    only loky knows.
    """
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("forkserver", force=True)


def _watch(process: ForkServerProcess, limits: Limits, stop: Stop) -> Outcome | None:
    """Wait for a process to end; end it when it exceeds a limit or the study stops. Returns why, if it was ended."""
    deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
    while not wait([process.sentinel], timeout=_POLL_SECONDS):
        if stop():
            _end(process, grace=_GRACE_SECONDS)
            return Outcome(status="interrupted", reason="interrupted; run the same command again to continue")
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
    """End a process and all that it started; first by asking, when there is time for it."""
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
    """Resident memory of a process and its children in bytes; 0 when it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in family)
    except psutil.Error:
        return 0


_HELD = "held"


def _told(receiving: Connection) -> object:
    """What a process said at its end: an ending, `_HELD`, or `None` when it said nothing."""
    try:
        if not receiving.poll():
            return None
        said = receiving.recv()
    except (EOFError, OSError):
        return None
    return _HELD if said is None else said


def _cause_of_death(process: ForkServerProcess, kernel_kills: int) -> Outcome:
    """What became of a process that ended without a word.

    Args:
        process: It.
        kernel_kills: Processes that the kernel killed meanwhile because memory ran out.
    """
    code = process.exitcode
    if code == -signal.SIGKILL and kernel_kills:
        return Outcome(status="oom", reason="out of memory: the system killed its process")
    if code is None or code >= 0:
        return Outcome(status="killed", reason=f"its process was lost (exit status {code})")
    return Outcome(status="killed", reason=f"its process was killed by {signal.Signals(-code).name}")


def _kernel_kills() -> int:
    """How many processes the kernel has killed so far because memory ran out (Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _attempts(order: Order) -> int:
    """How often work on a unit has begun so far."""
    return int((Store(order.store).record(order.kind, order.identity) or {}).get("attempt", 0))


def _entered(order: Order, ending: Outcome, attempts_before: int) -> Outcome:
    """Enter into the record how a process ended that could not say so itself.

    Returns:
        The ending that the record tells of: the process's own where it was lost after its last word.
    """
    from bench.execution.records import close, ending_in, new_record
    from bench.planning.plan import stored_unit

    lease = Leases(order.store).acquire(order.lease_name, order.title)
    if lease is None:  # somebody else is at it by now
        return ending
    with lease:
        store = Store(order.store)
        record = store.record(order.kind, order.identity)
        if record is None or record["attempt"] == attempts_before:  # it was lost before it wrote anything
            stored = read_checked(order.folder / "spec.json")
            if stored is None:
                return ending
            _, unit = stored_unit(stored)
            record = new_record(unit, order.data_checksum, record)
        elif record["status"] != "running":
            return ending_in(record)
        close(record, ending)
        store.write_record(order.kind, order.identity, record)
    return ending
