"""MLflow and Optuna on a PostgreSQL server of our own, which is stopped and started under them."""

import logging
import os
import runpy
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from bench.matching.trial import Trial
from bench.matching.tune import tune
from bench.reporting.mlflow import tracker as tracking
from bench.reporting.mlflow import ui as interface
from bench.reporting.mlflow.server import Address, server_command, start_server
from bench.reporting.mlflow.tracker import Tracker
from bench.store.urls import with_driver
from tests import fake_store

psycopg2 = pytest.importorskip("psycopg2")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
matching = SimpleNamespace(**runpy.run_path(str(HERE.parent / "matching" / "test_tune.py")))

SHORT = 15.0
"""Seconds that no failure may take, on a busy machine."""

_STARTED_WITH = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=60")


# --- a PostgreSQL server ---


def find_binaries() -> Path:
    """The folder with PostgreSQL's server; Debian's package is installed where that is possible."""
    found = _binaries()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "--yes", "--no-install-recommends", "postgresql"]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                check=False,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                timeout=300,
            )
        found = _binaries()
    if found is None:
        pytest.skip("there is no PostgreSQL server here (initdb), and it cannot be installed")
    return found


def _binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    candidates = [*reversed(folders), *([Path(on_path).resolve().parent] if on_path else [])]
    return next((path for path in candidates if (path / "initdb").exists() and (path / "postgres").exists()), None)


