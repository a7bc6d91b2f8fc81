"""The progress of a study: on a terminal, in a notebook, and as plain lines."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.interface import progress as module
from bench.interface.progress import LiveWatcher, NotebookWatcher, PlainWatcher, Watcher, make_watcher, progress_line
from bench.planning.plan import Plan, make_plan
from bench.planning.units import planned_epochs
from bench.store.leases import Holder, LeaseView

FIGURES = {"phase": "search", "done": 1, "epoch": 1.0, "epochs": 3.0, "loss": 0.51234, "accuracy": 81.25}


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Plan:
    return make_plan(tiny.spec())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def at_work(title: str, **progress: Any) -> LeaseView:
    """A unit that somebody works on."""
    holder = Holder(host="here", boot="1", pid=1, start_time="1")
    return LeaseView(name="runs-x", token="1", holder=holder, beat=1, time="", title=title, progress=progress)  # noqa: S106


def test_plain_lines_say_how_far_the_study_is_and_how_long_it_takes_still(plan: Plan, now: list[float]) -> None:
    output = io.StringIO()
    with PlainWatcher(Console(file=output, width=160)) as watching:
        watching.started(plan, 25)
        watching.at_work([])
        for step in (11.0, 5.0, 6.0):  # the second is too soon after the first
            now[0] += step
            progress = {**FIGURES, "budget_share": 1.234, "loss": now[0]}
            watching.at_work([at_work("run sbs 4bit seed 0", **progress), at_work("tune sbs 4bit", phase="trial")])
        now[0] += 50
        watching.at_work([at_work("run sbs 4bit seed 0", **progress), at_work("tune sbs 4bit", phase="trial")])
        watching.unit_finished("run sbs 4bit seed 0", "failed: ValueError: [/bold]x", 4)
        watching.at_work([at_work("run sbs 4bit seed 1", phase="search", done=1)])
        watching.note("something [/else]")
    assert output.getvalue().splitlines() == [
        "study tiny: resnet8 on synthetic, 3 pretrainings, 2 tunings of at most 2 trials, 8 runs, on cpu",
        "    1 of 25 epochs: run sbs 4bit seed 0: search 1/3, loss 111.000, acc 81.2 %, cost 1.23 × budget; "
        "tune sbs 4bit: trial 0",
        "    1 of 25 epochs: run sbs 4bit seed 0: search 1/3, loss 122.000, acc 81.2 %, cost 1.23 × budget; "
        "tune sbs 4bit: trial 0",
        "  run sbs 4bit seed 0: failed: ValueError: [/bold]x",
        "    5 of 25 epochs, about 5 min left: run sbs 4bit seed 1: search 0",  # 72 s for 5 epochs; 20 are left: 288 s
        "something [/else]",
    ]


def test_a_study_of_days_prints_a_line_every_five_minutes(plan: Plan, now: list[float]) -> None:
    output = io.StringIO()
    watching = PlainWatcher(Console(file=output, width=160))
    watching.started(plan, 25)
    for number in range(24 * 360):
        now[0] += 10
        watching.at_work([at_work("run sbs 4bit seed 0", phase="search", epoch=number)])
    assert 24 * 12 < len(output.getvalue().splitlines()) < 24 * 12 + 60


def test_methods_need_not_report_any_figure() -> None:
    assert progress_line(at_work("run mine 4bit seed 0", phase="search", epoch=1, temperature=0.5)) == (
        "run mine 4bit seed 0: search 1"
    )
    assert progress_line(at_work("run mine 4bit seed 0", **FIGURES)) == (
        "run mine 4bit seed 0: search 1/3, loss 0.512, acc 81.2 %"
    )


def test_the_bar_is_full_when_all_units_have_ended(plan: Plan) -> None:
    output = io.StringIO()
    total = sum(planned_epochs(unit) for unit in (*plan.pretrainings, *plan.runs))
    with LiveWatcher(Console(file=output, width=160, force_terminal=True)) as watching:
        watching.started(plan, total)
        finished = 0
        for number, unit in enumerate((*plan.pretrainings, *plan.runs)):
            if number % 2:  # some units are seen at work, others were there already
                watching.at_work([at_work("unit", **FIGURES), at_work("another", **{**FIGURES, "done": 2})])
                (task,) = watching._progress.tasks
                assert task.completed == finished + 3
                assert "unit: search 1/3" in task.fields["detail"] and "another: search 1/3" in task.fields["detail"]
            watching.unit_finished("unit", "done", planned_epochs(unit))
            finished += planned_epochs(unit)
        (task,) = watching._progress.tasks
        assert (task.completed, task.total) == (total, total)
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
        watching.started(plan, 10)
        watching.at_work([at_work("run <b>", **FIGURES)])
        watching.unit_finished("run <b>", "done", 4)
    assert len(shown) == 3
    assert '<progress value="1" max="10">' in shown[1] and "run &lt;b&gt;: search 1/3" in shown[1]
    assert '<progress value="4" max="10">' in shown[2] and "run &lt;b&gt;: done" in shown[2]


def test_the_display_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_watcher(show=False)) is Watcher
    assert type(make_watcher()) is PlainWatcher  # the output of a test is no terminal
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    assert type(make_watcher()) is NotebookWatcher
