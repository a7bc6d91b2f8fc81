"""The console script: runs the command line, and prints every error that a user can cause in one line."""

import errno
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from bench.errors import (
    CONTINUE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    BenchError,
    ForeignCodeError,
    described,
    escaped,
    full_traceback,
    is_foreign,
    place,
)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk, whoever writes to it."""
_LONGEST_LINE, _END_OF_LINE = 4000, 1000
"""Characters of a line on stderr, and those of its end that stay if it is longer."""


def main() -> None:
    """Run `bench` and exit with one of the statuses that `docs/command-line.md` lists."""
    with _plugin_exits_reported():
        sys.exit(_status())


class _OneLine(logging.Formatter):
    """Writes each message on one line, whatever foreign text it holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return escaped(super().format(record))


def _status() -> int:
    """Run the command, print its errors, and return the exit status."""
    import click

    from bench.cli.main import bench

    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("bench: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    stdout = sys.stdout
    try:
        status: object = bench.main(standalone_mode=False, prog_name="bench")
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the second kind into the first
        advice = CONTINUE if sys.argv[1:2] == ["run"] else "run the same command again to start over"
        _print_error(f"interrupted; {advice}")
        status = EXIT_INTERRUPTED
    except click.ClickException as error:
        usage = getattr(error, "ctx", None)
        hint = f" (see `{usage.command_path} --help`)" if usage is not None else ""
        _print_error(f"{' '.join(error.format_message().split())}{hint}")
        status = EXIT_USAGE
    except BenchError as error:
        kept = f"; the traceback is in {_kept(error)}" if isinstance(error, ForeignCodeError) else ""
        _print_error(f"{error}{kept}")
        status = EXIT_USAGE
    except SystemExit as error:
        # Click replaces stdout and exits when its reader has ended, e.g. `bench list methods | head -1`.
        ended = error.code if sys.stdout is stdout else 0
        status = _report(error) if place(error, only_users=True) else ended
    except Exception as error:
        status = _report(error)
    return status if isinstance(status, int) else 0


def _print_error(line: str) -> None:
    """Print one line on stderr, whatever foreign text it holds."""
    shown = escaped(line)
    if len(shown) > _LONGEST_LINE:  # a value without end; what to do about it is said last
        shown = f"{shown[: _LONGEST_LINE - _END_OF_LINE]} … {shown[-_END_OF_LINE:]}"
    sys.stderr.write(f"bench: {shown}\n")


def _report(error: BaseException) -> int:
    """Print one line about an exception that is not of the harness; return the exit status."""
    if isinstance(error, OSError) and (error.errno in _DISK or not place(error, only_users=True)):
        path = error.filename or "the output, or a file that was not named"
        _print_error(f"{error.strerror or error}: {path}; nothing that had finished is lost")
    else:
        _print_error(f"{described(error)}; the traceback is in {_kept(error)}")
    return EXIT_USAGE


def _kept(error: BaseException) -> str:
    """Write the traceback of an error into a new temporary file, and return its path."""
    from bench.store.urls import without_secrets

    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".txt", encoding="utf-8", delete=False) as file:
        file.write(without_secrets(full_traceback(error)))
    return file.name


@contextmanager
def _plugin_exits_reported() -> Iterator[None]:
    """During a `with` block, let `os._exit` in a plug-in's code end this process with a line and a status of failure.

    It is asked to end at once, without any handler, so that the command would otherwise seem to have succeeded.
    """
    own, leave = os.getpid(), os._exit

    def reported(status: int) -> NoReturn:
        caller = sys._getframe(1)
        file, line = caller.f_code.co_filename, caller.f_lineno
        if os.getpid() != own or not is_foreign(file):
            leave(status)
        _print_error(f"{file}:{line} ended the command with os._exit({status})")
        sys.stderr.flush()
        leave(EXIT_USAGE)

    os._exit = reported
    try:
        yield
    finally:
        os._exit = leave


if __name__ == "__main__":
    main()
