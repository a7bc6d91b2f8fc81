"""The folder of artifacts in a store, and MLflow's entries about it after the store was moved or copied."""

import sqlite3
import urllib.parse
import urllib.request
from contextlib import closing
from pathlib import Path

from bench.errors import BenchError, printable

_FOLDER = "mlartifacts"
_WAIT_SECONDS = 5.0


def artifact_root(store_root: Path) -> Path:
    """Return the folder of artifacts when MLflow's data is in a database rather than behind a server."""
    return store_root.resolve() / _FOLDER


def follow_store(database: Path, store_root: Path) -> int:
    """Let the entries of a store's own database lead to the artifacts of this store, wherever the store lies now.

    MLflow writes whole paths into its database. In a moved store they lead nowhere, and in a copy to the files of the
    original.

    Args:
        database: SQLite file of the store.
        store_root: Folder of the store.

    Returns:
        Number of experiments that were changed.

    Raises:
        sqlite3.Error: The database cannot be read or, if something has to be changed, written.
    """
    root = artifact_root(store_root).as_uri()
    with closing(sqlite3.connect(database, timeout=_WAIT_SECONDS)) as connection, connection:
        if not connection.execute("select 1 from sqlite_master where name = 'experiments'").fetchone():
            return 0
        rows = connection.execute("select experiment_id, artifact_location from experiments").fetchall()
        moved = [(number, str(place)) for number, place in rows if (old := _root_of(place)) and old != root]
        for number, place in moved:
            old = _root_of(place)
            connection.execute(
                "update experiments set artifact_location = ? where experiment_id = ?",
                (root + place[len(old) :], number),
            )
            connection.execute(
                "update runs set artifact_uri = ? || substr(artifact_uri, ?) "
                "where experiment_id = ? and substr(artifact_uri, 1, ?) = ?",
                (root, len(old) + 1, number, len(place) + 1, f"{place}/"),
            )
    return len(moved)


def check_places(database: Path, store_root: Path, experiment: str) -> None:
    """Refuse an experiment of a store's own database whose artifacts would be written outside of the store.

    A store that comes from somebody else may state any folder. Places that are no files, such as `s3:`, pass.

    Args:
        database: SQLite file of the store.
        store_root: Folder of the store.
        experiment: Id of the experiment that is about to be written.

    Raises:
        BenchError: The experiment or one of its runs names a folder outside of the store, also by a symbolic link.
        sqlite3.Error: The database cannot be read.
    """
    with closing(sqlite3.connect(database, timeout=_WAIT_SECONDS)) as connection:
        places = connection.execute(
            "select artifact_location from experiments where experiment_id = ? "
            "union select artifact_uri from runs where experiment_id = ?",
            (experiment, experiment),
        ).fetchall()
    root = artifact_root(store_root)
    for (place,) in places:
        folder = _local(str(place))
        if folder is not None and not folder.resolve().is_relative_to(root):
            raise BenchError(
                f"{database} names the folder {printable(str(place))} for MLflow's artifacts, outside of the store; "
                f"nothing was written there; remove {database.name} and run bench sync, which makes it again"
            )


def _local(place: str) -> Path | None:
    """Return the folder that a place of artifacts means on this machine; `None` if it is no file."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme not in ("", "file"):
        return None
    return Path(urllib.request.url2pathname(parts.path) if parts.scheme else place)


def _root_of(place: str | None) -> str:
    """Return the URI of the folder of artifacts in an experiment's place; empty if it is not in a store's folder."""
    # The study's name is behind it and holds no slash; folders above the store may have any name.
    root, _, _ = str(place or "").rpartition("/")
    return root if root.startswith("file:") and root.endswith(f"/{_FOLDER}") else ""
