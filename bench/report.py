"""The contract of a report: from the run folders of a study to a table, from there to several forms of text.

A report is a class registered in the entry-point group `bench.reports`. It builds a `Table`, which knows
nothing of how it is shown; renderers turn the same strings into each form, so that the forms cannot disagree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.errors import unknown_name
from bench.store import Store, write_text

DEFAULT_WIDTH = 120
"""Columns of a terminal whose width is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        align: Where its cells stand.
        drop: 0 is always shown; of the others the highest goes first when a terminal is too narrow.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of finished strings, independent of how it is shown.

    Attributes:
        title: One line above it.
        columns: Its columns.
        rows: For each row one cell a column; an empty cell has nothing to say.
        notes: Lines below it.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")


@dataclass(frozen=True, slots=True)
class Renderer:
    """One form in which a table can be written.

    Attributes:
        suffix: Of files in this form; empty for a form that is not written to files.
        render: From a table and a width in characters, which only some forms respect, to the text.
    """

    suffix: str
    render: Callable[[Table, int], str]


class Report(ABC):
    """A table or figure of a study.

    Attributes:
        summary: One line for `bench list reports`.
        stem: Name, without suffix, of the files that it keeps in the study's folder.
        renderers: The forms in which it can be shown, by name.
    """

    summary: ClassVar[str]
    stem: ClassVar[str]
    renderers: ClassVar[Mapping[str, Renderer]]

    @abstractmethod
    def build(self, store: Store, study: Mapping[str, Any]) -> Table:
        """The report of a study, of which any part may be missing.

        Args:
            store: Where the runs are.
            study: The study's document.
        """

    def render(self, table: Table, form: str, width: int = DEFAULT_WIDTH) -> str:
        """The text of a table.

        Args:
            table: What `build` returned.
            form: Name of a renderer, e.g. "terminal".
            width: Characters a line, for forms that respect it.

        Raises:
            BenchError: The report has no such form.
        """
        if form not in self.renderers:
            raise unknown_name("form of the report", form, self.renderers, "bench report --help")
        return self.renderers[form].render(table, width)

    def write(self, store: Store, study: Mapping[str, Any]) -> list[Path]:
        """Write every form that has a file into the study's folder; returns the files."""
        table, folder = self.build(store, study), store.study(str(study["name"]))
        kept = {form: renderer.suffix for form, renderer in self.renderers.items() if renderer.suffix}
        files = [folder / f"{self.stem}{suffix}" for suffix in kept.values()]
        for form, file in zip(kept, files, strict=True):
            write_text(file, self.render(table, form))
        return files
