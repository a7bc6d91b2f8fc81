"""How a unit of work ended, and which endings are final."""

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError, unknown_name
from bench.store.files import Status

RESULTS: frozenset[Status] = frozenset({"done", "unreachable"})
"""Endings that are results: they stand until what they depend on changes."""

RETRIABLE: frozenset[Status] = frozenset({"failed", "diverged", "timeout", "oom"})
"""Endings that would most likely repeat themselves: they stand until `--retry` names them."""

LOST: frozenset[Status] = frozenset({"killed", "interrupted", "skipped", "running"})
"""Endings that say nothing about the unit: the same command works on it again."""

RETRY_CHOICES = (*sorted(RETRIABLE), "all")

Error = Literal["", "user", "system"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a unit ended.

    Attributes:
        status: In one word.
        reason: In one line; empty when there is nothing to say.
        error: "user": the study cannot go on before a mistake is mended; "system": it cannot go on because
            nothing can be written.
        nearest: For an unreachable budget, the nearest cost.
    """

    status: Status
    reason: str = ""
    error: Error = ""
    nearest: float | None = None


def parse_retry(text: str) -> frozenset[Status]:
    """The endings that `--retry` names.

    Raises:
        BenchError: A name is unknown.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in RETRY_CHOICES:
            raise unknown_name("ending", name, RETRY_CHOICES, "bench run --help")
    return RETRIABLE if "all" in names else frozenset(status for status in RETRIABLE if status in names)


def is_final(status: Any, retry: Iterable[Status] = ()) -> bool:
    """Whether a unit with this status needs no work."""
    return status in RESULTS or (status in RETRIABLE and status not in retry)


def ending_of(error: BaseException) -> Ending:
    """What an exception that left a unit's work means for the unit."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, UnreachableBudgetError):
        return Ending(status="unreachable", reason=text, nearest=error.nearest)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return Ending(status="interrupted", reason="interrupted; the same command goes on from here")
    if isinstance(error, BenchError):
        return Ending(status="failed", reason=text, error="user")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return Ending(status="failed", reason=f"{error.strerror}: {error.filename or 'no file named'}", error="system")
    status = _status_of(error)
    return Ending(
        status=status, reason=text if status in ("diverged", "skipped") else f"{type(error).__name__}: {text}"
    )


def _status_of(error: BaseException) -> Status:
    if isinstance(error, NonFiniteLossError):
        return "diverged"
    if isinstance(error, SkippedError):
        return "skipped"
    return "oom" if _is_out_of_memory(error) else "failed"


class SkippedError(Exception):
    """What a unit needs did not finish."""


_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP),  # something else stands where a file should be
}

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, PyTorch's on the processor, or a card's."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _OUT_OF_MEMORY)
