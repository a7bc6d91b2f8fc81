"""MLflow when it is slow, gone, damaged or back again; and `bench sync`, which makes up for it at any later time."""

import logging
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bench.errors import BenchError
from bench.reporting.mlflow import folders as tracking_folders
from bench.reporting.mlflow import probe as tracking_probe
from bench.reporting.mlflow import tracker as tracking
from bench.reporting.mlflow import ui as interface
from bench.reporting.mlflow.probe import TrackingDownError, probe
from bench.reporting.mlflow.tracker import Tracker, resolve_uri
from bench.results.tables import read_record
from bench.store.files import write_text
from bench.store.urls import with_driver, without_password
from tests import fake_store

SHORT = 12.0
"""Seconds that no failure may take, on a busy machine; MLflow itself would take 20 to 200."""


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a few seconds may not be enough for a refresh."""
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 60.0)


@pytest.fixture
def root(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's folder with an empty database; making MLflow's tables takes seconds, copying them does not."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    template = tmp_path_factory.getbasetemp() / "mlflow-template.db"
    if not template.is_file():
        made = tmp_path_factory.mktemp("template")
        assert Tracker(None, made).prepare({"name": "template"})
        shutil.move(made / "mlflow.db", template)
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    return folder


@pytest.fixture
def fake(root: Path) -> Any:
    """A store with two runs that are done and one that is planned."""
    made = fake_store.FakeStore(root)
    made.seeds("sbs", [70.0, 72.0])
    made.missing("sbs-4bit-2")
    return made


def runs(root: Path, text: str = "", uri: str | None = None) -> dict[str, Any]:
    """MLflow's runs by name; none may be there twice."""
    tracker = Tracker(uri, root)
    found = list(tracker._client.search_runs([tracker.find_experiment("quick")], text, max_results=1000))
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def short() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SHORT


# --- what an update costs ---


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
    assert runs(fake.root) == {}
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 60.0)
    assert tracker.log_study(fake.store, document, thorough=False)
    assert runs(fake.root).keys() == {"sbs 4bit", "sbs 4bit seed 0", "sbs 4bit seed 1"}


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
    found = runs(fake.root)
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
    assert runs(fake.root).keys() == {"sbs 4bit", "sbs 4bit seed 0", "sbs 4bit seed 3"}
    assert "not this one" in caplog.text
    tracker._client.create_run = create
    assert tracker.log_study(fake.store, document, thorough=False)
    assert "sbs 4bit seed 1" in runs(fake.root)


# --- what MLflow is told ---


