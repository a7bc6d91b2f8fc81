"""Updates of MLflow: their cost, and what they send."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.mlflow import folders as tracking_folders
from bench.reporting.mlflow import tracker as tracking
from bench.reporting.mlflow.tracker import Tracker
from bench.results.tables import read_record
from bench.store.files import write_text
from tests import fake_store
from tests.bench.reporting.mlflow.reading import by_name


def test_what_is_unchanged_is_neither_read_nor_asked_for(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.log_study(fake.store, document, thorough=False)
    monkeypatch.setattr(tracking_folders, "read_record", None)
    monkeypatch.setattr(tracking_folders, "StudyResults", None)
    monkeypatch.setattr(tracker._opened[1], "search_runs", None)  # type: ignore[index]
    assert tracker.log_study(fake.store, document, thorough=False)


def test_one_more_run_costs_the_same_however_many_there_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []
    for method, count in (("sbs", 2), ("dnas", 12)):
        fake = fake_store.FakeStore(root, name=method)
        for budget in range(count):
            fake.run(method, 0, 70.0, budget=f"{budget + 1}M")
        fake.missing(f"{method}-1M-1")
        tracker, document = Tracker(None, root), fake.document()
        assert tracker.log_study(fake.store, document, thorough=False)
        calls: list[str] = []
        spy_on(tracker, calls, monkeypatch)
        fake.run(method, 1, 71.0, budget="1M")
        assert tracker.log_study(fake.store, document, thorough=False)
        costs.append(tuple(calls))
    assert costs[0] == costs[1]
    assert costs[0].count("read") == 2 and costs[0].count("create_run") == 1
    assert costs[0].count("search_runs") == 1


def spy_on(tracker: Tracker, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down which of MLflow's functions are called, and how many records are read."""
    client = tracker._client
    for name in ("create_run", "log_batch", "log_artifact", "log_text", "search_runs", "set_terminated", "delete_run"):
        monkeypatch.setattr(client, name, noting(calls, name, getattr(client, name)))
    monkeypatch.setattr(tracking_folders, "read_record", noting(calls, "read", read_record))


def noting(calls: list[str], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        return original(*arguments, **named)

    return called


def test_only_a_thorough_update_sends_the_tables(fake: Any) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    write_text(fake.store.study("quick") / "table.md", "| the table |\n")
    assert tracker.log_study(fake.store, document, thorough=False)
    artifacts = fake.root / "mlartifacts" / "quick"
    assert not list(artifacts.glob("*/artifacts/table.md"))
    assert tracker.log_study(fake.store, document)
    assert [file.read_text() for file in artifacts.glob("*/artifacts/table.md")] == ["| the table |\n"]


def test_a_refresh_leaves_the_rest_to_the_next_one(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 0.0)
    assert not tracker.log_study(fake.store, document, thorough=False)
    assert by_name(fake.root) == {}
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 60.0)
    assert tracker.log_study(fake.store, document, thorough=False)
    assert by_name(fake.root).keys() == {"sbs 4bit", "sbs 4bit seed 0", "sbs 4bit seed 1"}


def test_two_commands_at_once_make_no_run_twice(fake: Any) -> None:
    first, second = Tracker(None, fake.root), Tracker(None, fake.root)
    document = fake.document()
    for seed, tracker in ((2, first), (3, second), (4, first), (5, second)):
        fake.run("sbs", seed, 70.0 + seed)
        document["runs"] = list(dict.fromkeys([*document["runs"], *fake.runs, "sbs-4bit-9"]))
        assert tracker.log_study(fake.store, document, thorough=False)
    planned = dict(document)
    fake.run("sbs", 9, 79.0)
    assert first.log_study(fake.store, planned, thorough=False)
    assert second.log_study(fake.store, planned, thorough=False)
    found = by_name(fake.root)
    assert len(found) == 1 + 2 + 4 + 1
    assert found["sbs 4bit"].data.metrics["n"] == 7


def test_one_entry_that_mlflow_refuses_does_not_keep_out_the_others(fake: Any, caplog: Any) -> None:
    fake.run("sbs", 3, 73.0)
    tracker, document = Tracker(None, fake.root), fake.document()
    create = tracker._client.create_run

    def refusing(experiment: str, start: Any, tags: Any, name: str) -> Any:
        if name.endswith("seed 1"):
            raise ValueError("not this one")
        return create(experiment, start, tags, name)

    tracker._client.create_run = refusing
    assert not tracker.log_study(fake.store, document)
    assert by_name(fake.root).keys() == {"sbs 4bit", "sbs 4bit seed 0", "sbs 4bit seed 3"}
    assert "not this one" in caplog.text
    tracker._client.create_run = create
    assert tracker.log_study(fake.store, document, thorough=False)
    assert "sbs 4bit seed 1" in by_name(fake.root)


def test_every_ending_has_its_status_and_reason(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    failed, killed = ("failed", "diverged", "timeout", "oom"), ("killed", "interrupted")
    for status in (*failed, *killed, "skipped", "running"):
        fake.run(f"m-{status}", 0, status=status, reason=f"why {status}", fingerprint={})
    document = fake.document()
    assert Tracker(None, root).log_study(fake.store, document)
    found = by_name(root, "tags.phase = 'run'")
    expected = dict.fromkeys(failed, "FAILED") | dict.fromkeys(killed, "KILLED")
    shown = {run.data.tags["status"]: run.info.status for run in found.values()}
    assert shown == expected
    assert {run.data.tags["reason"] for run in found.values()} == {f"why {status}" for status in expected}
    assert by_name(root, "tags.phase = 'summary'")["m-skipped 4bit"].data.metrics["n_failed"] == 1


def test_a_result_that_is_out_of_date_is_marked(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.run("sbs", 0, 70.0, fingerprint={"cost_counter": 0})
    assert Tracker(None, root).log_study(fake.store, fake.document())
    found = by_name(root)
    assert found["sbs 4bit seed 0"].data.tags["status"] == "stale"
    assert "changed" in found["sbs 4bit seed 0"].data.tags["reason"]
    assert found["sbs 4bit"].data.metrics["n"] == 0


def test_trials_without_a_result_are_shown_too(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    tuning = fake.tuning("sbs", [0.1, 0.2])
    record = fake.store.record("trials", f"{tuning}-1")
    fake.store.write_record("trials", f"{tuning}-1", record | {"status": "diverged", "reason": "NaN", "files": {}})
    assert Tracker(None, root).log_study(fake.store, fake.document())
    found = by_name(root, "tags.phase = 'trial'")
    assert found["sbs 4bit trial 1"].info.status == "FINISHED"
    lost = found["sbs 4bit trial 2"]
    assert (lost.info.status, lost.data.tags["reason"]) == ("FAILED", "NaN")
    assert lost.data.params["knob.strength"] == "0.2" and not lost.data.metrics


def test_long_values_are_cut_and_many_are_sent_in_several_calls(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    options = {f"o{number}": number for number in range(250)} | {"k" * 400: "v" * 9000}
    fake.run("sbs", 0, status="failed", reason="r" * 20_000, options=options)
    assert Tracker(None, root).log_study(fake.store, fake.document())
    run = by_name(root)["sbs 4bit seed 0"]
    assert run.data.params["option.o249"] == "249"
    assert run.data.params[("option." + "k" * 400)[:250]] == "v" * 500
    assert run.data.tags["reason"] == "r" * 5000