def unprivileged() -> dict[str, Any]:
    """As whom the server runs: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """A PostgreSQL server that can be stopped and started."""

    binaries: Path
    folder: Path
    user: dict[str, Any]
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def create(self) -> None:
        options = ["--username=bench", "--auth=trust", "--no-sync", "--encoding=UTF8", "--no-locale"]
        command = [self.binaries / "initdb", f"--pgdata={self.folder / 'data'}", *options]
        made = subprocess.run(
            command, check=False, cwd=self.folder, capture_output=True, text=True, timeout=120, **self.user
        )
        if made.returncode:
            pytest.skip(f"initdb failed: {made.stderr.strip().splitlines()[-1:]}")

    def start(self) -> None:
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}"]
        options = [word for setting in (*settings, *_STARTED_WITH) for word in ("-c", setting)]
        self.process = subprocess.Popen(
            [self.binaries / "postgres", "-D", self.folder / "data", *options],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.user,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg2.connect(self.address("postgres"), connect_timeout=2).close()
                return
            except psycopg2.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.skip("PostgreSQL does not start here")
                time.sleep(0.1)

    def stop(self) -> None:
        """At once, as when its machine is switched off."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(60)
            self.process = None

    def database(self, name: str, template: str = "template1") -> str:
        """A new database; its URI."""
        with closing(psycopg2.connect(self.address("postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'create database "{name}" template "{template}"')
        return self.address(name)

    def address(self, name: str) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    """The server; in a folder that its user can reach, unlike pytest's."""
    binaries, user = find_binaries(), unprivileged()
    with tempfile.TemporaryDirectory(prefix="bench-postgresql-", ignore_cleanup_errors=True) as name:
        if user:
            os.chown(name, user["user"], user["group"])
        cluster = Cluster(binaries, Path(name), user, free_port())
        cluster.create()
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def cluster(server: Cluster) -> Iterator[Cluster]:
    """The server, which a test may stop."""
    yield server
    if server.process is None:
        server.start()


# --- Optuna ---


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_optuna_shows_every_trial_and_chooses_the_same(cluster: Cluster, match: str) -> None:
    uri = with_driver(cluster.database(f"optuna_{match}"))
    asked = matching.tuning(matching.TWO_KNOBS, matching.spec(match))
    expected = tune(asked, matching.smooth)
    stored = matching.tuning(matching.TWO_KNOBS, matching.spec(match), storage=uri)
    for _ in range(2):  # the second replaces the first
        assert tune(stored, matching.smooth) == expected
    (name,) = optuna.get_all_study_names(uri)
    study = optuna.load_study(study_name=name, storage=uri)
    assert [found.params for found in study.trials] == [dict(trial.knobs) for trial in expected[1]]
    assert [found.value for found in study.trials] == [trial.validation_top1 for trial in expected[1]]


def test_a_database_that_goes_away_stops_no_tuning(cluster: Cluster, caplog: Any) -> None:
    uri = with_driver(cluster.database("optuna_gone"))
    expected = tune(matching.tuning(matching.TWO_KNOBS, matching.spec()), matching.smooth)
    shelf, calls = matching.Shelf(), count()

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        if next(calls) == 3:
            cluster.stop()
        found: Trial | None = shelf(number, knobs)
        return found

    began = time.monotonic()
    assert tune(matching.tuning(matching.TWO_KNOBS, matching.spec(), storage=uri), search) == expected
    assert shelf.searched == list(range(len(expected[1])))  # none was made twice
    assert "is not up to date" in caplog.text
    assert tune(matching.tuning(matching.TWO_KNOBS, matching.spec(), storage=uri), shelf) == expected  # still gone
    assert time.monotonic() - began < 2 * SHORT


# --- MLflow ---


@pytest.fixture(scope="session")
def tables(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with MLflow's tables; making them takes seconds, copying them does not."""
    uri = server.database("mlflow_tables")
    tracker = Tracker(uri, tmp_path_factory.mktemp("tables"), patient=True)
    assert tracker.prepare({"name": "template"})
    tracker._client._tracking_client.store.engine.dispose()  # a database in use cannot be copied
    return "mlflow_tables"


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a few seconds may not be enough for a refresh."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 60.0)


@contextmanager
def mlflow_server(database: str, folder: Path, port: int) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    address = Address(host="127.0.0.1", port=port)
    command = server_command(folder, address)
    with interface.Ui("", start_server(command, with_driver(database), address, 180)):
        yield f"http://127.0.0.1:{port}"


def runs(tracker: Tracker, text: str = "") -> dict[str, Any]:
    """MLflow's runs by name; none may be there twice."""
    found = list(tracker._client.search_runs([tracker.find_experiment("quick")], text, max_results=1000))
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def check(tracker: Tracker) -> None:
    """The made-up study is there, with parents, children, figures and curves."""
    found = runs(tracker)
    assert len(found) == 4 + 11 + 2
    parent, child = found["sbs 4bit"], found["sbs 4bit seed 0"]
    assert parent.data.metrics["top1_mean"] == 73.0
    assert child.data.metrics["top1"] == 72.0
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = tracker._client.get_metric_history(child.info.run_id, "search_loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5)]
    assert found["dnas 4bit seed 2"].info.status == "FAILED"
    assert "sbs 4bit trial 1" in runs(tracker, "params.method = 'sbs' and tags.phase = 'trial'")


def test_a_study_goes_into_the_database_itself(cluster: Cluster, tables: str, tmp_path: Path, caplog: Any) -> None:
    uri = cluster.database("mlflow_direct", tables)
    fake = fake_store.mixed(tmp_path / "store")
    tracker, document = Tracker(uri, fake.root), fake.document()
    assert tracker.log_study(fake.store, document)
    check(tracker)
    cluster.stop()
    fake.seeds("cost_only", [50.0])
    document = fake.document()
    for thorough in (False, True):
        assert quickly(lambda thorough=thorough: tracker.log_study(fake.store, document, thorough=thorough)) is False
    cluster.start()
    assert tracker.log_study(fake.store, document, thorough=False)
    assert {"cost_only 4bit", "cost_only 4bit seed 0"} <= runs(tracker).keys()
    (warning,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "\n" not in warning.getMessage()


def quickly(action: Callable[[], bool]) -> bool:
    began = time.monotonic()
    done = action()
    assert time.monotonic() - began < SHORT
    return done


def test_a_server_on_the_database_is_caught_up_after_any_failure(
    cluster: Cluster, tables: str, tmp_path: Path, caplog: Any
) -> None:
    database, port = cluster.database("mlflow_server", tables), free_port()
    fake = fake_store.mixed(tmp_path / "store")
    for identity in (planned := [f"cost_only-4bit-{seed}" for seed in range(4)]):
        fake.missing(identity)
    document = fake.document()
    assert all(identity in document["runs"] for identity in planned)

    with mlflow_server(database, tmp_path / "server", port) as uri:
        tracker = Tracker(uri, fake.root)

        def refresh() -> bool:
            return quickly(lambda: tracker.log_study(fake.store, document, thorough=False))

        assert tracker.log_study(fake.store, document)
        check(tracker)
        fake.run("cost_only", 0, 50.0)
        cluster.stop()  # the server is there, its database is not
        assert not refresh()
        cluster.start()
        assert refresh()
        fake.run("cost_only", 1, 51.0)
    assert not refresh()  # killed
    fake.run("cost_only", 2, 52.0)
    with mlflow_server(database, tmp_path / "server", port):
        assert refresh()
        assert runs(tracker)["cost_only 4bit"].data.metrics["n"] == 3
        at_once(fake, document, uri)
        others = fake_store.FakeStore(tmp_path / "other")
        others.seeds("sbs", [60.0])
        assert Tracker(uri, others.root).log_study(others.store, others.document())
        assert len(list(tracker._client.search_runs([tracker.find_experiment("quick")]))) == 4 + 11 + 2 + 5 + 2
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def at_once(fake: Any, document: dict[str, Any], uri: str) -> None:
    """Two commands that bring the same study up to date at the same time leave no run twice."""
    trackers = [Tracker(uri, fake.root) for _ in range(2)]
    fake.run("cost_only", 3, 53.0)
    threads = [Thread(target=tracker.log_study, args=(fake.store, document)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trackers[0].log_study(fake.store, document)
    found = runs(trackers[0])
    assert found["cost_only 4bit"].data.metrics["n"] == 4 and "cost_only 4bit seed 3" in found