def test_every_ending_has_its_status_and_reason(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    failed, killed = ("failed", "diverged", "timeout", "oom"), ("killed", "interrupted")
    for status in (*failed, *killed, "skipped", "running"):
        fake.run(f"m-{status}", 0, status=status, reason=f"why {status}", fingerprint={})
    document = fake.document()
    assert Tracker(None, root).log_study(fake.store, document)
    found = runs(root, "tags.phase = 'run'")
    expected = dict.fromkeys(failed, "FAILED") | dict.fromkeys(killed, "KILLED")
    shown = {run.data.tags["status"]: run.info.status for run in found.values()}
    assert shown == expected
    assert {run.data.tags["reason"] for run in found.values()} == {f"why {status}" for status in expected}
    assert runs(root, "tags.phase = 'summary'")["m-skipped 4bit"].data.metrics["n_failed"] == 1


def test_a_result_that_is_out_of_date_is_marked(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    fake.run("sbs", 0, 70.0, fingerprint={"cost_counter": 0})
    assert Tracker(None, root).log_study(fake.store, fake.document())
    found = runs(root)
    assert found["sbs 4bit seed 0"].data.tags["status"] == "stale"
    assert "changed" in found["sbs 4bit seed 0"].data.tags["reason"]
    assert found["sbs 4bit"].data.metrics["n"] == 0


def test_trials_without_a_result_are_shown_too(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    tuning = fake.tuning("sbs", [0.1, 0.2])
    record = fake.store.record("trials", f"{tuning}-1")
    fake.store.write_record("trials", f"{tuning}-1", record | {"status": "diverged", "reason": "NaN", "files": {}})
    assert Tracker(None, root).log_study(fake.store, fake.document())
    found = runs(root, "tags.phase = 'trial'")
    assert found["sbs 4bit trial 0"].info.status == "FINISHED"
    lost = found["sbs 4bit trial 1"]
    assert (lost.info.status, lost.data.tags["reason"]) == ("FAILED", "NaN")
    assert lost.data.params["knob.strength"] == "0.2" and not lost.data.metrics


def test_long_values_are_cut_and_many_are_sent_in_several_calls(root: Path) -> None:
    fake = fake_store.FakeStore(root)
    options = {f"o{number}": number for number in range(250)} | {"k" * 400: "v" * 9000}
    fake.run("sbs", 0, status="failed", reason="r" * 20_000, options=options)
    assert Tracker(None, root).log_study(fake.store, fake.document())
    run = runs(root)["sbs 4bit seed 0"]
    assert run.data.params["option.o249"] == "249"
    assert run.data.params[("option." + "k" * 400)[:250]] == "v" * 500
    assert run.data.tags["reason"] == "r" * 5000


# --- servers that are down ---


class Answering(BaseHTTPRequestHandler):
    """A server that answers `health` and `rest` with these statuses; 0 ends the connection without an answer."""

    health, rest = 200, 500

    def answer(self) -> None:
        status = self.health if self.path == "/health" else self.rest
        if status:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.close_connection = True

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(health: int, rest: int) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answering,), {"health": health, "rest": rest}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(("health", "rest"), [(500, 500), (503, 0), (200, 500), (200, 0), (404, 404), (200, 429)])
def test_a_broken_server_holds_nothing_up(health: int, rest: int, fake: Any, caplog: Any) -> None:
    with answering(health, rest) as uri:
        tracker, document = Tracker(uri, fake.root), fake.document()
        for _ in range(2):
            with short():
                assert not tracker.log_study(fake.store, document, thorough=False)
    assert len(warnings(caplog)) == 1


def test_a_silent_server_holds_nothing_up(fake: Any, caplog: Any) -> None:
    with silent() as uri:
        tracker, document = Tracker(uri, fake.root), fake.document()
        with short():
            assert not tracker.prepare(document)
        with short():
            assert not tracker.log_study(fake.store, document)
        (warning,) = warnings(caplog)
        assert "no answer within 2 s" in warning and "\n" not in warning
        with short(), pytest.raises(TrackingDownError):
            Tracker(uri, fake.root, patient=True).sync(fake.store, document)


def test_a_check_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_probe, "_TOTAL_SECONDS", 0.1)
    monkeypatch.setattr(tracking_probe, "_check", lambda *_: time.sleep(5))  # e.g. a slow name look-up
    with short(), pytest.raises(TrackingDownError, match="no answer"):
        probe("http://somewhere")


def test_what_the_user_set_stays(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with Tracker(None, fake.root)._environment():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@contextmanager
def served(root: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """An MLflow server on an SQLite file of its own."""
    root.mkdir(exist_ok=True)
    command = interface.ui_command(root, resolve_uri(None, root, {}), "127.0.0.1", port)
    with interface.Ui("", interface._start_server(command, "127.0.0.1", port, 180)) as ui:
        assert ui.process is not None
        yield ui.process


@pytest.mark.slow
def test_a_server_that_comes_and_goes_is_caught_up(
    fake: Any, tmp_path: Path, caplog: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server_root = fake.root.parent / "server"
    server_root.mkdir()
    shutil.copy(fake.root / "mlflow.db", server_root)
    tracker, document = Tracker(uri, fake.root), fake.document()
    document["runs"] += ["sbs-4bit-3", "sbs-4bit-4"]

    def refresh() -> bool:
        with short():
            return tracker.log_study(fake.store, document, thorough=False)

    assert not tracker.prepare(document) and not refresh()  # not there yet
    with served(server_root, port) as process:
        assert refresh()
        assert len(runs(fake.root, uri=uri)) == 3
        fake.run("sbs", 2, 74.0)
        os.killpg(process.pid, signal.SIGSTOP)  # connections are accepted, and nothing is answered
        assert not refresh()
        os.killpg(process.pid, signal.SIGCONT)
        assert refresh()
        fake.run("sbs", 3, 75.0)
    assert not refresh()  # gone
    fake.run("sbs", 4, 76.0)
    with served(server_root, port):
        assert refresh()
        found = runs(fake.root, uri=uri)
        assert len(found) == 6 and found["sbs 4bit"].data.metrics["n"] == 5
        moved = fake.root.rename(tmp_path / "moved")  # what marks a store's runs goes with it
        counts = Tracker(uri, moved, patient=True).sync(fake_store.FakeStore(moved).store, document)
        assert (counts.added, counts.removed) == (0, 0) and counts.updated <= 1
    assert len(warnings(caplog)) == 1
    assert capsys.readouterr().out == ""  # MLflow announces every run unless told not to


# --- SQLite files in trouble ---


def test_a_locked_file_is_not_waited_for(fake: Any, caplog: Any) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.prepare(document)
    with closing(sqlite3.connect(fake.root / "mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        for thorough in (False, True):
            with short():
                assert not tracker.log_study(fake.store, document, thorough=thorough)
    (warning,) = warnings(caplog)
    assert "database is locked" in warning
    assert tracker.log_study(fake.store, document, thorough=False)
    assert len(runs(fake.root)) == 3


def test_a_file_that_is_locked_in_the_middle_is_not_waited_for(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    terminated = tracker._client.set_terminated
    other = sqlite3.connect(fake.root / "mlflow.db", isolation_level=None)

    def locking(run: str, status: str, ended: int | None) -> None:
        terminated(run, status, ended)
        tracker._client.log_batch = lambda *_, **__: other.execute("begin immediate")

    monkeypatch.setattr(tracker._client, "set_terminated", locking)
    with closing(other), short():
        assert not tracker.log_study(fake.store, document)
    tracker._opened = None
    assert tracker.log_study(fake.store, document, thorough=False)
    assert len(runs(fake.root)) == 3


def test_a_file_that_cannot_be_written_is_told_at_once(fake: Any, monkeypatch: Any, caplog: Any) -> None:
    connect = sqlite3.connect

    def read_only(file: Path, **named: Any) -> sqlite3.Connection:
        return connect(f"file:{file}?mode=ro", uri=True, **named)

    with monkeypatch.context() as patch, short():
        patch.setattr(tracking_probe.sqlite3, "connect", read_only)
        assert not Tracker(None, fake.root).log_study(fake.store, fake.document())
    assert "attempt to write a readonly database" in caplog.text


@pytest.mark.parametrize("thorough", [False, True])
def test_a_file_that_is_deleted_meanwhile_is_made_anew(fake: Any, thorough: bool, caplog: Any) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.log_study(fake.store, document)
    (fake.root / "mlflow.db").unlink()
    fake.run("sbs", 2, 74.0)
    assert tracker.log_study(fake.store, document, thorough=thorough)
    assert len(runs(fake.root)) == 4
    assert warnings(caplog) == []


def test_a_file_that_is_damaged_meanwhile_can_be_deleted(fake: Any, caplog: Any) -> None:
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.log_study(fake.store, document)
    (fake.root / "mlflow.db").write_text("no database at all, but long enough to look like one" * 500)
    with short():
        assert not tracker.log_study(fake.store, document, thorough=False)
    assert "not a database" in caplog.text
    (fake.root / "mlflow.db").unlink()
    assert tracker.log_study(fake.store, document, thorough=False)
    assert len(runs(fake.root)) == 3


def test_a_file_that_loses_its_tables_gets_new_ones(fake: Any, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("create table other (x)")
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.log_study(fake.store, document)
    (fake.root / "mlflow.db").write_bytes((tmp_path / "other.db").read_bytes())  # the same inode
    assert not tracker.log_study(fake.store, document)
    assert tracker.log_study(fake.store, document)
    assert len(runs(fake.root)) == 3
    (fake.root / "mlflow.db").write_bytes(b"")
    assert tracker.log_study(fake.store, document)
    assert len(runs(fake.root)) == 3


# --- bench sync ---


def test_sync_tells_what_it_did_and_does_it_once(bench: Any, fake: Any) -> None:
    fake.document()
    assert "quick: 3 runs added, 0 updated, 0 unchanged" in bench("sync", "--store", fake.root).out
    assert "quick: 0 runs added, 0 updated, 3 unchanged" in bench("sync", "--store", fake.root).out
    fake.run("sbs", 2, 74.0)
    assert "quick: 1 runs added, 1 updated, 2 unchanged" in bench("sync", "quick", "--store", fake.root).out
    (fake.root / "mlflow.db").unlink()
    answer = bench("sync", "--store", fake.root)
    assert (answer.status, answer.err) == (0, "")
    assert "quick: 4 runs added, 0 updated, 0 unchanged" in answer.out
    assert len(runs(fake.root)) == 4


def test_sync_takes_all_studies_that_can_be_read(bench: Any, fake: Any) -> None:
    fake.document()
    other = fake_store.FakeStore(fake.root, name="other")
    other.run("fixed", 0, 60.0)
    other.document()
    write_text(fake.store.study("broken") / "study.json", "{")
    answer = bench("sync", "--all", "--store", fake.root)
    assert answer.status == 1
    assert "quick: 3 runs added" in answer.out and "other: 2 runs added" in answer.out
    assert "broken" in answer.err and "is damaged" in answer.err


def test_rebuilding_leaves_other_stores_runs_alone(bench: Any, fake: Any, tmp_path: Path) -> None:
    shared = resolve_uri(None, fake.root, {})
    ours = fake_store.FakeStore(tmp_path / "ours")
    ours.seeds("fixed", [60.0])
    theirs = fake_store.FakeStore(tmp_path / "theirs")
    theirs.seeds("dnas", [65.0, 66.0])
    for one in (ours, theirs):
        one.document()
        bench("sync", "--store", one.root, "--tracking-uri", shared)
    before = runs(fake.root)
    message = bench("sync", "--rebuild", "--store", ours.root, "--tracking-uri", shared).out
    assert "quick: 2 runs added, 0 updated, 0 unchanged" in message
    after = runs(fake.root)
    assert after.keys() == before.keys()
    same = {name for name in after if after[name].info.run_id == before[name].info.run_id}
    assert same == {"dnas 4bit", "dnas 4bit seed 0", "dnas 4bit seed 1"}


def test_sync_to_nowhere_is_one_clear_line(bench: Any, fake: Any) -> None:
    fake.document()
    uri = "http://user:secret@127.0.0.1:9"
    with short():
        message = bench("sync", "--store", fake.root, "--tracking-uri", uri).refusal
    assert message.startswith("cannot bring MLflow at http://user:***@127.0.0.1:9 up to date: Connection refused;")
    assert f"`bench sync quick --store {fake.root} --tracking-uri http" in message
    assert "exclude each other" in bench("sync", "quick", "--all", "--store", fake.root).refusal
    assert "no study" in bench("sync", "--all", "--store", fake.root / "nothing").refusal


def test_addresses_get_a_driver_and_lose_their_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://u:p%40ss@host:5432/db"
    found = with_driver(uri)
    assert found.startswith("postgresql+psycopg") and "://u:p%40ss@host:5432/db?connect_timeout=" in found
    assert with_driver(found) == found
    assert without_password(found) == found.partition("?")[0].replace("p%40ss", "***")
    assert with_driver("sqlite:///x.db") == "sqlite:///x.db"
    assert without_password(uri) == "postgresql://u:***@host:5432/db"
    assert without_password("http://host:5000/a@b") == "http://host:5000/a@b"
    monkeypatch.setattr("bench.store.urls.find_spec", lambda _: None)
    with pytest.raises(BenchError, match=r"u:\*\*\*@host:5432/db needs a driver .*sbs-bench\[postgresql\]"):
        with_driver(uri)
