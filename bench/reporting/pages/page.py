"""A page as its template shows it, and the template itself."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.errors import escaped
from bench.reporting.pages.assets import TEMPLATES, Assets
from bench.reporting.report import Column, Table

_NUMBER = re.compile(r"[\[(~]?(?P<below><)?\s*(?P<number>[-+−]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)")
_MOST_ROWS = 2000
_UNSEARCHED = 12
"""Number of rows above which a table has a field for a text that rows must have."""
_UNPAGED = 200
"""Number of rows above which a table is divided into pages."""
_LONG = 34
"""Characters above which a cell is broken into lines."""
_MOST_COLUMNS = 9
"""Number of columns that a table shows until the reader asks for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyph:
    """The mark of a method.

    Attributes:
        colour: Number of the colour among those of methods, from 1.
        path: Outline in a square of 10 by 10 around the origin, as SVG writes paths.
    """

    colour: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Whisker:
    """A difference with its interval on a scale that all rows share; positions are from 0 to 100.

    Attributes:
        at, low, high: Positions of the mean and of the ends of the interval; both ends are the mean's without one.
        zero: Position of no difference.
        glyph: Mark of the method.
        words: The difference in words, for those who do not see it.
    """

    at: float
    low: float
    high: float
    zero: float
    glyph: Glyph
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Text of the cell.
        order: Number by which the cell is sorted; empty for no number, `None` to sort by the text.
        link: Address that the text leads to; empty for none.
        title: Text that is shown when the pointer rests on the cell; empty for none.
        copies: Id of the row whose command a button copies; empty for no button.
        glyph: Mark before the text.
        whisker: Drawing before the text.
    """

    text: str
    order: str | None = None
    link: str = ""
    title: str = ""
    copies: str = ""
    glyph: Glyph | None = None
    whisker: Whisker | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a table.

    Attributes:
        cells: Cells of the row.
        identity: Id in the page; empty for none.
        values: Values by which the filters of the page find the row, by the name of the filter.
        faint: Whether the row is shown as less important.
    """

    cells: tuple[Cell, ...]
    identity: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    faint: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTable:
    """A table: see `bench.reporting.report.Table`.

    Attributes:
        identity: Id of the table in the page.
        title, headline, columns, notes: Texts of the table.
        explanations: Notes of the columns, which the reader opens.
        rows: Rows of the table.
        long: Whether the cells are broken into lines, for each column.
        hidden: Columns that are shown when the reader asks for them.
        paged: Whether the table is divided into pages.
        folded: Whether the reader opens the table.
        files: Names of its files beside the page.
        searched: Whether there is a field for a text that rows must have.
    """

    identity: str
    title: str
    headline: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    explanations: tuple[str, ...]
    long: tuple[bool, ...]
    hidden: frozenset[int]
    paged: bool
    folded: bool
    files: tuple[str, ...]
    searched: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownList:
    """A list of terms, each with a text.

    Attributes:
        identity: Id of the list in the page.
        terms: Terms and texts; a term that is the one before it is not repeated.
    """

    identity: str
    terms: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFigure:
    """A figure.

    Attributes:
        identity: Id of the figure in the page.
        title, notes: Texts of the figure.
        chart: Vega-Lite specification.
        files: Names of its files beside the page.
    """

    identity: str
    title: str
    notes: tuple[str, ...]
    chart: dict[str, Any]
    files: tuple[str, ...]


ShownPart = ShownTable | ShownFigure | ShownList


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSection:
    """A section of a page.

    Attributes:
        name: Id in the page.
        title: Heading.
        parts: Tables, figures and lists.
        folded: Whether the reader opens the section.
    """

    name: str
    title: str
    parts: tuple[ShownPart, ...]
    folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page.

    Attributes:
        title: Title of the browser's window.
        heading: Heading of the page.
        sections: Sections in their order.
        about: What the page is about, in a few short texts.
        way: Texts and addresses of the pages above this one, the highest first.
        filters: Values to choose among, by the name of the filter.
    """

    title: str
    heading: str
    sections: Sequence[ShownSection]
    about: Sequence[str] = ()
    way: Sequence[tuple[str, str]] = ()
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)


def render(page: Page, assets: Assets) -> str:
    """Return a page as HTML, with escapes for all that is not the template's own."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = [part for section in page.sections for part in section.parts]
    charts = {part.identity: part.chart for part in parts if isinstance(part, ShownFigure)}
    return environment.get_template("page.html").render(page=page, charts=charts, assets=assets)


def _visible(value: Any) -> Any:
    """Escape what cannot be seen in a text of a study; the template's texts that are HTML already have another type."""
    return escaped(value) if type(value) is str else value


def sort_value(text: str) -> str:
    """Return the number by which a cell is sorted: the first one in it, or "" for none; "<0.001" sorts below 0.001."""
    match = _NUMBER.match(text)
    if match is None:
        return ""
    value = float(match["number"].replace("−", "-"))
    return repr(math.nextafter(value, -math.inf) if match["below"] else value)


def cell_of(column: Column, text: str) -> Cell:
    """Return a cell with a text and nothing else; columns of numbers are sorted by them."""
    return Cell(text=text, order=sort_value(text) if column.align == "right" else None)


def shown_rows(table: Table) -> int:
    """Return the number of rows that a page has of a table; rows that others link to are always there."""
    return len(table.rows) if table.anchors else min(_MOST_ROWS, len(table.rows))


def shown_table(
    table: Table, rows: Sequence[Row], *, files: tuple[str, ...] = (), searched: bool = False
) -> ShownTable:
    """Return a table as a page shows it.

    Args:
        table: The table.
        rows: Its rows, as many as `shown_rows`.
        files: Names of its files beside the page.
        searched: Whether it has a field for a text even with few rows.
    """
    left_out = f"The first {len(rows)} of {len(table.rows)} rows; all of them are in {table.name}.csv"
    return ShownTable(
        identity=f"part-{table.name}",
        title=table.title,
        headline=table.headline,
        columns=table.columns,
        rows=tuple(rows),
        notes=(*([left_out] if len(table.rows) > len(rows) else []), *table.notes),
        explanations=tuple(dict.fromkeys(column.note for column in table.columns if column.note)),
        long=tuple(any(len(row[index]) > _LONG for row in table.rows) for index, _ in enumerate(table.columns)),
        hidden=frozenset(table.expendable()[: max(0, len(table.columns) - _MOST_COLUMNS)]),
        paged=len(table.rows) > _UNPAGED and not table.anchors,
        folded=table.folded,
        files=files,
        searched=searched or len(rows) > _UNSEARCHED,
    )
