"""Addresses of databases: their drivers, their time limits, and how they may be shown."""

import re
from collections.abc import Iterable
from importlib.util import find_spec

from bench.errors import BenchError
from bench.outputs.commands import join

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
    """Return an address that may be shown to others: with `***` for its password, and without its parameters.

    Parameters may be secret too. A password may have any characters, also those that divide an address, as people do
    not always escape them. What stands before the last "@" and after the first ":" is therefore taken for a password.
    """
    scheme, divider, rest = uri.partition("://")
    user, at, place = rest.rpartition("@")
    if rest.startswith("/") or ":" not in user:  # a file, or nothing that has a password
        user, at, place = "", "", rest
    elif "/" in user.partition(":")[0] or (scheme in _SERVERS and _PORT_AND_PATH.match(user.partition(":")[2])):
        user, at, place = "", "", rest  # a host, with an "@" in the path behind it
    name = f"{user.partition(':')[0]}:***" if at else ""
    return scheme + divider + name + at + re.split(r"[?#]", place, maxsplit=1)[0]


_SERVERS = ("http", "https")
_PORT_AND_PATH = re.compile(r"\d{1,5}/")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_SETTING = re.compile(r"(?i)((?:password|passwd|pwd|token|secret|api_?key)\s*=\s*['\"]?)[^&\s'\"]+")


def without_secrets(text: str) -> str:
    """Return a text in which every address may be shown to others, and no password is set."""
    return _SETTING.sub(r"\1***", _ADDRESS.sub(lambda found: without_password(found[0]), text))


def command_without_secrets(words: Iterable[str]) -> str:
    """Write a command so that it may be stored: its addresses have no passwords.

    Args:
        words: Words of the command, from which the shell has removed quotation marks.
    """
    return join(map(_word_without_secrets, words))


def _word_without_secrets(word: str) -> str:
    """Remove the password from a word that is an address, or `--option=` and an address; it may have blanks."""
    found = re.match(r"(?s)(--[a-z-]+=)?([A-Za-z][A-Za-z0-9+.-]*://.*)", word)
    return without_secrets(word) if found is None else (found[1] or "") + without_password(found[2])
