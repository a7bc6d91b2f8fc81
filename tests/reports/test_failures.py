"""Runs without a usable result, and the commands that get one."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cli.main import bench as command_line
from bench.results.tables import StudyResults
from bench.store.files import Store
from bench.store.leases import Leases
from reports.failures import Failures
from tests import fake_store
from tests.reports.reading import records, results_of, table_of


def test_every_run_without_a_result_is_called_what_it_is(mixed: Any) -> None:
    mixed.run("sbs", 7, 70.0, fingerprint={"cost_counter": 0})
    mixed.run("sbs", 8, 70.0, within_budget=False, metrics={"bops": 1.2 * fake_store.BUDGET_BOPS})
    rows = {row["Id"]: row for row in records(table_of(Failures(), mixed, "failures"))}
    states = {identity: (row["State"], row["Reason"]) for identity, row in rows.items()}
    assert states.pop("sbs-4bit-7")[0] == "stale"
    assert states == {
        "dnas-4bit-0": ("below the window", "costs 0.988 of the budget"),
        "dnas-4bit-1": ("unreachable", "the cheapest policy costs 44.1 M"),
        "dnas-4bit-2": ("failed", "NaN loss"),
        "dnas-4bit-3": ("orphaned", "started 2026-01-01T00:00:00+00:00"),
        "not-yet-run": ("missing", ""),
        "cut-off": ("damaged", "its record does not match its checksum"),
        "sbs-4bit-8": ("over budget", "costs 1.200 of the budget"),
    }
    assert "--retry failed" in rows["dnas-4bit-2"]["To get a result"]
    assert "--seeds 2," in rows["dnas-4bit-2"]["To get a result"]
    assert "--methods" not in rows["not-yet-run"]["To get a result"]
    assert "--store repeated" in rows["sbs-4bit-8"]["To get a result"]


def test_a_run_at_work_is_no_failure(mixed: Any) -> None:
    lease = Leases(mixed.root).acquire("runs-dnas-4bit-3", "run dnas")
    assert lease is not None
    with lease:
        assert "dnas-4bit-3" not in {row["Id"] for row in records(table_of(Failures(), mixed, "failures"))}


def test_a_study_without_failures_has_no_such_table(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0])
    assert not Failures().build(results_of(fake))


def test_a_failed_run_gets_its_result_by_the_printed_command(copied: Path) -> None:
    """The whole way: the command that the report prints is run, and the study then has the run."""
    store = Store(copied)
    study = store.load_study(None)
    fixed = next(run for run in study["runs"] if (store.record("runs", run) or {})["method"] == "fixed")
    record = dict(store.record("runs", fixed) or {})
    store.write_record("runs", fixed, record | {"status": "failed", "reason": "cosmic ray", "metrics": {}})
    (row,) = records(Failures().build(StudyResults(store, study))[0])
    assert (row["Id"], row["State"], row["Reason"]) == (fixed, "failed", "cosmic ray")
    words = [sys.executable, "-m", *shlex.split(row["To get a result"])]
    subprocess.run([*words, "--in-process"], check=True, capture_output=True)
    again = StudyResults(store, store.load_study("tiny"))
    assert not Failures().build(again)
    assert (store.record("runs", fixed) or {})["metrics"]["top1"] == record["metrics"]["top1"]


def test_the_costliest_network_of_a_method_is_no_failure(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 70.0, within_budget=False, metrics={"bops": 20e6})
    most = {"model": "resnet8", "dataset": "digits", "method": "sbs", "budget": "4bit", "cost": 20e6}
    assert len(Failures().build(results_of(fake))) == 1
    assert Failures().build(results_of(fake, costliest=[most])) == []


@pytest.mark.parametrize("by_tuning", [False, True], ids=["the run", "its tuning"])
def test_the_command_for_what_diverged_does_not_repeat_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch, by_tuning: bool
) -> None:
    """It limits the gradients, so that it asks for another run; if they were limited, it limits them more."""
    store = Store(copied)
    study = store.load_study(None)
    name = next(run for run in study["runs"] if (store.record("runs", run) or {})["method"] == "sbs")
    record = dict(store.record("runs", name) or {})
    if by_tuning:
        tuned = dict(store.record("tuning", record["tuning"]) or {})
        store.write_record("tuning", record["tuning"], tuned | {"status": "diverged", "reason": "the only trial"})
    status = "skipped" if by_tuning else "diverged"
    store.write_record("runs", name, record | {"status": status, "reason": "the loss became nan", "metrics": {}})
    plans: list[Any] = []
    monkeypatch.setattr("bench.cli.run._run", lambda plan, *_: plans.append(plan) or 0)
    present: float | None = None
    for limit in (5.0, 2.5):
        spec = {**study["spec"]}
        for stage in ("pretrain", "search", "finetune"):
            spec[stage] = {**spec[stage], **({} if present is None else {"max_grad_norm": present})}
        (row,) = records(Failures().build(StudyResults(store, {**study, "spec": spec}))[0])
        words = shlex.split(row["To get a result"])
        assert words[words.index("--retry") + 1] == "diverged"
        assert command_line.main(words[1:], standalone_mode=False) == 0
        asked = plans.pop().spec
        assert asked.pretrain.max_grad_norm == asked.search.max_grad_norm == asked.finetune.max_grad_norm == limit
        present = limit


def test_the_traceback_of_what_a_run_needed_is_named(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    tuning = fake.tuning("sbs", [0.2])
    run = fake.run("sbs", 0, status="skipped", reason="its tuning failed", tuning=tuning)
    needs = {"id": run, "unit": {}, "depends_on": {"tuning": tuning}, "specification": {}}
    fake_store.write_checked(fake.store.unit("runs", run) / "spec.json", needs)
    file = fake.store.unit("tuning", tuning) / "error.txt"
    file.write_text("Traceback")
    assert f"traceback of sbs 4bit seed 0: {file}" in table_of(Failures(), fake, "failures").notes


def test_the_traceback_of_a_failure_is_named(mixed: Any) -> None:
    file = mixed.root / "runs" / "dnas-4bit-2" / "error.txt"
    file.write_text("Traceback")
    notes = table_of(Failures(), mixed, "failures").notes
    assert [note for note in notes if note.endswith(f": {file}") and note.startswith("traceback of dnas 4bit seed 2")]
