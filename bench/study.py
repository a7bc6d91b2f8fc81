"""Runs a study: every unit of its plan, phase by phase, then the tables and the tracking view."""

import logging
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Protocol

from bench.execution.records import standing
from bench.execution.scheduler import Study, session, wait_for_supervisors, work_off
from bench.execution.settings import RunSettings
from bench.execution.stages import Workbench, load_checkpoint
from bench.models.weights import checkpoint_of
from bench.planning.plan import Plan, RunUnit, TuningUnit, Unit, kind_of, method_of_study, phases, planned_epochs, title
from bench.plugins.registry import source_hash
from bench.reporting.mlflow.tracker import VIEWS_LOCK, Tracker
from bench.reporting.report import write_views
from bench.results.tables import StudyResults
from bench.store.files import Store, write_checked
from bench.store.leases import Leases, LeaseView, remove_dead_sessions, sessions
from bench.store.outcomes import Outcome

_log = logging.getLogger(__name__)

_VIEW_SECONDS = 60.0
"""Between updates of the tables and the tracking view while runs finish."""
_VIEW_SHARE = 20
"""Between updates, at least so many times as long as one takes: a large study does not spend its time on them."""
_LOOK_SECONDS = 2.0
"""Between looks at how far units are."""
_VIEW_LOCK_SECONDS = 300.0


