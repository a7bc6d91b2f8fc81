"""`bench verify`."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.diagnostics.verify import CheckLine
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.reporting.report import Figure


def test_verify_fails_when_a_check_does(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[CheckLine] = []
    monkeypatch.setattr("bench.plugins.entry_points.available", lambda kind: {"one": None})
    monkeypatch.setattr("bench.plugins.registry.load", lambda kind, name: lambda: lines)
    lines.append(CheckLine(what="the theorem", figure="0.5", passed=True))
    answer = bench("verify")
    assert (answer.status, answer.out) == (0, "pass  the theorem: 0.5\nall checks passed\n")
    lines.append(CheckLine(what="a misprint", figure="2", passed=True, deviation=True))
    answer = bench("verify")
    assert answer.status == 0 and "\nnote  a misprint: 2\nall checks passed\n1 printed figures do not" in answer.out
    lines[:] = [CheckLine(what="the theorem", figure="0.5", passed=False)]
    answer = bench("verify")
    assert (answer.status, answer.out) == (1, "FAIL  the theorem: 0.5\n1 checks failed\n")


def test_verify_writes_lines_and_figures(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import altair as alt

    def check() -> Iterator[CheckLine | Figure]:
        yield CheckLine(what="the theorem | holds", figure="0.5", passed=True)
        chart = alt.Chart(alt.Data(values=[{"x": 1, "y": 2}])).mark_point().encode(x="x:Q", y="y:Q")
        yield Figure(name="fig9", title="A figure", draw=lambda: chart)
        yield CheckLine(what="the bound", figure="0.7", passed=False)

    known = entry_points.available
    monkeypatch.setattr(entry_points, "available", lambda kind: {"one": None} if kind == "checks" else known(kind))
    monkeypatch.setattr(plugins, "load", lambda kind, name: check)
    answer = bench("verify", "--out", tmp_path / "out")
    assert answer.status == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"fig9.svg", "fig9.pdf", "fig9.png", "verify.md", "verify.csv", "verify.tex"}
    assert f"{len(names)} files in {tmp_path / 'out'}\n1 checks failed\n" in answer.out
    with (tmp_path / "out" / "verify.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    assert rows == [["Claim", "Found", "Holds"], ["the theorem | holds", "0.5", "yes"], ["the bound", "0.7", "no"]]
    assert (tmp_path / "out" / "fig9.svg").read_text().startswith("<svg")
