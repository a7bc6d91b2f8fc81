"""The HTML form: a single page with sortable tables and interactive charts, which works without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.api import Document, Figure, Form, Part, Table
from bench.errors import escaped
from bench.reporting.pages.assets import inline_assets
from bench.reporting.pages.page import (
    Page,
    Row,
    ShownFigure,
    ShownPart,
    ShownSection,
    ShownTable,
    cell_of,
    render,
    shown_rows,
    shown_table,
)

_FIGURE_FILES, _TABLE_FILES = ("svg", "pdf"), ("csv", "md", "tex")
"""Endings of the files beside the page that each part links to."""
_FILTERS = {"budget": ("Budget", 2), "method": ("Method", 3)}
"""Columns by whose values the page is filtered, and the fewest values that make a filter worth having."""


def page(document: Document, _: int = 0) -> str:
    """Render a document as one page.

    Args:
        document: Document to show.
    """
    anchors = _anchor_ids(document)
    sections = [
        ShownSection(
            name=section.name,
            title=section.title,
            parts=tuple(_shown(part, anchors, with_files=document.with_files) for part in section.parts),
            folded=section.folded,
        )
        for section in document.sections
    ]
    shown = Page(
        title=f"{document.study}: compression at matched budgets",
        heading=document.study,
        about=document.about,
        sections=sections,
        filters=_filters([part for section in sections for part in section.parts]),
    )
    return render(shown, inline_assets(charts=True))


def _filters(parts: Sequence[ShownPart]) -> Mapping[str, Sequence[str]]:
    """Return the budgets and methods to choose among: those of the first table of methods, which has them all."""
    tables = (part.rows for part in parts if isinstance(part, ShownTable))
    rows = next((rows for rows in tables if any(row.values.get("method") for row in rows)), ())
    values = {name: list(dict.fromkeys(filter(None, (row.values[name] for row in rows)))) for name in _FILTERS}
    enough = any(len(values[name]) >= fewest for name, (_, fewest) in _FILTERS.items())
    return {name: known for name, known in values.items() if len(known) > 1} if enough else {}


def _anchor_ids(document: Document) -> dict[str, str]:
    """Return an id in the page for each anchor, made of plain letters only."""
    anchors = [anchor for table in document.tables for anchor in table.anchors if anchor]
    return {anchor: f"line-{number}" for number, anchor in enumerate(dict.fromkeys(anchors), 1)}


def _shown(part: Part, anchors: Mapping[str, str], *, with_files: bool) -> ShownPart:
    endings = _FIGURE_FILES if isinstance(part, Figure) else _TABLE_FILES
    files = tuple(f"{part.name}.{ending}" for ending in endings) if with_files else ()
    if isinstance(part, Table):
        return shown_table(part, [_row(part, number, anchors) for number in range(shown_rows(part))], files=files)
    from bench.reporting.charts import page_specification

    described = {"description": escaped(". ".join([part.title, *part.notes]))}
    chart = page_specification(part.draw()) | described
    return ShownFigure(identity=f"part-{part.name}", title=part.title, notes=part.notes, chart=chart, files=files)


def _row(table: Table, number: int, anchors: Mapping[str, str]) -> Row:
    """Return a row; its first cell leads to how the row was obtained, whose command can be copied."""
    target = anchors.get(table.links[number], "") if table.links else ""
    texts = dict(zip([column.title for column in table.columns], table.rows[number], strict=True))
    cells = [cell_of(column, text) for column, text in zip(table.columns, table.rows[number], strict=True)]
    if target and cells[0].text:
        cells[0] = replace(cells[0], link=f"#{target}", title="How this was obtained", copies=target)
    return Row(
        identity=anchors.get(table.anchors[number], "") if table.anchors else "",
        cells=tuple(cells),
        values={name: texts.get(title, "") for name, (title, _) in _FILTERS.items()},
    )


HTML = Form("one page with sortable tables and interactive charts, for any browser, offline", ".html", page, page=True)
