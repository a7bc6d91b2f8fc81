"""What several test modules share: a study that finishes in seconds, and one finished copy of it a session."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: its pool would be in the way of other processes

import pytest
import torch

from bench import execution, plugins, scheduling
from bench.checkpoints import Stage
from bench.data import TaskData
from bench.endings import Ending
from bench.execution import Desk, Workbench
from bench.leases import LeaseView
from bench.method import SearchJob
from bench.plan import Plan, Unit, kind_of, make_plan, stored_specification
from bench.records import new_record
from bench.running import How
from bench.spec import StudySpec, build
from bench.store import Store, write_checked
from bench.study import run_study
from bench.supervisor import work_here
from bench.training import fit
from bench.worker import Order

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
    "tuning": {"trials": 2},
}
"""Three updates an epoch."""


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.unit = ""
        self.phases: list[tuple[str, str]] = []
        self.outcomes: dict[str, str] = {}
        self.planned = 0
        self.finished_epochs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, plan: Plan, epochs: int) -> None:
        self.planned = epochs

    def unit_started(self, title: str) -> None:
        self.unit = title

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        self.outcomes[title] = outcome
        self.finished_epochs += epochs

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        self.phases.append((self.unit, phase))


class NoTracker:
    """A tracking view that goes nowhere and counts how often it is brought up to date."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, study: Mapping[str, Any]) -> bool:
        self.calls.append("prepare")
        return True

    def log_study(self, store: Store, study: Mapping[str, Any]) -> bool:
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


def work(spec: StudySpec, root: Path, *, jobs: int = 1, watcher: Recorder | None = None) -> Worked:
    """Plan a study and work on it."""
    plan, store, watcher, tracker = make_plan(spec), Store(root), watcher or Recorder(), NoTracker()
    how = StudyRun(store=store, data_dir=None, jobs=jobs, tracker=tracker)  # type: ignore[arg-type]
    document = run_study(plan, how, watcher)
    return Worked(spec, plan, store, document, watcher, tracker)


def checksum(state: Mapping[str, torch.Tensor]) -> int:
    """A number that changes with any value of a state."""
    return hash(tuple(state[name].detach().cpu().contiguous().numpy().tobytes() for name in sorted(state)))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The tiny study's values and the tools to work on it."""
    return SimpleNamespace(values=TINY, spec=tiny_spec, work=work, checksum=checksum, Recorder=Recorder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    """The tiny study, finished. Do not write to it.

    With the start of every search as (unit, seed, checksum of the weights), the order of the data of every search and
    training as (unit, seed of the generator), and every unit that looked at the test split.
    """
    starts: list[tuple[str, int, int]] = []
    orders: list[tuple[str, int]] = []
    reads: list[str] = []
    current = Recorder()

    def spying_job(**fields: Any) -> SearchJob:
        starts.append((current.unit, fields["seed"], checksum(fields["pretrained"])))
        job = SearchJob(**fields)
        orders.append((current.unit, job.order().initial_seed()))
        return job

    def spying_fit(model: Any, data: TaskData, schedule: Any, order: torch.Generator, report: Any) -> None:
        orders.append((current.unit, order.initial_seed()))
        fit(model, data, schedule, order, report)

    def read_test(data: TaskData) -> Any:
        reads.append(current.unit)
        return data.__dict__["test"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "SearchJob", spying_job)
        patch.setattr(execution, "fit", spying_fit)
        spy = property(read_test, lambda data, value: data.__dict__.update(test=value))
        patch.setattr(TaskData, "test", spy, raising=False)
        worked = work(tiny_spec(), tmp_path_factory.mktemp("finished") / "store", watcher=current)
    worked.starts, worked.orders, worked.test_reads = starts, orders, reads
    return worked


@pytest.fixture
def copied(finished: Worked, tmp_path: Path) -> Path:
    """A store of one's own with the finished study's results."""
    return Path(shutil.copytree(finished.store.root, tmp_path / "copied"))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[plugins.Kind, str, Any], None]]:
    """Registers a plug-in for one test."""
    original = plugins.available
    extra: dict[str, dict[str, Any]] = {}

    def available(kind: plugins.Kind) -> Mapping[str, Any]:
        return {**original(kind), **extra.get(kind, {})}

    def register(kind: plugins.Kind, name: str, thing: Any) -> None:
        extra.setdefault(kind, {})[name] = SimpleNamespace(name=name, value=f"test:{name}", load=lambda: thing)

    monkeypatch.setattr(plugins, "available", available)
    yield register
    plugins.load.cache_clear()
