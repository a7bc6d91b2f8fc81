"""The tracker, which keeps MLflow up to date with the run folders of a store.

The MLflow view can be deleted and rebuilt at any time. Only the process that plans a study writes to it, and only
through the client API. The fluent API keeps a current run in global state and resumes the run that
`MLFLOW_RUN_ID` names, so that a new child would silently overwrite its parent.
"""

import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, first_line, printable
from bench.inputs.reading import read_text
from bench.reporting.mlflow.artifacts import artifact_root, check_places, follow_store
from bench.reporting.mlflow.mirror import STORE, Connection, Counts, Mirror
from bench.reporting.mlflow.probe import is_database, is_server, open_sqlite, probe, sqlite_file
from bench.reporting.mlflow.views import experiment_tags
from bench.store.files import Store, write_text
from bench.store.urls import with_driver, without_password, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

log = logging.getLogger(__name__)

VIEWS_LOCK = ".views.lock"
"""File in a store that is locked while its tables and its MLflow view are written."""

STORE_ID = ".tracking-id"
"""File in a store with the id that marks its runs on a server among those of other stores."""

_LONGEST_ID = 1000
"""Bytes that the file with a store's id may have."""
_REFRESH_SECONDS = 5.0
"""Time after which an update that is not thorough leaves the rest to the next one."""


class Tracker:
    """A tracker keeps MLflow up to date with a store. If MLflow fails, the next update sends what is missing.

    Args:
        uri: Database or server with MLflow's data; `None` for the variable MLFLOW_TRACKING_URI or, without it, an
            SQLite file in the store.
        store_root: Folder of the store.
        patient: Whether to wait for a slow server. A running study does not wait.
    """

    def __init__(self, uri: str | None, store_root: Path, *, patient: bool = False) -> None:
        self.root = store_root.resolve()
        self.uri = resolve_uri(uri, self.root)
        self.option = () if uri is None else ("--tracking-uri", without_password(uri))
        self._patience = {"TIMEOUT": "30", "MAX_RETRIES": "2"} if patient else {"TIMEOUT": "5", "MAX_RETRIES": "0"}
        self._warned = False
        self._opened: tuple[str, MlflowClient] | None = None
        self._mirrors: dict[str, Mirror] = {}

    def prepare(self, study: Mapping[str, Any]) -> bool:
        """Make the database and the study's experiment, before anything is written to them.

        Returns:
            Whether this succeeded; if not, a warning was logged.
        """
        return self._guarded(lambda: self._prepare(str(study["name"])))

    def log_study(self, store: Store, study: Mapping[str, Any], *, thorough: bool = True) -> bool:
        """Bring MLflow up to date with the run folders; only what it does not have is sent.

        Args:
            store: Store with the run folders.
            study: Document of the study.
            thorough: Whether to compare everything, and to send the tables too. Otherwise the update relies on what
                this process remembers, and takes a few seconds at most.

        Returns:
            Whether MLflow has everything now; if an error prevented it, a warning was logged.
        """
        deadline = math.inf if thorough else time.monotonic() + _REFRESH_SECONDS
        return self._guarded(lambda: self._update(store, study, thorough, deadline).complete)

    def sync(self, store: Store, study: Mapping[str, Any], *, rebuild: bool = False) -> Counts:
        """Bring MLflow up to date with the run folders, at any later time.

        Args:
            store: Store with the run folders.
            study: Document of the study.
            rebuild: Whether to delete the store's runs of this study first.

        Raises:
            Exception: Any error of MLflow; `TrackingDownError` when it cannot be reached.
        """
        with self._environment():
            if rebuild:
                self._connection()
                self._mirror(store, study).remove(self._client)
            return self._update(store, study, thorough=True, deadline=math.inf)

    def find_experiment(self, name: str) -> str | None:
        """Return the id of a study's experiment; `None` when there is none."""
        experiment = self.get_experiment(name)
        return None if experiment is None else str(experiment.experiment_id)

    def get_experiment(self, name: str) -> "Experiment | None":
        """Return a study's experiment; `None` when there is none."""
        with self._environment():
            probe(self.uri, write=False)
            if (own := self._own_database) is not None:
                follow_store(own, self.root)
            experiment = self._client.get_experiment_by_name(name)
        return experiment if experiment is not None and experiment.lifecycle_stage == "active" else None

    @property
    def _client(self) -> "MlflowClient":
        """MLflow's client; a new one when the SQLite file was replaced since it was opened."""
        uri = _current_uri(self.uri)
        if self._opened is None or self._opened[0] != uri:
            from mlflow import MlflowClient

            _quiet_loggers()
            self._mirrors.clear()
            self._opened = uri, MlflowClient(tracking_uri=uri, registry_uri=uri)
        return self._opened[1]

    @property
    def _is_private(self) -> bool:
        """Whether the database is the store's own, so that every run in it belongs to the store."""
        return self.uri == resolve_uri(None, self.root, environment={})

    @property
    def _own_database(self) -> Path | None:
        """SQLite file of the store itself; `None` when MLflow's data is elsewhere."""
        return sqlite_file(self.uri) if self._is_private else None

    def _guarded(self, action: Callable[[], bool]) -> bool:
        try:
            with self._environment():
                return action()
        except Exception as error:
            self._mirrors.clear()  # what arrived is not known
            _note_failure(self.uri, error)
            level = logging.DEBUG if self._warned else logging.WARNING
            uri, reason = without_password(self.uri), without_secrets(first_line(error))
            log.log(level, "MLflow at %s is not up to date: %s; the next update sends what is missing", uri, reason)
            self._warned = True
            return False

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Set MLflow's environment variables during an update, except those that the user has set."""
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
        """Return a connection to MLflow, after a check that it can be reached.

        Raises:
            TrackingDownError: MLflow cannot be reached.
        """
        probe(self.uri)
        file = sqlite_file(self.uri)
        if (own := self._own_database) is not None:
            _make_database(own)
            follow_store(own, self.root)

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
        """Return the id of a study's experiment; make it when missing, restore it when deleted."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = (artifact_root(self.root) / name).as_uri() if is_database(self.uri) else None
            made = self._client.create_experiment(name, artifact_location=location, tags={STORE: self._owner()})
            experiment = self._client.get_experiment(made)
        if experiment.lifecycle_stage != "active":
            self._client.restore_experiment(experiment.experiment_id)
        if (own := self._own_database) is not None:
            check_places(own, self.root, str(experiment.experiment_id))
        for key, value in experiment_tags(experiment.creation_time).items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return str(experiment.experiment_id)

    def _owner(self) -> str:
        """Return the id that marks the store's runs among those of others; a moved store keeps it."""
        file = self.root / STORE_ID
        try:
            if not file.is_file():
                write_text(file, secrets.token_hex(16) + "\n")
            return read_text(file, _LONGEST_ID).strip()
        except OSError:  # a read-only store
            return str(self.root)


