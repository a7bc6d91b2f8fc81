"""The numbers of a study, against numbers worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench.results.differences import write_numbers
from bench.results.tables import RESULT_COLUMNS, RUN_COLUMNS, StudyResults
from tests import fake_store


def test_one_line_a_run_in_the_order_of_the_study(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    frame = StudyResults(fake.store, fake.document()).runs
    assert list(frame["id"]) == fake.runs
    assert tuple(frame.columns) == (*RUN_COLUMNS, "knob_strength")
    sbs = frame[frame["id"] == "sbs-4bit-1"].iloc[0]
    assert (sbs["method"], sbs["budget"], sbs["seed"], sbs["top1"], sbs["bops"]) == (
        "sbs",
        "4bit",
        1,
        72.5,
        39.5e6,
    )
    assert (sbs["search_seconds"], sbs["knob_strength"], sbs["tuning"]) == (11.0, 0.2, "tuning-sbs-4bit")


def test_runs_without_a_readable_record_keep_their_line(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    frame = StudyResults(fake.store, fake.document()).runs.set_index("id")
    assert frame.loc["not-yet-run", "status"] == "missing"
    assert frame.loc["cut-off", "status"] == "damaged"
    assert frame.loc["cut-off", "model"] == "resnet8"
    assert pd.isna(frame.loc["cut-off", "seed"]) and pd.isna(frame.loc["cut-off", "top1"])


def test_one_line_a_cell_with_exactly_the_promised_columns(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    frame = StudyResults(fake.store, fake.document()).lines
    assert ",".join(frame.columns) == (
        "model,dataset,method,budget,n,n_failed,top1_mean,top1_std,top5_mean,top5_std,bops_mean,bops_std,"
        "memory_kb_mean,search_seconds_mean,tuning_seconds,peak_memory_mb,within_budget,"
        "cost_mean,latency_ms_mean,energy_mj_mean"
    )
    cells = list(zip(frame["method"], frame["budget"], frame["n"], frame["n_failed"], strict=True))
    assert cells == [
        ("fixed", "4bit", 3, 0),
        ("sbs", "4bit", 3, 0),
        ("dnas", "4bit", 1, 2),
        ("full_precision", "", 2, 0),
    ]


def test_figures_are_over_the_runs_that_are_done(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    frame = StudyResults(fake.store, fake.document()).lines.set_index("method")
    assert frame.loc["sbs", "top1_mean"] == 73.0
    assert frame.loc["sbs", "top1_std"] == pytest.approx((3.5 / 2) ** 0.5)
    assert frame.loc["sbs", "search_seconds_mean"] == 11.0
    assert frame.loc["sbs", "peak_memory_mb"] == 202.0
    assert frame.loc["sbs", "memory_kb_mean"] == 33.25
    assert frame.loc["dnas", "top1_mean"] == 69.0
    assert pd.isna(frame.loc["dnas", "top1_std"])
    assert frame.loc["full_precision", "bops_mean"] == 2.5e9


def test_tuning_is_counted_once_and_is_zero_without_tuning(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    frame = StudyResults(fake.store, fake.document()).lines.set_index("method")
    assert frame.loc["sbs", "tuning_seconds"] == 45.0
    assert frame.loc["fixed", "tuning_seconds"] == 0.0


def test_the_time_of_a_damaged_tuning_is_unknown(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, tuning="lost")
    assert pd.isna(StudyResults(fake.store, fake.document()).lines.loc[0, "tuning_seconds"])


def test_within_budget_only_when_all_are(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    fake.run("sbs", 9, 70.0, within_budget=False)
    fake.run("haq", 0, status="unreachable")
    frame = StudyResults(fake.store, fake.document()).lines.set_index("method")["within_budget"]
    assert frame["fixed"] is True
    assert frame["sbs"] is False
    assert frame["full_precision"] is None
    assert frame["haq"] is None


def test_a_study_without_any_record_gives_empty_tables(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.missing("a")
    frame = StudyResults(fake.store, fake.document()).lines
    assert tuple(frame.columns) == RESULT_COLUMNS and frame.empty
    assert StudyResults(fake.store, fake.document() | {"runs": []}).runs.empty


def test_strange_records_do_not_stop_the_table(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, times=None, knobs=[], metrics={"top1": "many", "note": "text"})
    identity = fake.run("sbs", 1, 71.0)
    (fake.store.unit("runs", identity) / "record.json").write_text("[1, 2]")
    results = StudyResults(fake.store, fake.document())
    assert list(results.runs["status"]) == ["damaged", "damaged"]
    assert results.lines.empty


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    document = fake.document()
    write_numbers(StudyResults(fake.store, document))
    folder = fake.store.study("quick")
    read = pd.read_csv(folder / "results.csv", keep_default_na=False, na_values={"top1_std": ""})
    expected = StudyResults(fake.store, document).lines
    assert list(read["top1_mean"]) == list(expected["top1_mean"])
    assert list(read["within_budget"]) == ["True", "True", "False", ""]
    assert list(read["budget"]) == ["4bit", "4bit", "4bit", ""]
    assert len(pd.read_csv(folder / "runs.csv")) == len(fake.runs)
    assert json.loads((folder / "study.json").read_text()) == document
    assert sorted(path.name for path in folder.iterdir()) == ["results.csv", "runs.csv", "study.json"]


def test_reading_results_never_imports_torch(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    fake.document()
    code = (
        "import sys\nfrom pathlib import Path\nfrom bench.results.tables import StudyResults\n"
        "from bench.results.differences import write_numbers\n"
        "from bench.store.files import Store\n"
        f"store = Store(Path({str(tmp_path)!r}))\nwrite_numbers(StudyResults(store, store.load_study('quick')))\n"
        "print('torch' in sys.modules, 'mlflow' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method_source": "syntax-1:another"}, "method source changed"),
        ({"data_checksum": "e" * 64}, "data changed"),
        ({"cost_counter": 0}, "cost counter changed"),
    ],
)
def test_results_out_of_date_are_shown_as_such_and_counted_by_no_mean(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0)
    fake.run("sbs", 1, 90.0, fingerprint={**fake_store.made_with("sbs"), **change})
    fake.failed("sbs", 2, "no luck", fingerprint={})  # a failure is none that could be out of date
    frame = StudyResults(fake.store, fake.document()).runs
    assert list(frame["status"]) == ["done", "stale", "failed"]
    assert frame.loc[1, "reason"] == reason
    line = StudyResults(fake.store, fake.document()).lines.loc[0]
    assert (line["n"], line["n_failed"], line["top1_mean"]) == (1, 1, 70.0)


def test_a_record_that_was_changed_by_hand_is_damaged(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    identity = fake.run("sbs", 0, 70.0)
    file = fake.store.unit("runs", identity) / "record.json"
    file.write_text(file.read_text().replace("70.0", "99.0"))
    frame = StudyResults(fake.store, fake.document()).runs
    assert frame.loc[0, "status"] == "damaged"
    assert pd.isna(frame.loc[0, "top1"])
    assert StudyResults(fake.store, fake.document()).lines.empty


@pytest.mark.parametrize("status", ["failed", "diverged", "timeout", "oom", "killed", "interrupted", "skipped"])
def test_every_ending_without_a_result_is_counted(tmp_path: Path, status: str) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, status=status, reason="x")
    line = StudyResults(fake.store, fake.document()).lines.loc[0]
    assert (line["n"], line["n_failed"]) == (0, 1)
