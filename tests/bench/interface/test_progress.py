"""The progress of a study: on a terminal, in a notebook, and as plain lines."""

import io
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.interface import progress as module
from bench.interface import work
from bench.interface.progress import LiveWatcher, NotebookWatcher, PlainWatcher, Watcher, make_watcher, progress_lines
from bench.planning.plan import Plan, make_plan, phases
from bench.planning.units import Unit, kind_of, planned_epochs, title
from bench.store.leases import Holder, LeaseView

FIGURES = {"phase": "search", "done": 1, "epoch": 1.0, "epochs": 1.0, "loss": 0.51234, "accuracy": 81.25}


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Plan:
    return make_plan(tiny.spec())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [100.0]
    for clocked in (module, work):
        monkeypatch.setattr(clocked.time, "monotonic", lambda: time[0])
    return time


def at_work(unit: Unit, *, trial: int | None = None, **progress: Any) -> LeaseView:
    """A unit that a process works on, or a trial of a tuning."""
    name = f"{kind_of(unit)}-{unit.identity}" if trial is None else f"trials-{unit.identity}-{trial}"
    holder = Holder(host="here", boot="1", pid=1, start_time="1")
    return LeaseView(name=name, token="1", holder=holder, beat=1, time="", title=title(unit), progress=progress)  # noqa: S106


def start(watching: Watcher, plan: Plan, stored: frozenset[str] = frozenset()) -> None:
    watching.started(plan, [units for _, units in phases(plan)], stored)


def units_of(plan: Plan) -> Iterator[Unit]:
    return (unit for _, units in phases(plan) for unit in units)


def test_plain_lines_say_how_far_the_study_is(plan: Plan, now: list[float]) -> None:
    output = io.StringIO()
    run, tuning = plan.runs[0], plan.tunings[0]
    with PlainWatcher(Console(file=output, width=160)) as watching:
        start(watching, plan)
        watching.at_work([])
        for step in (11.0, 5.0, 6.0):  # the second is too soon after the first
            now[0] += step
            progress = {**FIGURES, "budget_share": 1.234, "loss": now[0]}
            watching.at_work([at_work(run, **progress), at_work(tuning, phase="trial", epoch=1, epochs=2)])
        now[0] += 50
        watching.at_work([at_work(run, **progress), at_work(tuning, phase="trial", epoch=1, epochs=2)])
        watching.unit_finished(run, "failed", "failed: ValueError: [/bold]x")
        watching.note("something [/else]")
    assert output.getvalue().splitlines() == [
        "study tiny: resnet8 on synthetic, 3 pretrainings, 2 tunings of at most 2 trials, 8 runs, on cpu",
        "    1 of 27 epochs: run sbs 4bit seed 0: search 1/1, loss 111.000, acc 81.2 %, cost 1.23 × budget; "
        "tune sbs 4bit: trial 1/2",
        "    1 of 27 epochs: run sbs 4bit seed 0: search 1/1, loss 122.000, acc 81.2 %, cost 1.23 × budget; "
        "tune sbs 4bit: trial 1/2",
        "  run sbs 4bit seed 0        failed: ValueError: [/bold]x",
        "something [/else]",
    ]


def test_results_that_are_there_are_counted_and_not_listed(plan: Plan) -> None:
    output, (first, second, *_) = io.StringIO(), plan.runs
    with PlainWatcher(Console(file=output, width=160)) as watching:
        start(watching, plan, frozenset({first.identity, second.identity}))
        watching.unit_finished(first, "done", "89.00 %")
        watching.unit_finished(second, "failed", "failed: ValueError")  # the reader must know that it is not repeated
        watching.unit_finished(plan.runs[2], "done", "91.00 %, 21 s")
    assert output.getvalue().splitlines()[1:] == [
        "2 of 13 units have their result already",
        "  run sbs 4bit seed 1        failed: ValueError",
        "  run dnas 4bit seed 0       91.00 %, 21 s",
    ]


