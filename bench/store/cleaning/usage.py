"""Usage of a store: which processes work on which units, and which studies refer to which units."""

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.outputs.commands import command
from bench.store.contents import KINDS, UnitKey, study_folders, units_of
from bench.store.files import Store
from bench.store.leases import SESSION, Leases, LeaseView

OLD_SECONDS = 600.0
"""Age from which a file counts as abandoned: no process is writing it any more."""

_SETTLED_BEATS = 15
"""Signs of life after which a command has certainly written down which units its study consists of."""
_SESSION_LEASE = re.compile(rf"{SESSION}(?P<study>.+)-[0-9a-f]{{8}}")


@dataclass(frozen=True, kw_only=True)
class StoreUsage:
    """Who works on what, and which study refers to what, at one moment.

    Attributes:
        root: Folder of the store.
        living: Leases of holders that are not known to be dead.
        unreadable: Names of young lease files that cannot be read; their holders may be alive.
        studies: Documents of the studies, by name.
        damaged: Names of studies whose document is damaged or missing.
    """

    root: Path
    living: Sequence[LeaseView]
    unreadable: Sequence[str] = ()
    studies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    damaged: Sequence[str] = ()

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all leases that may be held."""
        return frozenset({*(view.name for view in self.living), *self.unreadable})

    @cached_property
    def sessions(self) -> Mapping[str, LeaseView]:
        """The lease of one living command for each study that is being run."""
        matches = ((_SESSION_LEASE.fullmatch(view.name), view) for view in self.living)
        return {match["study"]: view for match, view in matches if match is not None}

    @cached_property
    def in_use(self) -> frozenset[UnitKey]:
        """Units that a process works on, and all units of studies that are being run."""
        held = {unit for name in self.names if (unit := leased_unit(name)) is not None}
        running = (units_of(self.studies[name]) for name in self.sessions if name in self.studies)
        return frozenset(held.union(*running))

    @cached_property
    def owners(self) -> Mapping[UnitKey, set[str]]:
        """Names of the studies that refer to each unit."""
        studies_by_unit: dict[UnitKey, set[str]] = {}
        for name, document in self.studies.items():
            for unit in units_of(document):
                studies_by_unit.setdefault(unit, set()).add(name)
        return studies_by_unit

    def doubt(self, *, without: str | None = None) -> str | None:
        """Explain why it is not certain which units no study refers to; `None` when it is.

        Args:
            without: Name of a study that is about to be removed, so that its own units do not matter.
        """
        damaged = sorted(set(self.damaged) - {without})
        if damaged:
            return (
                f"the study.json of {', '.join(damaged)} is damaged or missing, so units that no study refers to are "
                "left alone; run that study's command again, or remove it: "
                f"`{command('clean', damaged[0], '--yes', store=self.root)}`"
            )
        for name, view in self.sessions.items():
            if name not in self.studies or view.beat < _SETTLED_BEATS:
                return f"{view.holder} has just begun to run study {name}: units are left alone; try again in a minute"
        return None


def read_usage(store: Store) -> StoreUsage:
    """Read who works on what, and which study refers to what, at this moment."""
    leases, now = Leases(store.root), file_system_now(store.root)
    living, unreadable = [], []
    for path in sorted(leases.folder.glob("*.json")):
        view = leases.read(path.stem)
        if view is None and age_of(path, now) <= OLD_SECONDS:
            unreadable.append(path.stem)
        elif view is not None and not is_gone(leases, view):
            living.append(view)
    documents = {path.name: store.study_document(path.name) for path in study_folders(store)}
    return StoreUsage(
        root=store.root,
        living=living,
        unreadable=unreadable,
        studies={name: document for name, document in documents.items() if document is not None},
        damaged=[name for name, document in documents.items() if document is None],
    )


def is_gone(leases: Leases, view: LeaseView) -> bool:
    """Return whether a lease's holder is gone: dead, or on another machine and silent for `OLD_SECONDS`.

    A single look cannot tell more of holders on other machines. Both times come from the clock that stamps the store's
    files.
    """
    return leases.is_dead(view) or (view.holder.is_alive() is None and leases.age(view) > OLD_SECONDS)


def leased_unit(name: str) -> UnitKey | None:
    """Return the unit that a lease of this name protects; `None` for other leases."""
    kind, _, identity = name.partition("-")
    if kind == "trials":
        return "tuning", identity.rpartition("-")[0]
    return next(((known, identity) for known in KINDS if known == kind), None)


def file_system_now(folder: Path) -> float:
    """Return the time of the clock that stamps files in a folder, or this machine's when the folder is read-only."""
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return time.time()


def age_of(path: Path, now: float) -> float:
    """Return the seconds since a file was written; 0 when it does not exist any more."""
    try:
        return now - path.lstat().st_mtime
    except OSError:
        return 0.0
