"""The contract of a report: it turns the results of a study into tables and figures, which are shown in several forms.

A report is a class that is registered in the entry-point group `bench.reports`. The parts that it builds do not depend
on how they are shown. Renderers turn the same parts into every form, so that all forms show the same figures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.errors import BenchError
from bench.inputs.names import FileName, inside
from bench.outputs.terminal import Tone
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting.about import about_study
from bench.results.differences import write_numbers
from bench.results.tables import StudyResults
from bench.store.files import write_text

if TYPE_CHECKING:
    import altair

DEFAULT_REPORT = "comparison"
"""Report that `bench run` ends with."""
DEFAULT_WIDTH = 120
"""Columns of a terminal whose width is unknown."""
FIGURE_ENDINGS = ("svg", "pdf", "png")
"""Endings of the files into which a figure is drawn."""

_PAGE = "index"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Heading.
        align: Alignment of the cells.
        drop: Rank at which a narrow terminal drops the column, the highest first; 0 is never dropped. Columns that
            distinguish no rows go before all others.
        code: Whether the cells are for copying: commands, and names of folders.
        note: Line below the table that explains the column, in forms that show the column.
        toned: Whether the cells have the tone of their row, in forms with colours.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0
    code: bool = False
    note: str = ""
    toned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of finished strings, independent of how it is shown.

    Attributes:
        name: Name of its files, without suffix; unique among all parts of a study's reports.
        title: Line above the table.
        columns: Columns.
        rows: Cells of each row, one for each column; an unknown value is an empty cell.
        headline: Sentences above the table that state what it shows.
        notes: Lines below the table, after those of the columns.
        anchors: Name of each row, to which rows of other tables can link; or empty.
        links: Anchor that each row links to, in forms with links; or empty.
        folded: Whether a page shows only the title until the reader opens the table.
        tones: Meaning of each row for the columns that are toned; or empty.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    headline: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    anchors: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    folded: bool = False
    tones: tuple[Tone, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")
        for of_rows in (self.anchors, self.links, self.tones):
            if of_rows and len(of_rows) != len(self.rows):
                raise ValueError(f"{len(of_rows)} anchors, links or tones for a table of {len(self.rows)} rows")

    def explained(self, shown: Iterable[Column] | None = None) -> list[str]:
        """Return all lines below the table: the notes of the columns that are shown, each once, then its own.

        Args:
            shown: Columns that are shown; all when absent.
        """
        about = (column.note for column in (self.columns if shown is None else shown))
        return [*dict.fromkeys(filter(None, about)), *self.notes]

    def expendable(self) -> list[int]:
        """Return the columns that may be left out where space is short, the first to go first.

        Columns that distinguish no rows go before all others.
        """
        optional = [index for index, column in enumerate(self.columns) if column.drop]
        return sorted(optional, key=lambda index: (self._distinguishes(index), -self.columns[index].drop, -index))

    def without(self, columns: Iterable[int]) -> "Table":
        """Return the table without some of its columns."""
        kept = [index for index, _ in enumerate(self.columns) if index not in set(columns)]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[index] for index in kept), rows=rows)

    def _distinguishes(self, index: int) -> bool:
        return len({row[index] for row in self.rows if row[index]}) > 1

    def mapped(self, escape: Callable[[str], str], code: Callable[[str], str] | None = None) -> "Table":
        """Return the table with other texts, so that a form can show them as they are.

        Args:
            escape: Function that escapes a text for the form.
            code: Function for the cells of columns that are for copying; `escape` when absent.
        """
        by_column = [code if code is not None and column.code else escape for column in self.columns]
        return replace(
            self,
            title=escape(self.title),
            columns=tuple(
                replace(column, title=escape(column.title), note=escape(column.note)) for column in self.columns
            ),
            rows=tuple(tuple(text(cell) for text, cell in zip(by_column, row, strict=True)) for row in self.rows),
            headline=tuple(map(escape, self.headline)),
            notes=tuple(map(escape, self.notes)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure, drawn only where a form shows it.

    Attributes:
        name: Name of its files, without suffix; unique among all parts of a study's reports.
        title: Line above the figure.
        draw: Function that makes the chart (Vega-Lite), without a title. On a page a single view fills the width.
        notes: Lines below the figure.
        still: Function that makes the chart for files; needed when `draw` has a menu, which a file cannot have.
    """

    name: str
    title: str
    draw: Callable[[], "altair.TopLevelMixin"]
    notes: tuple[str, ...] = ()
    still: Callable[[], "altair.TopLevelMixin"] | None = None


