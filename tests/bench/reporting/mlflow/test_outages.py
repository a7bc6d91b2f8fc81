"""MLflow when a server is down or slow, and when an SQLite file is locked, deleted or damaged."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from bench.reporting.mlflow import probe as tracking_probe
from bench.reporting.mlflow import ui as interface
from bench.reporting.mlflow.probe import TrackingDownError, probe
from bench.reporting.mlflow.server import Address, server_command, start_server
from bench.reporting.mlflow.tracker import Tracker, resolve_uri
from tests import fake_store
from tests.bench.reporting.mlflow.reading import by_name, short, warnings


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
    address = Address(host="127.0.0.1", port=port)
    command = server_command(root, address)
    with interface.Ui("", start_server(command, resolve_uri(None, root, {}), address, 180)) as ui:
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
        assert len(by_name(fake.root, uri=uri)) == 3
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
        found = by_name(fake.root, uri=uri)
        assert len(found) == 6 and found["sbs 4bit"].data.metrics["n"] == 5
        moved = fake.root.rename(tmp_path / "moved")  # what marks a store's runs goes with it
        counts = Tracker(uri, moved, patient=True).sync(fake_store.FakeStore(moved).store, document)
        assert (counts.added, counts.removed) == (0, 0) and counts.updated <= 1
    assert len(warnings(caplog)) == 1
    assert capsys.readouterr().out == ""  # MLflow announces every run unless told not to


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
    assert len(by_name(fake.root)) == 3


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
    assert len(by_name(fake.root)) == 3


def test_a_file_that_cannot_be_written_is_reported_at_once(fake: Any, monkeypatch: Any, caplog: Any) -> None:
    connect = sqlite3.connect

    def read_only(file: Path, **named: Any) -> sqlite3.Connection:
        return connect(f"{file.as_uri()}?mode=ro", uri=True, **named)

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
    assert len(by_name(fake.root)) == 4
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
    assert len(by_name(fake.root)) == 3


def test_a_file_that_loses_its_tables_gets_new_ones(fake: Any, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("create table other (x)")
    tracker, document = Tracker(None, fake.root), fake.document()
    assert tracker.log_study(fake.store, document)
    (fake.root / "mlflow.db").write_bytes((tmp_path / "other.db").read_bytes())  # the same inode
    assert not tracker.log_study(fake.store, document)
    assert tracker.log_study(fake.store, document)
    assert len(by_name(fake.root)) == 3
    (fake.root / "mlflow.db").write_bytes(b"")
    assert tracker.log_study(fake.store, document)
    assert len(by_name(fake.root)) == 3
