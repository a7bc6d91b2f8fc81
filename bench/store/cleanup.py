"""What a store holds that nobody needs any more, and how it goes without anybody noticing.

What is to go is first renamed into a hidden folder of the store, under the lock of the leases and only if it is
still free at that moment, and deleted then. Whoever is killed in between leaves a hidden folder that the next
cleaning finds; whoever cleans at the same time finds nothing left to rename. Links are never followed.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.store.files import Store, UnitKind, read_checked
from bench.store.leases import SESSION, Leases, LeaseView
from bench.store.outcomes import RESULTS

UnitKey = tuple[UnitKind, str]
"""A pretraining, tuning or run; trials belong to their tuning."""

KINDS: tuple[UnitKind, ...] = ("pretrained", "tuning", "runs")
"""The folders of units."""

SET_ASIDE = "results set aside"
TEMPORARY = "temporary files of killed processes"
CHECKPOINTS = "checkpoints of finished units"
DEAD_LEASES = "leases of dead holders"
REMAINS = "remains of killed bench commands"
UNREFERENCED = "units that no study refers to"
STUDY = "the study's folder"
OWN_UNITS = "units of this study alone"

CATEGORIES = (STUDY, OWN_UNITS, SET_ASIDE, TEMPORARY, CHECKPOINTS, DEAD_LEASES, REMAINS, UNREFERENCED)
"""What can be removed, in the order in which it is told."""

OLD_SECONDS = 600.0
"""Files that were not touched for so long are nobody's work in progress."""

