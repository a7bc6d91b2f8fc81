"""Progress of a running study: a live bar on a terminal, an updated line in a notebook, and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from html import escape as escape_html
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from bench.outputs.escaping import in_terminal
from bench.outputs.terminal import STYLES, Tone, is_terminal, make_console
from bench.outputs.times import duration
from bench.results.status import progress_in_words

if TYPE_CHECKING:  # plans need PyTorch, the terminal does not
    from bench.interface.work import Work
    from bench.planning.plan import Plan
    from bench.planning.units import Unit
    from bench.store.files import Status
    from bench.store.leases import LeaseView

_LEAST_INTERVAL, _MOST_INTERVAL = 10.0, 300.0
_INTERVAL_SHARE = 20
"""Seconds between plain lines: a share of the time so far, so that a study of days does not print thousands."""
_FIGURES = {"loss": "loss {:.3f}", "accuracy": "acc {:.1f} %", "budget_share": "cost {:.2f} × budget"}
_NAME_WIDTH = 20
_TONES: dict[Status, Tone] = {"done": "", "unreachable": "unsure", "skipped": "unsure"}


def make_watcher(*, show: bool = True) -> Watcher:
    """Return the display that fits where this process writes to.

    Args:
        show: Whether anything is shown.
    """
    if not show:
        return Watcher()
    if _in_notebook():
        return NotebookWatcher()
    return (LiveWatcher if is_terminal() else PlainWatcher)(make_console())


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Watcher:
    """Follows the work of a study and shows nothing; the base of the displays.

    Attributes:
        work: Amount of work, how much of it is done, and how long the rest takes; `None` before the study begins.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self._stored: Set[str] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be closed."""

    def started(self, plan: Plan, needed: Sequence[Sequence[Unit]], stored: Set[str]) -> None:
        """Show the size of the study, and how much of it is there already."""
        from bench.interface.work import Work

        self.work, self._stored = Work(needed, stored), stored
        spec = plan.spec
        tunings = f"{len(plan.tunings)} tunings of at most {plan.most_trials} trials, " if plan.tunings else ""
        self.note(
            f"study {spec.name}: {spec.task.model} on {spec.task.dataset}, {len(plan.pretrainings)} pretrainings, "
            f"{tunings}{len(plan.runs)} runs, on {spec.device}"
        )
        if stored:
            self.note(f"{len(stored)} of {self.work.units} units have their result already")

    def note(self, text: str, tone: Tone = "") -> None:
        """Show a line that the user should read."""

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        if self.work is not None:
            self.work.look(units)

    def unit_finished(self, unit: Unit, status: Status, words: str) -> None:
        """Show the result of a unit, or why it has none; results that were there already are not shown."""
        from bench.planning.units import title

        if self.work is None:
            return
        self.work.ended(unit, finished=status == "done")
        if status != "done" or unit.identity not in self._stored:
            self.note(f"  {title(unit):<{self.work.title_width}}  {words}", _TONES.get(status, "bad"))

    @property
    def in_words(self) -> str:
        """Epochs and time left: "12 of 40 epochs, about 3 min left"."""
        if self.work is None:
            return ""
        return ", ".join(filter(None, (f"{self.work.done} of {self.work.epochs} epochs", time_left(self.work))))


def time_left(work: Work) -> str:
    """Return the time left in words; empty while it is not known."""
    left = work.seconds_left()
    return "" if left is None else f"about {duration(left)} left"


class PlainWatcher(Watcher):
    """Plain lines for files and pipes: the units that have ended, and at intervals the epochs, time left and units."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._began = self._last_line = time.monotonic()
        self._last_units: list[str] = []

    def note(self, text: str, tone: Tone = "") -> None:
        """Print a line."""
        _print(self._console, text, tone)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Print a line if the last one was long enough ago and the units have advanced since."""
        super().at_work(units)
        now, shown = time.monotonic(), progress_lines(unit for unit in units if unit.progress)
        interval = min(max(_LEAST_INTERVAL, (now - self._began) / _INTERVAL_SHARE), _MOST_INTERVAL)
        if shown and shown != self._last_units and now - self._last_line > interval:
            self.note(f"    {self.in_words}: {'; '.join(shown)}")
            self._last_line, self._last_units = now, shown


class LiveWatcher(Watcher):
    """A bar over all epochs with the time left, and below it a line on each unit that is running, for a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._progress = _StudyProgress(
            TextColumn(
                "{task.description}",
                style=STYLES["strong"],
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=_NAME_WIDTH),
            ),
            BarColumn(bar_width=None, complete_style="default", finished_style="default", pulse_style="default"),
            TextColumn("{task.completed}/{task.total} epochs", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            expand=True,
        )
        self._study: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar, without units that no longer run."""
        self._progress.lines = []
        self._show(left="")
        self._progress.stop()

    def started(self, plan: Plan, needed: Sequence[Sequence[Unit]], stored: Set[str]) -> None:
        """Show the size of the study."""
        super().started(plan, needed, stored)
        self._study = self._progress.add_task(in_terminal(plan.spec.name), total=0, left="")
        self._show()

    def note(self, text: str, tone: Tone = "") -> None:
        """Print a line above the bar."""
        _print(self._console, text, tone)

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        super().at_work(units)
        self._progress.lines = [
            Text(f"  {in_terminal(line)}", style=STYLES["aside"], no_wrap=True, overflow="ellipsis")
            for line in progress_lines(units)
        ]
        self._show()

    def unit_finished(self, unit: Unit, status: Status, words: str) -> None:
        """Print the result of a unit."""
        super().unit_finished(unit, status, words)
        self._show()

    def _show(self, left: str | None = None) -> None:
        if self.work is not None and self._study is not None:
            words = time_left(self.work) if left is None else left
            self._progress.update(self._study, total=self.work.epochs, completed=self.work.done, left=words)


class _StudyProgress(Progress):
    """A bar with further lines below it.

    Attributes:
        lines: Lines below the bar.
    """

    lines: Sequence[Text] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar and the lines."""
        yield from super().get_renderables()
        yield from self.lines