class StudyWatcher(Protocol):
    """Shows how a study goes on; a context manager that is active while it runs."""

    def started(self, plan: Plan, epochs: int) -> None:
        """The study begins; `epochs` is all the work that there is."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """What is worked on now, with its progress."""
        ...

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """A unit that was planned with so many epochs ended."""
        ...


def write_study(plan: Plan, store: Store, data_checksum: str) -> dict[str, Any]:
    """Write what a study consists of, and return it."""
    document: dict[str, Any] = {
        "name": plan.spec.name,
        "spec": plan.spec.model_dump(mode="json"),
        "runs": [unit.identity for unit in plan.runs],
        "tunings": [unit.identity for unit in plan.tunings],
        "pretrained": [unit.identity for unit in plan.pretrainings],
        "places": {
            **{unit.identity: _place(unit) for unit in plan.tunings},
            **{unit.identity: _place(unit) for unit in plan.runs},
        },
        "ablations": [asdict(ablation) for ablation in plan.ablations],
        "titles": {unit.identity: title(unit) for _, units in phases(plan) for unit in units},
        "data_checksum": data_checksum,
        "method_sources": {name: source_hash("methods", place) for name, place in plan.spec.method_files.items()},
        "one_stage": [name for name in plan.spec.methods if method_of_study(plan.spec, name).capabilities.one_stage],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["bench", *sys.argv[1:]]),
    }
    write_checked(store.study(plan.spec.name) / "study.json", document)
    return document


def _place(unit: TuningUnit | RunUnit) -> dict[str, Any]:
    """Where a tuning or run stands in tables, which must be known before it has begun."""
    return {
        "model": unit.spec.task.model,
        "dataset": unit.spec.task.dataset,
        "method": unit.label,
        "budget": None if unit.budget is None else unit.budget.text,
        "seed": unit.seed,
    }


def run_study(
    plan: Plan, how: RunSettings, tracker: Tracker, watcher: AbstractContextManager[StudyWatcher]
) -> dict[str, Any]:
    """Work on everything that is not done yet.

    Args:
        plan: What the study consists of.
        how: Where and with how many workers.
        tracker: The tracking view.
        watcher: Shows progress.

    Returns:
        The study's document.

    Raises:
        BenchError: The store cannot be written, or data are missing; nothing is lost.
    """
    checksum = _checked_data(plan, how)
    how.store.prepare()
    name = plan.spec.name
    with watcher as watching:
        leases = Leases(how.store.root)
        remove_dead_sessions(leases)
        for other in sessions(leases, name):
            watching.note(f"{other.holder} runs this study too; the work is shared")
        with session(how.store, name) as lease:
            document = write_study(plan, how.store, checksum)
            study = Study(spec=plan.spec, how=how, data_checksum=checksum, session=lease)
            wanted = _wanted(study, plan)
            watching.started(plan, sum(planned_epochs(unit) for units in wanted for unit in units))
            view = _View(how.store, document, tracker)
            view.prepare()
            try:
                with _shown(study, plan, watching):
                    for unit, ending in chain.from_iterable(work_off(study, units) for units in wanted):
                        watching.unit_finished(title(unit), _outcome(ending), planned_epochs(unit))
                        view.refresh()
            finally:
                wait_for_supervisors()
                view.write()
    return document


def _checked_data(plan: Plan, how: RunSettings) -> str:
    """The checksum of data and split. What is missing or unfit ends the study here, before anything is written.

    Raises:
        BenchError: The data or the checkpoint that the study starts from.
    """
    here = plan.spec.model_copy(update={"device": "cpu"})  # the device may be another machine's
    task = Workbench(here, how.store, how.data_dir, plan.network).task
    checkpoint = checkpoint_of(plan.spec.task)
    if checkpoint is not None:
        load_checkpoint(task.make_model(), checkpoint, plan.spec.task.model)
    return task.data.checksum


def _wanted(study: Study, plan: Plan) -> list[list[Unit]]:
    """The units by phase; a pretraining only when something that is still to do starts from it."""
    needed = _needed_pretrainings(study, plan)
    return [[unit for unit in units if kind != "pretrained" or unit.identity in needed] for kind, units in phases(plan)]


def _needed_pretrainings(study: Study, plan: Plan) -> set[str]:
    store, checksum, retry = study.how.store, study.data_checksum, study.how.retry
    open_tunings = (unit for unit in plan.tunings if not standing(store, unit, checksum, retry)[0])
    open_runs = (unit for unit in plan.runs if not standing(store, unit, checksum, retry)[0])
    return {unit.pretraining.identity for unit in open_tunings} | {unit.pretraining.identity for unit in open_runs}


def _outcome(ending: Outcome) -> str:
    return f"{ending.status}: {ending.reason}" if ending.reason else ending.status


@contextmanager
def _shown(study: Study, plan: Plan, watching: StudyWatcher) -> Iterator[None]:
    """Show what is worked on, here or on other machines, while the block runs."""
    names = {f"{kind_of(unit)}-{unit.identity}" for _, units in phases(plan) for unit in units}
    trials = tuple(f"trials-{unit.identity}-" for unit in plan.tunings)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            views = [view for view in study.leases.all() if view.name in names or view.name.startswith(trials)]
            watching.at_work([view for view in views if view.progress])

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _View:
    """The views of a study's results: tables in its folder, and tracking."""

    def __init__(self, store: Store, document: Mapping[str, Any], tracker: Tracker) -> None:
        self._store, self._document, self._tracker = store, document, tracker
        self._next = time.monotonic() + _VIEW_SECONDS

    def prepare(self) -> None:
        """Make the tracking view's database; only one command at a time may."""
        with self._turn():
            self._tracker.prepare(self._document)

    def refresh(self) -> None:
        """Bring the views up to date now and then, so that a long study can be looked at."""
        if time.monotonic() > self._next:
            self.write(thorough=False)

    def write(self, *, thorough: bool = True) -> None:
        """Bring the views up to date; two commands that run the same study take turns."""
        began = time.monotonic()
        with self._turn():
            write_views(StudyResults(self._store, self._document))
            self._tracker.log_study(self._store, self._document, thorough=thorough)
        ended = time.monotonic()
        self._next = ended + max(_VIEW_SECONDS, _VIEW_SHARE * (ended - began))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The lock under which the views are written."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._store.root / VIEWS_LOCK, timeout=_VIEW_LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            _log.warning("another command has been at the tables and the tracking view for minutes; not waiting")
        try:
            yield
        finally:
            lock.release()
