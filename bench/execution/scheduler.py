"""Works units off: several at once, here or on a cluster, each by a supervisor of its own.

Supervisors are what joblib distributes: threads of this process, processes, or tasks of a Dask cluster, the store then
being on a folder that all machines share. A supervisor of a run starts one process and watches it; that of a tuning
asks Optuna for one trial after the other and starts a process for each.
"""

import json
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bench.errors import EXIT_INTERRUPTED, BenchError
from bench.execution.context import Order
from bench.execution.records import close, ending_in, new_record, set_aside, standing
from bench.execution.settings import RunSettings, check_settings
from bench.execution.stages import check_reachable
from bench.execution.supervisor import supervise, work_here
from bench.execution.worker import HeldError
from bench.matching.trial import Trial
from bench.matching.tune import Tuning, tune
from bench.planning.plan import (
    TuningUnit,
    Unit,
    kind_of,
    method_of_study,
    network_of,
    stored_specification,
    title,
    trial_of,
)
from bench.planning.variants import variants
from bench.plugins.entry_points import Kind
from bench.plugins.registry import module_of
from bench.spec.schema import StudySpec
from bench.spec.seeds import derive
from bench.store.files import Store, read_checked, read_json, write_checked
from bench.store.gpu_leases import GpuRequest, gpu_lease
from bench.store.leases import SESSION, Heartbeat, Lease, Leases, LostLeaseError
from bench.store.outcomes import Outcome, SkippedError, outcome_of_error

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_HELD_PAUSE_SECONDS = 1.0
_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 10
_WIND_UP_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that is being run: what a supervisor needs besides its unit. It travels to other machines.

    Attributes:
        spec: What is studied.
        how: How it is run.
        data_checksum: Of the data that it is planned with.
        session: Name of the lease of the command that runs it; supervisors stop when that is gone.
    """

    spec: StudySpec
    how: RunSettings
    data_checksum: str
    session: str

    @property
    def leases(self) -> Leases:
        """The leases of the store."""
        return Leases(self.how.store.root)

    @property
    def modules(self) -> list[str]:
        """The modules of the plug-ins and extras that the study uses."""
        files = self.spec.method_files
        named: list[tuple[Kind, str]] = [("methods", files.get(name, name)) for name in self.spec.methods]
        named += [("datasets", self.spec.task.dataset)]
        named += [("models", model) for model in {variant.spec.task.model for variant in variants(self.spec)}]
        modules = {module for kind, name in named if (module := module_of(kind, name)) is not None}
        return sorted(modules | {"lightning_fabric"} if self.spec.devices > 1 else modules)


class SessionWatch:
    """Tells whether the command that runs a study is gone; looks once a second."""

    def __init__(self, study: Study) -> None:
        self._leases, self._name = study.leases, study.session
        self._looked, self._gone = -math.inf, False

    def __call__(self) -> bool:
        """Whether it is gone."""
        if not self._gone and time.monotonic() - self._looked > _LOOK_SECONDS:
            view = self._leases.read(self._name)
            self._gone = view is None or self._leases.is_dead(view)
            self._looked = time.monotonic()
        return self._gone


@contextmanager
def session(store: Store, name: str) -> Iterator[str]:
    """The lease of a command that runs a study; yields its name.

    Ctrl-C and SIGTERM end it at once, and with it every process that works for it, wherever it is.
    """
    leases = Leases(store.root)
    lease = leases.acquire(f"{SESSION}{name}-{secrets.token_hex(4)}", f"bench run of study {name}")
    if lease is None:
        raise RuntimeError("a new lease is held by somebody else")
    with Heartbeat(lease, _ignore), _stopping(lease):
        yield lease.name


@contextmanager
def _stopping(lease: Lease) -> Iterator[None]:
    """Let signals end the session first, and then this process by `KeyboardInterrupt`."""

    def stop(_: int, __: Any) -> None:
        if not lease.path.exists():  # asked for the second time: processes notice by themselves that we are gone
            os._exit(EXIT_INTERRUPTED)
        lease.give_up()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore() -> None:
    """A session's lease that was taken away ends the study by itself: its supervisors stop."""


# --- all units ---------------------------------------------------------------------------------------------------


def work_off(study: Study, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome]]:
    """Bring units to an ending, several at once, and yield each when it is there.

    What another command works on is waited for, and taken over when that command dies.

    Raises:
        BenchError: The study cannot go on: a user's mistake, or nothing can be written.
    """
    check_settings(study.how, study.spec.device, study.spec.devices)
    waiting = list(units)
    while waiting:
        held = []
        for unit, ending in _attended(study, waiting):
            if ending is None:
                held.append(unit)
                continue
            if ending.error == "system":
                raise BenchError(
                    f"{ending.reason}; nothing that had finished is lost, the same command goes on from here"
                )
            if ending.error:
                raise BenchError(ending.reason)
            yield unit, ending
        if held:
            _log.info("waiting for %d units that another command works on", len(held))
            time.sleep(_HELD_PAUSE_SECONDS)
        waiting = held


