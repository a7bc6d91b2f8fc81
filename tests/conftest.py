"""What several test modules share: a study that finishes in seconds, and one finished copy of it a session."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its pool would be in the way of other processes

import pytest
import torch

from bench.data.task_data import TaskData
from bench.execution import unit_runner, worker
from bench.execution.context import UnitRequest
from bench.execution.scheduler import run_units
from bench.execution.settings import RunSettings
from bench.execution.stages import finetuning, pretraining, search
from bench.execution.study_run import StudyRun
from bench.execution.supervisor import work_in_this_process
from bench.execution.task_loader import TaskLoader
from bench.method import SearchJob
from bench.planning.builder import stored_specification
from bench.planning.plan import Plan, make_plan
from bench.planning.units import Unit, kind_of, planned_epochs, title
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.spec.schema import StudySpec
from bench.spec.sources import build
from bench.store.files import Status, Store, write_checked
from bench.store.leases import LeaseView
from bench.store.outcomes import Outcome
from bench.study import run_study
from bench.training.loop import fit

_SCHEDULE = {"epochs": 1, "batch_size": 32, "lr": 0.05}
TINY: dict[str, Any] = {
    "name": "tiny",
    "methods": ["sbs", "dnas", "fixed", "full_precision"],
    "budgets": ["4bit"],
    "seeds": [0, 1],
    "device": "cpu",
    "threads": 1,
    "task": {"dataset": "synthetic", "model": "resnet8", "validation_fraction": 0.2, "train_images": 96},
    "pretrain": _SCHEDULE,
    "search": {"epochs": 1, "batch_size": 32},
    "finetune": _SCHEDULE,
    "tuning": {"match": "hinge", "trials": 2},
}
"""Three updates an epoch."""


class Recorder:
    """A watcher that keeps what it receives.

    Attributes:
        unit: Title of the unit that is worked on, if `work` works in this process.
    """

    def __init__(self) -> None:
        self.unit = ""
        self.notes: list[str] = []
        self.outcomes: dict[str, str] = {}
        self.planned = 0
        self.stored: Set[str] = frozenset()
        self.finished_epochs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, plan: Plan, needed: Sequence[Sequence[Unit]], stored: Set[str]) -> None:
        self.planned = sum(planned_epochs(unit) for units in needed for unit in units)
        self.stored = stored

    def note(self, text: str) -> None:
        self.notes.append(text)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        pass

    def unit_finished(self, unit: Unit, status: Status, words: str) -> None:
        self.outcomes[title(unit)] = status if status == "done" else words
        self.finished_epochs += planned_epochs(unit)


class NoTracker:
    """A tracking view that writes nothing and keeps the names of its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, study: Mapping[str, Any]) -> bool:
        self.calls.append("prepare")
        return True

    def log_study(self, store: Store, study: Mapping[str, Any], *, thorough: bool = True) -> bool:
        self.calls.append("log")
        return True


@dataclass
class Worked:
    """A study that was worked on, and what was seen of it."""

    spec: StudySpec
    plan: Plan
    store: Store
    document: dict[str, Any]
    watcher: Recorder
    tracker: NoTracker
    starts: list[tuple[str, int, int]] = field(default_factory=list)
    orders: list[tuple[str, int]] = field(default_factory=list)
    test_reads: list[str] = field(default_factory=list)
    epochs: list[tuple[str, str]] = field(default_factory=list)

    def record(self, title: str) -> dict[str, Any]:
        """The record of a run by "<method> <seed>"."""
        method, seed = title.split()
        unit = next(unit for unit in self.plan.runs if (unit.method, str(unit.seed)) == (method, seed))
        record = self.store.record("runs", unit.identity)
        assert record is not None
        return record


def tiny_spec(*changes: Mapping[str, Any]) -> StudySpec:
    """The tiny study with some values changed."""
    return build([TINY, *changes])


def work(
    spec: StudySpec, root: Path, *, watcher: Recorder | None = None, isolated: bool = False, **settings: Any
) -> Worked:
    """Plan a study and work on it, in this process unless it is to be in processes of their own."""
    plan, store, watcher, tracker = make_plan(spec), Store(root), watcher or Recorder(), NoTracker()

    def noting(request: UnitRequest) -> Outcome:
        watcher.unit = request.title
        return work_in_this_process(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_runner, "work_in_this_process", noting)
        chosen = RunSettings(store=store, data_dir=None, isolated=isolated, command=("bench", "run"), **settings)
        document = run_study(plan, chosen, tracker, watcher)  # type: ignore[arg-type]
    return Worked(spec, plan, store, document, watcher, tracker)


