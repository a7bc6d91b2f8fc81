"""The MLflow view: complete, idempotent, never in a study's way."""

import logging
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.reporting.mlflow import tracker as tracking
from bench.reporting.mlflow.entries import curve_points
from bench.reporting.mlflow.probe import is_database, sqlite_file
from bench.reporting.mlflow.tracker import Tracker, resolve_uri
from bench.reporting.report import make_document
from bench.results.tables import StudyResults
from bench.store.files import read_json, write_json, write_text
from tests import fake_store
from tests.bench.reporting.mlflow.reading import by_name, log_study, search

PARENTS, CHILDREN = "tags.phase = 'summary'", "tags.phase != 'summary'"


def artifact(run: Any, name: str) -> Path:
    folder = Path(urllib.request.url2pathname(run.info.artifact_uri.removeprefix("file://")))
    return folder / name


def test_one_parent_a_group_and_one_child_a_seed_and_trial(mixed: Any) -> None:
    log_study(mixed)
    parents = {run.info.run_name: run.info.run_id for run in search(mixed.root, PARENTS)}
    assert sorted(parents) == ["dnas 4bit", "fixed 4bit", "full_precision", "sbs 4bit"]
    children = search(mixed.root, CHILDREN)
    assert len(children) == 3 + 3 + 3 + 2 + 2  # fixed, sbs, dnas without the running one, references, trials
    for child in children:
        parent = child.info.run_name.split(" seed")[0].split(" trial")[0]
        assert child.data.tags["mlflow.parentRunId"] == parents[parent]


def test_parents_carry_the_aggregates_and_the_tables(mixed: Any) -> None:
    write_text(mixed.store.study("quick") / "table.md", "| the table |\n")
    log_study(mixed)
    run = by_name(mixed.root)["sbs 4bit"]
    assert run.data.metrics["top1_mean"] == 73.0
    assert run.data.metrics["top1_std"] == pytest.approx(1.3229, abs=1e-4)
    assert (run.data.metrics["n"], run.data.metrics["tuning_seconds"]) == (3, 45)
    assert artifact(run, "table.md").read_text() == "| the table |\n"
    assert artifact(run, "results.csv").read_text().startswith("model,dataset,method,budget,n,")