def _attended(study: Study, units: Sequence[Unit]) -> Iterator[tuple[Unit, Outcome | None]]:
    """Attend to units by joblib. When that loses a whole worker, the units in it are attended to once more.

    Raises:
        BenchError: Workers are lost again and again without any unit coming to an end.
    """
    remaining = {unit.identity: unit for unit in units}
    lost = 0
    while remaining:
        try:
            for identity, ending in _in_parallel(study, list(remaining.values())):
                lost = 0
                yield remaining.pop(identity), ending
        except Exception as error:
            if not _is_lost_worker(error):
                raise
            lost += 1
            if lost == _ATTEMPTS:
                raise BenchError(
                    f"workers were lost {lost} times in a row ({type(error).__name__}); nothing that had finished is "
                    "lost, the same command goes on from here"
                ) from error
            _log.warning("a worker was lost (%s); its units are taken up again", type(error).__name__)


def _in_parallel(study: Study, units: Sequence[Unit]) -> Iterator[tuple[str, Outcome | None]]:
    from joblib import Parallel, delayed, parallel_config

    how = study.how
    if how.jobs == 1 and how.backend == "threading":  # in the main thread, where debuggers and Ctrl-C are at home
        yield from (attend(study, unit) for unit in units)
        return
    with _cluster(how), parallel_config(backend=how.backend, n_jobs=how.jobs):
        parallel = Parallel(return_as="generator_unordered", batch_size=1)
        yield from parallel(delayed(attend)(study, unit) for unit in units)


