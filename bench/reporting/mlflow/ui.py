"""MLflow's user interface, opened on a study with useful columns, on this machine only."""

import subprocess
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from bench.errors import BenchError, first_line
from bench.outputs.commands import command
from bench.reporting.mlflow.probe import is_server, sqlite_file
from bench.reporting.mlflow.server import (
    Address,
    check_access,
    require_free_port,
    server_command,
    start_server,
    stop_server,
)
from bench.reporting.mlflow.tracker import Tracker
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
        if self.process is not None:
            stop_server(self.process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def launch_ui(
    store_root: Path,
    uri: str | None,
    study: str,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    public: bool = False,
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
        public: Whether other machines may reach it.
        open_browser: Whether to open it in a browser once it answers.
        timeout: Seconds to wait for the server's first answer.

    Raises:
        BenchError: The study is not in MLflow, other machines could reach the server, the port is taken, or the server
            does not start.
    """
    tracker = Tracker(uri, store_root)
    server, process, address = tracker.uri, None, Address(host=host, port=port)
    starts = not is_server(server)
    if starts:
        check_access(address, public=public)
    elif public:
        raise BenchError(f"--public has no effect: MLflow is served at {without_password(server)}; leave it out")
    experiment = _require_experiment(tracker, study)
    if starts:
        require_free_port(address)
        process = start_server(server_command(store_root, address), tracker.uri, address, timeout)
        server = address.url
    url, views = _pages(server, experiment)
    ui = Ui(url, process, views)
    if open_browser:
        webbrowser.open(ui.url)
    return ui


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
