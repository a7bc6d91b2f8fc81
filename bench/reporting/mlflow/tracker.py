"""The MLflow view of a study: what the run folders say, for MLflow's tables, plots and filters.

It can be thrown away and rebuilt at any time. Only the process that plans a study writes to it, and through
the client API alone: the fluent API keeps a current run in global state and resumes whatever `MLFLOW_RUN_ID`
names, so that a new child would silently overwrite its parent.
"""

import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.reporting.mlflow.mirror import STORE, Connection, Counts, Mirror
from bench.reporting.mlflow.probe import first_line, is_database, is_server, open_sqlite, probe, sqlite_file
from bench.reporting.mlflow.views import experiment_tags
from bench.store.files import Store, write_text
from bench.store.urls import with_driver, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

log = logging.getLogger(__name__)

VIEWS_LOCK = ".views.lock"
"""The file in a store under whose lock its tables and its tracking view are written."""

STORE_ID = ".tracking-id"
"""The file in a store that tells its runs on a server from those of other stores."""

_REFRESH_SECONDS = 5.0
"""After which an update that is not thorough leaves the rest to the next one."""


class Tracker:
    """Keeps MLflow up to date with a store. When MLflow fails, the next update makes up for it.

    Args:
        uri: Where MLflow keeps its data, a database or a server; `None` takes the variable
            MLFLOW_TRACKING_URI, and without it an SQLite file in the store.
        store_root: The store's folder.
        patient: Whether a slow server is waited for. While a study runs it is not.
    """

    def __init__(self, uri: str | None, store_root: Path, *, patient: bool = False) -> None:
        self.root = store_root.resolve()
        self.uri = resolve_uri(uri, self.root)
        self._patience = {"TIMEOUT": "30", "MAX_RETRIES": "2"} if patient else {"TIMEOUT": "5", "MAX_RETRIES": "0"}
        self._warned = False
        self._opened: tuple[str, MlflowClient] | None = None
        self._mirrors: dict[str, Mirror] = {}

    def prepare(self, study: Mapping[str, Any]) -> bool:
        """Make the database and the study's experiment, before anything is written to them.

        Returns:
            Whether it worked; when not, a warning was logged.
        """
        return self._guarded(lambda: self._prepare(str(study["name"])))

    def log_study(self, store: Store, study: Mapping[str, Any], *, thorough: bool = True) -> bool:
        """Bring MLflow up to date with the run folders; what it already has is not sent again.

        Args:
            store: Where the run folders are.
            study: The study's document.
            thorough: Compare everything, and send the tables too. Otherwise the update goes by what this process
                remembers, and takes a few seconds at most.

        Returns:
            Whether MLflow has everything now; when it failed, a warning was logged.
        """
        deadline = math.inf if thorough else time.monotonic() + _REFRESH_SECONDS
        return self._guarded(lambda: self._update(store, study, thorough, deadline).complete)

    def sync(self, store: Store, study: Mapping[str, Any], *, rebuild: bool = False) -> Counts:
        """Bring MLflow up to date with the run folders, at any later time.

        Args:
            store: Where the run folders are.
            study: The study's document.
            rebuild: Delete the store's runs of this study first.

        Raises:
            Exception: Whatever MLflow raises; `TrackingDownError` when it cannot be reached.
        """
        with self._environment():
            if rebuild:
                self._connection()
                self._mirror(store, study).remove(self._client)
            return self._update(store, study, thorough=True, deadline=math.inf)

    def find_experiment(self, name: str) -> str | None:
        """The id of a study's experiment; `None` when there is none."""
        experiment = self.get_experiment(name)
        return None if experiment is None else str(experiment.experiment_id)

    def get_experiment(self, name: str) -> "Experiment | None":
        """A study's experiment; `None` when there is none."""
        with self._environment():
            probe(self.uri, write=False)
            experiment = self._client.get_experiment_by_name(name)
        return experiment if experiment is not None and experiment.lifecycle_stage == "active" else None

    @property
    def _client(self) -> "MlflowClient":
        """MLflow's client; a new one when the SQLite file is not the one that it opened."""
        uri = _current_uri(self.uri)
        if self._opened is None or self._opened[0] != uri:
            from mlflow import MlflowClient

            _quiet_loggers()
            self._mirrors.clear()
            self._opened = uri, MlflowClient(tracking_uri=uri, registry_uri=uri)
        return self._opened[1]

    @property
    def _is_private(self) -> bool:
        """Whether the database is the store's own, so that every run in it comes from here."""
        return self.uri == resolve_uri(None, self.root, environment={})

    def _guarded(self, action: Callable[[], bool]) -> bool:
        try:
            with self._environment():
                return action()
        except Exception as error:
            self._mirrors.clear()  # nobody can tell what arrived
            _note_failure(self.uri, error)
            level = logging.DEBUG if self._warned else logging.WARNING
            place = without_password(self.uri)
            log.log(level, "MLflow at %s is not up to date: %s; later updates make up for it", place, first_line(error))
            self._warned = True
            return False

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """MLflow's settings for the time of an update; whatever the user has set stays."""
        _quiet_environment()
        chosen = {f"MLFLOW_HTTP_REQUEST_{name}": value for name, value in self._patience.items()}
        chosen["PGCONNECT_TIMEOUT"] = self._patience["TIMEOUT"]
        ours = {name: value for name, value in chosen.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                os.environ.pop(name, None)

    def _connection(self) -> Connection:
        """The way to MLflow, after a look whether it is open.

        Raises:
            TrackingDownError: It is not.
        """
        probe(self.uri)
        file = sqlite_file(self.uri)
        if file is not None and self._is_private:
            _make_database(file)

        def glance() -> None:
            if file is not None:  # MLflow would wait for a lock for 20 seconds
                open_sqlite(file, write=True)

        return Connection(client=self._client, probe=lambda: probe(self.uri), glance=glance)

    def _prepare(self, name: str) -> bool:
        self._connection()
        return bool(self._experiment(name))

    def _update(self, store: Store, study: Mapping[str, Any], thorough: bool, deadline: float) -> Counts:
        connection = self._connection()
        return self._mirror(store, study).update(connection, thorough=thorough, deadline=deadline)

    def _mirror(self, store: Store, study: Mapping[str, Any]) -> Mirror:
        name = str(study["name"])
        known = self._mirrors.get(name)
        if known is None or known.study != study:
            experiment = self._experiment(name)
            known = Mirror(store, study, experiment, self._owner(), private=self._is_private)
            self._mirrors[name] = known
        return known

    def _experiment(self, name: str) -> str:
        """The id of a study's experiment, made or brought back from MLflow's bin when it is not there."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = (artifact_root(self.root) / name).as_uri() if is_database(self.uri) else None
            made = self._client.create_experiment(name, artifact_location=location, tags={STORE: self._owner()})
            experiment = self._client.get_experiment(made)
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        for key, value in experiment_tags(experiment.creation_time).items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)

    def _owner(self) -> str:
        """What marks the store's runs among those of others; it goes with the store when that is moved or copied."""
        file = self.root / STORE_ID
        try:
            if not file.is_file():
                write_text(file, secrets.token_hex(16) + "\n")
            return file.read_text().strip()
        except OSError:  # a store that can only be read
            return str(self.root)


def resolve_uri(uri: str | None, store_root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Where MLflow keeps its data: as given, else MLFLOW_TRACKING_URI, else an SQLite file in the store."""
    chosen = uri or environment.get("MLFLOW_TRACKING_URI")
    if chosen and not (is_server(chosen) or is_database(chosen)):
        raise BenchError(
            f"'{without_password(chosen)}' is no place for MLflow's data; give a server such as http://HOST:5000 or a "
            "database such as sqlite:////FOLDER/mlflow.db, with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return with_driver(chosen) if chosen else _sqlite_uri(store_root.resolve() / "mlflow.db")


def _sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, in which signs that mean something in a URI are escaped."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path)).render_as_string()


def _make_database(file: Path) -> None:
    """Make a new SQLite file whole or not at all: MLflow could never use one whose tables were half made.

    Called under the lock of the views.
    """
    for left in file.parent.glob(f".{file.name}.*.tmp*"):  # by a process that was killed
        left.unlink(missing_ok=True)
    if file.exists() and file.stat().st_size:
        return
    from mlflow import MlflowClient

    _quiet_loggers()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        open_sqlite(temporary, write=True)  # at once, where MLflow would try for minutes
        MlflowClient(tracking_uri=_sqlite_uri(temporary), registry_uri=_sqlite_uri(temporary)).search_experiments()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


_spellings: dict[Path, tuple[tuple[int, int], int]] = {}
"""Device and inode of each SQLite file, and how many it has had in this process."""


def _current_uri(uri: str) -> str:
    """The URI under which MLflow is to open its data.

    MLflow keeps its connections by URI for as long as the process lives, and would go on writing to an SQLite file
    that was deleted. So a new file in the same place gets another spelling of the same path.
    """
    file = sqlite_file(uri)
    if file is None:
        return uri
    state = file.stat()
    inode = (state.st_dev, state.st_ino)
    known, number = _spellings.get(file, (inode, 0))
    number += known != inode
    _spellings[file] = inode, number
    if not number:
        return uri
    from sqlalchemy.engine import make_url

    database = f"{file.parent}/{'./' * number}{file.name}"
    return make_url(uri).set(database=database).render_as_string(hide_password=False)


def _note_failure(uri: str, error: Exception) -> None:
    """An SQLite file that has lost its tables is a new one, even where it has the old one's inode."""
    file = sqlite_file(uri)
    if file in _spellings and "no such table" in str(error):
        _spellings[file] = (0, 0), _spellings[file][1]


def artifact_root(store_root: Path) -> Path:
    """Where artifacts go when MLflow's data is in a database rather than behind a server."""
    return store_root.resolve() / "mlartifacts"


def _quiet_environment() -> None:
    """Settings that MLflow reads when it is imported: it reports its use to its makers unless told not to."""
    telemetry = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    if not any(os.environ.get(name, "").lower() in ("false", "0") for name in telemetry):
        for name in telemetry:
            os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def _quiet_loggers() -> None:
    """Keep progress messages off the terminal, and those on errors, which `Tracker` tells of in one line."""
    for name in ("mlflow", "alembic", "sqlalchemy.pool", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
