"""The HTML form: a single page with sortable tables and interactive charts, which works without a network.

The file contains its libraries once: DataTables (through itables) and Vega-Lite (through vl-convert). Texts from a
study are not trusted: the template escapes them, the data of charts are JSON in which no tag can end, and the page's
content security policy forbids the browser to run any other script and to fetch anything.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.api import Column, Document, Figure, Form, Part, Table
from bench.errors import escaped

_TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"[\[(~]?(?P<below><)?\s*(?P<number>[-+−]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)")
_MOST_ROWS = 2000
_UNPAGED = 200
"""Number of rows above which a table is divided into pages."""
_LONG = 34
"""Characters above which a cell is broken into lines."""
_MOST_COLUMNS = 9
"""Number of columns that a table shows until the reader asks for more."""
_FIGURE_FILES, _TABLE_FILES = ("svg", "pdf"), ("csv", "md", "tex")
"""Endings of the files beside the page that each part links to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell as the template shows it.

    Attributes:
        text: Text of the cell.
        order: Number by which the cell is sorted; empty for no number, `None` to sort by the text.
        link: Target within the page; empty for no link.
    """

    text: str
    order: str | None
    link: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row as the template shows it.

    Attributes:
        identity: Id in the page; empty for none.
        cells: Cells of the row.
        method, budget: Values by which the page's filters find the row; empty where the table has no such column.
    """

    identity: str
    cells: tuple[Cell, ...]
    method: str
    budget: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTable:
    """A table as the template shows it: see `bench.reporting.report.Table`.

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
    """

    identity: str
    title: str
    headline: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple["Row", ...]
    notes: tuple[str, ...]
    explanations: tuple[str, ...]
    long: tuple[bool, ...]
    hidden: frozenset[int]
    paged: bool
    folded: bool
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFigure:
    """A figure as the template shows it.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Libraries:
    """The style sheet and scripts that the page contains.

    Attributes:
        style: Style sheet of tables.
        modules: Import map with the module of tables as a data URL.
        charts: Script of charts.
        own: Script of the page, which starts tables and charts.
    """

    style: str
    modules: str
    charts: str
    own: str

    @property
    def policy(self) -> str:
        """Content security policy: the browser may run these scripts and no others, and may fetch nothing."""
        scripts = " ".join(f"'sha256-{_hash(script)}'" for script in (self.modules, self.charts, self.own))
        return f"default-src 'none'; script-src {scripts} data:; style-src 'unsafe-inline'; img-src data:"


def page(document: Document, _: int = 0) -> str:
    """Render a document as one page.

    Args:
        document: Document to show.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from bench.reporting.charts import COLOURS, DARK_COLOURS

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    anchors = _anchor_ids(document)
    shown = {part.name: _shown(part, anchors, with_files=document.with_files) for part in _parts(document)}
    sections = [(section, [shown[part.name] for part in section.parts]) for section in document.sections]
    figures = [part for part in shown.values() if isinstance(part, ShownFigure)]
    tables = (part.rows for part in shown.values() if isinstance(part, ShownTable))
    rows = next((rows for rows in tables if any(row.method for row in rows)), ())  # the first one has all methods
    return environment.get_template("page.html").render(
        study=document.study,
        about=document.about,
        methods=list(dict.fromkeys(row.method for row in rows if row.method)),
        budgets=list(dict.fromkeys(row.budget for row in rows if row.budget)),
        sections=sections,
        charts={figure.identity: figure.chart for figure in figures},
        colours=COLOURS,
        dark_colours=DARK_COLOURS,
        libraries=_libraries(),
    )


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


def _anchor_ids(document: Document) -> dict[str, str]:
    """Return an id in the page for each anchor, made of plain letters only."""
    anchors = [anchor for table in document.tables for anchor in table.anchors if anchor]
    return {anchor: f"line-{number}" for number, anchor in enumerate(dict.fromkeys(anchors), 1)}


def _parts(document: Document) -> Iterator[Part]:
    for section in document.sections:
        yield from section.parts


def _shown(part: Part, anchors: dict[str, str], *, with_files: bool) -> ShownTable | ShownFigure:
    from bench.reporting.charts import page_specification

    identity = f"part-{part.name}"
    endings = _FIGURE_FILES if isinstance(part, Figure) else _TABLE_FILES
    files = tuple(f"{part.name}.{ending}" for ending in endings) if with_files else ()
    if isinstance(part, Figure):
        described = {"description": escaped(". ".join([part.title, *part.notes]))}
        chart = page_specification(part.draw()) | described
        return ShownFigure(identity=identity, title=part.title, notes=part.notes, chart=chart, files=files)
    most = len(part.rows) if part.anchors else min(_MOST_ROWS, len(part.rows))
    left_out = f"The first {most} of {len(part.rows)} rows; all of them are in {part.name}.csv"
    return ShownTable(
        identity=identity,
        title=part.title,
        headline=part.headline,
        columns=part.columns,
        rows=tuple(_row(part, number, anchors) for number in range(most)),
        notes=(*([left_out] if len(part.rows) > most else []), *part.notes),
        explanations=tuple(dict.fromkeys(column.note for column in part.columns if column.note)),
        long=tuple(any(len(row[index]) > _LONG for row in part.rows) for index, _ in enumerate(part.columns)),
        hidden=frozenset(part.expendable()[: max(0, len(part.columns) - _MOST_COLUMNS)]),
        paged=len(part.rows) > _UNPAGED and not part.anchors,
        folded=part.folded,
        files=files,
    )


def _row(table: Table, number: int, anchors: dict[str, str]) -> Row:
    link = anchors.get(table.links[number], "") if table.links else ""
    texts = dict(zip([column.title for column in table.columns], table.rows[number], strict=True))
    cells = (
        Cell(text=text, order=sort_value(text) if column.align == "right" else None, link=link)
        for column, text in zip(table.columns, table.rows[number], strict=True)
    )
    return Row(
        identity=anchors.get(table.anchors[number], "") if table.anchors else "",
        cells=tuple(cells),
        method=texts.get("Method", ""),
        budget=texts.get("Budget", ""),
    )


@cache
def _libraries() -> _Libraries:
    from importlib.resources import files

    import vl_convert

    from bench.reporting.charts import vega_lite_version

    folder = files("itables") / "html"
    module = base64.b64encode((folder / "dt_bundle.js").read_bytes()).decode()
    charts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version())
    return _Libraries(
        style=_enclosed((folder / "dt_bundle.css").read_text(encoding="utf-8"), "style", "\\3c "),
        modules=json.dumps({"imports": {"itables": f"data:text/javascript;base64,{module}"}}),
        charts=_enclosed(charts, "script", "\\x3c"),
        own=(_TEMPLATES / "page.js").read_text(encoding="utf-8"),
    )


def _enclosed(text: str, element: str, less: str) -> str:
    """Escape a library's text, so that nothing in its strings and comments ends the element around it.

    Args:
        text: Text of the library.
        element: Name of the element.
        less: Escape of "<" in strings of the library's language.
    """
    plain = text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it
    return re.sub(rf"<(?=/{element}|!--)", lambda _: less, plain, flags=re.IGNORECASE)


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


HTML = Form("one page with sortable tables and interactive charts, for any browser, offline", ".html", page, page=True)
