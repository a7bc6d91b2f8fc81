"""The text forms: terminal, Markdown, CSV and LaTeX. All show the same strings."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import cast

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from bench.api import Column, Document, Figure, Form, Part, Table
from bench.outputs.escaping import code_in_latex, in_csv, in_latex, in_markdown, in_terminal
from bench.outputs.terminal import STYLES, Tone

_WIDE_CELL = 40
"""Characters above which a cell is broken into lines in LaTeX."""
_NAMING = 2
"""Number of first columns that name a row where it is not shown whole."""


def terminal(table: Table, width: int, *, colors: bool = False) -> str:
    """Render a table as text of a given width.

    Columns that do not fit are left out and named below the table. Commands that do not fit are below it too, each on
    a line of its own that is not broken, so that they can be copied.

    Args:
        table: Table to render.
        width: Width in characters.
        colors: Whether the text has the escape codes of colours.
    """
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system="standard" if colors else None,
        no_color=not colors,
        force_terminal=False,
        legacy_windows=False,
    )
    safe = table.mapped(in_terminal)
    with console.capture() as captured:
        console.print(*_renderables(safe, width), sep="\n", crop=False, highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _renderables(table: Table, width: int) -> Iterator[Text | RichTable | Padding]:
    """Yield the parts of a table as rich prints them, from top to bottom."""
    shown, apart = _fitting(table, width)
    fits = _line_width(table, shown) <= width
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index in shown:
        column = table.columns[index]
        wanted = _column_width(table, index) if fits else None
        grid.add_column(Text(column.title), justify=column.align, vertical="bottom", overflow="fold", width=wanted)
    for row, tone in zip_longest(table.rows, table.tones, fillvalue=""):
        style = STYLES[cast("Tone", tone)]
        grid.add_row(*(Text(row[index], style if table.columns[index].toned else "") for index in shown))
    yield Text(table.title)
    yield from (Padding(Text(sentence, STYLES["strong"]), (0, 0, 0, 2)) for sentence in table.headline)
    yield grid
    below = [*table.explained(table.columns[index] for index in shown), *_left_out(table, [*shown, *apart])]
    if below:
        yield _bullets(below)
    for index in apart:
        yield Text(f" {table.columns[index].title}:")
        for row in (row for row in table.rows if row[index]):
            yield Text(f" {' '.join(row[other] for other in shown[:_NAMING])}:")
            yield Text(f"   {row[index]}", no_wrap=True, overflow="ignore")


def markdown(table: Table) -> str:
    """Render a table as GitHub-flavoured Markdown, with its title and headline above and its notes below."""
    safe = table.mapped(in_markdown)
    head = [column.title for column in safe.columns]
    widths = [max(3, *(len(row[index]) for row in [head, *safe.rows])) for index in range(len(head))]
    lines = [_markdown_row(row, table.columns, widths) for row in [head, *safe.rows]]
    lines.insert(1, "| " + " | ".join(map(_rule, table.columns, widths)) + " |")
    headline = [f"- {sentence}" for sentence in safe.headline]
    notes = [f"- {note}" for note in safe.explained()]
    blocks = [f"**{safe.title}**", *map("\n".join, (headline, lines, notes))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def comma_separated(table: Table) -> str:
    """Render headings and rows as CSV, without title and notes."""
    safe = table.mapped(in_csv)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(column.title for column in safe.columns)
    writer.writerows(safe.rows)
    return stream.getvalue()


def latex(table: Table) -> str:
    """Render a table as LaTeX; the document needs the package booktabs."""
    alignment = "".join(_latex_column(table, index) for index, _ in enumerate(table.columns))
    safe = table.mapped(in_latex, code_in_latex)
    rows = [_latex_row(row) for row in safe.rows]
    notes = [rf"\par\footnotesize {note}" for note in safe.explained()]
    caption = ". ".join([safe.title, *safe.headline])
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _latex_row([column.title for column in safe.columns]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *notes,
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def figure_in_terminal(figure: Figure) -> str:
    """Render a figure in plain text: its title, and the file that `bench report --out` draws."""
    return f"Figure: {in_terminal(figure.title)} ({figure.name}.svg with `bench report --out DIR`)\n"


def figure_in_markdown(figure: Figure) -> str:
    """Render a figure in Markdown, which shows its file if the file lies beside the text."""
    return f"![{in_markdown(figure.title)}]({figure.name}.svg)\n"


def figure_in_latex(figure: Figure) -> str:
    """Render a figure in LaTeX; the document needs the package graphicx, and the file beside it."""
    lines = [
        "% needs \\usepackage{graphicx}",
        r"\begin{figure*}",
        r"\centering",
        rf"\includegraphics[width=\linewidth]{{{figure.name}.pdf}}",
        rf"\caption{{{in_latex(figure.title)}}}",
        r"\end{figure*}",
    ]
    return "\n".join(lines) + "\n"


def _each(
    table: Callable[[Table, int], str], figure: Callable[[Figure], str] | None = None
) -> Callable[[Document, int], str]:
    """Make a renderer that shows a document part by part; without a renderer for figures it leaves them out."""

    def shown(part: Part, width: int) -> Iterator[str]:
        if isinstance(part, Table):
            yield table(part, width)
        elif figure is not None:
            yield figure(part)

    return lambda document, width: "\n".join(
        text for section in document.sections for part in section.parts for text in shown(part, width)
    )


TERMINAL = Form(
    "plain text of the terminal's width",
    "",
    _each(terminal, figure_in_terminal),
    in_color=_each(partial(terminal, colors=True), figure_in_terminal),
)
MARKDOWN = Form("GitHub-flavoured Markdown", ".md", _each(lambda table, _: markdown(table), figure_in_markdown))
LATEX = Form("for the packages booktabs and graphicx", ".tex", _each(lambda table, _: latex(table), figure_in_latex))
CSV = Form("headings and rows of tables alone", ".csv", _each(lambda table, _: comma_separated(table)))


def _fitting(table: Table, width: int) -> tuple[list[int], list[int]]:
    """Return the columns to show, and those to show apart from the table.

    If not all fit, columns to be copied that may not be dropped go apart first. Then columns that may be left out go.
    """
    shown, apart = list(range(len(table.columns))), []
    if _line_width(table, shown) > width:
        apart = [index for index in shown[1:] if table.columns[index].code and not table.columns[index].drop]
        shown = [index for index in shown if index not in apart]
    for index in table.expendable():
        if _line_width(table, shown) <= width:
            break
        shown.remove(index)
    return shown, apart


def _line_width(table: Table, shown: Sequence[int]) -> int:
    """Return the characters that a line needs, with two between columns and one at either end."""
    return sum(_column_width(table, index) + 2 for index in shown)


def _column_width(table: Table, index: int) -> int:
    """Return the characters of the longest cell; headings may be broken at blanks."""
    words = table.columns[index].title.split()
    return max(len(text) for text in [*words, *(row[index] for row in table.rows)])


def _left_out(table: Table, shown: Sequence[int]) -> list[str]:
    missing = [_with_value(table, index) for index, _ in enumerate(table.columns) if index not in shown]
    return [f"Left out at this width: {', '.join(missing)}"] if missing else []


def _with_value(table: Table, index: int) -> str:
    """Return the heading of a column, with its value if that is the same in all rows that have one."""
    values = {row[index] for row in table.rows if row[index]}
    same = f" ({values.pop()} in all rows)" if len(values) == 1 and len(table.rows) > 1 else ""
    return table.columns[index].title + same


def _bullets(notes: Sequence[str]) -> RichTable:
    """Render notes with their continuation lines indented."""
    grid = RichTable.grid(padding=(0, 1))
    for note in notes:
        grid.add_row(Text(" ·", STYLES["aside"]), Text(note, STYLES["aside"]))
    return grid


def _markdown_row(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column.align == "right" else cell.ljust(width)
        for cell, column, width in zip(row, columns, widths, strict=True)
    ]
    return f"| {' | '.join(cells)} |"


def _rule(column: Column, width: int) -> str:
    return "-" * (width - 1) + ":" if column.align == "right" else "-" * width


def _latex_column(table: Table, index: int) -> str:
    """Return the LaTeX column type; columns with long texts are broken into lines and share the width."""
    longest = [max((len(row[other]) for row in table.rows), default=0) for other, _ in enumerate(table.columns)]
    if longest[index] <= _WIDE_CELL:
        return table.columns[index].align[0]
    share = 0.8 / sum(length > _WIDE_CELL for length in longest)
    return rf"p{{{share:.2f}\linewidth}}"


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(row) + r" \\"
