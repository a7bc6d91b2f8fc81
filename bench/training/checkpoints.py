"""Checkpoints inside a run, so that one that was interrupted goes on from its last epoch, bit for bit.

A stage is a loop over epochs: pretraining, a search (or each of its stages), fine-tuning. What a stage must carry
over is handed to `Stage.epochs` as parts, anything with `state_dict` and `load_state_dict`:

    for epoch in stage.epochs(schedule.epochs, {"model": model, "optimizer": optimizer}):
        ...

Files hold tensors and plain values only and are read without executing code. The checksum of a file is in its
name; one that does not match is passed over for the one before it.
"""

import hashlib
import io
import logging
import pickle
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench import replicas
from bench.spec.environment import seconds_from_environment
from bench.store.files import write_bytes

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = seconds_from_environment("BENCH_CHECKPOINT_SECONDS", 15.0)
"""Epochs that follow each other faster than this share a checkpoint: no more than this is ever lost."""
_KEPT = 2


class Stateful(Protocol):
    """What can be put into a checkpoint: tensors, numbers, texts, lists and dictionaries of them."""

    def state_dict(self) -> Any:
        """Everything that the future depends on."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from such a state."""
        ...


class Stage(Protocol):
    """A loop over epochs that may be interrupted."""

    def epochs(self, total: int, parts: Mapping[str, Stateful]) -> Iterator[int]:
        """The epochs that are still to do, counted from 0; a checkpoint is written after each.

        Args:
            total: Epochs of the stage.
            parts: What is carried over.
        """
        ...


class Uninterrupted:
    """A stage without checkpoints."""

    def epochs(self, total: int, parts: Mapping[str, Stateful]) -> Iterator[int]:
        """All epochs."""
        yield from range(total)


UNINTERRUPTED = Uninterrupted()


class GeneratorState:
    """A random generator as a part of a checkpoint."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the generator."""
        self._generator.set_state(state_dict["state"])


class GlobalGenerators:
    """The generators that libraries and plug-ins draw from without being handed one."""

    def state_dict(self) -> dict[str, Any]:
        """The states of Python's, NumPy's and PyTorch's generators."""
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
        """Set all of them."""
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
        folder: Where they are kept, as `<stage>.<count>.<checksum>.pt`.
        always: Parts of every stage: what the unit has gathered so far.
    """

    def __init__(self, folder: Path, always: Mapping[str, Stateful]) -> None:
        self._folder = folder
        self._always = {**always, "generators": GlobalGenerators()}

    def stage(self, name: str) -> "FileStage":
        """A stage of the unit."""
        return FileStage(self, name)

    def write(self, stage: str, count: int, parts: Mapping[str, Stateful]) -> None:
        """Keep the state of parts after `count` epochs of a stage; the last two of a stage are kept.

        Of replicas the first one writes; what they carry over is the same on all.
        """
        if not replicas.is_first():
            return
        state = {name: part.state_dict() for name, part in self._with_always(parts).items()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        checksum = hashlib.sha256(content).hexdigest()[:16]
        write_bytes(self._folder / f"{stage}.{count:06d}.{checksum}.pt", content)
        for path in self._files(stage)[_KEPT:]:
            path.unlink(missing_ok=True)

    def restore(self, stage: str, parts: Mapping[str, Stateful]) -> int | None:
        """Set parts to their latest intact state in a stage, and say after how many epochs that was."""
        found = self._restored(stage, parts)
        replicas.check_same("checkpoints", found)
        return found

    def _restored(self, stage: str, parts: Mapping[str, Stateful]) -> int | None:
        for path in self._files(stage):
            state = _intact(path)
            if state is None:
                _log.warning("the checkpoint %s is damaged and passed over", path)
                continue
            for name, part in self._with_always(parts).items():
                part.load_state_dict(state[name])
            return int(path.name.split(".")[-3])
        return None

    def clear(self) -> None:
        """Remove all of them."""
        if self._folder.is_dir():
            shutil.rmtree(self._folder, ignore_errors=True)

    def _with_always(self, parts: Mapping[str, Stateful]) -> dict[str, Stateful]:
        return {**parts, **{f"unit.{name}": part for name, part in self._always.items()}}

    def _files(self, stage: str) -> list[Path]:
        """The checkpoints of a stage, the latest first."""
        return sorted(self._folder.glob(f"{stage}.??????.*.pt"), reverse=True)


class FileStage:
    """A stage whose state is kept in files."""

    def __init__(self, checkpoints: Checkpoints, name: str) -> None:
        self._checkpoints, self._name = checkpoints, name

    def epochs(self, total: int, parts: Mapping[str, Stateful]) -> Iterator[int]:
        """The epochs that are still to do; parts are set to their state after the last one that was kept."""
        done = self._checkpoints.restore(self._name, parts) or 0
        saved = time.monotonic()
        for epoch in range(done, total):
            yield epoch
            if time.monotonic() - saved >= INTERVAL_SECONDS:
                self._checkpoints.write(self._name, epoch + 1, parts)
                saved = time.monotonic()


def _intact(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint; `None` when it is not what was written."""
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != path.name.split(".")[-2]:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError):
        return None
    return state
