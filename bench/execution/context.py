"""What is known of a unit: the request that is sent to its process, and the context of its stages there."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bench import replicas
from bench.compression.shapes import NetworkShape
from bench.execution.records import plain
from bench.execution.task_loader import TaskLoader
from bench.method import Task
from bench.planning.units import Unit
from bench.store.files import Status, Store, UnitKind, manifest, save_state, write_json
from bench.training.checkpoints import Checkpoints, Stateful
from bench.training.forward import Forward


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRequest:
    """Request to work on a unit, sent to a process. The unit's specification lies in its folder.

    Attributes:
        kind, identity: Kind and identity of the unit.
        title: Description of the unit in words.
        store: Folder of the store.
        data_dir: Folder of data sets.
        data_checksum: Checksum of the data that the study is planned with.
        retry: Failures to try again.
        gpu: Value for CUDA_VISIBLE_DEVICES; all GPUs are visible when absent.
    """

    kind: UnitKind
    identity: str
    title: str
    store: Path
    data_dir: Path | None
    data_checksum: str
    retry: frozenset[Status] = frozenset()
    gpu: str | None = None

    @property
    def lease_name(self) -> str:
        """Name of the unit's lease."""
        return f"{self.kind}-{self.identity}"

    @property
    def folder(self) -> Path:
        """Folder of the unit."""
        return Store(self.store).unit(self.kind, self.identity)


class Watcher(Protocol):
    """Receives the figures of every epoch."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Receive the figures of an epoch that ended.

        Args:
            phase: Name of the phase: "pretrain", "search" or "finetune".
            figures: Figures by name, e.g. "epoch", "epochs", "loss".
        """
        ...


class UnitContext:
    """Everything that the stages of a unit share while they work on it.

    If several replicas work on a unit together, each has a context, and the first one writes files.

    Args:
        request: Request that asks for the unit.
        unit: The unit.
        record: Record of the unit; the stages complete it.
        watcher: Receiver of the figures of every epoch.
        loader: Loader of the study's task.

    Attributes:
        store: Store that results are written to.
        folder: Folder of the unit.
        clock: Seconds spent in each phase.
        data_use: Images drawn in each phase.
        curves: Figures by epoch.
        checkpoints: Checkpoints of the unit.
        forward: Way in which networks are evaluated in training.
    """

    def __init__(
        self, request: UnitRequest, unit: Unit, record: dict[str, Any], watcher: Watcher, loader: TaskLoader
    ) -> None:
        self.request, self.unit, self.record = request, unit, record
        self.spec = unit.spec
        self.store, self.folder = Store(request.store), request.folder
        self._loader = loader
        self.clock = Clock()
        self.data_use = DataUse(lambda: self.task.data.drawn)
        self.curves = Curves(watcher)
        always: dict[str, Stateful] = {"clock": self.clock, "data_use": self.data_use, "curves": self.curves}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", always)
        self.forward = Forward(self.spec.compile, self.spec.precision, self.device)
        record["forward"] = self.forward.record

    @property
    def task(self) -> Task:
        """The study's task; loaded when it is first needed."""
        return self._loader.task

    @property
    def network(self) -> NetworkShape:
        """Shapes of the study's model."""
        return self._loader.network

    @property
    def device(self) -> torch.device:
        """Device that data and models are on."""
        return self._loader.device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a `with` block as a phase: its seconds, and the images that it draws."""
        with self.clock.phase(name), self.data_use.phase(name):
            yield

    def write(self, name: str, document: Any) -> None:
        """Write a JSON file into the unit's folder and list it in the record."""
        if replicas.is_first():
            write_json(self.folder / name, plain(document))
            self._list(name)

    def write_state(self, name: str, model: nn.Module) -> None:
        """Write a network's state into the unit's folder and list it in the record."""
        if replicas.is_first():
            save_state(self.folder / name, model.state_dict())
            self._list(name)

    def _list(self, name: str) -> None:
        self.record["files"] |= manifest(self.folder, [name])


class Clock:
    """Counts the seconds spent in each phase of a unit, over all its attempts."""

    def __init__(self) -> None:
        self._earlier: Mapping[str, float] = {}
        self._own: dict[str, float] = {}
        self._phase: str | None = None
        self._began = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a `with` block as time of a phase."""
        self._phase, self._began = name, time.perf_counter()
        try:
            yield
        finally:
            self._count()
            self._phase = None

    def seconds(self, phase: str) -> float:
        """Return the seconds of a phase."""
        return self._earlier.get(phase, 0.0) + self._own.get(phase, 0.0)

    def total(self) -> float:
        """Return the seconds of all phases."""
        return sum(self._earlier.values()) + sum(self._own.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds up to this moment, for checkpoints."""
        self._count()
        return {"seconds": {phase: self.seconds(phase) for phase in {**self._earlier, **self._own}}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the seconds of earlier attempts from a checkpoint; those that this attempt has spent are added to them.

        An attempt may restore several checkpoints, one for each stage. Each has all seconds of the attempts before.
        """
        self._earlier = dict(state["seconds"])

    def _count(self) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self._own[self._phase] = self._own.get(self._phase, 0.0) + now - self._began
        self._began = now


class DataUse:
    """Counts what each phase of a unit draws from the data.

    Unlike seconds, an interruption adds nothing to it: what was drawn after the last checkpoint is drawn again.

    Args:
        drawn: Function that returns the counters of the data, `TaskData.drawn`.
    """

    def __init__(self, drawn: Callable[[], Counter[str]]) -> None:
        self._drawn = drawn
        self._by_phase: dict[str, Counter[str]] = {}
        self._phase: str | None = None
        self._began: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what a `with` block draws as that of a phase."""
        self._phase, self._began = name, self._drawn().copy()
        try:
            yield
        finally:
            self._count()
            self._phase = None

    def of(self, phase: str) -> Counter[str]:
        """Return what a phase drew, by the names of `TaskData.drawn`."""
        return self._by_phase.get(phase, Counter()).copy()

    def state_dict(self) -> dict[str, Any]:
        """Return what was drawn up to this moment, by phase."""
        self._count()
        return {phase: dict(drawn) for phase, drawn in self._by_phase.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; what this attempt drew until now is part of the state already."""
        self._by_phase = {phase: Counter(drawn) for phase, drawn in state.items()}
        self._began = self._drawn().copy()

    def _count(self) -> None:
        if self._phase is not None:
            now = self._drawn().copy()
            self._by_phase.setdefault(self._phase, Counter()).update(now - self._began)
            self._began = now


class Curves:
    """Collects the figures of every epoch and passes them on to a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.entries: list[dict[str, Any]] = []

    def reporter(self, phase: str) -> Callable[[Mapping[str, float]], None]:
        """Return a function that adds the figures of an epoch of a phase."""

        def report(figures: Mapping[str, float]) -> None:
            self.add(phase, figures)

        return report

    def add(self, phase: str, figures: Mapping[str, float]) -> None:
        """Add the figures of an epoch."""
        self.entries.append(plain({"phase": phase, **figures}))
        self._watcher.epoch(phase, figures)

    def state_dict(self) -> dict[str, Any]:
        """Return all figures, for checkpoints."""
        return {"entries": json.dumps(self.entries)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.entries = json.loads(state["entries"])
