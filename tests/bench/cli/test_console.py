import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.cli import console as module
from bench.cli.console import LiveWatcher, make_console, progress_line, show, simple_table
from bench.planning.plan import Plan, make_plan
from bench.planning.units import planned_epochs
from bench.reporting.report import Column, Table
from bench.reporting.wording import duration
from bench.store.leases import Holder, LeaseView

FIGURES = {"phase": "search", "done": 1, "epoch": 1.0, "epochs": 3.0, "loss": 0.51234, "accuracy": 81.25}


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Plan:
    return make_plan(tiny.spec())


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def at_work(title: str, **progress: Any) -> LeaseView:
    """A unit that somebody works on."""
    holder = Holder(host="here", boot="1", pid=1, start_time="1")
    return LeaseView(name="runs-x", token="1", holder=holder, beat=1, time="", title=title, progress=progress)  # noqa: S106


def watcher(output: io.StringIO, *, terminal: bool = False) -> LiveWatcher:
    return LiveWatcher(Console(file=output, width=160, force_terminal=terminal))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (44.6, "45 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (12_240, "3.4 h"),
        (172_800, "2.0 d"),
        (1e6, "11.6 d"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_there_are_plain_lines(
    plan: Plan, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with watcher(output) as watching:
        watching.started(plan, 25)
        watching.at_work([])
        for step in (11.0, 5.0, 6.0):  # the second is too soon after the first
            now[0] += step
            progress = {**FIGURES, "budget_share": 1.234, "loss": now[0]}
            watching.at_work([at_work("run sbs 4bit seed 0", **progress), at_work("tune sbs 4bit", phase="trial")])
        watching.unit_finished("run sbs 4bit seed 0", "failed: ValueError: [/bold]x", 3)
        watching.note("something [/else]")
    assert output.getvalue().splitlines() == [
        "study tiny: resnet8 on synthetic, 3 pretrainings, 2 tunings of at most 2 trials, 8 runs, on cpu",
        "    run sbs 4bit seed 0: search 1/3, loss 111.000, acc 81.2 %, cost 1.23 × budget",
        "    tune sbs 4bit: trial 0",
        "    run sbs 4bit seed 0: search 1/3, loss 122.000, acc 81.2 %, cost 1.23 × budget",
        "    tune sbs 4bit: trial 0",
        "  run sbs 4bit seed 0: failed: ValueError: [/bold]x",
        "something [/else]",
    ]


def test_methods_need_not_report_any_figure() -> None:
    assert progress_line(at_work("run mine 4bit seed 0", phase="search", epoch=1, temperature=0.5)) == (
        "run mine 4bit seed 0: search 1"
    )
    assert progress_line(at_work("run mine 4bit seed 0", **FIGURES)) == (
        "run mine 4bit seed 0: search 1/3, loss 0.512, acc 81.2 %"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_is_full_when_all_units_have_ended(plan: Plan, output: io.StringIO, terminal: bool) -> None:
    total = sum(planned_epochs(unit) for unit in (*plan.pretrainings, *plan.runs))
    with watcher(output, terminal=terminal) as watching:
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
    assert ("━" in output.getvalue()) == terminal


def test_tables_align_their_columns(output: io.StringIO) -> None:
    table = simple_table("title", {"name": False, "figure": True}, [["a", "1"], ["[/b]", "22"]])
    Console(file=output, width=80).print(table)
    lines = [line.strip(" │┃┏┓┡┩└┘") for line in output.getvalue().splitlines()]
    assert lines[0] == "title"
    assert "a    │      1" in lines and "[/b] │     22" in lines


def test_tables_of_reports_leave_out_what_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(
        name="t", title="T", columns=(Column(title="kept"), Column(title="gone" * 10, drop=1)), rows=(("1", "2"),)
    )
    show([table])
    assert "gonegone" in capsys.readouterr().out
    monkeypatch.setattr(module, "make_console", lambda: Console(width=20))
    show([table])
    assert "Left out at this" in capsys.readouterr().out


def test_a_file_gets_lines_as_wide_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console().width == 120