def test_a_study_of_days_prints_a_line_every_five_minutes(plan: Plan, now: list[float]) -> None:
    output = io.StringIO()
    watching = PlainWatcher(Console(file=output, width=160))
    start(watching, plan)
    for number in range(24 * 360):
        now[0] += 10
        watching.at_work([at_work(plan.runs[0], phase="search", epoch=number)])
    assert 24 * 12 < len(output.getvalue().splitlines()) < 24 * 12 + 60


def test_methods_need_not_report_any_figure(plan: Plan) -> None:
    run = plan.runs[0]
    assert progress_lines([at_work(run)]) == ["run sbs 4bit seed 0: starting"]
    assert progress_lines([at_work(run, phase="search", epoch=1, temperature=0.5)]) == ["run sbs 4bit seed 0: search 1"]
    assert progress_lines([at_work(run, **FIGURES)]) == ["run sbs 4bit seed 0: search 1/1, loss 0.512, acc 81.2 %"]


def test_a_tuning_and_its_trial_are_one_line(plan: Plan) -> None:
    tuning, other = plan.tunings
    lines = progress_lines(
        [
            at_work(tuning, phase="trial", epoch=2, epochs=4),
            at_work(tuning, trial=1, **FIGURES),
            at_work(other, trial=0),
        ]
    )
    assert lines == [
        "tune sbs 4bit: trial 2/4, search 1/1, loss 0.512, acc 81.2 %",
        "tune dnas 4bit: starting",  # another command's tuning, whose lease was not seen yet
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_its_count_and_the_units_fit_any_terminal(plan: Plan, now: list[float], width: int) -> None:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    watching = LiveWatcher(console)
    start(watching, plan)
    watching.at_work([at_work(unit, **FIGURES, budget_share=2.5) for unit in plan.runs[:3]])
    with console.capture() as captured:
        console.print(watching._progress.get_renderable())
    bar, *units = captured.get().splitlines()
    assert max(map(len, (bar, *units))) <= width
    assert "━" in bar and "3/27 epochs" in bar
    assert [line.partition(":")[0] for line in units] == [f"  {title(unit)}" for unit in plan.runs[:3]]
    assert all(unit.endswith("…") for unit in units) == (width < 80)


def test_the_bar_is_full_and_alone_when_all_units_have_ended(plan: Plan) -> None:
    output = io.StringIO()
    total = sum(planned_epochs(unit) for unit in units_of(plan))
    with LiveWatcher(Console(file=output, width=160, force_terminal=True)) as watching:
        start(watching, plan)
        finished = 0
        for number, unit in enumerate(units_of(plan)):
            if number % 2:  # some units are seen at work, others were there already
                watching.at_work([at_work(unit, **FIGURES)])
                assert len(watching._progress.lines) == 1
            watching.unit_finished(unit, "done", "91.00 %")
            finished += planned_epochs(unit)
            (task,) = watching._progress.tasks
            assert task.completed == finished
    (task,) = watching._progress.tasks
    assert (task.completed, task.total, task.fields["left"]) == (total, total, "")
    assert watching._progress.lines == []
    assert "━" in output.getvalue()


def test_a_notebook_has_one_output_that_is_updated(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda content: shown.append(content.data))

    def display(content: Any, *, display_id: bool) -> Any:
        handle.update(content)
        return handle

    fake = SimpleNamespace(display=display, HTML=lambda text: SimpleNamespace(data=text))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=fake))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", fake)  # type: ignore[arg-type]
    with NotebookWatcher() as watching:
        start(watching, plan)
        watching.at_work([at_work(plan.runs[0], **FIGURES)])
        watching.unit_finished(plan.runs[0], "failed", "failed: <b>")
    assert len(shown) == 3
    assert '<progress value="1" max="27">' in shown[1] and "run sbs 4bit seed 0: search 1/1" in shown[1]
    assert '<progress value="2" max="27">' in shown[2] and "failed: &lt;b&gt;" in shown[2]
    assert "search 1/1" not in shown[2]


def test_the_display_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_watcher(show=False)) is Watcher
    assert type(make_watcher()) is PlainWatcher  # the output of a test is no terminal
    with monkeypatch.context() as patch:
        patch.setattr(module, "is_terminal", lambda: True)
        assert type(make_watcher()) is LiveWatcher
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    assert type(make_watcher()) is NotebookWatcher
