"""The MLflow view of a study: what the run folders say, for MLflow's tables, plots and filters.

It can be thrown away and rebuilt at any time. Only the process that plans a study writes to it, and through
the client API alone: the fluent API keeps a current run in global state and resumes whatever `MLFLOW_RUN_ID`
names, so that a new child would silently overwrite its parent.
"""

import http.client
import json
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from bench.errors import BenchError
from bench.results import FINISHED, IDENTITY, read_record, results_frame, section
from bench.spec import canonical_hash
from bench.store import Store, read_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

BATCH = 1000
"""Metrics in one call; MLflow's servers refuse more."""

NO_BUDGET = "none"
"""The budget of methods that ignore it, as a value that can be filtered and grouped by."""

ID, FINISHED_TAG, STORE, PARENT = "bench.id", "bench.finished", "bench.store", "mlflow.parentRunId"

_STATUS = {"failed": "FAILED", "interrupted": "KILLED"}
"""MLflow's word for a status; every other ending is FINISHED: an unreachable budget is a reported outcome."""

_AGGREGATES = (
    *("n", "n_failed", "top1_mean", "top1_std", "top5_mean", "top5_std", "bops_mean", "bops_std"),
    *("memory_kb_mean", "search_seconds_mean", "tuning_seconds", "peak_memory_mb"),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One MLflow run as it should be.

    Attributes:
        identity: What finds it again; value of the tag `bench.id`.
        stamp: Changes when the entry does; value of the tag `bench.finished`.
        name: Shown in MLflow's lists.
        params: What it was, for filters and plots.
        tags: The same and more, for filters; unlike params they may change.
        metrics: Final figures.
        curves: Figures by epoch, see `curve_points`.
        status: MLflow's word for how it ended.
        started, ended: Milliseconds since 1970.
        files: Artifacts that exist as files.
        texts: Artifacts that do not, by name.
    """

    identity: str
    stamp: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Any = None
    status: str = "FINISHED"
    started: int | None = None
    ended: int | None = None
    files: tuple[Path, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


class Tracker:
    """Keeps MLflow up to date with a store. No failure of MLflow's ever reaches the caller.

    Args:
        uri: Where MLflow keeps its data, a database or a server; `None` takes the variable
            MLFLOW_TRACKING_URI, and without it an SQLite file in the store.
        store_root: The store's folder.
    """

    def __init__(self, uri: str | None, store_root: Path) -> None:
        self.root = store_root.resolve()
        self.uri = resolve_uri(uri, self.root)
        self._warned = False
        self._given_up = False

    def prepare(self, study: Mapping[str, Any]) -> bool:
        """Make the database and the study's experiment, before anything is written to them.

        Returns:
            Whether it worked; when not, a warning was logged.
        """
        return self._guarded(lambda: self._experiment(str(study["name"])))

    def log_study(self, store: Store, study: Mapping[str, Any]) -> bool:
        """Bring MLflow up to date with the run folders; what it already has is not sent again.

        Returns:
            Whether it worked; when not, a warning was logged.
        """
        return self._guarded(lambda: self._log_study(store, study))

    def find_experiment(self, name: str) -> str | None:
        """The id of a study's experiment; `None` when there is none."""
        experiment = self._client.get_experiment_by_name(name)
        found = experiment is not None and experiment.lifecycle_stage == "active"
        return str(experiment.experiment_id) if found else None

    @cached_property
    def _client(self) -> "MlflowClient":
        _quiet_environment()
        from mlflow import MlflowClient

        _quiet_loggers()
        try:
            _open_sqlite(self.uri)
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        except Exception:
            # MLflow tries for minutes to reach a database; once is enough.
            self._given_up = True
            raise

    @property
    def _is_private(self) -> bool:
        """Whether the database is the store's own, so that every run in it comes from here."""
        return self.uri == resolve_uri(None, self.root, environment={})

    def _guarded(self, action: Callable[[], object]) -> bool:
        if self._given_up:
            return False
        try:
            action()
        except Exception as error:
            level = logging.DEBUG if self._warned else logging.WARNING
            log.log(level, "MLflow at %s is not up to date: %s", self.uri, _first_line(error))
            self._warned = True
            return False
        return True

    def _experiment(self, name: str) -> str:
        """The id of a study's experiment, made or brought back from MLflow's bin when it is not there."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = (artifact_root(self.root) / name).as_uri() if is_database(self.uri) else None
            tags = {STORE: str(self.root)}
            return str(self._client.create_experiment(name, artifact_location=location, tags=tags))
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _log_study(self, store: Store, study: Mapping[str, Any]) -> None:
        experiment = self._experiment(str(study["name"]))
        known = self._known(experiment)
        parents: dict[tuple[str, ...], str] = {}
        wanted = set()
        for entry in parent_entries(store, study):
            run = self._update_parent(experiment, entry, known.get(entry.identity))
            parents[_cell(entry)] = run
            wanted.add(entry.identity)
        for entry in child_entries(store, study):
            wanted.add(entry.identity)
            self._log_child(experiment, entry, known.get(entry.identity), parents.get(_cell(entry)))
        for identity in known.keys() - wanted:
            self._delete(known[identity])

    def _known(self, experiment: str) -> dict[str, list["Run"]]:
        """This store's runs in an experiment by their id; others may share a server's experiment."""
        known: dict[str, list[Run]] = {}
        for run in self._search(experiment):
            tags = run.data.tags
            if ID in tags and (self._is_private or tags.get(STORE) == str(self.root)):
                known.setdefault(tags[ID], []).append(run)
        return known

    def _search(self, experiment: str) -> Iterator["Run"]:
        token = None
        while True:
            page = self._client.search_runs([experiment], max_results=BATCH, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _update_parent(self, experiment: str, entry: Entry, found: list["Run"] | None) -> str:
        """Write an aggregate into its run, made when missing; returns the run's id."""
        # MLflow's params can never change: a study that now has another recipe needs a new run.
        fitting = [run for run in found or () if {**entry.params, **run.data.params} == entry.params][:1]
        self._delete(run for run in found or () if run not in fitting)
        if not fitting:
            return self._create(experiment, entry, {})
        run = fitting[0]
        if run.data.tags.get(FINISHED_TAG) != entry.stamp:
            # A figure that there was and is no more, e.g. the deviation of one run, must not stay as it was.
            gone = dict.fromkeys(run.data.metrics.keys() - entry.metrics.keys(), float("nan"))
            self._fill(run.info.run_id, entry, metrics={**gone, **entry.metrics})
        return str(run.info.run_id)

    def _log_child(self, experiment: str, entry: Entry, found: list["Run"] | None, parent: str | None) -> None:
        """Write a run or trial once; replace it when its record has changed or it was left half-written."""
        wanted = {FINISHED_TAG: entry.stamp, **({} if parent is None else {PARENT: parent})}
        current = [run for run in found or () if wanted.items() <= run.data.tags.items()][:1]
        self._delete(run for run in found or () if run not in current)
        if not current:
            self._create(experiment, entry, {} if parent is None else {PARENT: parent})

    def _create(self, experiment: str, entry: Entry, tags: Mapping[str, str]) -> str:
        marks = {ID: entry.identity, STORE: str(self.root)}
        run = self._client.create_run(experiment, entry.started, {**marks, **entry.tags, **tags}, entry.name)
        identity = str(run.info.run_id)
        self._fill(identity, entry, metrics=entry.metrics)
        return identity

    def _fill(self, run: str, entry: Entry, *, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        points = [(key, value, 0) for key, value in metrics.items()]
        points += curve_points(entry.curves)
        batches = list(_chunks([Metric(key, value, entry.ended or now, step) for key, value, step in points], BATCH))
        self._client.log_batch(run, params=[Param(key, value) for key, value in entry.params.items()])
        for batch in batches:
            self._client.log_batch(run, metrics=batch)
        for path in entry.files:
            self._client.log_artifact(run, str(path))
        for name, text in entry.texts.items():
            self._client.log_text(run, text, name)
        # The stamp comes last: a run without it was left half-written and is replaced the next time.
        stamp = {**entry.tags, FINISHED_TAG: entry.stamp}
        self._client.log_batch(run, tags=[RunTag(key, value) for key, value in stamp.items()])
        self._client.set_terminated(run, entry.status, entry.ended)

    def _delete(self, runs: Iterable["Run"]) -> None:
        for run in runs:
            self._client.delete_run(run.info.run_id)


def resolve_uri(uri: str | None, store_root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Where MLflow keeps its data: as given, else MLFLOW_TRACKING_URI, else an SQLite file in the store."""
    return uri or environment.get("MLFLOW_TRACKING_URI") or _sqlite_uri(store_root.resolve() / "mlflow.db")


def _sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, in which signs that mean something in a URI are escaped."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def _sqlite_file(uri: str) -> Path | None:
    """The file behind an SQLite URI; `None` for any other."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def _open_sqlite(uri: str) -> None:
    """Fail at once on an SQLite file that cannot be used; MLflow itself would try again for 100 seconds.

    Raises:
        sqlite3.Error: The file cannot be opened or is no database.
        OSError: Its folder cannot be made.
    """
    file = _sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("pragma schema_version")


def artifact_root(store_root: Path) -> Path:
    """Where artifacts go when MLflow's data is in a database rather than behind a server."""
    return store_root.resolve() / "mlartifacts"


def is_server(uri: str) -> bool:
    """Whether MLflow is reached over the network."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Whether MLflow's data is in a database that this process writes to."""
    return re.match(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:", uri) is not None


def parent_entries(store: Store, study: Mapping[str, Any]) -> Iterator[Entry]:
    """One entry for each (model, data set, method, budget), with the aggregates and the study's tables."""
    frame, texts = results_frame(store, study), _tables(store, study)
    lines = [{str(key): value for key, value in line.items()} for line in frame.to_dict("records")]
    cells = {tuple(line[key] for key in IDENTITY): line for line in lines}
    for _, record in _tuning_records(store, study):
        # Trials come before the first run: their parent must be there already.
        cell = {key: record.get(key) or "" for key in IDENTITY}
        cells.setdefault(tuple(cell.values()), cell | {"n": 0, "n_failed": 0})
    texts["results.csv"] = frame.to_csv(index=False)
    yield from (_parent_entry(study, line, texts) for line in cells.values())


def child_entries(store: Store, study: Mapping[str, Any]) -> Iterator[Entry]:
    """One entry for each tuning trial and for each run that has ended."""
    for identity, record in _tuning_records(store, study):
        for file in sorted((store.unit("tuning", identity) / "trials").glob("*.json")):
            trial = read_json(file)
            if isinstance(trial, dict):
                yield _trial_entry(study, identity, record, trial)
    for identity in map(str, study.get("runs") or ()):
        record = read_record(store, "runs", identity) or {}
        if record.get("status") in FINISHED:
            yield _run_entry(store.unit("runs", identity), identity, record)


def curve_points(curves: Any) -> list[tuple[str, float, int]]:
    """Epoch figures as (name, value, epoch), e.g. ("search_loss", 0.5, 3); what is no number is left out."""
    points = []
    for line in curves if isinstance(curves, list) else ():
        if isinstance(line, Mapping) and isinstance(line.get("epoch"), int):
            figures = {key: value for key, value in line.items() if key not in ("phase", "epoch")}
            for key, value in _numbers(figures).items():
                points.append((f"{line.get('phase', 'epoch')}_{key}", value, int(line["epoch"])))
    return points


def _parent_entry(study: Mapping[str, Any], line: Mapping[str, Any], texts: Mapping[str, str]) -> Entry:
    spec = section(study, "spec")
    params = _params(line) | {
        "recipe": str(spec.get("recipe")),
        "match": str(section(spec, "tuning").get("match")),
    }
    metrics = _numbers({key: line.get(key) for key in _AGGREGATES})
    return Entry(
        identity="/".join(params[key] for key in IDENTITY),
        stamp=canonical_hash([params, metrics, texts]),
        name=_name(line),
        params=params,
        tags=params | {"phase": "summary"},
        metrics=metrics,
        status="FAILED" if line["n_failed"] and not line["n"] else "FINISHED",
        texts=texts,
    )


def _run_entry(folder: Path, identity: str, record: Mapping[str, Any]) -> Entry:
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "run"}
    params |= {key: str(record.get(key)) for key in ("recipe", "match")}
    status = str(record["status"])
    metrics = {
        **section(record, "metrics"),
        **section(record, "times"),
        "peak_memory_mb": record.get("peak_memory_mb"),
    }
    return Entry(
        identity=identity,
        stamp=str(record.get("finished") or canonical_hash(record)),
        name=f"{_name(record)} seed {record.get('seed')}",
        params=params | _settings(record),
        tags=params | {"status": status, "reason": str(record.get("reason") or "")[:500], **_within_budget(record)},
        metrics=_numbers(metrics),
        curves=read_json(folder / "curves.json"),
        status=_STATUS.get(status, "FINISHED"),
        started=_milliseconds(record.get("started")),
        ended=_milliseconds(record.get("finished")),
        files=tuple(file for file in (folder / "policy.json", folder / "error.txt") if file.is_file()),
    )


def _trial_entry(study: Mapping[str, Any], tuning: str, record: Mapping[str, Any], trial: Mapping[str, Any]) -> Entry:
    spec = section(study, "spec")
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "trial"}
    params |= {"recipe": str(spec.get("recipe")), "match": str(section(spec, "tuning").get("match"))}
    figures = ("raw_bops", "bops", "repaired_gates", "validation_top1", "seconds")
    return Entry(
        identity=f"{tuning}/{trial.get('number')}",
        stamp=canonical_hash(trial),
        name=f"{_name(record)} trial {trial.get('number')}",
        params=params | _settings(trial),
        tags=params | {"status": "done", **_within_budget(trial)},
        metrics=_numbers({key: trial.get(key) for key in figures}),
        curves=trial.get("curves"),
        texts={"policy.json": json.dumps(trial["policy"], indent=1)} if trial.get("policy") else {},
    )


def _tuning_records(store: Store, study: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for identity in map(str, study.get("tunings") or ()):
        record = read_record(store, "tuning", identity)
        if record is not None:
            yield identity, record


def _tables(store: Store, study: Mapping[str, Any]) -> dict[str, str]:
    """The tables that a report left in the study's folder."""
    file = store.study(str(study["name"])) / "table.md"
    return {file.name: file.read_text()} if file.is_file() else {}


def _params(fields: Mapping[str, Any]) -> dict[str, str]:
    """What is compared, copied to every run so that MLflow can filter and group without joins."""
    return {key: str(fields.get(key) or NO_BUDGET) for key in IDENTITY}


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Knobs under their own names and options with a prefix, as params."""
    options = {f"option.{_key(name)}": value for name, value in section(record, "options").items()}
    knobs = {f"knob.{_key(name)}": value for name, value in section(record, "knobs").items()}
    return {key: str(value)[:500] for key, value in (options | knobs).items()}


def _within_budget(record: Mapping[str, Any]) -> dict[str, str]:
    value = record.get("within_budget")
    return {"within_budget": str(value).lower()} if isinstance(value, bool) else {}


def _name(fields: Mapping[str, Any]) -> str:
    return " ".join(str(fields[key]) for key in ("method", "budget") if fields.get(key))


def _cell(entry: Entry) -> tuple[str, ...]:
    return tuple(entry.params[key] for key in IDENTITY)


def _numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among some fields, under names that MLflow accepts."""
    plain = {key: value for key, value in fields.items() if isinstance(value, int | float)}
    return {_key(key): float(v) for key, v in plain.items() if not isinstance(v, bool) and math.isfinite(v)}


def _key(name: Any) -> str:
    return re.sub(r"[^\w.-]", "_", str(name))


def _milliseconds(moment: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (TypeError, ValueError):
        return None


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _quiet_environment() -> None:
    """Settings that MLflow reads when it is imported; whatever the user has set stays.

    MLflow reports its use to its makers unless told not to. Its seven retries with growing pauses would hold
    up a study for minutes when a server is down.
    """
    telemetry = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    if not any(os.environ.get(name, "").lower() in ("false", "0") for name in telemetry):
        for name in telemetry:
            os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _quiet_loggers() -> None:
    """Keep MLflow's and its migrations' progress messages off the terminal."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass
class Ui:
    """A running user interface; stops with the `with` block that holds it.

    Attributes:
        url: The study's experiment in it.
        process: The server; `None` when it runs elsewhere.
    """

    url: str
    process: "subprocess.Popen[bytes] | None" = None

    def wait(self) -> None:
        """Wait until the server ends; returns at once when it runs elsewhere."""
        if self.process is not None:
            self.process.wait()

    def stop(self) -> None:
        """Stop the server and the workers that it started."""
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
    """Start MLflow's user interface on a study, or point to the server that has it.

    Args:
        store_root: The store's folder.
        uri: See `Tracker`.
        study: Name of the study.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on.
        open_browser: Show it in a browser once it answers.
        timeout: Seconds to wait for the server's first answer.

    Raises:
        BenchError: The study is not in MLflow, the port is taken, or the server does not start.
    """
    tracker = Tracker(uri, store_root)
    experiment = _require_experiment(tracker, study)
    if is_server(tracker.uri):
        ui = Ui(experiment_url(tracker.uri, experiment))
    else:
        _require_free_port(host, port)
        process = _start_server(ui_command(store_root, tracker.uri, host, port), host, port, timeout)
        ui = Ui(experiment_url(f"http://{host}:{port}", experiment), process)
    if open_browser:
        webbrowser.open(ui.url)
    return ui


def ui_command(store_root: Path, uri: str, host: str, port: int) -> list[str]:
    """The command that serves MLflow's user interface; one worker is enough for one person."""
    artifacts = artifact_root(store_root).as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri),
        *("--default-artifact-root", artifacts, "--artifacts-destination", artifacts),
        *("--host", host, "--port", str(port), "--workers", "1"),
    ]


def experiment_url(server: str, experiment: str) -> str:
    """The page of an experiment in MLflow's user interface."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}"


def _require_experiment(tracker: Tracker, study: str) -> str:
    missing = BenchError(
        f"MLflow at {tracker.uri} has no experiment '{study}'; `bench run` makes it unless tracking is off"
    )
    database = _sqlite_file(tracker.uri)
    if database is not None and not database.is_file():
        raise missing
    try:
        experiment = tracker.find_experiment(study)
    except Exception as error:
        raise BenchError(f"cannot read MLflow's data at {tracker.uri}: {_first_line(error)}") from error
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


def _start_server(command: list[str], host: str, port: int, timeout: float) -> "subprocess.Popen[bytes]":
    """Start the server in a process group of its own, so that it can be stopped with its workers."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_RUN_ID"}
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
    """Whether the server is ready; asked directly, since a proxy of the user's could not reach it."""
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
    return lines[-1] if lines else "it said nothing"
