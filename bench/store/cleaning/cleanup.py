"""Removal of what no study and no process needs, safe beside other commands that use the store.

An item is first renamed into a hidden folder of the store, under the lock of the leases and only if it is still free at
that moment; it is deleted after that. A command that is killed in between leaves a hidden folder, which the next
cleaning removes. Of two commands that clean at the same time, each item is renamed by one.
"""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.errors import BenchError
from bench.store.cleaning.survey import SCRATCH, Item, existing, is_free, survey
from bench.store.cleaning.usage import read_usage
from bench.store.contents import size_of
from bench.store.files import Store
from bench.store.leases import Leases

_BATCH = 50
"""Number of items that are moved under one hold of the lock, which other processes need every few seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """Outcome of a cleaning.

    Attributes:
        removed: Removed items, with their sizes in bytes.
        notes: Reasons why something was left alone, one line each.
        failures: Errors of items that could not be removed, one line each.
    """

    removed: Sequence[tuple[Item, int]]
    notes: Sequence[str]
    failures: Sequence[str]


def clean(store: Store, study: str | None = None) -> Cleaned:
    """Remove everything that `survey` finds.

    Raises:
        BenchError: The store or the study does not exist, the study is being run, or the store cannot be written.
    """
    store = existing(store)
    removable = survey(store, study)
    if not removable.items:
        return Cleaned(removed=(), notes=removable.notes, failures=())
    trash = make_scratch(store, "trash")
    moved, failures = _move(store, removable.items, trash)
    removed = [(item, size_of(path)) for item, path in moved]
    shutil.rmtree(trash, ignore_errors=True)
    if trash.exists() and any(trash.iterdir()):
        failures.append(f"{trash} could not be deleted; remove it yourself")
    return Cleaned(removed=removed, notes=removable.notes, failures=failures)


def make_scratch(store: Store, purpose: str) -> Path:
    """Make a new hidden folder in the store; `survey` finds it when its command is killed.

    Raises:
        BenchError: The store cannot be written.
    """
    path = store.root / f"{SCRATCH}{purpose}-{secrets.token_hex(4)}"
    try:
        path.mkdir()
    except OSError as error:
        raise BenchError(
            f"cannot write to '{store.root}': {error.strerror}; make it writable or give another store with --store DIR"
        ) from error
    return path


def _move(store: Store, items: Sequence[Item], trash: Path) -> tuple[list[tuple[Item, Path]], list[str]]:
    """Rename those items into the trash that are still free."""
    leases, waiting = Leases(store.root), iter(enumerate(items))
    moved: list[tuple[Item, Path]] = []
    failures: list[str] = []
    while batch := list(islice(waiting, _BATCH)):
        with leases.lock():
            usage = read_usage(store)
            for number, item in batch:
                target = trash / str(number)
                try:
                    if is_free(store, item, usage):
                        item.path.rename(target)
                        moved.append((item, target))
                except FileNotFoundError:  # another command removed it
                    continue
                except OSError as error:
                    failures.append(f"{item.path} could not be removed: {error.strerror}")
    return moved, failures