class Workshop:
    """Works on single units of a study, in this process unless they are to be in processes of their own.

    Attributes:
        plan: Plan of the study.
        store: Store that results are written to.
        study_run: What supervisors are given.
    """

    def __init__(self, spec: StudySpec, root: Path, **settings: Any) -> None:
        self.spec, self.plan, self.store = spec, make_plan(spec), Store(root)
        self.study_run = StudyRun(
            spec=spec,
            settings=RunSettings(store=self.store, data_dir=None, **{"isolated": False, **settings}),
            data_checksum=self.loader.task.data.checksum,
            session="session-of-the-tests",
        )

    @property
    def loader(self) -> TaskLoader:
        """A new loader of the study's task."""
        return TaskLoader(self.spec, None)

    def run(self, unit: Unit) -> Outcome:
        """Bring a unit to an outcome."""
        ((_, outcome),) = run_units(self.study_run, [unit])
        return outcome

    def record(self, unit: Unit) -> dict[str, Any]:
        """Return the record of a unit."""
        record = self.store.record(kind_of(unit), unit.identity)
        assert record is not None
        return record

    def folder(self, unit: Unit) -> Path:
        """Return the folder of a unit."""
        return self.store.unit(kind_of(unit), unit.identity)

    def request(self, unit: Unit) -> UnitRequest:
        """Return the request to work on a unit, whose specification is put into its folder."""
        write_checked(self.folder(unit) / "spec.json", stored_specification(unit))
        return UnitRequest(
            kind=kind_of(unit),
            identity=unit.identity,
            title=title(unit),
            store=self.store.root,
            data_dir=None,
            data_checksum=self.study_run.data_checksum,
        )


def checksum(state: Mapping[str, torch.Tensor]) -> int:
    """A number that changes with any value of a state."""
    return hash(tuple(state[name].detach().cpu().contiguous().numpy().tobytes() for name in sorted(state)))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The tiny study's values and the tools to work on it."""
    return SimpleNamespace(
        values=TINY, spec=tiny_spec, work=work, checksum=checksum, Recorder=Recorder, Workshop=Workshop
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """The tiny study, finished. Do not write to it.

    With the start of every search as (unit, seed, checksum of the weights), the order of the data of every search and
    training as (unit, seed of the generator), every unit that looked at the test split, and every epoch as
    (unit, phase).
    """
    starts: list[tuple[str, int, int]] = []
    orders: list[tuple[str, int]] = []
    reads: list[str] = []
    epochs: list[tuple[str, str]] = []
    current = Recorder()
    count_epoch = worker._ProgressWatcher.epoch

    def spying_job(**fields: Any) -> SearchJob:
        starts.append((current.unit, fields["seed"], checksum(fields["pretrained"])))
        job = SearchJob(**fields)
        orders.append((current.unit, job.order().initial_seed()))
        return job

    def spying_fit(model: Any, data: TaskData, schedule: Any, order: torch.Generator, *others: Any) -> None:
        orders.append((current.unit, order.initial_seed()))
        fit(model, data, schedule, order, *others)

    def spying_epoch(watcher: Any, phase: str, figures: Mapping[str, float]) -> None:
        epochs.append((current.unit, phase))
        count_epoch(watcher, phase, figures)

    def read_test(data: TaskData) -> Any:
        reads.append(current.unit)
        return data.__dict__["test"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SearchJob", spying_job)
        for module in (pretraining, finetuning):
            patch.setattr(module, "fit", spying_fit)
        patch.setattr(worker._ProgressWatcher, "epoch", spying_epoch)
        spy = property(read_test, lambda data, value: data.__dict__.update(test=value))
        patch.setattr(TaskData, "test", spy, raising=False)
        worked = work(tiny_spec(), tmp_path_factory.mktemp("finished") / "store", watcher=current)
    worked.starts, worked.orders, worked.test_reads, worked.epochs = starts, orders, reads, epochs
    return worked


@pytest.fixture
def copied(finished: Worked, tmp_path: Path) -> Path:
    """A store of one's own with the finished study's results."""
    return Path(shutil.copytree(finished.store.root, tmp_path / "copied"))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[entry_points.Kind, str, Any], None]]:
    """Registers a plug-in for one test."""
    original = entry_points.available
    extra: dict[str, dict[str, Any]] = {}

    def available(kind: entry_points.Kind) -> Mapping[str, Any]:
        return {**original(kind), **extra.get(kind, {})}

    def register(kind: entry_points.Kind, name: str, thing: Any) -> None:
        module = thing.__module__
        entry = SimpleNamespace(name=name, module=module, value=f"{module}:{name}", load=lambda: thing)
        extra.setdefault(kind, {})[name] = entry

    monkeypatch.setattr(entry_points, "available", available)
    yield register
    plugins.load.cache_clear()