class NotebookWatcher(Watcher):
    """One output of a notebook's cell that is updated: a bar, the units that are running, and what has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[str] = []
        self._units: list[str] = []
        self._handle: Any = None

    def note(self, text: str, tone: Tone = "") -> None:
        """Add a line."""
        self._notes.append(text)
        self._show()

    def at_work(self, units: Sequence[LeaseView]) -> None:
        """Show the units that are running."""
        super().at_work(units)
        self._units = progress_lines(units)
        self._show()

    def unit_finished(self, unit: Unit, status: Status, words: str) -> None:
        """Show the result of a unit."""
        self._units = []
        super().unit_finished(unit, status, words)

    def html(self) -> str:
        """Return what is shown, as HTML."""
        bar = ""
        if self.work is not None:
            bar = f'<progress value="{self.work.done}" max="{self.work.epochs}"></progress> {self.in_words}'
        lines = escape_html("\n".join([*self._notes, *self._units]))
        return f"<div>{bar}<pre>{lines}</pre></div>"

    def _show(self) -> None:
        from IPython.display import HTML, display

        content = HTML(self.html())
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


def _print(console: Console, text: str, tone: Tone) -> None:
    """Print a line that is not broken at the width of the terminal."""
    console.print(in_terminal(text), style=STYLES[tone] or None, highlight=False, markup=False, soft_wrap=True)


def progress_lines(units: Iterable[LeaseView]) -> list[str]:
    """Return a line on each running unit; that of a tuning has the progress of its trial too."""
    views = list(units)
    trials = {view.tuning: view for view in views if view.tuning}
    named = {view.name.partition("-")[2] for view in views if not view.tuning}
    lines = []
    for view in views:
        if view.tuning in named:
            continue  # shown with its tuning
        trial = trials.get(view.name.partition("-")[2])
        parts = [*_with_figures(view.progress), *([] if trial is None else _with_figures(trial.progress))]
        lines.append(f"{view.title}: {', '.join(parts)}")
    return lines


def _with_figures(progress: Mapping[str, Any]) -> list[str]:
    """Describe progress and the figures of the latest epoch; a method reports any of them."""
    return [
        progress_in_words(progress),
        *(form.format(progress[name]) for name, form in _FIGURES.items() if name in progress),
    ]
