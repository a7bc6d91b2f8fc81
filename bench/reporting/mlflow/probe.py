"""Finds out within seconds whether MLflow's data can be reached; MLflow itself tries for minutes."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

_SECONDS = 2.0
"""For an answer, or for another process to release its lock."""
_TOTAL_SECONDS = 5.0
"""For everything, also what knows no time limit of its own: looking up names, file systems over a network."""
_SERVER_ERROR = 500


class TrackingDownError(Exception):
    """MLflow's data cannot be reached now; the message says why."""


def probe(uri: str, *, write: bool = True) -> None:
    """Look whether MLflow's data can be reached, within a few seconds.

    Args:
        uri: Where MLflow keeps its data.
        write: Whether it is to be written to.

    Raises:
        TrackingDownError: It cannot.
    """
    outcome: SimpleQueue[Exception | None] = SimpleQueue()

    def look() -> None:
        try:
            _look(uri, write)
        except Exception as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # In a thread, since some of what may hang cannot be interrupted; it ends when that does.
    Thread(target=look, name="tracking-probe", daemon=True).start()
    try:
        error = outcome.get(timeout=_TOTAL_SECONDS)
    except Empty:
        raise TrackingDownError(f"no answer within {_TOTAL_SECONDS:.0f} s") from None
    if error is not None:
        raise TrackingDownError(first_line(error)) from error


def _look(uri: str, write: bool) -> None:
    file = sqlite_file(uri)
    if is_server(uri):
        _ask_server(uri)
    elif file is not None:
        open_sqlite(file, write=write)
    elif is_database(uri):
        _ask_database(uri)


def _ask_server(uri: str) -> None:
    """Any answer but an error of the server's is good enough: what it means is left to MLflow."""
    import requests

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS, allow_redirects=False)
    except requests.exceptions.SSLError:  # MLflow may have been told to trust it
        return
    except requests.exceptions.Timeout:
        raise TrackingDownError(f"no answer within {_SECONDS:.0f} s") from None
    except requests.exceptions.ConnectionError as error:
        raise TrackingDownError(_root_cause(error)) from error
    if answer.status_code >= _SERVER_ERROR:
        raise TrackingDownError(f"the server answers with error {answer.status_code}")


def _root_cause(error: BaseException) -> str:
    """What the operating system said, deep inside an error of `requests`."""
    reason, inner = first_line(error), error.__cause__ or error.__context__
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            reason = inner.strerror
        inner = inner.__cause__ or inner.__context__
    return reason


def open_sqlite(file: Path, *, write: bool) -> None:
    """Look whether an SQLite file can be used; it is made when there is none.

    Raises:
        sqlite3.Error: It cannot be opened, is no database, is locked for long, or cannot be written to.
        OSError: Its folder cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=_SECONDS, isolation_level=None)) as connection:
        connection.execute("pragma schema_version")
        if write:
            connection.execute("begin immediate")
            connection.execute("pragma user_version = 0")  # SQLite notices only then that a file cannot be written
            connection.execute("rollback")


def _ask_database(uri: str) -> None:
    from sqlalchemy import NullPool, create_engine, text

    limit = re.match(r"(postgresql|mysql)(\+psycopg2|\+psycopg|\+pymysql)?:", uri)
    arguments = {"connect_timeout": round(_SECONDS)} if limit else {}
    engine = create_engine(uri, poolclass=NullPool, connect_args=arguments)
    with engine.connect() as connection:
        connection.execute(text("select 1"))


def is_server(uri: str) -> bool:
    """Whether MLflow is reached over the network."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Whether MLflow's data is in a database that this process writes to."""
    return re.match(r"(sqlite|postgres|postgresql|mysql|mssql)(\+\w+)?:", uri) is not None


def sqlite_file(uri: str) -> Path | None:
    """The file behind an SQLite URI; `None` for any other."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
