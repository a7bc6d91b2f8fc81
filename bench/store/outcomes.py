"""Outcomes of units of work, and which of them are final."""

import errno
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.errors import (
    BenchError,
    NonFiniteLossError,
    StudyHaltedError,
    UnreachableBudgetError,
    described,
    first_line,
    place,
    said,
    unknown_name,
)
from bench.store.files import Status
from bench.store.urls import without_secrets

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


class StoppedError(KeyboardInterrupt):
    """The process of a unit was asked to stop."""


def outcome_of_error(error: BaseException, store: Path) -> Outcome:
    """Translate an exception that ended the work on a unit.

    Whatever the code of a method, model or data set raises is the end of the unit. The study ends too if its store
    cannot be written, or if the harness says that all units need a correction.

    Args:
        error: The exception.
        store: Folder of the store.
    """
    text = without_secrets(first_line(error))
    if isinstance(error, UnreachableBudgetError):
        return Outcome(status="unreachable", reason=text, nearest=error.nearest)
    if _is_interruption(error):
        return INTERRUPTED
    if isinstance(error, StudyHaltedError):
        return Outcome(status="failed", reason=text, error="user")
    if isinstance(error, BenchError):
        where = place(error, only_users=True)
        return Outcome(status="failed", reason=f"{text} ({where})" if where else text)
    if isinstance(error, OSError) and _is_of_the_store(error, store):
        return Outcome(status="failed", reason=f"{error.strerror}: {error.filename or 'unknown file'}", error="system")
    status = _status_of(error)
    return Outcome(
        status=status, reason=text if status in ("diverged", "skipped") else without_secrets(described(error))
    )


def _is_interruption(error: BaseException) -> bool:
    """Return whether a user or the system interrupted the process.

    Where Ctrl-C is ignored, as in the processes of units, only foreign code raises a plain `KeyboardInterrupt`.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return isinstance(error, StoppedError) or (isinstance(error, KeyboardInterrupt) and not ignored)


def _is_of_the_store(error: OSError, store: Path) -> bool:
    """Return whether an error means that the store cannot be written; full disks do not always name a file."""
    if error.errno not in _UNWRITABLE:
        return False
    if error.filename is None:
        return error.errno not in _REFUSED
    if isinstance(error.filename, int):  # a descriptor
        return False
    file = Path(os.fsdecode(error.filename)).absolute()
    return file.is_relative_to(store.absolute()) or file.is_relative_to(store.resolve())


def _status_of(error: BaseException) -> Status:
    if isinstance(error, NonFiniteLossError):
        return "diverged"
    if isinstance(error, SkippedError):
        return "skipped"
    return "oom" if _is_out_of_memory(error) else "failed"


class SkippedError(Exception):
    """A unit cannot be worked on because a unit that it needs did not finish."""


_REFUSED = {
    *(errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP),  # a folder or a link is in the way of a file
}
_UNWRITABLE = {
    *_REFUSED,
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG),
}

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, PyTorch on the processor, or a GPU ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(phrase in said(error) for phrase in _OUT_OF_MEMORY)