def test_children_can_be_filtered_without_their_parents(mixed: Any) -> None:
    log_study(mixed)
    assert len(search(mixed.root, "params.method = 'sbs' and tags.phase = 'run'")) == 3
    assert len(search(mixed.root, "params.method = 'sbs' and tags.phase = 'trial'")) == 2
    assert len(search(mixed.root, "tags.status = 'unreachable'")) == 1
    assert len(search(mixed.root, "metrics.top1 > 74 and params.budget = '4bit'")) == 1
    (run,) = search(mixed.root, "params.method = 'sbs' and params.seed = '1' and tags.phase = 'run'")
    expected = {"model": "resnet8", "dataset": "digits", "method": "sbs", "budget": "4bit", "seed": "1"}
    expected |= {"phase": "run", "recipe": "common", "match": "hinge"}
    assert run.data.params == expected | {"knob.strength": "0.2"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.metrics["top1"] == 72.5 and run.data.metrics["bops"] == 39.5e6
    assert run.data.metrics["search_seconds"] == 11.0 and "pretrained_top1" not in run.data.metrics


def test_outcomes_are_mlflows_statuses(mixed: Any) -> None:
    mixed.run("haq", 0, status="interrupted")
    log_study(mixed)
    runs = by_name(mixed.root)
    assert runs["dnas 4bit seed 2"].info.status == "FAILED"
    assert artifact(runs["dnas 4bit seed 2"], "error.txt").read_text() == "Traceback\nNaN loss\n"
    assert runs["dnas 4bit seed 1"].info.status == "FINISHED"
    assert runs["haq 4bit seed 0"].info.status == "KILLED"
    assert runs["haq 4bit"].info.status == "FAILED"
    assert runs["dnas 4bit"].info.status == "FINISHED"
    assert not [run for run in runs.values() if run.info.status == "RUNNING"]
    assert runs["fixed 4bit seed 0"].info.end_time - runs["fixed 4bit seed 0"].info.start_time == 60_000


def test_curves_and_policies_are_there(mixed: Any) -> None:
    log_study(mixed)
    run = by_name(mixed.root)["sbs 4bit seed 0"]
    history = Tracker(None, mixed.root)._client.get_metric_history(run.info.run_id, "search_loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5)]
    assert "finetune_accuracy" in run.data.metrics
    assert read_json(artifact(run, "policy.json")) == fake_store.POLICY
    trial = by_name(mixed.root)["sbs 4bit trial 2"]
    assert read_json(artifact(trial, "policy.json")) == fake_store.POLICY
    assert trial.data.metrics["validation_top1"] == 91.0 and trial.data.params["knob.strength"] == "0.4"


def test_long_curves_go_in_several_calls(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    identity = fake.run("sbs", 0, 70.0)
    write_json(fake.store.unit("runs", identity) / "curves.json", fake_store.curves(300))
    log_study(fake)
    run = by_name(root)["sbs 4bit seed 0"]
    history = Tracker(None, root)._client.get_metric_history(run.info.run_id, "finetune_accuracy")
    assert [point.step for point in history] == list(range(300))


def test_logging_twice_changes_nothing(mixed: Any) -> None:
    log_study(mixed)
    before = {run.info.run_id: run.to_dictionary() for run in search(mixed.root)}
    log_study(mixed)
    assert {run.info.run_id: run.to_dictionary() for run in search(mixed.root)} == before


def test_new_runs_are_added_and_their_parent_is_updated_in_place(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.seeds("sbs", [70.0, 72.0])
    log_study(fake)
    before = by_name(root)
    fake.run("sbs", 2, 77.0)
    log_study(fake)
    after = by_name(root)
    assert after.keys() - before.keys() == {"sbs 4bit seed 2"}
    assert {name: run.info.run_id for name, run in before.items()}.items() <= {
        name: run.info.run_id for name, run in after.items()
    }.items()
    assert after["sbs 4bit"].data.metrics["top1_mean"] == 73.0


def test_a_changed_record_replaces_its_run(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.failed("sbs", 0, "out of memory")
    log_study(fake)
    fake.runs.clear()
    fake.run("sbs", 0, 71.0, finished="2026-01-02T00:00:00+00:00")
    log_study(fake)
    (run,) = search(root, CHILDREN)
    assert (run.info.status, run.data.metrics["top1"]) == ("FINISHED", 71.0)


def test_a_figure_that_is_gone_does_not_stay(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    identities = fake.seeds("sbs", [70.0, 72.0])
    log_study(fake)
    fake.runs.remove(identities[1])
    log_study(fake)
    metrics = by_name(root)["sbs 4bit"].data.metrics
    assert metrics["top1_mean"] == 70.0 and metrics["top1_std"] != metrics["top1_std"]
    assert len(search(root, CHILDREN)) == 1  # the run that left the study left its view as well


def test_a_half_written_run_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_store.FakeStore(root)
    fake.run("sbs", 0, 70.0)
    tracker = Tracker(None, root)
    log_artifact = tracker._client.log_artifact

    def full_disk(run: str, path: str, *rest: Any) -> None:
        if path.endswith("policy.json"):
            raise OSError("disk full")
        log_artifact(run, path, *rest)

    monkeypatch.setattr(tracker._client, "log_artifact", full_disk)
    assert not tracker.log_study(fake.store, fake.document())
    (half,) = search(root, CHILDREN)
    assert half.info.status == "RUNNING"
    log_study(fake)
    (whole,) = search(root, CHILDREN)
    assert whole.info.status == "FINISHED" and whole.info.run_id != half.info.run_id


def test_a_half_written_parent_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_store.FakeStore(root)
    fake.run("sbs", 0, 70.0)
    tracker = Tracker(None, root)
    monkeypatch.setattr(tracker._client, "log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    assert not tracker.log_study(fake.store, fake.document())
    log_study(fake)
    (parent,) = search(root, PARENTS)
    assert parent.info.status == "FINISHED" and parent.data.params["method"] == "sbs"


def test_a_study_with_another_recipe_gets_new_parents(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.run("sbs", 0, 70.0)
    log_study(fake)
    log_study(fake, recipe="own")
    (parent,) = search(root, PARENTS)
    (child,) = search(root, CHILDREN)
    assert parent.data.params["recipe"] == "own"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_trials_have_their_parent_before_the_first_run(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.tuning("sbs", [0.1])
    log_study(fake)
    (parent,) = search(root, PARENTS)
    (trial,) = search(root, CHILDREN)
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    fake.run("sbs", 0, 70.0)
    log_study(fake)
    assert search(root, "tags.phase = 'trial'")[0].info.run_id == trial.info.run_id


def test_values_of_an_ablated_option_have_parents_of_their_own(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.seeds("sbs", [70.0, 72.0])
    changed = [fake.run("sbs", 0, 80.0, id_suffix="x"), fake.tuning("sbs", [0.5])]
    place = {"model": "resnet8", "dataset": "digits", "method": "sbs[group_size=2]", "budget": "4bit", "seed": 0}
    document = {**fake.document(), "places": dict.fromkeys(changed, place)}
    assert Tracker(None, fake.root).log_study(fake.store, document)
    runs = by_name(root)
    means = {name: run.data.metrics["top1_mean"] for name, run in runs.items() if "top1_mean" in run.data.metrics}
    assert means == {"sbs 4bit": 71.0, "sbs[group_size=2] 4bit": 80.0}
    parent = runs["sbs[group_size=2] 4bit"].info.run_id
    children = {name for name, run in runs.items() if run.data.tags.get("mlflow.parentRunId") == parent}
    assert children == {"sbs[group_size=2] 4bit seed 0", "sbs[group_size=2] 4bit trial 1"}


def test_a_run_id_in_the_environment_is_not_resumed(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log_study(mixed)
    monkeypatch.setenv("MLFLOW_RUN_ID", search(mixed.root, PARENTS)[0].info.run_id)
    count = len(search(mixed.root))
    mixed.run("sbs", 7, 70.0)
    log_study(mixed)
    assert len(search(mixed.root)) == count + 1


def test_other_stores_runs_in_a_shared_experiment_are_left_alone(root: Path, tmp_path: Path) -> None:
    shared, counts = resolve_uri(None, root), []
    for number in (1, 2):
        fake = fake_store.FakeStore(tmp_path / str(number))
        fake.seeds("sbs", [70.0] * number)
        assert Tracker(shared, fake.root).log_study(fake.store, fake.document())
        counts.append(len(search(root)))
    assert counts == [2, 5]


def test_an_experiment_in_the_bin_is_brought_back(mixed: Any) -> None:
    tracker = Tracker(None, mixed.root)
    assert tracker.prepare(mixed.document())
    tracker._client.delete_experiment(tracker.find_experiment("quick"))
    assert tracker.find_experiment("quick") is None
    log_study(mixed)
    assert len(search(mixed.root, PARENTS)) == 4


def test_the_experiment_is_tagged_with_its_store(mixed: Any) -> None:
    tracker = Tracker(None, mixed.root)
    assert tracker.prepare(mixed.document()) and tracker.prepare(mixed.document())
    mark = (mixed.root / ".tracking-id").read_text().strip()
    assert tracker._client.get_experiment_by_name("quick").tags["bench.store"] == mark


def test_everything_stays_in_the_store(mixed: Any) -> None:
    log_study(mixed)
    assert list(Path.cwd().iterdir()) == []
    names = {path.name for path in mixed.root.iterdir()}
    assert names == {".tracking-id", "mlflow.db", "mlartifacts", "runs", "studies", "tuning"}


def test_where_mlflow_keeps_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_uri("sqlite:///x.db", tmp_path) == "sqlite:///x.db"
    assert resolve_uri(None, tmp_path) == "http://server:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert is_database("postgresql+psycopg2://u@h/db") and not is_database("https://h")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/x.db"])
def test_failures_are_one_warning(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = fake_store.mixed(tmp_path)
    tracker = Tracker(uri, tmp_path)
    with caplog.at_level(logging.WARNING, logger="bench"):
        assert tracker.prepare(fake.document()) is False
        assert tracker.log_study(fake.store, fake.document()) is False
    (record,) = (record for record in caplog.records if record.name == "bench.reporting.mlflow.tracker")
    assert uri in record.getMessage() and "\n" not in record.getMessage()


@pytest.mark.parametrize("uri", ["gopher://x", "file:///tmp/x", "bench-store/mlflow.db"])
def test_a_bad_tracking_uri_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"is not a tracking URI; give a server such as"):
        Tracker(uri, tmp_path)


def test_a_damaged_database_is_refused_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, but long enough to look like one" * 50)
    assert not Tracker(resolve_uri(None, tmp_path, {}), tmp_path).prepare({"name": "quick"})
    assert "file is not a database" in caplog.text


def test_strange_records_do_not_stop_the_log(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    metrics = {"a b%": 1.0, "flag": True, "loss": float("nan"), "huge": float("inf")}
    identity = fake.run("sbs", 0, 70.0, metrics=metrics, started="yesterday", options=None)
    write_text(fake.store.unit("runs", identity) / "curves.json", '[{"epoch": "x"}, 3, {"epoch": 0, "loss": null')
    fake.tuning("sbs", [0.1])
    write_text(fake.store.unit("tuning", "tuning-sbs-4bit") / "trials" / "0" / "trial.json", "{")
    log_study(fake)
    (run,) = search(root, "tags.phase = 'run'")
    assert run.data.metrics["a_b_"] == 1.0
    assert not {"flag", "loss", "huge"} & run.data.metrics.keys()


def test_curve_points_leave_out_what_is_no_number() -> None:
    curves = [
        {"phase": "search", "epoch": 0, "loss": 1, "note": "x"},
        {"epoch": 1, "lr": 0.1},
        None,
        {"loss": 2},
    ]
    assert curve_points(curves) == [("search_loss", 1.0, 0), ("epoch_lr", 0.1, 1)]
    assert curve_points(None) == []


def test_telemetry_is_off_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"DO_NOT_TRACK": "1"})
    tracking._quiet_environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true" and os.environ["DO_NOT_TRACK"] == "1"
    monkeypatch.setattr(os, "environ", {"MLFLOW_DISABLE_TELEMETRY": "false"})
    tracking._quiet_environment()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false" and "DO_NOT_TRACK" not in os.environ


def test_mlflow_is_imported_only_when_used_and_says_nothing(root: Path) -> None:
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom bench.reporting.mlflow.tracker import Tracker\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"tracker = Tracker(None, Path({str(root)!r}))\nbefore = 'mlflow' in sys.modules\n"
        "print(before, tracker.prepare({'name': 'quick'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("False True\n", "")


def test_parents_carry_the_difference_that_the_table_shows(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.seeds("fixed", [70.0, 71.0, 72.0, 70.5, 70.0, 72.0])
    fake.seeds("sbs", [70.4, 71.55, 72.3, 70.92, 70.5, 72.35])
    fake.seeds("dnas", [70.0, 71.0])
    fake.seeds("sbs", [71.0] * 6, budget="2.5bit")
    fake.seeds("fixed", [26.0] * 6, budget="2.5bit", within_budget=False, metrics={"bops": 20e6})
    log_study(fake)
    runs = by_name(root)
    table = read_rows(fake)
    sbs = runs["sbs 4bit"].data
    assert sbs.metrics["delta"] == pytest.approx(0.42) and sbs.metrics["pairs"] == 6
    assert sbs.metrics["p"] == pytest.approx(2 / 2**6)
    shown = table["sbs", "4bit"]
    assert sbs.tags["delta"] == f"{shown['Δ fixed']} {shown['Δ 95 % interval']} p {shown['p']}"
    assert runs["dnas 4bit"].data.tags["delta"] == "+0.00 n<6" and "p" not in runs["dnas 4bit"].data.metrics
    for name in ("fixed 4bit", "sbs 2.5bit", "fixed 2.5bit"):
        assert runs[name].data.tags["delta"] == "" and "delta" not in runs[name].data.metrics
    assert runs["fixed 2.5bit"].data.tags["flags"] == "its networks are outside the window of the budget"


def read_rows(fake: Any) -> dict[tuple[str, str], dict[str, str]]:
    """The rows of the comparison by method and budget."""
    document = make_document(StudyResults(fake.store, fake.document()), ["comparison"])
    (table,) = document.tables
    titles = [column.title for column in table.columns]
    rows = [dict(zip(titles, row, strict=True)) for row in table.rows]
    return {(row["Method"], row["Budget"]): row for row in rows}


def test_nothing_is_made_beside_a_store_with_a_strange_name(tracked: Path) -> None:
    """MLflow itself would make a folder with the escaped name."""
    assert any(sign in tracked.name for sign in "%?#") and not tracked.name.isascii()
    before = {path.name for path in tracked.parent.iterdir()}
    tracker = Tracker(None, tracked)
    assert tracker.prepare({"name": "strange"})
    assert tracker.find_experiment("strange") is not None
    assert {path.name for path in tracked.parent.iterdir()} == before
    assert sqlite_file(tracker.uri) == tracked / "mlflow.db"


def test_a_store_whose_path_is_not_utf_8_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot use a database '.*/a\\udcff/mlflow\.db', whose path is not UTF-8"):
        Tracker("", tmp_path / "a\udcff")
