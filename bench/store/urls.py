"""Addresses of databases: their drivers, their time limits, and how they may be shown."""

import re
from importlib.util import find_spec

from bench.errors import BenchError

_LIMITS = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
"""Time limits of PostgreSQL's client, in seconds and milliseconds. Without them it waits for a quarter of an hour when
the network fails."""


def with_driver(uri: str) -> str:
    """Add an installed driver and time limits to the address of a PostgreSQL database; leave other addresses alone.

    SQLAlchemy's own choice of a driver for `postgresql://` depends on its version and not on what is installed.

    Raises:
        BenchError: No driver for PostgreSQL is installed.
    """
    if uri.startswith("postgresql+psycopg"):
        return _with_limits(uri)
    if not uri.startswith(("postgresql://", "postgres://")):
        return uri
    for driver in ("psycopg2", "psycopg"):
        if find_spec(driver) is not None:
            return _with_limits(f"postgresql+{driver}://{uri.partition('://')[2]}")
    raise BenchError(
        f"{without_password(uri)} needs a driver for PostgreSQL; install one: pip install 'sbs-bench[postgresql]'"
    )


def check_database(uri: str) -> str:
    """Return an address after making sure that it is that of a database.

    Raises:
        BenchError: It is not, or its driver is not installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError) as error:
        raise BenchError(
            f"--optuna-storage '{without_password(uri)}' is not the URL of a database; give one such as "
            "postgresql://USER@HOST/NAME or sqlite:////FOLDER/optuna.db"
        ) from error
    except ImportError as error:
        raise BenchError(f"--optuna-storage '{without_password(uri)}' needs a driver: {error}; install it") from error
    return uri


def _with_limits(uri: str) -> str:
    missing = [f"{name}={value}" for name, value in _LIMITS.items() if f"{name}=" not in uri]
    return uri + ("&" if "?" in uri else "?") + "&".join(missing) if missing else uri


def without_password(uri: str) -> str:
    """Return an address that may be shown to others."""
    shown = uri.partition("?")[0] if uri.startswith("postgres") else uri
    return re.sub(r"(://[^:/@]*):[^/]+@", r"\1:***@", shown)
