"""Survey of what may be removed from a store, because no study and no process needs it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.outputs.commands import command
from bench.store.cleaning.usage import OLD_SECONDS, StoreUsage, age_of, file_system_now, read_usage
from bench.store.contents import (
    KINDS,
    STALE_FOLDER,
    UnitKey,
    folders,
    is_unit,
    study_folders,
    unit_folders,
    units,
    units_of,
)
from bench.store.files import Store, read_record
from bench.store.outcomes import RESULTS

STALE_RESULTS = "stale results"
TEMPORARY = "temporary files of killed processes"
CHECKPOINTS = "checkpoints of finished units"
DEAD_LEASES = "leases of dead holders"
REMAINS = "remains of killed bench commands"
UNREFERENCED = "units that no study refers to"
STUDY = "the study's folder"
OWN_UNITS = "units of this study alone"

CATEGORIES = (STUDY, OWN_UNITS, STALE_RESULTS, TEMPORARY, CHECKPOINTS, DEAD_LEASES, REMAINS, UNREFERENCED)
"""Categories of what may be removed, in the order in which they are listed to users."""

TRASH, SCRATCH = ".bench-trash-", ".bench-"
"""Prefixes of the store's hidden folders: those that hold removed items, and all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A file or folder that may be removed.

    Attributes:
        category: One of `CATEGORIES`.
        path: Path of the file or folder.
        unit: Unit that it is, or is a part of.
        study: Study that it is, or is a part of.
    """

    category: str
    path: Path
    unit: UnitKey | None = None
    study: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """Everything that may be removed.

    Attributes:
        items: Items that may be removed; none lies within another.
        notes: Reasons why something was left alone, one line each.
    """

    items: Sequence[Item]
    notes: Sequence[str]


def survey(store: Store, study: str | None = None) -> Survey:
    """Find everything that may be removed.

    Args:
        store: Store to look into.
        study: Name of a study, to find its folder and the units that no other study refers to. By default, everything
            that no study and no process needs.

    Raises:
        BenchError: The store or the study does not exist, or the study is being run.
    """
    store = existing(store)
    usage = read_usage(store)
    if study is not None:
        _check_study(store, study, usage)
        items, doubt = _items_of_study(store, study, usage), usage.doubt(without=study)
    else:
        items, doubt = _items_without_study(store, usage), usage.doubt()
    free = (item for item in items if is_free(store, item, usage))
    notes = [*_linked_folders(store), *_unproven_folders(store), *([] if doubt is None else [doubt])]
    return Survey(items=_outermost(free), notes=notes)


def existing(store: Store) -> Store:
    """Return a store with its absolute path.

    Raises:
        BenchError: It does not exist.
    """
    if not store.root.is_dir():
        raise BenchError(f"there is no store '{store.root}'; give its folder with --store DIR")
    return Store(store.root.resolve())


def _check_study(store: Store, name: str, usage: StoreUsage) -> None:
    known = [path.name for path in study_folders(store)]
    if name not in known:
        raise unknown_name("study", name, known, command("clean", store=store.root))
    if name in usage.sessions:
        raise BenchError(f"{usage.sessions[name].holder} runs study '{name}' now; stop it before you remove the study")


def _items_of_study(store: Store, name: str, usage: StoreUsage) -> Iterator[Item]:
    """Yield a study's folder first: a cleaning that is killed after it leaves units that no study refers to."""
    yield Item(category=STUDY, path=store.study(name), study=name)
    for kind, identity in sorted(units_of(usage.studies.get(name, {}))):
        if is_unit(path := store.unit(kind, identity), identity):
            yield Item(category=OWN_UNITS, path=path, unit=(kind, identity), study=name)


def _items_without_study(store: Store, usage: StoreUsage) -> Iterator[Item]:
    yield from _stale_results(store)
    for kind, identity in units(store):
        if not usage.owners.get((kind, identity)) and is_unit(path := store.unit(kind, identity), identity):
            yield Item(category=UNREFERENCED, path=path, unit=(kind, identity))
    yield from _checkpoints(store)
    yield from _temporary_files(store)
    yield from _lease_files(store)
    yield from _remains(store)


def _stale_results(store: Store) -> Iterator[Item]:
    for kind, path in unit_folders(store):
        if STALE_FOLDER.fullmatch(path.name) is None:
            for trial in folders(path / "trials") if kind == "tuning" else ():
                if _is_stale(trial, f"{path.name}-"):
                    yield Item(category=STALE_RESULTS, path=trial, unit=(kind, path.name))
        elif _is_stale(path):
            yield Item(category=STALE_RESULTS, path=path, unit=(kind, _base_name(path.name)))


