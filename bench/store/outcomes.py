"""Outcomes of units of work, and which of them are final."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError, first_line, unknown_name
from bench.store.files import Status

RESULTS: frozenset[Status] = frozenset({"done", "unreachable"})
"""Statuses of results. A result is valid until something that it depends on changes."""

RETRIABLE: frozenset[Status] = frozenset({"failed", "diverged", "timeout", "oom"})
"""Statuses of failures that would probably happen again. They are final until `--retry` names them."""

LOST: frozenset[Status] = frozenset({"killed", "interrupted", "skipped", "running"})
"""Statuses that say nothing about the unit itself: the same command works on the unit again."""

RETRY_CHOICES = (*sorted(RETRIABLE), "all")

Error = Literal["", "user", "system"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the work on a unit ended.

    Attributes:
        status: Status that the unit's record gets.
        reason: One line of explanation; may be empty.
        error: "user" when the study cannot continue before the user corrects something; "system" when it cannot
            continue because the store cannot be written; empty otherwise.
        nearest: Nearest cost that can be reached, for an unreachable budget.
    """

    status: Status
    reason: str = ""
    error: Error = ""
    nearest: float | None = None


INTERRUPTED = Outcome(status="interrupted", reason="interrupted; run the same command again to continue")


def parse_retry(text: str) -> frozenset[Status]:
    """Parse the value of `--retry`.

    Raises:
        BenchError: A name is unknown.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in RETRY_CHOICES:
            raise unknown_name("outcome", name, RETRY_CHOICES, "bench run --help")
    return RETRIABLE if "all" in names else frozenset(status for status in RETRIABLE if status in names)


def is_final(status: Any, retry: Iterable[Status] = ()) -> bool:
    """Return whether a unit with this status needs no work.

    Args:
        status: Status of the unit's record.
        retry: Failures to try again.
    """
    return status in RESULTS or (status in RETRIABLE and status not in retry)


def outcome_of_error(error: BaseException) -> Outcome:
    """Translate an exception that ended the work on a unit."""
    text = first_line(error)
    if isinstance(error, UnreachableBudgetError):
        return Outcome(status="unreachable", reason=text, nearest=error.nearest)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return INTERRUPTED
    if isinstance(error, BenchError):
        return Outcome(status="failed", reason=text, error="user")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return Outcome(status="failed", reason=f"{error.strerror}: {error.filename or 'unknown file'}", error="system")
    status = _status_of(error)
    kind = type(error).__name__
    says_all = text == kind or status in ("diverged", "skipped")
    return Outcome(status=status, reason=text if says_all else f"{kind}: {text}")


def _status_of(error: BaseException) -> Status:
    if isinstance(error, NonFiniteLossError):
        return "diverged"
    if isinstance(error, SkippedError):
        return "skipped"
    return "oom" if _is_out_of_memory(error) else "failed"


class SkippedError(Exception):
    """A unit cannot be worked on because a unit that it needs did not finish."""


_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP),  # a folder or a link is in the way of a file
}

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch on the processor, or a GPU ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _OUT_OF_MEMORY)