_SETTLED_BEATS = 15
"""A command has written down what its study consists of long before its lease is so many signs of life old."""
_BATCH = 50
"""Items that are moved under one hold of the lock, which others need every few seconds."""
_TRASH, _SCRATCH = ".bench-trash-", ".bench-"
_STALE = re.compile(r"(?P<base>.+)\.stale-\d+")
_SESSION = re.compile(rf"{SESSION}(?P<study>.+)-[0-9a-f]{{8}}")
_UNIT_FILES = ("spec.json", "record.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """Something that may go.

    Attributes:
        category: One of `CATEGORIES`.
        path: Where it is.
        unit: The unit that it is, or is a part of.
        study: The study that it is, or is a part of.
    """

    category: str
    path: Path
    unit: UnitKey | None = None
    study: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What may go, and what cannot be judged.

    Attributes:
        items: What may go; none lies within another.
        notes: Why something was left alone, a line each.
    """

    items: Sequence[Item]
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """What went.

    Attributes:
        removed: What was removed, with its size in bytes.
        notes: As in `Survey`.
        failures: What could not be removed, a line each.
    """

    removed: Sequence[tuple[Item, int]]
    notes: Sequence[str]
    failures: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StoreUsage:
    """Who works on what, and which study refers to what, at one moment.

    Attributes:
        living: Leases of holders that are not known to be gone.
        unreadable: Names of young lease files that cannot be read: somebody may hold them.
        studies: The studies' documents by name.
        damaged: Names of studies whose document is not as it was written.
    """

    living: Sequence[LeaseView]
    unreadable: Sequence[str] = ()
    studies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    damaged: Sequence[str] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of leases that somebody has."""
        return frozenset({*(view.name for view in self.living), *self.unreadable})

    @cached_property
    def sessions(self) -> Mapping[str, LeaseView]:
        """One living command for each study that is being run."""
        found = ((_SESSION.fullmatch(view.name), view) for view in self.living)
        return {match["study"]: view for match, view in found if match is not None}

    @cached_property
    def in_use(self) -> frozenset[UnitKey]:
        """Units that somebody works on, and all units of studies that are being run."""
        held = {unit for name in self.names if (unit := leased_unit(name)) is not None}
        running = (units_of(self.studies[name]) for name in self.sessions if name in self.studies)
        return frozenset(held.union(*running))

    @cached_property
    def owners(self) -> Mapping[UnitKey, set[str]]:
        """The studies that refer to a unit."""
        found: dict[UnitKey, set[str]] = {}
        for name, document in self.studies.items():
            for unit in units_of(document):
                found.setdefault(unit, set()).add(name)
        return found

    def doubt(self, *, without: str | None = None) -> str | None:
        """Why it cannot be told now which units no study refers to; `None` when it can."""
        damaged = sorted(set(self.damaged) - {without})
        if damaged:
            return (
                f"the study.json of {', '.join(damaged)} is damaged or missing: what no study refers to cannot be "
                "told from its own; run that study's `bench run` command again, or `bench clean` with its name"
            )
        for name, view in self.sessions.items():
            if name not in self.studies or view.beat < _SETTLED_BEATS:
                return f"{view.holder} has just begun to run study {name}: units are left alone; try again in a minute"
        return None


def read_claims(store: Store) -> StoreUsage:
    """Who works on what, and which study refers to what, now."""
    leases, now = Leases(store.root), file_system_now(store.root)
    living, unreadable = [], []
    for path in sorted(leases.folder.glob("*.json")):
        view = leases.read(path.stem)
        if view is None and _age(path, now) <= OLD_SECONDS:
            unreadable.append(path.stem)
        elif view is not None and not is_gone(leases, view):
            living.append(view)
    read = {path.name: read_checked(path / "study.json") for path in _study_folders(store)}
    return StoreUsage(
        living=living,
        unreadable=unreadable,
        studies={name: document for name, document in read.items() if document is not None},
        damaged=[name for name, document in read.items() if document is None],
    )


def is_gone(leases: Leases, view: LeaseView) -> bool:
    """Whether a lease's holder is gone: dead, or on another machine and silent for `OLD_SECONDS`.

    Of holders elsewhere one look cannot tell more; both times are of the clock that stamps the store's files.
    """
    return leases.is_dead(view) or (view.holder.is_alive() is None and leases.age(view) > OLD_SECONDS)


def leased_unit(name: str) -> UnitKey | None:
    """The unit that a lease of this name is of; `None` for other leases."""
    kind, _, identity = name.partition("-")
    if kind == "trials":
        return "tuning", identity.rpartition("-")[0]
    return next(((known, identity) for known in KINDS if known == kind), None)


def units_of(document: Mapping[str, Any]) -> frozenset[UnitKey]:
    """The units that a study refers to."""
    listed: tuple[tuple[UnitKind, str], ...] = (("pretrained", "pretrained"), ("tuning", "tunings"), ("runs", "runs"))
    return frozenset((kind, str(identity)) for kind, key in listed for identity in document.get(key) or ())


def file_system_now(folder: Path) -> float:
    """The time by the clock that stamps files in a folder, this machine's when nothing can be written there."""
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return time.time()


# --- what may go -------------------------------------------------------------------------------------------------


def survey(store: Store, study: str | None = None) -> Survey:
    """What may go.

    Args:
        store: Where to look.
        study: The name of a study: its folder and the units that only it refers to. Without it, what nobody needs.

    Raises:
        BenchError: There is no such store or study, or the study is being run.
    """
    store = _existing(store)
    claims = read_claims(store)
    if study is not None:
        _check_study(store, study, claims)
        found, doubt = _of_study(store, study, claims), claims.doubt(without=study)
    else:
        found, doubt = _of_nobody(store), claims.doubt()
    free = (item for item in found if _is_free(store, item, claims))
    return Survey(items=_outermost(free), notes=[*_links(store), *([] if doubt is None else [doubt])])


def _existing(store: Store) -> Store:
    if not store.root.is_dir():
        raise BenchError(f"there is no store '{store.root}'; give its folder with --store DIR")
    return Store(store.root.resolve())


def _check_study(store: Store, name: str, claims: StoreUsage) -> None:
    known = [path.name for path in _study_folders(store)]
    if name not in known:
        raise unknown_name("study", name, known, "bench status")
    if name in claims.sessions:
        raise BenchError(f"{claims.sessions[name].holder} runs study '{name}' now; stop it before you remove the study")


def _of_study(store: Store, name: str, claims: StoreUsage) -> Iterator[Item]:
    """A study's folder first: whoever is killed after that leaves units that no study refers to."""
    yield Item(category=STUDY, path=store.study(name), study=name)
    for kind, identity in sorted(units_of(claims.studies.get(name, {}))):
        if _is_unit(path := store.unit(kind, identity)):
            yield Item(category=OWN_UNITS, path=path, unit=(kind, identity), study=name)


def _of_nobody(store: Store) -> Iterator[Item]:
    yield from _set_aside(store)
    yield from _unreferenced(store)
    yield from _checkpoints(store)
    yield from _temporary(store)
    yield from _leases(store)
    yield from _remains(store)


def _set_aside(store: Store) -> Iterator[Item]:
    for kind, path in _kind_folders(store):
        match = _STALE.fullmatch(path.name)
        if match is not None:
            yield Item(category=SET_ASIDE, path=path, unit=(kind, match["base"]))
        elif kind == "tuning":
            trials = (trial for trial in folders(path / "trials") if _STALE.fullmatch(trial.name))
            yield from (Item(category=SET_ASIDE, path=trial, unit=(kind, path.name)) for trial in trials)


def _unreferenced(store: Store) -> Iterator[Item]:
    for unit in units(store):
        yield Item(category=UNREFERENCED, path=store.unit(*unit), unit=unit)


def _checkpoints(store: Store) -> Iterator[Item]:
    for unit in units(store):
        folder = store.unit(*unit)
        for owner in (folder, *(folders(folder / "trials") if unit[0] == "tuning" else ())):
            if (path := owner / "checkpoints").is_dir() and not path.is_symlink():
                yield Item(category=CHECKPOINTS, path=path, unit=unit)


def _temporary(store: Store) -> Iterator[Item]:
    """Files that a process wrote under another name, to rename them, and did not."""
    now = file_system_now(store.root)
    for path in _hidden_files(store):
        if _age(path, now) > OLD_SECONDS:
            kind, *inner = path.relative_to(store.root).parts
            unit = next(((known, _without_mark(inner[0])) for known in KINDS if known == kind and len(inner) > 1), None)
            study = inner[0] if kind == "studies" and len(inner) > 1 else None
            yield Item(category=TEMPORARY, path=path, unit=unit, study=study)


def _hidden_files(store: Store) -> Iterator[Path]:
    yield from store.root.glob(".*.tmp")
    for name in (*KINDS, "studies", "leases"):
        folder = store.root / name
        for inner, _, files in os.walk(folder) if not folder.is_symlink() else ():
            yield from (Path(inner, file) for file in files if file.startswith(".") and file.endswith(".tmp"))


def _without_mark(name: str) -> str:
    match = _STALE.fullmatch(name)
    return name if match is None else match["base"]


def _leases(store: Store) -> Iterator[Item]:
    if not (folder := store.root / "leases").is_symlink():
        yield from (Item(category=DEAD_LEASES, path=path) for path in sorted(folder.glob("*.json")))


def _remains(store: Store) -> Iterator[Item]:
    for path in sorted(store.root.glob(f"{_SCRATCH}*")):
        if path.is_dir() and not path.is_symlink():
            yield Item(category=REMAINS, path=path)


def _outermost(items: Iterable[Item]) -> list[Item]:
    """The items that lie in no other one."""
    chosen = list(items)
    paths = {item.path for item in chosen}
    return [item for item in chosen if not paths.intersection(item.path.parents)]


def _links(store: Store) -> Iterator[str]:
    for name in (*KINDS, "studies", "leases"):
        if (store.root / name).is_symlink():
            yield f"'{store.root / name}' is a link and is left alone"


# --- what is free to go --------------------------------------------------------------------------------------------


def _is_free(store: Store, item: Item, claims: StoreUsage) -> bool:
    """Whether nobody needs an item, as things are now."""
    if item.unit in claims.in_use or item.study in claims.sessions:
        return False
    if item.category in (UNREFERENCED, OWN_UNITS) and item.unit is not None:
        return not claims.owners.get(item.unit, set()) - {item.study} and claims.doubt(without=item.study) is None
    if item.category == CHECKPOINTS:  # not those of failures, which `--retry` goes on from
        return _status(item.path.parent) in RESULTS
    if item.category == DEAD_LEASES:
        return item.path.stem not in claims.names
    return item.category != REMAINS or _is_remains(item.path, claims)


def _status(folder: Path) -> Any:
    return (read_checked(folder / "record.json") or {}).get("status")


def _is_remains(path: Path, claims: StoreUsage) -> bool:
    """Whether the command that made a scratch folder is gone; what is in the trash is nobody's anyway."""
    leased = path.name.removeprefix(".") in claims.names
    return path.name.startswith(_TRASH) or not (leased or _age(path, file_system_now(path.parent)) <= OLD_SECONDS)


def _age(path: Path, now: float) -> float:
    """Seconds since a file was written; 0 when it is gone."""
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0


# --- removing ------------------------------------------------------------------------------------------------------


def clean(store: Store, study: str | None = None) -> Cleaned:
    """Remove what may go, see `survey`.

    Raises:
        BenchError: There is no such store or study, the study is being run, or the store cannot be written.
    """
    store = _existing(store)
    found = survey(store, study)
    if not found.items:
        return Cleaned(removed=(), notes=found.notes, failures=())
    trash = make_scratch(store, "trash")
    moved, failures = _move(store, found.items, trash)
    removed = [(item, size_of(path)) for item, path in moved]
    shutil.rmtree(trash, ignore_errors=True)
    if trash.exists() and any(trash.iterdir()):
        failures.append(f"{trash} could not be deleted; remove it yourself")
    return Cleaned(removed=removed, notes=found.notes, failures=failures)


def make_scratch(store: Store, purpose: str) -> Path:
    """A new hidden folder of the store, which cleaning knows.

    Raises:
        BenchError: It cannot be made.
    """
    path = store.root / f"{_SCRATCH}{purpose}-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        raise BenchError(
            f"cannot write to '{store.root}': {error.strerror}; make it writable or give another store with --store DIR"
        ) from error
    return path


