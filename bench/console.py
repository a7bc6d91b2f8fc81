"""What the terminal shows: live progress, plain lines where there is no terminal, and tables."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
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

from bench.costs import NetworkCost
from bench.plan import Plan

_FILE_WIDTH = 120
_PLAIN_INTERVAL = 10.0
"""Seconds between lines on epochs where there is no terminal."""
_FIGURES = {"loss": "loss {:.3f}", "accuracy": "acc {:.1f} %", "budget_share": "cost {:.2f} × budget"}


class LiveWatcher:
    """Live progress of a study: a bar over all epochs with the time left, and a line on what is going on.

    Where the output is not a terminal, plain lines say the same now and then.
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
        self._unit_epochs = 0
        self._unit = ""
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, plan: Plan, epochs: int) -> None:
        """Show the study's size."""
        spec = plan.spec
        self._console.print(
            f"study {spec.name}: {spec.task.model} on {spec.task.dataset}, {len(plan.pretrainings)} pretrainings, "
            f"{len(plan.tunings)} tunings of at most {spec.tuning.trials} trials, {len(plan.runs)} runs, "
            f"on {spec.device}",
            highlight=False,
            markup=False,
        )
        self._study = self._progress.add_task(spec.name, total=epochs, detail="")

    def unit_started(self, title: str) -> None:
        """Show which unit begins."""
        self._unit, self._unit_epochs = title, 0
        self._detail(title)

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """Say how a unit ended."""
        self._console.print(f"  {title}: {outcome}", highlight=False, markup=False)
        if self._study is not None:
            self._progress.advance(self._study, max(0, epochs - self._unit_epochs))
        self._unit_epochs = 0

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Show an epoch's figures."""
        self._unit_epochs += 1
        parts = [f"{self._unit}: {phase} {figures.get('epoch', self._unit_epochs):.0f}"]
        if "epochs" in figures:
            parts[0] += f"/{figures['epochs']:.0f}"
        # Methods report what they have.
        parts += [form.format(figures[name]) for name, form in _FIGURES.items() if name in figures]
        line = ", ".join(parts)
        if self._study is not None:
            self._progress.advance(self._study)
        self._detail(line)
        if not self._live and time.monotonic() - self._last_line > _PLAIN_INTERVAL:
            self._console.print(f"    {line}", highlight=False, markup=False)
            self._last_line = time.monotonic()

    def _detail(self, text: str) -> None:
        if self._study is not None:
            self._progress.update(self._study, detail=text)


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "12 min", "3.4 h", "2.1 d"."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if unit < 3600 else f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def simple_table(title: str, columns: Mapping[str, bool], rows: list[list[str]]) -> Table:
    """A table for the terminal.

    Args:
        title: Shown above it.
        columns: Headings, and whether they are right-aligned.
        rows: Cells.
    """
    table = Table(title=title, title_justify="left")
    for heading, right in columns.items():
        table.add_column(heading, justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # brackets, e.g. of an error, are no markup
    return table


def cost_table(cost: NetworkCost) -> Table:
    """The cost of a network layer by layer, with the totals in the last line."""
    columns = {
        "layer": False,
        "in": True,
        "out": True,
        "w bits": True,
        "a bits": True,
        "MACs": True,
        "BOPs": True,
        "share": True,
    }
    rows = [
        [
            layer.name,
            str(layer.in_channels),
            str(layer.out_channels),
            str(layer.weight_bits),
            str(layer.activation_bits),
            f"{layer.macs:,}",
            f"{layer.bops:,}",
            f"{layer.bops / cost.bops:.1%}",
        ]
        for layer in cost.layers
    ]
    title = (
        f"{cost.model} on {cost.dataset}: {cost.bops / 1e6:,.1f} M BOPs, {cost.memory_kb:,.1f} KB, "
        f"{cost.parameters:,} parameters, {cost.macs:,} MACs"
    )
    return simple_table(title, columns, [*rows, ["total", "", "", "", "", f"{cost.macs:,}", f"{cost.bops:,}", ""]])


def make_console() -> Console:
    """The terminal; as wide as a table needs where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


class Silent:
    """A watcher that shows nothing."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """Say nothing."""
