"""MLflow's user interface: it shows the study, and ends with the command."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.errors import BenchError
from bench.reporting.mlflow import guard
from bench.reporting.mlflow import ui as interface
from bench.reporting.mlflow.server import Address, check_access, server_command, start_server
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
        assert ui.url.startswith(f"{server}/#/experiments/{ids['quick']}/runs?viewStateShareKey=bench-methods&")
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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_server_ends_with_the_command(mixed: Any, number: signal.Signals) -> None:
    log_study(mixed)
    port = free_port()
    command = [sys.executable, "-m", "bench", "ui", "quick", "--store", str(mixed.root), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port}/")
        server = psutil.Process(process.pid).children(recursive=True)
        assert server
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 130)
    _, alive = psutil.wait_procs(server, 20)
    assert not alive
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://127.0.0.1:{port}")


@pytest.mark.slow
def test_only_the_own_names_and_pages_are_served(mixed: Any) -> None:
    """A page of another site reaches the port under its own name, or sends requests of its own origin."""
    log_study(mixed)
    port = free_port()
    with launch_ui(mixed.root, None, "quick", port=port):
        for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
            assert status(port, host) == HTTPStatus.OK
        for host in (
            "evil.example",
            f"10.evil.example:{port}",
            f"192.168.evil.example:{port}",
            f"127.0.0.1:{port + 1}",
        ):
            assert status(port, host) == HTTPStatus.FORBIDDEN
        own = f"127.0.0.1:{port}"
        assert status(port, own, origin=f"http://127.0.0.1:{port}", post=True) == HTTPStatus.OK
        assert status(port, own, origin="http://evil.example", post=True) == HTTPStatus.FORBIDDEN


def status(port: int, host: str, *, origin: str = "", post: bool = False) -> int:
    """The status of an answer to a request with a given name of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Host": host, "Content-Type": "application/json"} | ({"Origin": origin} if origin else {})
    path = "/api/2.0/mlflow/experiments/search"
    connection.request(
        "POST" if post else "GET",
        path if post else f"{path}?max_results=1",
        '{"max_results": 1}' if post else None,
        headers,
    )
    with contextlib.closing(connection):
        return connection.getresponse().status


def address(host: str) -> Address:
    return Address(host=host, port=5000)


def test_other_machines_are_let_in_on_purpose_only() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        check_access(address(host), public=False)
        with pytest.raises(BenchError, match="--public has no effect"):
            check_access(address(host), public=True)
    for host in ("0.0.0.0", "::", "8.8.8.8", "10.0.0.1"):  # noqa: S104
        with pytest.raises(BenchError, match=r"MLflow has no login: everybody .* add --public"):
            check_access(address(host), public=False)
        check_access(address(host), public=True)
    with pytest.raises(BenchError, match="--host 'no such host' has no address"):
        check_access(address("no such host"), public=False)


def test_the_names_of_a_server_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "lab")
    assert address("127.0.0.1").names() == ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"]
    assert address("127.0.0.1").url == "http://127.0.0.1:5000"
    assert address("::1").url == "http://[::1]:5000"
    assert "lab:5000" in address("0.0.0.0").names() and address("0.0.0.0").url == "http://lab:5000"  # noqa: S104
    assert "localhost" in Address(host="127.0.0.1", port=80).names()
    assert not [name for name in address("0.0.0.0").names() if "*" in name]  # noqa: S104


def test_the_server_gets_its_names_and_keeps_its_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = server_command(tmp_path, address("127.0.0.1"))
    assert words[words.index("--allowed-hosts") + 1] == "127.0.0.1:5000,localhost:5000,[::1]:5000"
    assert words[words.index("--cors-allowed-origins") + 1].split(",")[0] == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "lab.example")
    assert "--allowed-hosts" not in server_command(tmp_path, address("127.0.0.1"))
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    code = "import os; print('checks', os.environ.get('MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE'))"
    with pytest.raises(BenchError, match="did not start: checks None"):
        start_server([sys.executable, "-c", code], "sqlite://", Address(host="127.0.0.1", port=free_port()), 20)


def test_everything_ends_with_the_process_that_started_it() -> None:
    """Also when it is killed, and when the command ignores the signal to end."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    code = (
        "import subprocess, sys, time\n"
        f"words = [sys.executable, {guard.__file__!r}, sys.executable, '-c', {deaf!r}]\n"
        "guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "on\n"
        started = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    _, alive = psutil.wait_procs(started, 20)
    assert len(started) == 2 and not alive


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
        start_server(command, "sqlite://", Address(host="127.0.0.1", port=free_port()), 20)
