"""`bench status` and `bench report`."""

import csv
import io
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.planning.units import title
from bench.store.files import read_json
from tests.bench.cli.printed import table_rows
from tests.fake_store import FakeStore


def test_studies_reports_and_forms_that_do_not_exist(bench: Callable[..., Any], finished: Any) -> None:
    store = ("--store", finished.store.root)
    for command in ("status", "report", "ui"):
        assert "no study 'tinny' in the store" in bench(command, "tinny", *store).refusal
    assert (
        "unknown report 'comparisons': did you mean 'comparison'?"
        in bench("report", "--report", "comparisons", *store).refusal
    )
    assert "unknown form 'markdwn': did you mean 'markdown'?" in bench("report", "--format", "markdwn", *store).refusal


def test_status_shows_every_run(bench: Callable[..., Any], copied: Path, finished: Any) -> None:
    document = read_json(copied / "studies" / "tiny" / "study.json")
    missing, damaged = document["runs"][0], document["runs"][1]
    (copied / "runs" / missing / "record.json").unlink()
    (copied / "runs" / damaged / "record.json").write_text("{")
    answer = bench("status", "--store", copied)
    assert (answer.status, answer.err) == (0, "")
    rows = table_rows(answer.out)
    plan = finished.plan
    assert [row[0] for row in rows] == [title(unit) for unit in (*plan.pretrainings, *plan.tunings, *plan.runs)]
    assert [row[1] for row in rows] == ["done"] * 5 + ["planned", "damaged"] + ["done"] * 6
    assert "NA" not in answer.out and "nan" not in answer.out
    record = finished.record("fixed 0")
    seconds, top1 = record["times"]["total_seconds"], record["metrics"]["top1"]
    assert ["run fixed 4bit seed 0", "done", "1", f"{seconds:.1f}", f"{top1:.2f}", "55.4"] in rows
    assert "11 done, 1 planned, 1 damaged" in answer.out
    assert "━" not in answer.out  # one style for all tables


def test_the_page_of_a_report_is_named_and_opened(
    bench: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr("bench.reporting.report.FIGURE_ENDINGS", ())
    fake = FakeStore(tmp_path / "a store")
    fake.seeds("fixed", [70.0, 71.0])
    fake.document()
    out = tmp_path / "a report"
    answer = bench("report", "--store", fake.root, "--out", out)
    page = (out / "index.html").as_uri()
    assert f"page: {page}\n" in answer.out and opened == []
    files = len(list(out.iterdir())) - 1
    assert f"tables and figures: {files} files in {out}\n" in answer.out
    bench("report", "--store", fake.root, "--out", out, "--open")
    assert opened == [page]
    assert "give one with --out DIR" in bench("report", "--store", fake.root, "--open").refusal


def test_status_of_a_large_study_lists_what_needs_attention(bench: Callable[..., Any], tmp_path: Path) -> None:
    fake = FakeStore(tmp_path / "store")
    fake.seeds("fixed", [70.0] * 201)
    fake.failed("sbs", 0, "NaN loss")
    fake.document()
    listed = bench("status", "--store", fake.root).out
    assert "sbs-4bit-0" in listed and "NaN loss" in listed and "fixed-4bit-7" not in listed
    assert "202 units: 201 done, 1 failed" in listed
    assert f"to list them: bench status --all --store {fake.root}" in listed
    every = bench("status", "--all", "--store", fake.root).out
    assert "fixed-4bit-7" in every and "to list them" not in every


@pytest.mark.parametrize(
    ("form", "sign"),
    [("terminal", "Top-1 %"), ("markdown", "| sbs "), ("csv", "sbs,4bit,"), ("latex", r"\begin{tabular}")],
)
def test_reports_come_in_several_forms(bench: Callable[..., Any], finished: Any, form: str, sign: str) -> None:
    answer = bench("report", "tiny", "--format", form, "--store", finished.store.root)
    assert (answer.status, answer.err) == (0, "")
    assert sign in answer.out
    for method in ("sbs", "dnas", "fixed"):
        assert method in answer.out
    if form == "csv":
        rows = list(csv.reader(io.StringIO(answer.out)))
        assert {len(row) for row in rows[:5]} == {len(rows[0])}


def test_the_environment_names_the_store(
    bench: Callable[..., Any], finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_STORE", str(finished.store.root))
    assert "tiny: resnet8 on synthetic" in bench("report").out
