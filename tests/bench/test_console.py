import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bench import console as module
from bench.console import LiveWatcher, Silent, cost_table, duration, make_console, simple_table
from bench.costs import price
from bench.plan import Plan, make_plan, planned_epochs
from bench.policy import uniform

FIGURES = {"epoch": 1, "epochs": 3, "loss": 0.51234, "accuracy": 81.25}


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Plan:
    return make_plan(tiny.spec())


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


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
        watching.unit_started("run sbs 4bit seed 0")
        for step in (0.0, 5.0, 6.0):  # the second is too soon after the first
            now[0] += step
            watching.epoch("search", {**FIGURES, "budget_share": 1.234, "loss": now[0]})
        watching.unit_finished("run sbs 4bit seed 0", "failed: ValueError: [/bold]x", 3)
    assert output.getvalue().splitlines() == [
        "study tiny: resnet8 on synthetic, 3 pretrainings, 2 tunings of at most 2 trials, 8 runs, on cpu",
        "    run sbs 4bit seed 0: search 1/3, loss 100.000, acc 81.2 %, cost 1.23 × budget",
        "    run sbs 4bit seed 0: search 1/3, loss 111.000, acc 81.2 %, cost 1.23 × budget",
        "  run sbs 4bit seed 0: failed: ValueError: [/bold]x",
    ]


def test_methods_need_not_report_any_figure(plan: Plan, output: io.StringIO) -> None:
    with watcher(output) as watching:
        watching.started(plan, 25)
        watching.unit_started("run mine 4bit seed 0")
        watching.epoch("search", {"temperature": 0.5})
    assert output.getvalue().splitlines()[-1] == "    run mine 4bit seed 0: search 1"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_is_full_when_all_units_have_ended(plan: Plan, output: io.StringIO, terminal: bool) -> None:
    total = sum(planned_epochs(plan, unit) for unit in (*plan.pretrainings, *plan.runs))
    with watcher(output, terminal=terminal) as watching:
        watching.started(plan, total)
        for number, unit in enumerate((*plan.pretrainings, *plan.runs)):
            watching.unit_started("unit")
            for _ in range(number % 2):  # some units report their epochs, others were there already
                watching.epoch("finetune", FIGURES)
            watching.unit_finished("unit", "done", planned_epochs(plan, unit))
        (task,) = watching._progress.tasks
        assert (task.completed, task.total) == (total, total)
    assert ("━" in output.getvalue()) == terminal


def test_the_silent_watcher_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Silent().epoch("search", FIGURES)
    assert capsys.readouterr() == ("", "")


def test_tables_align_their_columns(output: io.StringIO) -> None:
    table = simple_table("title", {"name": False, "figure": True}, [["a", "1"], ["[/b]", "22"]])
    Console(file=output, width=80).print(table)
    lines = [line.strip(" │┃┏┓┡┩└┘") for line in output.getvalue().splitlines()]
    assert lines[0] == "title"
    assert "a    │      1" in lines and "[/b] │     22" in lines


def test_the_cost_table_has_every_layer_and_the_total(plan: Plan, output: io.StringIO) -> None:
    cost = price(plan.network, uniform(plan.network, 4))
    Console(file=output, width=200).print(cost_table(cost))
    text = output.getvalue()
    assert f"{cost.bops / 1e6:,.1f} M BOPs" in text and f"{cost.parameters:,} parameters" in text
    for layer in cost.layers:
        (line,) = [line for line in text.splitlines() if f"│ {layer.name} " in line]
        assert f"{layer.macs:,}" in line and f"{layer.bops:,}" in line and f"{layer.bops / cost.bops:.1%}" in line
    (total,) = [line for line in text.splitlines() if "│ total " in line]
    assert f"{cost.bops:,}" in total


def test_a_file_gets_lines_as_wide_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console().width == 120