Part = Table | Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The output of one report for a study.

    Attributes:
        name: Name of the report.
        title: Heading.
        parts: Tables and figures in the order in which they are shown.
        folded: Whether a page shows only the heading until the reader opens the section.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The output of several reports for a study.

    Attributes:
        study: Name of the study.
        sections: Sections of the reports that apply to the study.
        about: Task, progress and time of the study, in words.
        with_files: Whether the files of all tables and figures lie beside a page, so that it can link to them.
    """

    study: str
    sections: tuple[Section, ...]
    about: tuple[str, ...] = ()
    with_files: bool = False

    @property
    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Table)]

    @property
    def figures(self) -> list[Figure]:
        """All figures, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Figure)]


class Report(ABC):
    """Tables and figures that answer one question about a study.

    Attributes:
        summary: One line for `bench list reports`.
        title: Heading of the section.
        rank: Position among the sections, the lowest first.
        folded: Whether a page shows only the heading until the reader opens the section.
    """

    summary: ClassVar[str]
    title: ClassVar[str]
    rank: ClassVar[int] = 100
    folded: ClassVar[bool] = False

    @abstractmethod
    def build(self, results: StudyResults) -> Sequence[Part]:
        """Make the tables and figures; none when the report does not apply to the study.

        Args:
            results: Numbers of the study. Any of its files may be missing or damaged.
        """


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which tables and figures are shown; registered in the entry-point group `bench.forms`.

    Attributes:
        summary: One line for `bench list forms`.
        suffix: Suffix of files in this form; empty for a form that is not written to files.
        render: Function from a document and a width in characters, which only some forms respect, to the text.
        page: Whether one file shows a whole document with its figures; otherwise each table has a file of its own.
        in_color: The same as `render` with the colours of a terminal; `None` for forms without colours.
    """

    summary: str
    suffix: str
    render: Callable[[Document, int], str]
    page: bool = False
    in_color: Callable[[Document, int], str] | None = None


def make_document(results: StudyResults, names: Sequence[str] | None = None) -> Document:
    """Build the reports of a study.

    Args:
        results: Numbers of the study.
        names: Names of the reports; all reports that apply to the study when absent.

    Raises:
        BenchError: A name is unknown, or one of the named reports does not apply to the study.
    """
    reports = {name: load("reports", name)() for name in names or available("reports")}
    sections = []
    for name, report in sorted(reports.items(), key=lambda item: item[1].rank):
        parts = tuple(report.build(results))
        if parts:
            sections.append(Section(name=name, title=report.title, parts=parts, folded=report.folded))
        elif names:
            raise BenchError(
                f"the report '{name}' does not apply to study {results.name}: it is about {report.summary}; "
                "leave out --report to get all reports that apply"
            )
    return Document(study=results.name, sections=tuple(sections), about=about_study(results))


def write_document(document: Document, folder: Path) -> list[Path]:
    """Write a document in every form: pages, a file for each table, and the figures.

    Args:
        document: Document to write.
        folder: Folder for the files; made when absent.

    Returns:
        Paths of the files.
    """
    forms = [load("forms", name) for name in available("forms")]
    files = write_tables(document, folder)
    for form in forms:
        if form.page:
            files.append(folder / f"{_PAGE}{form.suffix}")
            write_text(files[-1], form.render(replace(document, with_files=True), DEFAULT_WIDTH))
    if document.figures:
        from bench.reporting.charts import save_all

        for figure in document.figures:
            chart = (figure.still or figure.draw)()
            names = [FileName(f"{figure.name}.{ending}") for ending in FIGURE_ENDINGS]
            files += save_all(chart, [inside(folder, name) for name in names])
    return files


def write_tables(document: Document, folder: Path) -> list[Path]:
    """Write a file for each table in each form that has files, and return their paths."""
    forms = [load("forms", name) for name in available("forms")]
    files = []
    for section in document.sections:
        for table in section.parts:
            alone = Document(study=document.study, sections=(Section(name=section.name, title="", parts=(table,)),))
            for form in forms:
                if isinstance(table, Table) and form.suffix and not form.page:
                    files.append(inside(folder, FileName(f"{table.name}{form.suffix}")))
                    write_text(files[-1], form.render(alone, DEFAULT_WIDTH))
    return files


def write_views(results: StudyResults) -> None:
    """Update the files in a study's folder: all numbers, and the tables of the comparison."""
    write_numbers(results)
    write_tables(make_document(results, [DEFAULT_REPORT]), results.store.study(results.name))
