"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
from rich import box
from rich.table import Table
from rich.text import Text

from bench.outputs.escaping import in_terminal
from bench.outputs.terminal import has_color, make_console

if TYPE_CHECKING:  # plans need PyTorch, the terminal does not
    from bench.reporting.report import Document, Form
    from bench.reporting.report import Table as ReportTable


def simple_table(title: str, columns: Mapping[str, bool], rows: list[list[str]]) -> Table:
    """Make a table for the terminal.

    Args:
        title: Line above the table.
        columns: Headings, and whether their columns are right-aligned.
        rows: Cells of each row.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_text(title), title_justify="left")
    for heading, right in columns.items():
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(text: str) -> Text:
    """Return a text in which brackets, e.g. in an error message, are not markup, and nothing works on the terminal."""
    return Text(in_terminal(text))


def show(tables: Sequence[ReportTable]) -> None:
    """Print tables of reports in the width of the terminal; columns that do not fit are left out and named."""
    from bench.reporting.report import Document, Section

    show_document(Document(study="", sections=(Section(name="", title="", parts=tuple(tables)),)))


def show_document(document: Document, form: str = "terminal") -> None:
    """Print a document in a form, with colours if both the form and the output have them."""
    from bench.plugins.registry import load

    renderer: Form = load("forms", form)
    render = renderer.in_color if has_color() and renderer.in_color else renderer.render
    click.echo(render(document, make_console().width), color=has_color() or None)
