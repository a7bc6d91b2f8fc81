"""Contents of a store: its units, its folders and their sizes. Links are never followed."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.inputs.names import StudyName, UnitId
from bench.store.files import Store, UnitKind, read_record, read_stored_specification

UnitKey = tuple[UnitKind, str]
"""Kind and identity of a pretraining, tuning or run; trials belong to their tuning."""

KINDS: tuple[UnitKind, ...] = ("pretrained", "tuning", "runs")
"""Names of the folders that hold units."""

STALE_FOLDER = re.compile(r"(?P<base>.+)\.stale-\d+")
"""Name of the archived folder of a stale or damaged unit."""


def units_of(document: Mapping[str, Any]) -> frozenset[UnitKey]:
    """Return the units that a study refers to.

    Args:
        document: Content of the study's `study.json`.

    Raises:
        BenchError: It lists something that is not an id.
    """
    listed: tuple[tuple[UnitKind, str], ...] = (("pretrained", "pretrained"), ("tuning", "tunings"), ("runs", "runs"))
    return frozenset((kind, UnitId(identity)) for kind, key in listed for identity in document.get(key) or ())


def units(store: Store) -> list[UnitKey]:
    """Return every pretraining, tuning and run that a store holds."""
    return [(kind, path.name) for kind, path in unit_folders(store) if _looks_like_unit(path)]


def unit_folders(store: Store) -> Iterator[tuple[UnitKind, Path]]:
    """Yield every folder that lies where units lie, with its kind; some may belong to no unit."""
    for kind in KINDS:
        yield from ((kind, path) for path in folders(store.root / kind))


def _looks_like_unit(path: Path) -> bool:
    """Return whether a folder has the name and the files of a unit, readable or not."""
    return UnitId.is_valid(path.name) and any((path / name).is_file() for name in ("spec.json", "record.json"))


def is_unit(path: Path, identity: str) -> bool:
    """Return whether a folder certainly holds a unit: its record or its specification says that it has that id.

    Only such folders are ever removed: never a link, and never what a user has put beside the units.

    Args:
        path: Path of the folder.
        identity: Id that the unit must have.
    """
    if path.is_symlink() or not UnitId.is_valid(identity):
        return False
    record = read_record(path)
    if record is not None and record.get("id") == identity:
        return True
    stored = read_stored_specification(path)
    return stored is not None and stored["id"] == identity


def study_folders(store: Store) -> list[Path]:
    """Return the folders of all studies, also of those that have lost their document."""
    named = [path for path in folders(store.root / "studies") if StudyName.is_valid(path.name)]
    return [path for path in named if any(file.name[0] != "." for file in path.iterdir())]


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without links and hidden ones.

    The list is empty when the folder is itself a link or does not exist.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    entries = sorted(folder.iterdir())
    return [path for path in entries if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]


# --- sizes ---------------------------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    """Return the bytes in a file, or in all files of a folder; links count nothing."""
    if not path.is_dir() or path.is_symlink():
        return _file_size(path)
    return sum(_file_size(Path(inner, name)) for inner, _, files in os.walk(path) for name in files)


def _file_size(path: Path) -> int:
    with suppress(OSError):
        return 0 if path.is_symlink() else path.lstat().st_size
    return 0


def size_by_kind(store: Store) -> dict[str, int]:
    """Return how many bytes a store holds: of each kind of unit, of studies, of MLflow, and of everything else."""
    sizes = {name: size_of(store.root / name) for name in (*KINDS, "studies")}
    entries = store.root.iterdir() if store.root.is_dir() else ()
    tracking = [path for path in entries if path.name.startswith(("mlflow.db", "mlartifacts", "mlruns"))]
    sizes["MLflow"] = sum(map(size_of, tracking))
    return {**sizes, "other": max(0, size_of(store.root) - sum(sizes.values()))}


def size_in_words(size: float) -> str:
    """Write a number of bytes for people, e.g. "1.3 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def free_bytes(folder: Path) -> int:
    """Return how many bytes are free on the disk of a folder; the folder need not exist yet."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.is_dir())
