"""Running of a study: every unit of its plan, phase by phase, then the tables and the tracking view."""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Protocol

from bench.execution.records import valid_result
from bench.execution.scheduler import run_units, wait_for_supervisors
from bench.execution.settings import RunSettings
from bench.execution.study_run import StudyRun, session
from bench.execution.task_loader import TaskLoader
from bench.matching.tune import require_storage
from bench.planning.budgets import Reach, budget_notes
from bench.planning.checkpoints import check_checkpoints
from bench.planning.methods import method_of_study
from bench.planning.plan import Plan, phases
from bench.planning.units import RunUnit, TuningUnit, Unit, kind_of, title
from bench.plugins.registry import source_hash
from bench.reporting.mlflow.tracker import VIEWS_LOCK, Tracker
from bench.reporting.report import write_views
from bench.reporting.unit_result import result_in_words
from bench.results.status import UnitState, stale_notes, unit_states
from bench.results.tables import StudyResults
from bench.store.contents import UnitKey, units_of
from bench.store.files import Status, Store, write_checked
from bench.store.leases import Leases, LeaseView, remove_dead_sessions, sessions
from bench.store.outcomes import RESULTS, Outcome
from bench.store.urls import command_without_secrets

_log = logging.getLogger(__name__)

_VIEW_SECONDS = 60.0
"""Least time between updates of the tables and the tracking view while runs finish."""
_VIEW_SHARE = 20
"""Least time between updates as a multiple of the time that one takes, so that a large study does not wait for them."""
_LOOK_SECONDS = 1.0
"""Time between looks at the progress of units."""
_VIEW_LOCK_SECONDS = 300.0


class StudyWatcher(Protocol):
    """Shows the progress of a study; entered as a context manager while the study runs."""

    def started(self, plan: Plan, needed: Sequence[Sequence[Unit]], stored: Set[str]) -> None:
        """Show that the study begins.

        Args:
            plan: Plan of the study.
            needed: Units of each phase, without pretrainings that no other unit needs.
            stored: Identities of those that need no work, since the store has their results.
        """
        ...

    def note(self, text: str) -> None:
        """Show a line that the user should read."""
        ...

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units and trials that are being worked on, with their progress."""
        ...

    def unit_finished(self, unit: Unit, status: Status, words: str) -> None:
        """Show that a unit ended.

        Args:
            unit: The unit.
            status: Status of its outcome.
            words: Its result, or the reason why it has none.
        """
        ...


def run_study(
    plan: Plan, settings: RunSettings, tracker: Tracker, watcher: AbstractContextManager[StudyWatcher]
) -> dict[str, Any]:
    """Run every unit of a study that has no valid result.

    Args:
        plan: Plan of the study.
        settings: Settings of the command.
        tracker: Tracking view.
        watcher: Display of the progress.

    Returns:
        The study's document.

    Raises:
        BenchError: The store cannot be written, data are missing, or Optuna's database cannot be used; what had
            finished is kept.
    """
    checksum = _checked_data(plan, settings)
    if settings.optuna_storage is not None:
        require_storage(settings.optuna_storage)
    store, name = settings.store, plan.spec.name
    store.prepare()
    with watcher as watching:
        leases = Leases(store.root)
        remove_dead_sessions(leases)
        for other in sessions(leases, name):
            watching.note(f"{other.holder} runs this study too; the work is shared")
        with session(store, name) as lease:
            document = study_document(plan, checksum, settings.command)
            for line in notes_before(plan, store, document):
                watching.note(line)
            write_checked(store.study(name) / "study.json", document)
            study_run = StudyRun(spec=plan.spec, settings=settings, data_checksum=checksum, session=lease)
            _run_phases(study_run, plan, _Views(store, document, tracker), watching)
    return document


def _run_phases(study_run: StudyRun, plan: Plan, views: "_Views", watching: StudyWatcher) -> None:
    """Run the units of each phase, and keep the views up to date meanwhile."""
    needed, stored = _needed_units(study_run, plan)
    watching.started(plan, needed, stored)
    views.prepare()
    try:
        with _showing_progress(study_run, plan, watching):
            for unit, outcome in chain.from_iterable(run_units(study_run, units) for units in needed):
                watching.unit_finished(unit, outcome.status, _in_words(study_run, unit, outcome))
                views.refresh()
    finally:
        wait_for_supervisors()
        views.write()


def _in_words(study_run: StudyRun, unit: Unit, outcome: Outcome) -> str:
    """Describe how a unit ended: its result, or after a failure the reason and the file that holds its traceback."""
    store, kind = study_run.settings.store, kind_of(unit)
    if outcome.status == "done":
        return result_in_words(kind, store.record(kind, unit.identity) or {}) or "done"
    words = f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
    file = store.unit(kind, unit.identity) / "error.txt"
    return f"{words}; traceback: {file}" if outcome.status == "failed" and file.exists() else words


# --- before the first unit -----------------------------------------------------------------------------------------


def study_document(plan: Plan, data_checksum: str, command: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a study: its specification and its units, as `study.json` has them.

    Args:
        plan: Plan of the study.
        data_checksum: Checksum of data and split.
        command: Words of the command that runs the study again.
    """
    return {
        "name": plan.spec.name,
        "spec": plan.spec.model_dump(mode="json"),
        "runs": [unit.identity for unit in plan.runs],
        "tunings": [unit.identity for unit in plan.tunings],
        "pretrained": [unit.identity for unit in plan.pretrainings],
        "places": {unit.identity: _row_key(unit) for unit in _tunings_and_runs(plan)},
        "ablations": [asdict(ablation) for ablation in plan.ablations],
        "costliest": [_costliest(reach) for reach in plan.reaches if reach.costliest is not None],
        "titles": {unit.identity: title(unit) for _, units in phases(plan) for unit in units},
        "data_checksum": data_checksum,
        "method_sources": {name: source_hash("methods", file) for name, file in plan.spec.method_files.items()},
        "one_stage": [name for name in plan.spec.methods if method_of_study(plan.spec, name).capabilities.one_stage],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_without_secrets(command),
    }


