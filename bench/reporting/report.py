"""The contract of a report: from the run folders of a study to tables and figures, from there to several forms.

A report is a class registered in the entry-point group `bench.reports`. It builds parts, which know nothing of how
they are shown; renderers turn the same parts into each form, so that the forms cannot disagree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.errors import BenchError
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.results.tables import StudyResults
from bench.store.files import write_text

if TYPE_CHECKING:
    import altair

DEFAULT_REPORT = "comparison"
"""What `bench run` ends with."""
DEFAULT_WIDTH = 120
"""Columns of a terminal whose width is unknown."""
FIGURE_ENDINGS = ("svg", "pdf", "png")
"""Of the files in which figures are kept."""

_PAGE = "index"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: Its heading.
        align: Where its cells stand.
        drop: 0 is always shown; of the others the highest goes first when a terminal is too narrow.
        code: Whether its cells are to be copied rather than read: commands, and names of folders.
    """

    title: str
    align: Literal["left", "right"] = "right"
    drop: int = 0
    code: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of finished strings, independent of how it is shown.

    Attributes:
        name: Of its files, without suffix; no two parts of a study's reports share one.
        title: One line above it.
        columns: Its columns.
        rows: For each row one cell a column; an empty cell has nothing to say.
        notes: Lines below it.
        anchors: For each row the name under which rows of other tables point to it; or nothing at all.
        links: For each row the anchor of the row that it points to, where a form can; or nothing at all.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = field(default=())
    anchors: tuple[str, ...] = ()
    links: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns: {row}")
        for names in (self.anchors, self.links):
            if names and len(names) != len(self.rows):
                raise ValueError(f"{len(names)} anchors or links for a table of {len(self.rows)} rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure, drawn only where a form shows it.

    Attributes:
        name: Of its files, without suffix; no two parts of a study's reports share one.
        title: One line above it.
        draw: Makes the chart, without title; Vega-Lite, interactive on a page and still in a file. On a page a single
            view gets the page's width.
        notes: Lines below it.
        still: Makes the chart for files where it must be another one, since nothing can be chosen in a file.
    """

    name: str
    title: str
    draw: Callable[[], "altair.TopLevelMixin"]
    notes: tuple[str, ...] = ()
    still: Callable[[], "altair.TopLevelMixin"] | None = None


Part = Table | Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What one report says of a study.

    Attributes:
        name: Of the report.
        title: Its question, in a few words.
        parts: In the order in which they are shown.
    """

    name: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What several reports say of a study.

    Attributes:
        study: Name of the study.
        sections: One for each report that has something to say.
    """

    study: str
    sections: tuple[Section, ...]

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
        title: Heading of its section.
        rank: Sections stand in this order.
    """

    summary: ClassVar[str]
    title: ClassVar[str]
    rank: ClassVar[int] = 100

    @abstractmethod
    def build(self, results: StudyResults) -> Sequence[Part]:
        """What the report has to say of a study, of which any part may be missing; nothing when it does not apply.

        Args:
            results: The study's numbers.
        """


@dataclass(frozen=True, slots=True)
class Form:
    """One form in which tables and figures can be shown; registered in the entry-point group `bench.forms`.

    Attributes:
        summary: One line for `bench list forms`.
        suffix: Of files in this form; empty for a form that is not written to files.
        render: From a document and a width in characters, which only some forms respect, to the text.
        page: Whether one file shows a whole document, figures and all; otherwise each table has its own.
    """

    summary: str
    suffix: str
    render: Callable[[Document, int], str]
    page: bool = False


def make_document(results: StudyResults, names: Sequence[str] | None = None) -> Document:
    """What reports say of a study.

    Args:
        results: The study's numbers.
        names: Of the reports; all when absent, but for those that have nothing to say.

    Raises:
        BenchError: A name is unknown, or one of the named reports has nothing to say of this study.
    """
    reports = {name: load("reports", name)() for name in names or available("reports")}
    sections = []
    for name, report in sorted(reports.items(), key=lambda item: item[1].rank):
        parts = tuple(report.build(results))
        if parts:
            sections.append(Section(name=name, title=report.title, parts=parts))
        elif names:
            raise BenchError(
                f"the report '{name}' has nothing to say of study {results.name}: it is for {report.summary}; "
                "leave out --report for those that do"
            )
    return Document(study=results.name, sections=tuple(sections))


def write_document(document: Document, folder: Path) -> list[Path]:
    """Write a document in every form that there is: pages, a file for each table, and the figures.

    Args:
        document: What is to be written.
        folder: Is made when absent.

    Returns:
        The files.
    """
    forms = [load("forms", name) for name in available("forms")]
    files = write_tables(document, folder)
    for form in forms:
        if form.page:
            files.append(folder / f"{_PAGE}{form.suffix}")
            write_text(files[-1], form.render(document, DEFAULT_WIDTH))
    if document.figures:
        from bench.reporting.charts import save

        for figure in document.figures:
            chart = (figure.still or figure.draw)()
            files += [save(chart, folder / f"{figure.name}.{ending}") for ending in FIGURE_ENDINGS]
    return files


def write_tables(document: Document, folder: Path) -> list[Path]:
    """Write a file for each table in each form that has files; returns the files."""
    forms = [load("forms", name) for name in available("forms")]
    files = []
    for section in document.sections:
        for table in section.parts:
            alone = Document(study=document.study, sections=(Section(name=section.name, title="", parts=(table,)),))
            for form in forms:
                if isinstance(table, Table) and form.suffix and not form.page:
                    files.append(folder / f"{table.name}{form.suffix}")
                    write_text(files[-1], form.render(alone, DEFAULT_WIDTH))
    return files


def write_views(results: StudyResults) -> None:
    """Bring the files in a study's folder up to date: all numbers, and the tables of the comparison."""
    results.write()
    write_tables(make_document(results, [DEFAULT_REPORT]), results.store.study(results.name))
