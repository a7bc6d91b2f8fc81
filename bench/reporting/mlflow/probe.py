"""A check, within seconds, of whether MLflow's data can be reached; MLflow itself tries for minutes."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from bench.errors import first_line

_SECONDS = 2.0
"""Time limit for an answer, or for another process to release its lock."""
_TOTAL_SECONDS = 5.0
"""Time limit for the whole check, because name look-ups and network file systems have no limit of their own."""
_SERVER_ERROR = 500


class TrackingDownError(Exception):
    """MLflow's data cannot be reached now; the message gives the reason."""


def probe(uri: str, *, write: bool = True) -> None:
    """Check within a few seconds whether MLflow's data can be reached.

    Args:
        uri: Database or server with MLflow's data.
        write: Whether the data must be writable.

    Raises:
        TrackingDownError: The data cannot be reached.
    """
    outcome: SimpleQueue[Exception | None] = SimpleQueue()

    def check() -> None:
        try:
            _check(uri, write)
        except Exception as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # In a thread, because some calls that may hang cannot be interrupted; the thread ends when the call does.
    Thread(target=check, name="tracking-probe", daemon=True).start()
    try:
        error = outcome.get(timeout=_TOTAL_SECONDS)
    except Empty:
        raise TrackingDownError(f"no answer within {_TOTAL_SECONDS:.0f} s") from None
    if error is not None:
        raise TrackingDownError(first_line(error)) from error


def _check(uri: str, write: bool) -> None:
    file = sqlite_file(uri)
    if is_server(uri):
        _ask_server(uri)
    elif file is not None:
        open_sqlite(file, write=write)
    elif is_database(uri):
        _ask_database(uri)


def _ask_server(uri: str) -> None:
    """Accept any answer except a server error; MLflow itself handles the rest."""
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS, allow_redirects=False)
    except requests.exceptions.SSLError:  # MLflow may be configured to trust the certificate
        return
    except requests.exceptions.Timeout:
        raise TrackingDownError(f"no answer within {_SECONDS:.0f} s") from None
    except requests.exceptions.ConnectionError as error:
        raise TrackingDownError(_root_cause(error)) from error
    if answer.status_code >= _SERVER_ERROR:
        raise TrackingDownError(f"the server answers with error {answer.status_code}")


def _root_cause(error: BaseException) -> str:
    """Return the message of the operating system inside an error of `requests`."""
    reason, inner = first_line(error), error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            reason = inner.strerror
        inner = inner.__cause__ or inner.__context__
    return reason


def open_sqlite(file: Path, *, write: bool) -> None:
    """Check whether an SQLite file can be used; the file is made when it is missing.

    Raises:
        sqlite3.Error: The file cannot be opened, is no database, stays locked, or cannot be written.
        OSError: The folder cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=_SECONDS, isolation_level=None)) as connection:
        connection.execute("pragma schema_version")
        if write:
            connection.execute("begin immediate")
            connection.execute("pragma user_version = 0")  # only this shows SQLite that a file cannot be written
            connection.execute("rollback")


def _ask_database(uri: str) -> None:
    from sqlalchemy import NullPool, create_engine, text

    limit = re.match(r"(postgresql|mysql)(\+psycopg2|\+psycopg|\+pymysql)?:", uri)
    arguments = {"connect_timeout": round(_SECONDS)} if limit else {}
    engine = create_engine(uri, poolclass=NullPool, connect_args=arguments)
    with engine.connect() as connection:
        connection.execute(text("select 1"))


def is_server(uri: str) -> bool:
    """Return whether a URI is an MLflow server."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Return whether a URI is a database, to which this process writes itself."""
    return re.match(r"(sqlite|postgres|postgresql|mysql|mssql)(\+\w+)?:", uri) is not None


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI; `None` for any other URI."""
    if re.match(r"sqlite(\+\w+)?:", uri) is None:
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None
