"""The store: a folder with one folder for each unit of work. Tables and tracking are views that are made from it.

    <store>/pretrained/<id>/         spec.json record.json curves.json model.pt
    <store>/tuning/<id>/             spec.json record.json trials/<n>/
    <store>/tuning/<id>/trials/<n>/  spec.json record.json trial.json
    <store>/runs/<id>/               spec.json record.json policy.json curves.json search.json network.pt
    <store>/studies/<name>/          study.json results.csv runs.csv table.md table.tex
    <store>/leases/                  which process works on what, see `bench.store.leases`

Every unit's folder also has output.log, error.txt after a failure, and checkpoints/ while it is worked on.
An id is the hash of the unit's part of the specification, so the same unit is found again when it is asked for twice. A
trial's id is made of its tuning's id and its number.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from bench.errors import BenchError
from bench.inputs.names import FileName, StudyName, UnitId, inside
from bench.inputs.reading import (
    CHECKPOINT_BYTES,
    JSON_BYTES,
    file_hash,
    open_regular,
    parse_json,
    read_bytes,
    with_whole_characters,
)
from bench.outputs.commands import command
from bench.store.urls import without_secrets

Status = Literal[
    "running",
    "done",
    "unreachable",
    "failed",
    "diverged",
    "timeout",
    "oom",
    "killed",
    "interrupted",
    "skipped",
]
"""Status of a unit, in the order above: a process works on it; done; its budget cannot be reached (a result); an
exception; a loss that is not finite; over the time limit; out of memory; its process died; stopped by the user; a unit
that it needs did not finish."""

UnitKind = Literal["pretrained", "tuning", "trials", "runs"]

CHECKSUM = "checksum"
"""Field of a JSON object that holds the checksum of its other fields."""
_CANONICAL = json.JSONEncoder(sort_keys=True)
"""Form of JSON of which checksums are made."""

_PATHS_INSIDE = 250
"""Bytes that the longest path inside a store may have."""
_LONGEST_PATH = 4096 - 1 - _PATHS_INSIDE
"""Largest length of a store's own path in bytes, on Linux."""
_HASHED_BYTES = 1 << 20
"""Largest size of files that are hashed whenever they are checked; larger ones are hashed on request."""