def _is_stale(path: Path, prefix: str = "") -> bool:
    """Return whether a folder certainly is an archived unit, whose id begins with the prefix."""
    return STALE_FOLDER.fullmatch(path.name) is not None and is_unit(path, prefix + _base_name(path.name))


def _checkpoints(store: Store) -> Iterator[Item]:
    for unit in units(store):
        folder = store.unit(*unit)
        for owner in (folder, *(folders(folder / "trials") if unit[0] == "tuning" else ())):
            if (path := owner / "checkpoints").is_dir() and not path.is_symlink():
                yield Item(category=CHECKPOINTS, path=path, unit=unit)


def _temporary_files(store: Store) -> Iterator[Item]:
    """Yield old files that a process wrote under a temporary name and never renamed."""
    now = file_system_now(store.root)
    for path in _hidden_files(store):
        if age_of(path, now) > OLD_SECONDS:
            kind, *inner = path.relative_to(store.root).parts
            unit = next(((known, _base_name(inner[0])) for known in KINDS if known == kind and len(inner) > 1), None)
            study = inner[0] if kind == "studies" and len(inner) > 1 else None
            yield Item(category=TEMPORARY, path=path, unit=unit, study=study)


def _hidden_files(store: Store) -> Iterator[Path]:
    yield from store.root.glob(".*.tmp")
    for name in (*KINDS, "studies", "leases"):
        folder = store.root / name
        for inner, _, files in os.walk(folder) if not folder.is_symlink() else ():
            yield from (Path(inner, file) for file in files if file.startswith(".") and file.endswith(".tmp"))


def _base_name(name: str) -> str:
    match = STALE_FOLDER.fullmatch(name)
    return name if match is None else match["base"]


def _lease_files(store: Store) -> Iterator[Item]:
    if not (folder := store.root / "leases").is_symlink():
        yield from (Item(category=DEAD_LEASES, path=path) for path in sorted(folder.glob("*.json")))


def _remains(store: Store) -> Iterator[Item]:
    for path in sorted(store.root.glob(f"{SCRATCH}*")):
        if path.is_dir() and not path.is_symlink():
            yield Item(category=REMAINS, path=path)


def _outermost(items: Iterable[Item]) -> list[Item]:
    """Drop items that lie within another one."""
    chosen = list(items)
    paths = {item.path for item in chosen}
    return [item for item in chosen if not paths.intersection(item.path.parents)]


def _linked_folders(store: Store) -> Iterator[str]:
    for name in (*KINDS, "studies", "leases"):
        if (store.root / name).is_symlink():
            yield f"'{store.root / name}' is a link and is left alone"


def _unproven_folders(store: Store) -> Iterator[str]:
    paths = [path for _, path in unit_folders(store) if not is_unit(path, _base_name(path.name))]
    if paths:
        more = f" and {len(paths) - 1} more folders are" if paths[1:] else " is"
        yield f"'{paths[0]}'{more} left alone: no record and no spec.json in there is that of a unit of this name"


# --- whether an item may be removed now ----------------------------------------------------------------------------


def is_free(store: Store, item: Item, usage: StoreUsage) -> bool:
    """Return whether no study and no process needs an item at this moment."""
    if item.unit in usage.in_use or item.study in usage.sessions:
        return False
    if item.category in (UNREFERENCED, OWN_UNITS) and item.unit is not None:
        return not usage.owners.get(item.unit, set()) - {item.study} and usage.doubt(without=item.study) is None
    if item.category == CHECKPOINTS:  # `--retry` continues failures from theirs
        return _status(item.path.parent) in RESULTS
    if item.category == DEAD_LEASES:
        return item.path.stem not in usage.names
    return item.category != REMAINS or _is_abandoned(item.path, usage)


def _status(folder: Path) -> Any:
    return (read_record(folder) or {}).get("status")


def _is_abandoned(path: Path, usage: StoreUsage) -> bool:
    """Return whether the command that made a hidden folder is gone; what is in the trash may go in any case."""
    leased = path.name.removeprefix(".") in usage.names
    return path.name.startswith(TRASH) or not (leased or age_of(path, file_system_now(path.parent)) <= OLD_SECONDS)
