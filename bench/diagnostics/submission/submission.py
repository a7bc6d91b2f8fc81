"""A study from an archive, unpacked into a store of its own, and what its checks read of it."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.compression.shapes import NetworkShape
from bench.costs.accelerator.hardware import hardware_names
from bench.diagnostics.verify import CheckLine
from bench.diagnostics.wording import some
from bench.plugins.entry_points import available
from bench.results.groups import with_result
from bench.results.tables import ResultsAsMade, StudyResults
from bench.spec.schema import StudySpec, TaskSpec
from bench.store.archive import restore
from bench.store.files import Store, UnitKind, read_stored_specification

_LARGEST_IMAGE = 1024
_MOST_CLASSES = 100_000
"""Largest tasks that are built for a check; larger ones would fill the memory."""


class NotChecked(Exception):  # noqa: N818  (it is no error of the archive)
    """Something that a check needs is not on this machine; the message says what."""


@dataclass(frozen=True, kw_only=True)
class SubmittedUnit:
    """A finished run or tuning of a submission.

    Attributes:
        kind, identity: Kind and id.
        title: Description in words.
        record: Record of the unit, as the archive has it.
        spec: Specification that it was made with.
    """

    kind: UnitKind
    identity: str
    title: str
    record: Mapping[str, Any]
    spec: StudySpec


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A study to check.

    Attributes:
        results: Numbers of the study.
        data_dir: Folder of data sets on this machine.
    """

    results: StudyResults
    data_dir: Path | None = None

    @property
    def store(self) -> Store:
        """Store of the study."""
        return self.results.store

    @cached_property
    def runs(self) -> Sequence[SubmittedUnit]:
        """Runs with a result, in the study's order, without those whose specification cannot be read."""
        return self._units("runs", [str(run) for run in with_result(self.results.runs)["id"]])

    @cached_property
    def tunings(self) -> Sequence[SubmittedUnit]:
        """Tunings that found knobs."""
        return self._units("tuning", [str(tuning) for tuning in self.results.study.get("tunings") or ()])

    def _units(self, kind: UnitKind, identities: Sequence[str]) -> Sequence[SubmittedUnit]:
        units = (self._unit(kind, identity) for identity in identities)
        return [unit for unit in units if unit is not None]

    def _unit(self, kind: UnitKind, identity: str) -> SubmittedUnit | None:
        record, stored = (
            self.results.record(kind, identity),
            read_stored_specification(self.store.unit(kind, identity)),
        )
        if record is None or record.get("status") != "done" or stored is None:
            return None
        try:
            spec = StudySpec.model_validate_json(json.dumps(stored["specification"]))
        except ValidationError:
            return None
        words = (str(record.get(key)) for key in ("method", "budget") if record.get(key))
        title = " ".join([*words, f"seed {record.get('seed')}"])
        return SubmittedUnit(kind=kind, identity=identity, title=title, record=record, spec=spec)


@contextmanager
def unpacked(archive: Path) -> Iterator[StudyResults]:
    """Unpack an archive into a temporary store, which exists during the `with` block, and read its study.

    Raises:
        BenchError: The archive is damaged, or holds anything but one study.
    """
    with tempfile.TemporaryDirectory(prefix="bench-submission-") as folder:
        store = Store(Path(folder) / "store")
        restored = restore(store, archive)
        yield ResultsAsMade(store, store.load_study(restored.study))


def network_of(spec: StudySpec) -> NetworkShape:
    """Return the shapes of a submitted task's network; only registered models and data sets are built.

    Raises:
        NotChecked: The model, the data set or the accelerator is not registered here, or the task is too large.
        BenchError: The network cannot be built.
    """
    from bench.planning.networks import task_network

    check_task(spec.task)
    if spec.accelerator.hardware not in hardware_names():
        raise NotChecked(f"the accelerator {spec.accelerator.hardware!r} is not one of this harness")
    return task_network(spec.task)


def check_task(task: TaskSpec) -> None:
    """Make sure that a submitted task can be built without code that the submission names.

    Raises:
        NotChecked: Its model or data set is not registered here, or it is too large.
    """
    if task.model not in available("models"):
        raise NotChecked(f"there is no model {task.model!r} here")
    if task.dataset not in available("datasets"):
        raise NotChecked(f"there is no data set {task.dataset!r} here")
    if (task.image_size or 0) > _LARGEST_IMAGE or (task.classes or 0) > _MOST_CLASSES:
        raise NotChecked(f"images of {task.image_size} pixels or {task.classes} classes are more than is checked")


def outcome(what: str, faults: Sequence[str], fine: str) -> CheckLine:
    """Return the line of a check: what is wrong, or in a few words what was looked at."""
    return CheckLine(what=what, figure="; ".join([some(faults)] if faults else [fine]), passed=not faults)
