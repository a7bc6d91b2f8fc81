"""Progress of a running study: a live bar on a terminal, an updated line in a notebook, and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from html import escape as escape_html
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.outputs.escaping import in_terminal

if TYPE_CHECKING:  # plans need PyTorch, the terminal does not
    from bench.planning.plan import Plan
    from bench.store.leases import LeaseView

_FILE_WIDTH = 120
_LEAST_INTERVAL, _MOST_INTERVAL = 10.0, 300.0
_INTERVAL_SHARE = 20
"""Seconds between plain lines: a share of the time so far, so that a study of days does not print thousands."""
_FIGURES = {"loss": "loss {:.3f}", "accuracy": "acc {:.1f} %", "budget_share": "cost {:.2f} × budget"}


def make_console() -> Console:
    """Return the terminal; if the output is a file, it is as wide as tables need."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def make_watcher(*, show: bool = True) -> Watcher:
    """Return the display that fits where this process writes to.

    Args:
        show: Whether anything is shown.
    """
    if not show:
        return Watcher()
    if _in_notebook():
        return NotebookWatcher()
    console = make_console()
    return LiveWatcher(console) if console.is_terminal else PlainWatcher(console)


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Watcher:
    """Counts the epochs of a study and shows nothing; the base of the displays.

    Attributes:
        epochs: Number of epochs of all units.
        done: Number of epochs of units that have ended, and of units under way.
    """

    def __init__(self) -> None:
        self.epochs = self.done = 0
        self._finished = 0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be closed."""

    def started(self, plan: Plan, epochs: int) -> None:
        """Show the size of the study."""
        self.epochs, self._began = epochs, time.monotonic()
        spec = plan.spec
        tunings = f"{len(plan.tunings)} tunings of at most {plan.most_trials} trials, " if plan.tunings else ""
        self.note(
            f"study {spec.name}: {spec.task.model} on {spec.task.dataset}, {len(plan.pretrainings)} pretrainings, "
            f"{tunings}{len(plan.runs)} runs, on {spec.device}"
        )

    def note(self, text: str) -> None:
        """Show a line that the user should read."""

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        self.done = self._finished + sum(int(unit.progress.get("done", 0)) for unit in units)

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """Show the outcome of a unit."""
        self._finished += epochs
        self.done = self._finished
        self.note(f"  {title}: {outcome}")

    @property
    def seconds_left(self) -> float | None:
        """Time that the study needs still if all epochs take equally long; `None` before the first unit has ended."""
        if not self._finished or not self.done:
            return None
        return (time.monotonic() - self._began) / self.done * max(0, self.epochs - self.done)

    @property
    def in_words(self) -> str:
        """Epochs and time left: "12 of 40 epochs, about 3 min left"."""
        from bench.reporting.wording import duration

        left = self.seconds_left
        return f"{self.done} of {self.epochs} epochs{'' if left is None else f', about {duration(left)} left'}"


class PlainWatcher(Watcher):
    """Plain lines for files and pipes: the units that have ended, and at intervals the epochs, time left and units."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._last_line, self._last_units = time.monotonic(), ""

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(in_terminal(text), highlight=False, markup=False, soft_wrap=True)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Print a line if the last one was long enough ago and the units have advanced since."""
        super().at_work(units)
        now, shown = time.monotonic(), "; ".join(map(progress_line, units))
        interval = min(max(_LEAST_INTERVAL, (now - self._began) / _INTERVAL_SHARE), _MOST_INTERVAL)
        if shown and shown != self._last_units and now - self._last_line > interval:
            self.note(f"    {self.in_words}: {shown}")
            self._last_line, self._last_units = now, shown


class LiveWatcher(Watcher):
    """A bar over all epochs with the time left, and the units that are running, for a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
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
            speed_estimate_period=600,
        )
        self._study = self._progress.add_task("", total=None, visible=False, detail="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def started(self, plan: Plan, epochs: int) -> None:
        """Show the size of the study."""
        super().started(plan, epochs)
        self._progress.update(self._study, description=plan.spec.name, total=epochs, visible=True)

    def note(self, text: str) -> None:
        """Print a line."""
        self._console.print(in_terminal(text), highlight=False, markup=False, soft_wrap=True)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        super().at_work(units)
        detail = escape(in_terminal("; ".join(map(progress_line, units))))
        self._progress.update(self._study, completed=self.done, detail=detail)

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """Print the outcome of a unit."""
        super().unit_finished(title, outcome, epochs)
        self._progress.update(self._study, completed=self.done)


class NotebookWatcher(Watcher):
    """One output of a notebook's cell that is updated: a bar, the units that are running, and what has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[str] = []
        self._units = ""
        self._handle: Any = None

    def note(self, text: str) -> None:
        """Add a line."""
        self._notes.append(text)
        self._show()

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        super().at_work(units)
        self._units = "\n".join(map(progress_line, units))
        self._show()

    def unit_finished(self, title: str, outcome: str, epochs: int) -> None:
        """Show the outcome of a unit."""
        self._units = ""
        super().unit_finished(title, outcome, epochs)

    def html(self) -> str:
        """Return what is shown, as HTML."""
        bar = f'<progress value="{self.done}" max="{self.epochs}"></progress> {self.in_words}' if self.epochs else ""
        lines = escape_html("\n".join(filter(None, (*self._notes, self._units))))
        return f"<div>{bar}<pre>{lines}</pre></div>"

    def _show(self) -> None:
        from IPython.display import HTML, display

        content = HTML(self.html())
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


def progress_line(unit: LeaseView) -> str:
    """Describe the progress of a unit: "run sbs 4bit seed 0: search 3/8, loss 1.204"."""
    progress = unit.progress
    parts = [f"{unit.title}: {progress.get('phase', '')} {progress.get('epoch', 0):.0f}"]
    if "epochs" in progress:
        parts[0] += f"/{progress['epochs']:.0f}"
    # A method reports any of these figures.
    parts += [form.format(progress[name]) for name, form in _FIGURES.items() if name in progress]
    return ", ".join(parts)
