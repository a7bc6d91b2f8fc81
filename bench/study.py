"""Runs a study: every unit of its plan, phase by phase, then the tables and the tracking view."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Protocol

from bench.console import Silent
from bench.execution import Watcher, Workbench, pretrain, run, tune_method
from bench.plan import Plan, Unit, make_plan, phases, planned_epochs, title
from bench.plugins import load
from bench.results import write_study_files
from bench.spec import StudySpec
from bench.store import Store, UnitKind, write_json
from bench.tracking import Tracker

_log = logging.getLogger(__name__)

_TRACKING_INTERVAL = 60.0
"""Seconds between updates of the tracking view while runs finish."""


class StudyWatcher(Watcher, Protocol):
    """Shows how a study goes on; a context manager that is active while it runs."""

    def started(self, plan: Plan, epochs: int) -> None:
        """The study begins; `epochs` is all the work that there is."""
        ...

    def unit_started(self, title: str) -> None:
        """Work on a unit begins."""
        ...

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """A unit that was planned with so many epochs ended."""
        ...


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """How and where a study is run; nothing here changes a number.

    Attributes:
        store: Where results go.
        data_dir: Where data sets are looked for.
        jobs: Units worked on at once.
        tracker: The tracking view.
    """

    store: Store
    data_dir: Path | None
    jobs: int
    tracker: Tracker


def write_study(plan: Plan, store: Store) -> dict[str, object]:
    """Write what a study consists of, and return it."""
    document: dict[str, object] = {
        "name": plan.spec.name,
        "spec": plan.spec.model_dump(mode="json"),
        "runs": [unit.identity for unit in plan.runs],
        "tunings": [unit.identity for unit in plan.tunings],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["bench", *sys.argv[1:]]),
    }
    write_json(store.study(plan.spec.name) / "study.json", document)
    return document


def run_study(plan: Plan, how: StudyRun, watcher: AbstractContextManager[StudyWatcher]) -> dict[str, object]:
    """Work on everything that is not done yet.

    Args:
        plan: What the study consists of.
        how: Where and with how many workers.
        watcher: Shows progress.

    Returns:
        The study's document.

    Raises:
        BenchError: The store cannot be written, or data are missing; nothing is lost.
    """
    how.store.prepare()
    with watcher as watching:
        bench = Workbench(plan.spec, how.store, how.data_dir, watching)
        _ = bench.task  # missing data end the study here, before anything is written
        document = write_study(plan, how.store)
        how.tracker.prepare(document)
        watching.started(plan, sum(planned_epochs(plan, unit) for _, units in phases(plan) for unit in units))
        view = _View(how, document)
        try:
            for kind, units in phases(plan):
                for unit in _worked_off(kind, units, bench, how):
                    record = how.store.record(kind, unit.identity) or {}
                    watching.unit_finished(title(unit), _outcome(record), planned_epochs(plan, unit))
                    view.refresh()
        finally:
            view.write()
    return document


def _outcome(record: dict[str, object]) -> str:
    status, reason = str(record.get("status", "missing")), record.get("reason")
    return f"{status}: {reason}" if reason else status


class _View:
    """The views of a study's results: tables in its folder, and tracking."""

    def __init__(self, how: StudyRun, document: dict[str, object]) -> None:
        self._how, self._document = how, document
        self._refreshed = time.monotonic()

    def refresh(self) -> None:
        """Bring the views up to date now and then, so that a long study can be looked at."""
        if time.monotonic() - self._refreshed > _TRACKING_INTERVAL:
            self.write()

    def write(self) -> None:
        """Bring the views up to date."""
        write_study_files(self._how.store, self._document)
        load("reports", "comparison")().write(self._how.store, self._document)
        self._how.tracker.log_study(self._how.store, self._document)
        self._refreshed = time.monotonic()


_WORK: dict[UnitKind, Callable[[Workbench, Unit], None]] = {
    "pretrained": pretrain,
    "tuning": tune_method,  # type: ignore[dict-item]
    "runs": run,  # type: ignore[dict-item]
}


def _worked_off(kind: UnitKind, units: Sequence[Unit], bench: Workbench, how: StudyRun) -> Iterator[Unit]:
    """Work on units, in this process or in several, and yield each when it has ended."""
    if how.jobs == 1:
        for unit in units:
            bench.watcher.unit_started(title(unit))  # type: ignore[attr-defined]
            _WORK[kind](bench, unit)
            yield unit
        return
    from joblib import Parallel, delayed

    by_identity = {unit.identity: unit for unit in units}
    spec = bench.spec.model_dump_json()
    arguments = (
        spec,
        str(how.store.root.resolve()),
        None if how.data_dir is None else str(how.data_dir.resolve()),
    )
    parallel = Parallel(n_jobs=how.jobs, backend="loky", return_as="generator_unordered")
    for identity in parallel(delayed(_work_in_process)(kind, identity, *arguments) for identity in by_identity):
        yield by_identity[identity]


@cache
def _process_bench(spec: str, store: str, data_dir: str | None) -> tuple[Plan, Workbench]:
    """The plan and the workbench of a worker process, made once."""
    parsed = StudySpec.model_validate_json(spec)
    folder = None if data_dir is None else Path(data_dir)
    return make_plan(parsed), Workbench(parsed, Store(Path(store)), folder, Silent())


def _work_in_process(kind: UnitKind, identity: str, spec: str, store: str, data_dir: str | None) -> str:
    plan, bench = _process_bench(spec, store, data_dir)
    units = next(units for name, units in phases(plan) if name == kind)
    _WORK[kind](bench, next(unit for unit in units if unit.identity == identity))
    return identity
