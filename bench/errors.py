"""Errors of the harness, exit statuses, and the form of messages about wrong names."""

import difflib
from collections.abc import Iterable

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
"""Exit statuses of the command line besides 0: some run failed, bad usage or data, interrupted."""

CONTINUE = "nothing that had finished is lost; run the same command again to continue"
"""Advice after an interruption of `bench run`."""


class BenchError(Exception):
    """A user's mistake, or something that is missing: one line on stderr, exit status 2, no traceback.

    The message says what was wrong, the value, what is allowed, and what to type next.
    """


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
    return BenchError(f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'} (see `{see}`)")


def first_line(error: object) -> str:
    """Return the first line of what an error says, or its type's name when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
