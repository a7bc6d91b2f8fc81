import io

import pytest
from rich.console import Console

from bench.cli import console as module
from bench.cli.console import make_console, show, simple_table
from bench.outputs import terminal
from bench.outputs.times import duration
from bench.reporting.report import Column, Table


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


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


def test_tables_align_their_columns(output: io.StringIO) -> None:
    table = simple_table("title", {"name": False, "figure": True}, [["a", "1"], ["[/b]", "22"]])
    Console(file=output, width=80).print(table)
    lines = [line.strip() for line in output.getvalue().splitlines()]
    assert lines[0] == "title"
    assert "a          1" in lines and "[/b]      22" in lines


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


DIFFERENCES = Table(
    name="t",
    title="T",
    columns=(Column(title="Method", align="left"), Column(title="Δ", toned=True)),
    rows=(("a", "+1.00"), ("b", "-1.00"), ("c", "+0.10")),
    headline=("a is better.",),
    tones=("good", "bad", ""),
)
GREEN, RED, BOLD = "\x1b[32m", "\x1b[31m", "\x1b[1m"


@pytest.mark.parametrize(
    ("color", "variables", "colored"),
    [
        ("auto", {}, False),  # the output of a test is no terminal
        ("auto", {"FORCE_COLOR": "1"}, False),
        ("always", {}, True),
        ("always", {"NO_COLOR": "1"}, True),  # what is typed goes before the environment
        ("never", {}, False),
    ],
)
def test_colours_in_a_file_are_those_that_are_asked_for(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    color: str,
    variables: dict[str, str],
    colored: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal, "_chosen", color)
    show([DIFFERENCES])
    assert ("\x1b" in capsys.readouterr().out) == colored


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_has_colours_unless_the_environment_forbids_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], colored: bool
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.has_color() == colored


def test_only_differences_that_are_clear_have_a_colour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_chosen", "always")
    show([DIFFERENCES])
    lines = capsys.readouterr().out.splitlines()
    (verdict,) = (line for line in lines if "is better" in line)
    figures = ("+1.00", "-1.00", "+0.10")
    better, worse, unclear = (next(line for line in lines if figure in line) for figure in figures)
    assert BOLD in verdict and GREEN in better and RED in worse
    assert GREEN not in unclear and RED not in unclear
    assert GREEN not in better.partition("a")[0]


def test_items_are_wrapped_on_a_terminal_and_whole_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "threads: OMP_NUM_THREADS is not set, and ed/mips stays whole"
    terminal.say_item("ok   ", text)
    assert capsys.readouterr().out == f"ok   {text}\n"
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setattr(terminal, "_chosen", "never")
    monkeypatch.setenv("COLUMNS", "40")
    terminal.say_item("ok   ", text)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "ok   threads: OMP_NUM_THREADS is not" and len(others) == 1
    assert others[0].startswith("     set,") and "ed/mips" in others[0]


def test_a_file_gets_lines_as_wide_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console().width == 120
