"""Addresses of databases."""

import re
from importlib.util import find_spec

from bench.errors import BenchError


def with_driver(uri: str) -> str:
    """The address of a database with a driver that is installed here.

    SQLAlchemy's choice for a plain `postgresql://` depends on its version, whatever is installed.

    Raises:
        BenchError: There is none for PostgreSQL.
    """
    if not uri.startswith(("postgresql://", "postgres://")):
        return uri
    for driver in ("psycopg2", "psycopg"):
        if find_spec(driver) is not None:
            return f"postgresql+{driver}://{uri.partition('://')[2]}"
    raise BenchError(
        f"{without_password(uri)} needs a driver for PostgreSQL; install one: pip install 'sbs-bench[postgresql]'"
    )


def without_password(uri: str) -> str:
    """A URI that can be shown."""
    return re.sub(r"(://[^:/@]*):[^/]+@", r"\1:***@", uri)