def _move(store: Store, items: Sequence[Item], trash: Path) -> tuple[list[tuple[Item, Path]], list[str]]:
    """Rename items into the trash that are free at that moment."""
    leases, waiting = Leases(store.root), iter(enumerate(items))
    moved: list[tuple[Item, Path]] = []
    failures: list[str] = []
    while batch := list(islice(waiting, _BATCH)):
        with leases.lock():
            claims = read_claims(store)
            for number, item in batch:
                target = trash / str(number)
                try:
                    if _is_free(store, item, claims):
                        item.path.rename(target)
                        moved.append((item, target))
                except FileNotFoundError:  # somebody else cleans too
                    continue
                except OSError as error:
                    failures.append(f"{item.path} could not be removed: {error.strerror}")
    return moved, failures


# --- sizes and folders -----------------------------------------------------------------------------------------------


def size_of(path: Path) -> int:
    """Bytes in a file or in all files of a folder; links count nothing."""
    if not path.is_dir() or path.is_symlink():
        return _file_size(path)
    return sum(_file_size(Path(inner, name)) for inner, _, files in os.walk(path) for name in files)


def _file_size(path: Path) -> int:
    with suppress(OSError):
        return 0 if path.is_symlink() else path.lstat().st_size
    return 0


def usage(store: Store) -> dict[str, int]:
    """Bytes that a store holds, by kind."""
    named = {name: size_of(store.root / name) for name in (*KINDS, "studies")}
    present = store.root.iterdir() if store.root.is_dir() else ()
    tracking = [path for path in present if path.name.startswith(("mlflow.db", "mlartifacts", "mlruns"))]
    named["MLflow"] = sum(map(size_of, tracking))
    return {**named, "other": max(0, size_of(store.root) - sum(named.values()))}


def human(size: float) -> str:
    """A size in words, e.g. "1.3 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, without links and hidden ones; none when it is itself a link or not there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    entries = sorted(folder.iterdir())
    return [path for path in entries if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]


def units(store: Store) -> list[UnitKey]:
    """Every pretraining, tuning and run that a store holds."""
    return [(kind, path.name) for kind, path in _kind_folders(store) if _is_unit(path)]


def _kind_folders(store: Store) -> Iterator[tuple[UnitKind, Path]]:
    for kind in KINDS:
        yield from ((kind, path) for path in folders(store.root / kind))


def _is_unit(path: Path) -> bool:
    """Whether a folder is a unit's, and neither set aside nor something that the harness did not make."""
    made = any((path / name).is_file() for name in _UNIT_FILES)
    return made and not path.is_symlink() and _STALE.fullmatch(path.name) is None


def _study_folders(store: Store) -> list[Path]:
    """Folders of studies; one that holds something besides its document has lost it."""
    return [path for path in folders(store.root / "studies") if any(file.name[0] != "." for file in path.iterdir())]
