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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.api import Column, Document, Figure, Form, Part, Table

_TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"[\[(~]?(?P<below><)?\s*(?P<number>[-+−]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)")
_MOST_ROWS = 2000
_UNPAGED = 200
"""Number of rows above which a table is divided into pages."""
_LONG = 34
"""Characters above which a cell is broken into lines."""


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
class ShownTable:
    """A table as the template shows it: see `bench.reporting.report.Table`.

    Attributes:
        identity: Id of the table in the page.
        title, headline, columns, notes: Texts of the table.
        rows: Id in the page, empty for none, and cells of each row.
        long: Whether the cells are broken into lines, for each column.
        paged: Whether the table is divided into pages.
    """

    identity: str
    title: str
    headline: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]
    long: tuple[bool, ...]
    paged: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownFigure:
    """A figure as the template shows it.

    Attributes:
        identity: Id of the figure in the page.
        title, notes: Texts of the figure.
        chart: Vega-Lite specification.
    """

    identity: str
    title: str
    notes: tuple[str, ...]
    chart: dict[str, Any]


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
        trim_blocks=True,
        lstrip_blocks=True,
    )
    anchors = _anchor_ids(document)
    sections = [(section, [_shown(part, anchors) for part in section.parts]) for section in document.sections]
    figures = [part for _, parts in sections for part in parts if isinstance(part, ShownFigure)]
    return environment.get_template("page.html").render(
        study=document.study,
        sections=sections,
        charts={figure.identity: figure.chart for figure in figures},
        colours=COLOURS,
        dark_colours=DARK_COLOURS,
        libraries=_libraries(),
    )


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


def _shown(part: Part, anchors: dict[str, str]) -> ShownTable | ShownFigure:
    from bench.reporting.charts import page_specification

    identity = f"part-{part.name}"
    if isinstance(part, Figure):
        chart = page_specification(part.draw())
        return ShownFigure(identity=identity, title=part.title, notes=part.notes, chart=chart)
    most = len(part.rows) if part.anchors else min(_MOST_ROWS, len(part.rows))
    left_out = f"The first {most} of {len(part.rows)} rows; all of them are in {part.name}.csv"
    return ShownTable(
        identity=identity,
        title=part.title,
        headline=part.headline,
        columns=part.columns,
        rows=tuple(_row(part, number, anchors) for number in range(most)),
        notes=(*([left_out] if len(part.rows) > most else []), *part.explained()),
        long=tuple(any(len(row[index]) > _LONG for row in part.rows) for index, _ in enumerate(part.columns)),
        paged=len(part.rows) > _UNPAGED and not part.anchors,
    )


def _row(table: Table, number: int, anchors: dict[str, str]) -> tuple[str, tuple[Cell, ...]]:
    link = anchors.get(table.links[number], "") if table.links else ""
    cells = (
        Cell(text=text, order=sort_value(text) if column.align == "right" else None, link=link)
        for column, text in zip(table.columns, table.rows[number], strict=True)
    )
    return anchors.get(table.anchors[number], "") if table.anchors else "", tuple(cells)


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
