"""The output on the terminal: live progress, or plain lines without a terminal, and tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from bench.outputs.escaping import in_terminal

if TYPE_CHECKING:  # plans need PyTorch, the terminal does not
    from bench.planning.plan import Plan
    from bench.reporting.report import Table as ReportTable
    from bench.store.leases import LeaseView

_FILE_WIDTH = 120
_PLAIN_INTERVAL = 10.0
"""Seconds between lines on progress when the output is not a terminal."""
_FIGURES = {"loss": "loss {:.3f}", "accuracy": "acc {:.1f} %", "budget_share": "cost {:.2f} × budget"}


class LiveWatcher:
    """Live progress of a study: a bar over all epochs with the time left, and the units that are running.

    If the output is not a terminal, plain lines are printed at intervals instead.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not self._live,
            speed_estimate_period=600,
        )
        self._study: TaskID | None = None
        self._finished_epochs = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, plan: Plan, epochs: int) -> None:
        """Show the size of the study."""
        spec = plan.spec
        tunings = f"{len(plan.tunings)} tunings of at most {plan.most_trials} trials, " if plan.tunings else ""
        self.note(
            f"study {spec.name}: {spec.task.model} on {spec.task.dataset}, {len(plan.pretrainings)} pretrainings, "
            f"{tunings}{len(plan.runs)} runs, on {spec.device}"
        )
        self._study = self._progress.add_task(spec.name, total=epochs, detail="")

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(in_terminal(text), highlight=False, markup=False, soft_wrap=True)

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """Print the outcome of a unit."""
        self.note(f"  {title}: {outcome}")
        self._finished_epochs += epochs
        self._advance(0)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        lines = [progress_line(unit) for unit in units]
        self._advance(sum(int(unit.progress.get("done", 0)) for unit in units))
        if self._study is not None:
            self._progress.update(self._study, detail=escape(in_terminal("; ".join(lines))))
        if lines and not self._live and time.monotonic() - self._last_line > _PLAIN_INTERVAL:
            for line in lines:
                self.note(f"    {line}")
            self._last_line = time.monotonic()

    def _advance(self, under_way: int) -> None:
        if self._study is not None:
            self._progress.update(self._study, completed=self._finished_epochs + under_way)


def progress_line(unit: LeaseView) -> str:
    """Describe the progress of a unit: "run sbs 4bit seed 0: search 3/8, loss 1.204"."""
    progress = unit.progress
    parts = [f"{unit.title}: {progress.get('phase', '')} {progress.get('epoch', 0):.0f}"]
    if "epochs" in progress:
        parts[0] += f"/{progress['epochs']:.0f}"
    # A method reports any of these figures.
    parts += [form.format(progress[name]) for name, form in _FIGURES.items() if name in progress]
    return ", ".join(parts)


def simple_table(title: str, columns: Mapping[str, bool], rows: list[list[str]]) -> Table:
    """Make a table for the terminal.

    Args:
        title: Line above the table.
        columns: Headings, and whether their columns are right-aligned.
        rows: Cells of each row.
    """
    table = Table(title=_text(title), title_justify="left")
    for heading, right in columns.items():
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(text: str) -> Text:
    """Return a text in which brackets, e.g. in an error message, are not markup, and nothing works on the terminal."""
    return Text(in_terminal(text))


def make_console() -> Console:
    """Return the terminal; if the output is a file, it is as wide as tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def show(tables: Sequence[ReportTable]) -> None:
    """Print tables of reports in the width of the terminal; columns that do not fit are left out and named."""
    from bench.plugins.registry import load
    from bench.reporting.report import Document, Section

    document = Document(study="", sections=(Section(name="", title="", parts=tuple(tables)),))
    click.echo(load("forms", "terminal").render(document, make_console().width))
