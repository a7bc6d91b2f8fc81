"""MLflow's user interface, opened on a study with useful columns, on this machine only."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from bench.errors import BenchError, first_line
from bench.outputs.commands import command
from bench.reporting.mlflow.probe import is_server, sqlite_file
from bench.reporting.mlflow.tracker import Tracker, artifact_root
from bench.reporting.mlflow.views import VIEWS, experiment_url, view_url
from bench.store.urls import without_password, without_secrets

if TYPE_CHECKING:
    from mlflow.entities import Experiment


@dataclass
class Ui:
    """A running user interface; it stops at the end of its `with` block.

    Attributes:
        url: URL of the study's experiment.
        process: Server process; `None` when the server runs elsewhere.
        views: URLs of further pages of the study, by their contents.
    """

    url: str
    process: "subprocess.Popen[bytes] | None" = None
    views: Mapping[str, str] = field(default_factory=dict)

    def wait(self) -> None:
        """Wait until the server ends; return at once when it runs elsewhere."""
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """Stop the server and its workers."""
        if self.process is None or self.process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


DATABASE = "MLFLOW_BACKEND_STORE_URI"
"""Environment variable from which MLflow's server takes its database."""


def launch_ui(
    store_root: Path,
    uri: str | None,
    study: str,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    open_browser: bool = False,
    timeout: float = 120.0,
) -> Ui:
    """Start MLflow's user interface on a study, or return the URL on the server that has the study.

    Args:
        store_root: Folder of the store.
        uri: Database or server with MLflow's data, as in `Tracker`.
        study: Name of the study.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on.
        open_browser: Whether to open it in a browser once it answers.
        timeout: Seconds to wait for the server's first answer.

    Raises:
        BenchError: The study is not in MLflow, the port is taken, or the server does not start.
    """
    tracker = Tracker(uri, store_root)
    experiment = _require_experiment(tracker, study)
    server, process = tracker.uri, None
    if not is_server(server):
        server = f"http://{host}:{port}"
        _require_free_port(host, port)
        process = _start_server(ui_command(store_root, host, port), tracker.uri, host, port, timeout)
    url, views = _pages(server, experiment)
    ui = Ui(url, process, views)
    if open_browser:
        webbrowser.open(ui.url)
    return ui


def ui_command(store_root: Path, host: str, port: int) -> list[str]:
    """Return the command that serves MLflow's user interface, with one worker for one person.

    Every user of the machine can read commands, so the database is not in it: it is in the variable `DATABASE`.
    """
    artifacts = artifact_root(store_root).as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def _pages(server: str, experiment: "Experiment") -> tuple[str, dict[str, str]]:
    """Return the URL of a study's first page, and those of the others by their contents."""
    number = str(experiment.experiment_id)
    saved = [view for view in VIEWS if view.tag in experiment.tags]
    if not saved:  # an older experiment
        return experiment_url(server, number), {}
    views = {view.summary: view_url(server, number, view) for view in saved}
    views |= {f"{view.summary}, as charts": view_url(server, number, view, charts=True) for view in saved[:2]}
    return views.pop(saved[0].summary), views


def _require_experiment(tracker: Tracker, study: str) -> "Experiment":
    make = command("sync", study, *tracker.option, store=tracker.root)
    missing = BenchError(f"MLflow at {without_password(tracker.uri)} has no experiment '{study}'; make it: `{make}`")
    database = sqlite_file(tracker.uri)
    if database is not None and not database.is_file():
        raise missing
    try:
        experiment = tracker.get_experiment(study)
    except Exception as error:
        raise BenchError(
            f"cannot read MLflow's data at {without_password(tracker.uri)}: {without_secrets(first_line(error))}"
        ) from error
    if experiment is None:
        raise missing
    return experiment


def _require_free_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = f"choose another port with --port, e.g. {port + 1}"
            raise BenchError(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from error


def _start_server(command: list[str], uri: str, host: str, port: int, timeout: float) -> "subprocess.Popen[bytes]":
    """Start the server in a process group of its own, so that its workers can be stopped with it."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
    environment[DATABASE] = uri
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await_server(process, host, port, timeout)
        except BaseException as error:
            Ui("", process).stop()
            if isinstance(error, TimeoutError):
                raise BenchError(f"MLflow's user interface did not start: {_last_line(output)}") from error
            raise
    return process


def _await_server(process: "subprocess.Popen[bytes]", host: str, port: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _answers(host, port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


def _answers(host: str, port: int) -> bool:
    """Return whether the server is ready; the request avoids the user's proxy, which could not reach it."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return without_secrets(lines[-1]) if lines else "it printed no message"
