"""The errors that the harness tells apart, and the one form of message for a wrong name."""

import difflib
from collections.abc import Iterable

EXIT_SOME_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
"""Exit statuses of the command line besides 0: some run failed, bad usage or data, interrupted."""


class BenchError(Exception):
    """A user's mistake or a missing thing: one clear line on stderr, exit status 2, no traceback.

    The message says what was wrong, the value, what is allowed, and what to type next.
    """


class NonFiniteLossError(Exception):
    """Training met a loss that is NaN or infinite."""


class UnreachableBudgetError(Exception):
    """No policy of the method costs as little as the budget asks; a reported outcome, not a failure.

    Attributes:
        nearest: The cost of the cheapest policy that the method can express.
    """

    def __init__(self, message: str, nearest: float) -> None:
        super().__init__(message)
        self.nearest = nearest


def unknown_name(kind: str, name: str, known: Iterable[str], see: str) -> BenchError:
    """The error for a name that does not exist, naming the nearest one that does.

    Args:
        kind: What the name stands for, e.g. "method".
        name: The name that was given.
        known: All names that would have been right.
        see: The command that lists them.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return BenchError(f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'} (see `{see}`)")


def first_line(error: object) -> str:
    """Return the first line of what an error says, or its type's name when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
