import io

import pytest
from rich.console import Console

from bench.cli import console as module
from bench.cli.console import make_console, show, simple_table
from bench.reporting.report import Column, Table
from bench.reporting.wording import duration


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