class Store:
    """Reads and writes units and studies. Every file appears complete or not at all.

    Args:
        root: Folder of the store; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def unit(self, kind: UnitKind, identity: str) -> Path:
        """Return the folder of a unit.

        Raises:
            BenchError: The id is none, or there is a link in its place that leads out of the store.
        """
        if kind == "trials":
            tuning, _, number = identity.rpartition("-")
            return inside(self.root / "tuning", UnitId(tuning), FileName("trials"), UnitId(number))
        return inside(self.root / kind, UnitId(identity))

    def study(self, name: str) -> Path:
        """Return the folder of a study.

        Raises:
            BenchError: The name is none, or there is a link in its place that leads out of the store.
        """
        return inside(self.root / "studies", StudyName(name))

    def record(self, kind: UnitKind, identity: str) -> dict[str, Any] | None:
        """Read the record of a unit; `None` when there is none, or when it is damaged or another unit's."""
        record = read_record(self.unit(kind, identity))
        return None if record is None or record.get("id", identity) != identity else record

    def write_record(self, kind: UnitKind, identity: str, record: Mapping[str, Any]) -> None:
        """Write the record of a unit with its checksum."""
        write_checked(self.unit(kind, identity) / "record.json", record)

    def damage(self, kind: UnitKind, identity: str, record: Mapping[str, Any], *, thorough: bool = False) -> str | None:
        """Describe the first damaged file of a finished unit; `None` when all its files are as they were written.

        Args:
            kind: Kind of the unit.
            identity: Identity of the unit.
            record: Record of the unit, which lists its files.
            thorough: Whether to hash large files too; otherwise only their sizes are compared.
        """
        folder = self.unit(kind, identity)
        for name, expected in record.get("files", {}).items():
            try:
                path = inside(folder, FileName(name))
                size = path.stat().st_size
                hashed = thorough or size <= _HASHED_BYTES
                intact = size == expected["bytes"] and (not hashed or file_hash(path) == expected["sha256"])
            except OSError:
                return f"{name} is missing"
            except BenchError as error:
                return str(error)
            if not intact:
                return f"{name} is damaged"
        return None

    def studies(self) -> list[str]:
        """Return the names of all studies, the most recently run last."""
        folder = self.root / "studies"
        documents = list(folder.glob("*/study.json")) if folder.is_dir() else []
        named = [path for path in documents if StudyName.is_valid(path.parent.name) and path.is_file()]
        return [path.parent.name for path in sorted(named, key=lambda path: path.stat().st_mtime)]

    def study_document(self, name: str) -> dict[str, Any] | None:
        """Read the document of a study; `None` when there is none, or when it is damaged."""
        from bench.store.schemas import Study, fitting

        document = fitting(read_checked(self.study(name) / "study.json"), Study)
        if document is not None and document.get("command"):  # those of older versions may have passwords
            document["command"] = without_secrets(document["command"])
        return document

    def load_study(self, name: str | None) -> dict[str, Any]:
        """Read the document of a study; that of the latest one when no name is given.

        Raises:
            BenchError: There is no such study, or its document is damaged.
        """
        known = self.studies()
        if not known:
            raise BenchError(f"no study in the store '{self.root}'; run one first: `{command('run', store=self.root)}`")
        chosen = known[-1] if name is None else name
        if chosen not in known:
            raise BenchError(f"no study '{chosen}' in the store '{self.root}'; there are: {', '.join(sorted(known))}")
        document = self.study_document(chosen)
        if document is None:
            raise BenchError(
                f"'{self.study(chosen) / 'study.json'}' is damaged; run the study's command again, which "
                "writes a new one and repeats nothing that has finished"
            )
        return document

    def prepare(self) -> None:
        """Make the store's folder.

        Raises:
            BenchError: The folder cannot be made or written to, or its path is too long for the files in it.
        """
        length = len(os.fsencode(self.root.absolute()))
        if length > _LONGEST_PATH:
            raise BenchError(
                f"the path of the store has {length:,} bytes, and files in it need {_PATHS_INSIDE} more than that; "
                f"choose one of at most {_LONGEST_PATH:,} with --store DIR"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise BenchError(
                f"cannot write to the store '{self.root}': {error.strerror}; choose another with --store DIR"
            ) from error


def manifest(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Compute size and checksum of files, for a unit's record."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)} for name in sorted(names)
    }


def read_checked(path: Path) -> dict[str, Any] | None:
    """Read a JSON object that was written with its checksum; `None` when it is missing or has been changed."""
    document, content = _parsed(path)
    if not isinstance(document, dict) or document.get(CHECKSUM) != _checksum(document):
        return None
    checked: dict[str, Any] = with_whole_characters(document, content)
    return checked


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record in a unit's folder; `None` when it is missing, damaged or not a record."""
    from bench.store.schemas import Record, fitting

    return fitting(read_checked(folder / "record.json"), Record)


def write_checked(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, atomically."""
    write_bytes(path, checked_bytes(document))


def checked_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the content of the file of a JSON object with its checksum."""
    return _json_bytes({**document, CHECKSUM: _checksum(document)})


def _checksum(document: Mapping[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != CHECKSUM}
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file; `None` when it is missing, damaged, or not one that `parse_json` accepts."""
    return with_whole_characters(*_parsed(path))


def _parsed(path: Path) -> tuple[Any, bytes]:
    try:
        content = read_bytes(path, JSON_BYTES)
        return parse_json(content), content
    except (OSError, ValueError):
        return None, b""


def read_stored_specification(folder: Path) -> dict[str, Any] | None:
    """Read the `spec.json` in a unit's folder; `None` when it is missing, damaged or something else."""
    from bench.store.schemas import StoredSpecification, fitting

    return fitting(read_checked(folder / "spec.json"), StoredSpecification)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    write_bytes(path, _json_bytes(document))


def _json_bytes(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that it appears complete or not at all.

    Args:
        path: Path of the file; its folder is made when missing.
        content: Content of the file.
        durable: Whether to wait until it is on the disk, so that a crash of the machine cannot lose it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if path.is_dir() and not path.is_symlink():  # a user's folder has the file's name: keep it beside the file
            path.rename(path.with_name(f"{path.name}.folder-{secrets.token_hex(4)}"))
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a full disk names no file, and users do not know the temporary one
            error.filename, error.filename2 = str(path), None
        raise


def remove(path: Path) -> None:
    """Remove a file, or a folder that has its name; does nothing when neither exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors atomically, so that it can be read without executing code."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors without executing code from the file.

    Raises:
        BenchError: The file is missing or damaged, or it holds something else.
    """
    try:
        with open_regular(path) as file:
            state = unpack_state(file)
    except FileNotFoundError as error:
        raise BenchError(f"there is no checkpoint '{path}'; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"the checkpoint '{path}' cannot be read: {reason}") from error
    if not isinstance(state, dict):
        raise BenchError(f"the checkpoint '{path}' holds a {type(state).__name__}; expected a dictionary of tensors")
    return state


def unpack_state(file: IO[bytes]) -> Any:
    """Read what `save_state` or `torch.save` wrote, without executing code and in no more memory than the file has.

    Raises:
        ValueError: The file is damaged or holds more than tensors and plain values.
        OSError: It cannot be read.
    """
    import warnings

    import torch

    try:
        _check_unpacked_size(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # that it is an archive of another kind; what cannot be read is told below
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # PyTorch's reader raises errors of any type for bytes that it does not expect
        raise ValueError(f"it is damaged or holds more than tensors{_forbidden(error)}") from error


def _check_unpacked_size(file: IO[bytes]) -> None:
    """Refuse packed content, which could have any size; PyTorch stores tensors as they are.

    Raises:
        ValueError: The content takes more than the file.
        OSError: The file is larger than any checkpoint.
    """
    unpacked = 0
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as entries:
            unpacked = sum(entry.file_size for entry in entries.infolist())
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if unpacked > size:
        raise ValueError("its content takes more than the file")
    if size > CHECKPOINT_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {CHECKPOINT_BYTES >> 30} GB")


def _harmless() -> list[Any]:
    """Return what trainings keep beside tensors and PyTorch does not read by itself: options, and numbers of NumPy.

    None of them can execute code when it is read.
    """
    import argparse

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # in files of NumPy 1 and 2
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [argparse.Namespace, np.dtype, *((scalar, name) for name in names), *dtypes]


def _forbidden(error: Exception) -> str:
    """Name the class that PyTorch refused to make, and what to do about it; empty if that is not the reason."""
    found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if found is None:
        return ""
    advice = "save the tensors alone: torch.save(model.state_dict(), FILE)"
    return f" ({found[1]} is not read, as it could execute code); {advice}"
