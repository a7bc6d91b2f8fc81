"""What a process is asked to work on, and who is told how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.store.files import Status, Store, UnitKind


class Watcher(Protocol):
    """Is told how the work goes on."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """An epoch of a phase ended, with its figures."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a process is to work on: a unit whose specification lies in its folder.

    Attributes:
        kind, identity: The unit.
        title: The same in words.
        store: The store's folder.
        data_dir: Where data sets are looked for.
        data_checksum: Of the data that the study is planned with.
        retry: Failures that are to be tried again.
        card: The graphics card that the process may see; all of them when absent.
    """

    kind: UnitKind
    identity: str
    title: str
    store: Path
    data_dir: Path | None
    data_checksum: str
    retry: frozenset[Status] = frozenset()
    card: str | None = None

    @property
    def lease_name(self) -> str:
        """The name of the unit's lease."""
        return f"{self.kind}-{self.identity}"

    @property
    def folder(self) -> Path:
        """The unit's folder."""
        return Store(self.store).unit(self.kind, self.identity)
