"""The MLflow view of a study: what the run folders say, for MLflow's tables, plots and filters.

It can be thrown away and rebuilt at any time. Only the process that plans a study writes to it, and through
the client API alone: the fluent API keeps a current run in global state and resumes whatever `MLFLOW_RUN_ID`
names, so that a new child would silently overwrite its parent.
"""

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store import Store
from bench.tracking_entries import Entry, cell, child_entries, curve_points, parent_entries

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

BATCH = 1000
"""Metrics in one call; MLflow's servers refuse more."""

ID, FINISHED_TAG, STORE, PARENT = "bench.id", "bench.finished", "bench.store", "mlflow.parentRunId"


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
            log.log(level, "MLflow at %s is not up to date: %s", self.uri, first_line(error))
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
            parents[cell(entry)] = run
            wanted.add(entry.identity)
        for entry in child_entries(store, study):
            wanted.add(entry.identity)
            self._log_child(experiment, entry, known.get(entry.identity), parents.get(cell(entry)))
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


def sqlite_file(uri: str) -> Path | None:
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
    file = sqlite_file(uri)
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


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
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
