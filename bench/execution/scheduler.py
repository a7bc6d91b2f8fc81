"""The scheduler: runs the units of a phase, several at once, here or on a cluster.

Joblib distributes supervisors: as threads of this process, as processes, or as tasks of a Dask cluster whose machines
share the store's folder. The supervisor of a run starts one process and watches it. That of a tuning asks Optuna for
one trial after the other and starts a process for each.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

from bench.errors import CONTINUE, EXIT_INTERRUPTED, BenchError
from bench.execution.settings import RunSettings, check_settings
from bench.execution.study_run import StudyRun
from bench.execution.tuning import run_tuning
from bench.execution.unit_runner import run_in_process
from bench.execution.worker import HeldError
from bench.planning.units import TuningUnit, Unit, title
from bench.store.leases import LostLeaseError
from bench.store.outcomes import Outcome, outcome_of_error

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_HELD_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 10
_WIND_UP_SECONDS = 20.0


# --- all units ---------------------------------------------------------------------------------------------------


def run_units(study_run: StudyRun, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """Bring units to an outcome, several at once, and yield each as soon as it has one.

    Units that another command works on are waited for, and taken over when that command dies.

    Raises:
        BenchError: The study cannot continue: the user has to correct something, or nothing can be written.
    """
    check_settings(study_run.settings, study_run.spec.device, study_run.spec.devices)
    waiting = list(units)
    while waiting:
        held = []
        for unit, outcome in _run_surviving(study_run, waiting):
            if outcome is None:
                held.append(unit)
                continue
            if outcome.error:
                raise BenchError(f"{outcome.reason}; {CONTINUE}" if outcome.error == "system" else outcome.reason)
            yield unit, outcome
        if held:
            _log.info("waiting for %d units that another command works on", len(held))
            time.sleep(_HELD_PAUSE_SECONDS)
        waiting = held


def _run_surviving(study_run: StudyRun, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome | None]]:
    """Run units by joblib; when joblib loses a whole worker, run the worker's units once more.

    Raises:
        BenchError: Workers die again and again without any unit coming to an outcome.
    """
    remaining = {unit.identity: unit for unit in units}
    lost = 0
    while remaining:
        try:
            for identity, outcome in _run_parallel(study_run, list(remaining.values())):
                lost = 0
                yield remaining.pop(identity), outcome
        except Exception as error:
            if not _is_lost_worker(error):
                raise
            lost += 1
            if lost == _ATTEMPTS:
                name = type(error).__name__
                raise BenchError(f"workers died {lost} times in a row ({name}); {CONTINUE}") from error
            _log.warning("a worker died (%s); its units are run again", type(error).__name__)


def _run_parallel(study_run: StudyRun, units: Sequence[Unit]) -> Iterator[tuple[str, Outcome | None]]:
    from joblib import Parallel, delayed, parallel_config

    settings = study_run.settings
    if settings.jobs == 1 and settings.backend == "threading":  # in the main thread, for debuggers and Ctrl-C
        yield from (run_unit(study_run, unit) for unit in units)
        return
    with _cluster(settings), parallel_config(backend=settings.backend, n_jobs=settings.jobs):
        parallel = Parallel(return_as="generator_unordered", batch_size=1)
        yield from parallel(delayed(run_unit)(study_run, unit) for unit in units)


def _cluster(settings: RunSettings) -> AbstractContextManager[Any]:
    """Connect to a Dask cluster, if one is asked for.

    Raises:
        BenchError: Dask is not installed, or the cluster cannot be reached.
    """
    if settings.backend != "dask":
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise BenchError("--backend dask needs Dask; install it with `pip install 'sbs-bench[dask]'`") from error
    try:
        client: AbstractContextManager[Any] = Client(settings.scheduler, timeout=_CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise BenchError(
            f"no Dask scheduler answers at '{settings.scheduler}': {error}; start one with `dask scheduler` and give "
            "its address with --scheduler tcp://HOST:8786"
        ) from error
    return client


def _is_lost_worker(error: Exception) -> bool:
    return type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")


# --- one unit ----------------------------------------------------------------------------------------------------


def run_unit(study_run: StudyRun, unit: Unit) -> tuple[str, Outcome | None]:
    """Bring one unit to an outcome.

    Returns:
        Identity of the unit, and its outcome; `None` when another command works on it.
    """
    if study_run.settings.backend == "loky":
        _end_with_command()
    me = threading.get_ident()
    _at_work.add(me)
    try:
        if isinstance(unit, TuningUnit):
            return unit.identity, run_tuning(study_run, unit)
        return unit.identity, run_in_process(study_run, unit)
    except (HeldError, LostLeaseError):
        return unit.identity, None
    except Exception as error:
        _log.debug("running %s failed", title(unit), exc_info=True)
        outcome = outcome_of_error(error, study_run.settings.store.root)
        # Nothing of the unit itself: its folder cannot be prepared, or there is no device for it.
        return unit.identity, replace(outcome, error="user") if isinstance(error, BenchError) else outcome
    finally:
        _at_work.discard(me)


_at_work: set[int] = set()
"""Threads of this process that run a unit."""


def wait_for_supervisors() -> None:
    """Wait until no thread of this process runs a unit any more; they end soon after their session."""
    deadline = time.monotonic() + _WIND_UP_SECONDS
    while _at_work and time.monotonic() < deadline:
        time.sleep(0.05)


@cache
def _end_with_command() -> None:
    """Let a process of loky end soon after its command; by itself it would wait for minutes for more work."""
    command = os.getppid()

    def watch() -> None:
        while _at_work or os.getppid() == command:
            time.sleep(_LOOK_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="command", daemon=True).start()
