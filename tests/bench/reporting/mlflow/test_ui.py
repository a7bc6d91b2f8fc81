"""MLflow's user interface: it shows the study, and ends with the command."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.reporting.mlflow import ui as interface
from bench.reporting.mlflow.tracker import Tracker
from bench.reporting.mlflow.ui import launch_ui
from tests import fake_store
from tests.bench.reporting.mlflow.reading import by_name, log_study, search


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(url: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_the_user_interface_shows_the_study(mixed: Any, tmp_path: Path) -> None:
    log_study(mixed)
    port = free_port()
    server = f"http://127.0.0.1:{port}"
    with launch_ui(mixed.root, None, "quick", port=port) as ui:
        assert ui.url.startswith(f"{server}/#/experiments/")
        assert "<title>MLflow</title>" in fetch(server)
        found = json.loads(fetch(f"{server}/api/2.0/mlflow/experiments/search", {"max_results": 10}))
        ids = {entry["name"]: entry["experiment_id"] for entry in found["experiments"]}
        assert ui.url.startswith(f"{server}/#/experiments/{ids['quick']}/runs?viewStateShareKey=bench-runs&")
        assert len(ui.views) == 4 and all(url.startswith(ui.url.partition("?")[0]) for url in ui.views.values())
        run = by_name(mixed.root)["sbs 4bit seed 0"].info.run_id
        assert json.loads(fetch(f"{server}/get-artifact?path=policy.json&run_uuid={run}")) == fake_store.POLICY
        with pytest.raises(BenchError, match=f"cannot listen on 127.0.0.1:{port}: .* --port, e.g. {port + 1}"):
            launch_ui(mixed.root, None, "quick", port=port)
        assert launch_ui(tmp_path, server, "quick") == interface.Ui(ui.url, None, ui.views)
        log_over_the_network(server, tmp_path / "other")
    with pytest.raises(OSError, match="refused"):
        fetch(server)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_with_the_command(mixed: Any, number: signal.Signals) -> None:
    log_study(mixed)
    port = free_port()
    command = [sys.executable, "-m", "bench", "ui", "quick", "--store", str(mixed.root), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
        process.send_signal(number)
        assert process.wait(30) == 130
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://127.0.0.1:{port}")


def log_over_the_network(server: str, root: Path) -> None:
    """A study of the same name from another store, through the server, artifacts included."""
    fake = fake_store.FakeStore(root)
    fake.seeds("sbs", [60.0])
    assert Tracker(server, root).log_study(fake.store, fake.document())
    (run,) = search(root, "metrics.top1 = 60", server)
    text = fetch(f"{server}/get-artifact?path=policy.json&run_uuid={run.info.run_id}")
    assert json.loads(text) == fake_store.POLICY


def test_the_user_interface_needs_the_studys_experiment(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="has no experiment 'quick'"):
        launch_ui(root, None, "quick")
    with pytest.raises(BenchError, match="has no experiment 'quick'"):
        launch_ui(tmp_path / "nothing", None, "quick")
    assert not (tmp_path / "nothing").exists()


def test_a_server_that_is_down_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot read MLflow's data at http://127\.0\.0\.1:9"):
        launch_ui(tmp_path, "http://127.0.0.1:9", "quick")


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); print('no such option')"]
    with pytest.raises(BenchError, match="did not start: no such option"):
        interface._start_server(command, "sqlite://", "127.0.0.1", free_port(), 20)