def _cluster(how: RunSettings) -> AbstractContextManager[Any]:
    """The connection to a Dask cluster, where one is asked for.

    Raises:
        BenchError: Dask is not installed, or the cluster cannot be reached.
    """
    if how.backend != "dask":
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise BenchError("--backend dask needs Dask; install it with `pip install 'sbs-bench[dask]'`") from error
    try:
        client: AbstractContextManager[Any] = Client(how.scheduler, timeout=_CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise BenchError(
            f"no Dask scheduler answers at '{how.scheduler}': {error}; start one with `dask scheduler` and give its "
            "address with --scheduler tcp://HOST:8786"
        ) from error
    return client


def _is_lost_worker(error: Exception) -> bool:
    return type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")


def wait_for_supervisors() -> None:
    """Wait until no supervisor of this process is at work any more; they end soon after their session."""
    deadline = time.monotonic() + _WIND_UP_SECONDS
    while _at_work and time.monotonic() < deadline:
        time.sleep(0.05)


_at_work: set[int] = set()
"""Threads of this process that attend to a unit."""


@cache
def _end_with_command() -> None:
    """Let a process of loky's end once its command is gone; by itself it would wait for minutes for more to do."""
    command = os.getppid()

    def watch() -> None:
        while _at_work or os.getppid() == command:
            time.sleep(_LOOK_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="command", daemon=True).start()


# --- one unit ----------------------------------------------------------------------------------------------------


def attend(study: Study, unit: Unit) -> tuple[str, Outcome | None]:
    """Bring one unit to an ending.

    Returns:
        The unit's identity, and its ending; `None` when another command works on it.
    """
    if study.how.backend == "loky":
        _end_with_command()
    me = threading.get_ident()
    _at_work.add(me)
    try:
        ending = _attend_tuning(study, unit) if isinstance(unit, TuningUnit) else _attend_process(study, unit)
    except (HeldError, LostLeaseError):
        return unit.identity, None
    except Exception as error:
        _log.debug("attending to %s failed", title(unit), exc_info=True)
        return unit.identity, outcome_of_error(error)
    finally:
        _at_work.discard(me)
    return unit.identity, ending


def _attend_process(study: Study, unit: Unit) -> Outcome:
    """A unit that is worked on by a process."""
    how, stop = study.how, SessionWatch(study)
    order = Order(
        kind=kind_of(unit),
        identity=unit.identity,
        title=title(unit),
        store=how.store.root.resolve(),
        data_dir=None if how.data_dir is None else how.data_dir.resolve(),
        data_checksum=study.data_checksum,
        retry=how.retry,
    )
    stands = _prepare(study, unit)
    if stands is not None:
        return stands
    if not how.isolated:
        return work_here(order)
    needed = GpuRequest(device=study.spec.device, gpus=study.spec.devices, runs_per_gpu=how.runs_per_card)
    with gpu_lease(study.leases, needed, order.title, stop) as card:
        return supervise(replace(order, card=card), how.limits, stop, study.modules)


def _prepare(study: Study, unit: Unit) -> Outcome | None:
    """Make a unit's folder ready for work, what is stale or damaged set aside; an ending that stands, if it has one.

    Raises:
        HeldError: Another command works on the unit.
    """
    store, kind = study.how.store, kind_of(unit)
    path = store.unit(kind, unit.identity) / "spec.json"
    leases = study.leases
    with leases.lock():
        held = leases.read(f"{kind}-{unit.identity}")
        if held is not None and not leases.is_dead(held):
            raise HeldError(title(unit))
        if held is not None:
            leases.remove_dead(held)
        stands, reason = standing(store, unit, study.data_checksum, study.how.retry)
        stored = read_checked(path)
        if stored is not None and stored["depends_on"] != json.loads(json.dumps(unit.document)):
            stands, reason = False, "its specification is another one"
        if stands:
            return ending_in(store.record(kind, unit.identity))
        if reason is not None:
            _log.warning("%s is made anew: %s", title(unit), reason)
            set_aside(store, unit)
        if stored is None or reason is not None:
            write_checked(path, stored_specification(unit))
    return None


class _TrialEndedError(Exception):
    """A trial ended without a result, and so does its tuning."""

    def __init__(self, number: int, ending: Outcome) -> None:
        super().__init__(f"trial {number}: {ending.reason or ending.status}")
        self.ending = replace(ending, reason=str(self))


def _attend_tuning(study: Study, unit: TuningUnit) -> Outcome:
    """A tuning: its trials one after the other, each worked on by a process."""
    store = study.how.store
    stands = _prepare(study, unit)
    if stands is not None:
        return stands
    lease = study.leases.acquire(f"tuning-{unit.identity}", title(unit))
    if lease is None:
        raise HeldError(title(unit))
    with Heartbeat(lease, _ignore):
        record = new_record(unit, study.data_checksum, store.record("tuning", unit.identity))
        store.write_record("tuning", unit.identity, record)
        interruption: BaseException | None = None
        try:
            record.update(_tuned(study, unit, lease))
            ending = Outcome(status="done")
        except _TrialEndedError as error:
            ending = error.ending
        except BaseException as error:
            ending = outcome_of_error(error)
            if ending.status == "failed" and not ending.error:
                _log.warning("%s failed", title(unit), exc_info=True)
            if not isinstance(error, Exception):
                interruption = error
        lease.check()
        close(record, ending)
        if ending.error != "system":
            store.write_record("tuning", unit.identity, record)
    if interruption is not None:
        raise interruption
    return ending


def _tuned(study: Study, unit: TuningUnit, lease: Lease) -> Mapping[str, Any]:
    """What a tuning adds to its record when it is done."""
    store = study.how.store
    method = method_of_study(unit.spec, unit.method)
    check_reachable(network_of(unit), method, unit.method, unit.budget)
    pretraining = ending_in(store.record("pretrained", unit.pretraining.identity))
    if pretraining.status != "done":
        raise SkippedError(f"pretraining of the tuning's seed did not finish: {pretraining.reason}")

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        lease.progress = {"phase": "trial", "epoch": number + 1, "epochs": unit.spec.tuning.trials}
        trial = trial_of(unit, number, knobs)
        ending = _waited_for(study, trial)
        if ending.status == "diverged":
            return None
        if ending.status != "done":
            raise _TrialEndedError(number, ending)
        return Trial(**read_json(store.unit("trials", trial.identity) / "trial.json"))

    chosen, trials = tune(
        Tuning(
            name=f"{study.spec.name} {unit.label} {unit.budget.text} {unit.identity}",
            knobs=method.knobs(unit.spec.tuning.match),
            budget=unit.budget,
            spec=unit.spec.tuning,
            seed=derive("tuning", unit.seed),
            storage=study.how.optuna_storage,
        ),
        search,
    )
    return {
        "knobs": dict(chosen.knobs),
        "chosen_trial": chosen.number,
        "trials_used": len(trials),
        "tuning_seconds": sum(trial.seconds for trial in trials),
    }


def _waited_for(study: Study, unit: Unit) -> Outcome:
    """The ending of a unit, also when the process of an earlier command is still at it."""
    while True:
        try:
            return _attend_process(study, unit)
        except HeldError:
            time.sleep(_HELD_PAUSE_SECONDS)