def _costliest(reach: Reach) -> dict[str, Any]:
    """Return the cost of a method's costliest policy at a budget, which no search can exceed."""
    return {
        "model": reach.model,
        "dataset": reach.dataset,
        "method": reach.method,
        "budget": reach.budget.text,
        "cost": reach.costliest,
    }


def notes_before(
    plan: Plan, store: Store, document: Mapping[str, Any], states: Iterable[UnitState] | None = None
) -> list[str]:
    """Return what a user should know before a study begins: budgets that methods cannot use, and unused results.

    Args:
        plan: Plan of the study.
        store: Store of the study.
        document: Description of the study as it is about to be run.
        states: States of its units, if they are known.
    """
    return [*budget_notes(plan.reaches), *unused_results(store, document, states)]


def unused_results(store: Store, document: Mapping[str, Any], states: Iterable[UnitState] | None = None) -> list[str]:
    """Explain which stored results a study will not use, one line for each reason.

    Results that are stale will be made again. Results of units that only the stored study of the same name refers to
    belong to another specification.

    Args:
        store: Store of the study.
        document: Description of the study as it is about to be run.
        states: States of its units, if they are known.
    """
    lines = stale_notes(unit_states(store, document) if states is None else states)
    name = str(document["name"])
    stored = store.study_document(name) or {}
    dropped = [unit for unit in units_of(stored) - units_of(document) if _has_result(store, unit)]
    if dropped:
        lines.append(
            f"{len(dropped)} results of the stored study '{name}' do not belong to it any more, because its "
            "specification or the options of a method have changed; they stay in the store"
        )
    return lines


def _has_result(store: Store, unit: UnitKey) -> bool:
    return (store.record(*unit) or {}).get("status") in RESULTS


def _tunings_and_runs(plan: Plan) -> list[TuningUnit | RunUnit]:
    return [*plan.tunings, *plan.runs]


def _row_key(unit: TuningUnit | RunUnit) -> dict[str, Any]:
    """Return the row of tables that a tuning or run belongs to; known before the unit has a record."""
    return {
        "model": unit.spec.task.model,
        "dataset": unit.spec.task.dataset,
        "method": unit.label,
        "budget": None if unit.budget is None else unit.budget.text,
        "seed": unit.seed,
    }


def _checked_data(plan: Plan, settings: RunSettings) -> str:
    """Load data and checkpoints, so that a study without them ends before anything is written.

    Returns:
        Checksum of data and split.

    Raises:
        BenchError: The data or a checkpoint are missing or unfit.
    """
    on_cpu = plan.spec.model_copy(update={"device": "cpu"})  # the device may be that of another machine
    check_checkpoints(plan.spec)
    return TaskLoader(on_cpu, settings.data_dir).task.data.checksum


def _needed_units(study_run: StudyRun, plan: Plan) -> tuple[list[list[Unit]], set[str]]:
    """Return the units by phase, and the identities of those with a valid result.

    Pretrainings that no open tuning or run starts from are left out.
    """

    def is_valid(unit: Unit) -> bool:
        settings = study_run.settings
        return valid_result(settings.store, unit, study_run.data_checksum, settings.retry)[0]

    open_units = [unit for unit in _tunings_and_runs(plan) if not is_valid(unit)]
    starts = {unit.pretraining.identity: unit.pretraining for unit in open_units}
    needed = [
        [unit for unit in units if kind != "pretrained" or unit.identity in starts] for kind, units in phases(plan)
    ]
    missing = {unit.identity for unit in (*open_units, *(start for start in starts.values() if not is_valid(start)))}
    return needed, {unit.identity for units in needed for unit in units} - missing


# --- while units run -----------------------------------------------------------------------------------------------


@contextmanager
def _showing_progress(study_run: StudyRun, plan: Plan, watching: StudyWatcher) -> Iterator[None]:
    """Show the units that are being worked on, here or on other machines, during a `with` block."""
    names = {f"{kind_of(unit)}-{unit.identity}" for _, units in phases(plan) for unit in units}
    tunings = {unit.identity for unit in plan.tunings}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            views = study_run.leases.all()
            watching.at_work([view for view in views if view.name in names or view.tuning in tunings])

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Views:
    """The views of a study's results: the tables in its folder, and tracking."""

    def __init__(self, store: Store, document: Mapping[str, Any], tracker: Tracker) -> None:
        self._store, self._document, self._tracker = store, document, tracker
        self._next = time.monotonic() + _VIEW_SECONDS

    def prepare(self) -> None:
        """Make the database of the tracking view."""
        with self._locked():
            self._tracker.prepare(self._document)

    def refresh(self) -> None:
        """Update the views if the last update was long enough ago."""
        if time.monotonic() > self._next:
            self.write(thorough=False)

    def write(self, *, thorough: bool = True) -> None:
        """Update the views."""
        began = time.monotonic()
        with self._locked():
            write_views(StudyResults(self._store, self._document))
            self._tracker.log_study(self._store, self._document, thorough=thorough)
        ended = time.monotonic()
        self._next = ended + max(_VIEW_SECONDS, _VIEW_SHARE * (ended - began))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the views during a `with` block: commands that run the same study take turns."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._store.root / VIEWS_LOCK, timeout=_VIEW_LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            _log.warning("another command has used the tables and the tracking view for minutes; not waiting for it")
        try:
            yield
        finally:
            lock.release()
