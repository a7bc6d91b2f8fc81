"""Work on one unit under its lease: in this process, or as the whole of a process of its own."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch

from bench.errors import BenchError
from bench.execution.context import Order
from bench.replicas import ReplicaLostError
from bench.store.files import Store, read_checked, remove, write_text
from bench.store.leases import Heartbeat, Lease, Leases, LostLeaseError
from bench.store.outcomes import Outcome, outcome_of_error
from bench.training.checkpoints import Checkpoints

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 5.0
"""Between asking a process whose parent is gone to stop, and making it stop."""


class HeldError(Exception):
    """Somebody else works on the unit."""


def work(order: Order, lost: Callable[[], None]) -> Outcome:
    """Work on a unit in this process and write its record.

    Args:
        order: What to work on.
        lost: Called from another thread when somebody else took the unit over.

    Raises:
        HeldError: Somebody else works on it.
        LostLeaseError: Somebody else took it over; nothing of the outcome was written.
    """
    lease = Leases(order.store).acquire(order.lease_name, order.title)
    if lease is None:
        raise HeldError(order.title)
    with Heartbeat(lease, lost):
        return _work_under(order, lease)


def _work_under(order: Order, lease: Lease) -> Outcome:
    from bench.execution.records import close, ending_in, new_record, standing
    from bench.execution.replica_worker import Assignment, work_alone, work_together
    from bench.planning.plan import stored_unit

    store = Store(order.store)
    stored = read_checked(order.folder / "spec.json")
    if stored is None:
        raise BenchError(f"the specification in '{order.folder}' is missing or damaged; run the study's command again")
    if stored["specification"].get("devices", 1) > 1:
        torch.set_num_threads(1)  # a pool of threads would be missing in replicas that are forked from here
    network, unit = stored_unit(stored)
    spec = unit.spec
    if standing(store, unit, order.data_checksum, order.retry)[0]:  # another process was faster
        return ending_in(store.record(order.kind, order.identity))
    record = new_record(unit, order.data_checksum, store.record(order.kind, order.identity))
    store.write_record(order.kind, order.identity, record)
    remove(order.folder / "error.txt")  # of an attempt that failed
    assignment = Assignment(order=order, spec=spec, network=network, unit=unit, record=record)
    outcome = (work_alone if spec.devices == 1 else work_together)(assignment, _ProgressWatcher(lease))
    ending, record = outcome.ending, outcome.record
    if ending.status in ("failed", "oom") and not ending.error:
        write_text(order.folder / "error.txt", outcome.traceback)
    if ending.error == "system":
        return ending  # nothing can be written; the record says "running" and the lease is gone
    lease.check()
    close(record, ending)
    store.write_record(order.kind, order.identity, record)
    if ending.status == "done":
        Checkpoints(order.folder / "checkpoints", {}).clear()
    return ending


class _ProgressWatcher:
    """Puts the progress of a unit into its lease, where others see it."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """An epoch ended."""
        shown = ("epoch", "epochs", "loss", "accuracy", "budget_share")
        numbers = {name: float(figures[name]) for name in shown if name in figures}
        done = self._lease.progress.get("done", 0) + 1
        self._lease.progress = {"phase": phase, "done": done, **numbers}


# --- as a process ------------------------------------------------------------------------------------------------


def process_main(order: Order, report: Connection) -> None:
    """The whole life of a process that works on one unit.

    Args:
        order: What to work on.
        report: Where the ending is sent: an `Ending`, or `None` when somebody else works on the unit.
    """
    _become_worker(order)
    try:
        ending = work(order, lost=lambda: os._exit(1))
    except HeldError:
        report.send(None)
        return
    except LostLeaseError:
        return
    except ReplicaLostError as lost:
        _end_like(lost)
    except BaseException as error:
        traceback.print_exc()
        ending = outcome_of_error(error)
    report.send(ending)


def _become_worker(order: Order) -> None:
    """Leave the terminal to the parent, keep what is printed, and stop when asked to or when the parent is gone."""
    os.setsid()
    if order.card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = order.card
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _stop)
    order.folder.mkdir(parents=True, exist_ok=True)
    log = order.folder / "output.log"
    if log.is_dir():
        remove(log)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    threading.Thread(target=_watch_parent, name="parent", daemon=True).start()


def _end_like(lost: ReplicaLostError) -> NoReturn:
    """End as a replica did, so that whoever watches this process learns what became of it."""
    _log.error("%s", lost)
    if lost.exit_code < 0:
        if -lost.exit_code != signal.SIGKILL:
            signal.signal(-lost.exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -lost.exit_code)
    os._exit(abs(lost.exit_code))


def _stop(_: int, __: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _watch_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
