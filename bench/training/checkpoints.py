"""Checkpoints inside a run, from which an interrupted run continues with bit-identical results.

A stage is a loop over epochs: pretraining, a search (or each of its stages), fine-tuning. The state that a stage
carries from epoch to epoch is passed to `Stage.epochs`: named objects with `state_dict` and `load_state_dict`.

    for epoch in stage.epochs(schedule.epochs, {"model": model, "optimizer": optimizer}):
        ...

Files hold tensors and plain values only and are read without executing code. A file's name contains its checksum. A
damaged file is skipped, and the one before it is used.
"""

import hashlib
import io
import logging
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench import replicas
from bench.inputs.reading import open_regular
from bench.spec.environment import seconds_from_environment
from bench.store.files import unpack_state, write_bytes

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = seconds_from_environment("BENCH_CHECKPOINT_SECONDS", 15.0)
"""Smallest time between two checkpoints; an interruption loses no more than this and one epoch."""
_KEPT = 2


class Stateful(Protocol):
    """An object whose state a checkpoint can keep."""

    def state_dict(self) -> Any:
        """Return the state: tensors, numbers, texts, and lists and dictionaries of them."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore a state that `state_dict` returned."""
        ...


class Stage(Protocol):
    """A loop over epochs that may be interrupted."""

    def epochs(self, total: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        """Yield the epochs that are left, counted from 0, and keep checkpoints after them.

        Args:
            total: Number of epochs of the stage.
            state: Objects that change from epoch to epoch, by name.
        """
        ...


class Uninterrupted:
    """A stage without checkpoints."""

    def epochs(self, total: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        """Yield all epochs."""
        yield from range(total)


UNINTERRUPTED = Uninterrupted()


class GeneratorState:
    """A random generator whose state a checkpoint can keep."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the generator's state."""
        self._generator.set_state(state_dict["state"])


class GlobalGenerators:
    """The global generators of Python, NumPy and PyTorch, which libraries and plug-ins may draw from."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all of them."""
        numpy: Any = np.random.get_state()  # noqa: NPY002
        name, keys, *rest = numpy
        version, numbers, spare = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if _cuda_is_used() else [],
            "numpy": [name, keys.tolist(), *rest],
            "python": [version, list(numbers), spare],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the states of all of them."""
        torch.set_rng_state(state_dict["torch"])
        if state_dict["cuda"]:
            torch.cuda.set_rng_state_all(state_dict["cuda"])
        name, keys, *rest = state_dict["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        version, numbers, spare = state_dict["python"]
        random.setstate((version, tuple(numbers), spare))


def _cuda_is_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class Checkpoints:
    """The checkpoints of one unit of work.

    Args:
        folder: Folder of the files, which are named `<stage>.<count>.<checksum>.pt`.
        always: State that every stage carries, by name: results of the unit so far.
    """

    def __init__(self, folder: Path, always: Mapping[str, Stateful]) -> None:
        self._folder = folder
        self._always = {**always, "generators": GlobalGenerators()}

    def stage(self, name: str) -> "FileStage":
        """Make a stage of the unit."""
        return FileStage(self, name)

    def write(self, stage: str, count: int, state: Mapping[str, Stateful]) -> None:
        """Keep the state after `count` epochs of a stage, and delete all checkpoints of the stage but the last two.

        Only the first replica writes; the state is the same on all.
        """
        if not replicas.is_first():
            return
        values = {name: item.state_dict() for name, item in self._with_always(state).items()}
        buffer = io.BytesIO()
        torch.save(values, buffer)
        content = buffer.getvalue()
        checksum = hashlib.sha256(content).hexdigest()[:16]
        write_bytes(self._folder / f"{stage}.{count:06d}.{checksum}.pt", content)
        for path in self._files(stage)[_KEPT:]:
            path.unlink(missing_ok=True)

    def restore(self, stage: str, state: Mapping[str, Stateful]) -> int | None:
        """Restore the latest undamaged state of a stage; return the number of its epochs, or `None` without one."""
        count = self._restored(stage, state)
        replicas.check_same("checkpoints", count)
        return count

    def _restored(self, stage: str, state: Mapping[str, Stateful]) -> int | None:
        for path in self._files(stage):
            values = _read_checked(path)
            if values is None:
                _log.warning("the checkpoint %s is damaged and is skipped", path)
                continue
            items = self._with_always(state)
            if items.keys() - values.keys():
                _log.warning("the checkpoint %s is that of another version of the harness and is skipped", path)
                continue
            for name, item in items.items():
                item.load_state_dict(values[name])
            return int(path.name.split(".")[-3])
        return None

    def clear(self) -> None:
        """Delete all checkpoints."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _with_always(self, state: Mapping[str, Stateful]) -> dict[str, Stateful]:
        return {**state, **{f"unit.{name}": item for name, item in self._always.items()}}

    def _files(self, stage: str) -> list[Path]:
        """List the checkpoints of a stage, the latest first."""
        return sorted(self._folder.glob(f"{stage}.{'[0-9]' * 6}.*.pt"), reverse=True)


class FileStage:
    """A stage with checkpoints in files."""

    def __init__(self, checkpoints: Checkpoints, name: str) -> None:
        self._checkpoints, self._name = checkpoints, name

    def epochs(self, total: int, state: Mapping[str, Stateful]) -> Iterator[int]:
        """Restore the latest checkpoint, and yield the epochs after it."""
        done = self._checkpoints.restore(self._name, state) or 0
        saved = time.monotonic()
        for epoch in range(done, total):
            yield epoch
            if time.monotonic() - saved >= INTERVAL_SECONDS:
                self._checkpoints.write(self._name, epoch + 1, state)
                saved = time.monotonic()


def _read_checked(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; return `None` if it is damaged."""
    try:
        with open_regular(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest()[:16] != path.name.split(".")[-2]:
                return None
            values = unpack_state(file)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
