"""The store: a folder of run folders. It alone is the truth; tables and tracking are views of it.

    <store>/pretrained/<id>/   spec.json record.json model.pt
    <store>/tuning/<id>/       spec.json record.json journal.log trials/<n>.json
    <store>/runs/<id>/         spec.json record.json policy.json curves.json network.pt error.txt
    <store>/studies/<name>/    study.json results.csv runs.csv table.md table.tex

An id is the hash of the unit's part of the specification, so asking for the same thing twice finds it.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError

Status = Literal["planned", "running", "done", "failed", "unreachable", "interrupted"]
UnitKind = Literal["pretrained", "tuning", "runs"]


class Store:
    """Reads and writes units and studies. Every file appears whole or not at all.

    Args:
        root: The store's folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def unit(self, kind: UnitKind, identity: str) -> Path:
        """The folder of a unit."""
        return self.root / kind / identity

    def study(self, name: str) -> Path:
        """The folder of a study."""
        return self.root / "studies" / name

    def record(self, kind: UnitKind, identity: str) -> dict[str, Any] | None:
        """The record of a unit; `None` when it was never started or its record cannot be read."""
        record: dict[str, Any] | None = read_json(self.unit(kind, identity) / "record.json")
        return record

    def studies(self) -> list[str]:
        """Names of all studies, the most recently run last."""
        folder = self.root / "studies"
        found = list(folder.glob("*/study.json")) if folder.is_dir() else []
        return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]

    def load_study(self, name: str | None) -> dict[str, Any]:
        """The document of a study; of the latest one when no name is given.

        Raises:
            BenchError: There is none.
        """
        known = self.studies()
        if not known:
            raise BenchError(f"no study in the store '{self.root}'; run one first: `bench run`")
        chosen = name or known[-1]
        document: dict[str, Any] | None = read_json(self.study(chosen) / "study.json") if chosen in known else None
        if document is None:
            raise BenchError(f"no study '{chosen}' in the store '{self.root}'; there are: {', '.join(sorted(known))}")
        return document

    def prepare(self) -> None:
        """Make the store's folder.

        Raises:
            BenchError: It cannot be made or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise BenchError(
                f"cannot write to the store '{self.root}': {error.strerror}; choose another with --store DIR"
            ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; `None` when there is none or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all, also when the machine stops in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors atomically, readable without executing code."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors; never executes code from the file.

    Raises:
        BenchError: The file is missing, damaged, or holds something else.
    """
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise BenchError(f"no checkpoint at '{path}'") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise BenchError(f"the checkpoint '{path}' cannot be read: it is damaged or holds more than tensors") from error
    if not isinstance(state, dict):
        raise BenchError(f"the checkpoint '{path}' holds a {type(state).__name__}; expected a dictionary of tensors")
    return state