def resolve_uri(uri: str | None, store_root: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return the URI of MLflow's data: the given one, else MLFLOW_TRACKING_URI, else an SQLite file in the store.

    Raises:
        BenchError: The URI is neither a server nor a database.
    """
    chosen = uri or environment.get("MLFLOW_TRACKING_URI")
    if chosen and not (is_server(chosen) or is_database(chosen)):
        raise BenchError(
            f"'{without_password(chosen)}' is not a tracking URI; give a server such as http://HOST:5000 or a "
            "database such as sqlite:////FOLDER/mlflow.db, with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return with_driver(chosen) if chosen else _sqlite_uri(str(store_root.resolve() / "mlflow.db"))


def _sqlite_uri(path: str) -> str:
    """Return the URI of an SQLite file, with special characters of URIs escaped.

    MLflow makes the folder of a URI of the plain form without unescaping it, beside the one that is meant.

    Raises:
        BenchError: The path is not text in UTF-8, which a URI needs.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BenchError(
            f"MLflow cannot use a database '{printable(path)}', whose path is not UTF-8; choose another "
            "with --store DIR"
        ) from error
    escaped = re.sub("[%?#]", lambda sign: f"%{ord(sign[0]):02X}", path)
    return f"{'sqlite' if escaped == path else 'sqlite+pysqlite'}:///{escaped}"


def _make_database(file: Path) -> None:
    """Make a new SQLite file completely or not at all, because MLflow cannot use one with half of its tables.

    The caller holds the lock of the views.
    """
    for leftover in file.parent.glob(f".{file.name}.*.tmp*"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    if file.exists() and file.stat().st_size:
        return
    from mlflow import MlflowClient

    _quiet_loggers()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        open_sqlite(temporary, write=True)  # fails at once, whereas MLflow would try for minutes
        uri = _sqlite_uri(str(temporary))
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments()
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


_spellings: dict[Path, tuple[tuple[int, int], int]] = {}
"""Device and inode of each SQLite file, and the number of times that it was replaced in this process."""


def _current_uri(uri: str) -> str:
    """Return the URI under which MLflow should open its data.

    MLflow keeps its connections by URI until the process ends, and would continue to write to an SQLite file that was
    deleted. Therefore a new file at the same path gets another spelling of the path.
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
    _, mark, options = uri.partition("?")
    return _sqlite_uri(f"{file.parent}/{'./' * number}{file.name}") + mark + options


def _note_failure(uri: str, error: Exception) -> None:
    """Treat an SQLite file without tables as a new one, even if it has the inode of the old one."""
    file = sqlite_file(uri)
    if file in _spellings and "no such table" in str(error):
        _spellings[file] = (0, 0), _spellings[file][1]


def _quiet_environment() -> None:
    """Set the variables that MLflow reads when it is imported; without them it reports its use to its makers."""
    telemetry = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    if not any(os.environ.get(name, "").lower() in ("false", "0") for name in telemetry):
        for name in telemetry:
            os.environ.setdefault(name, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def _quiet_loggers() -> None:
    """Silence the libraries' messages on progress and errors; `Tracker` reports an error in one line."""
    for name in ("mlflow", "alembic", "sqlalchemy.pool", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
