"""Errors of the harness, exit statuses, and the form of messages about wrong names."""

import difflib
import inspect
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
"""Exit statuses of the command line besides 0: some run failed, bad usage or data, interrupted."""

_LONGEST_LINE = 500
_INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Names of folders into which libraries are installed."""
_TORCH = f"{os.sep}torch{os.sep}"
_HARNESS, _PYTHON = (os.path.join(path, "") for path in (Path(__file__).parent, sysconfig.get_path("stdlib")))  # noqa: PTH118
"""Folders of the harness and of Python's own library, with the closing separator."""

CONTINUE = "nothing that had finished is lost; run the same command again to continue"
"""Advice after an interruption of `bench run`."""


class BenchError(Exception):
    """A user's mistake, or something that is missing: one line on stderr, exit status 2, no traceback.

    The message says what was wrong, the value, what is allowed, and what to type next.
    """


class StudyHaltedError(BenchError):
    """Something that all units of a study need is wrong: it cannot continue before the user corrects this."""


class ForeignCodeError(BenchError):
    """The code of a plug-in raised an exception, its cause; the command line keeps the traceback in a file."""


class NonFiniteLossError(Exception):
    """The loss of a training became NaN or infinite."""


class UnreachableBudgetError(Exception):
    """No policy of the method costs as little as the budget; this is a result, not a failure.

    Attributes:
        nearest: Cost of the cheapest policy that the method found or can find.
    """

    def __init__(self, message: str, nearest: float) -> None:
        super().__init__(message)
        self.nearest = nearest


def unknown_name(kind: str, name: str, known: Iterable[str], see: str) -> BenchError:
    """Make the error for a name that does not exist; its message suggests the nearest name that does.

    Args:
        kind: Kind of thing that has the name, e.g. "method".
        name: Name that was given.
        known: Names that exist.
        see: Command that lists them.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return BenchError(f"unknown {kind} '{printable(name)}': {hint}known: {', '.join(names) or 'none'} (see `{see}`)")


def first_line(error: object) -> str:
    """Return the first line of what an error says, or its type's name when it says nothing or cannot say it.

    The line can be shown and stored anywhere: characters that cannot be printed are escaped, and it is not too long.
    """
    lines = said(error).strip().splitlines()
    return printable((lines or [type(error).__name__])[0])


def said(error: object) -> str:
    """Return what an error says; nothing if it fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def printable(text: str) -> str:
    """Return one line of text with escapes for control characters, halves of characters and the like, cut if long."""
    shown = escaped(text)
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:_LONGEST_LINE]}…"


def escaped(text: str) -> str:
    """Return text as one line that can be printed anywhere: what cannot be printed is escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def place(error: BaseException, *, only_users: bool = False) -> str:
    """Return file and line of the innermost code outside of the harness and installed libraries that an error passed.

    Args:
        error: The error.
        only_users: Whether to return an empty text if there is no such code. Otherwise the innermost line of a library
            other than PyTorch, of the harness, or of anything is named.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        frames.append((error.filename, error.lineno or 0))
    own = [frame for frame in frames if is_foreign(frame[0])]
    if only_users or own:
        chosen = own
    else:
        libraries = [frame for frame in frames if _INSTALLED & {*Path(frame[0]).parts} and _TORCH not in frame[0]]
        chosen = libraries or [frame for frame in frames if frame[0].startswith(_HARNESS)] or frames
    return f"{_shown(chosen[-1][0])}:{chosen[-1][1]}" if chosen else ""


def place_of(function: object) -> str:
    """Return the file and the first line of a function; an empty text for one without code of its own in Python."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return "" if code is None else f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def described(error: BaseException) -> str:
    """Describe an exception of foreign code in one line: its type, what it says, and the file and line."""
    text = error.msg if isinstance(error, SyntaxError) else first_line(error)
    kind, where = printable(type(error).__name__), place(error)
    return (text if text == kind else f"{kind}: {text}") + (f" ({where})" if where else "")


def full_traceback(error: BaseException) -> str:
    """Return an error's traceback as text that can be written as UTF-8."""
    text = "".join(traceback.format_exception(error))
    return text.encode("utf-8", "backslashreplace").decode()


def is_foreign(file: str) -> bool:
    """Return whether a file of code belongs neither to the harness nor to Python or an installed library."""
    return not file.startswith(("<", _HARNESS, _PYTHON)) and not _INSTALLED & {*Path(file).parts}


def _shown(file: str) -> str:
    """Return a path relative to the working directory if it is inside of it."""
    try:
        return printable(file.removeprefix(os.path.join(Path.cwd(), "")))  # noqa: PTH118
    except OSError:  # the folder was deleted
        return printable(file)
