"""What every way in which work can end is called, and which outcomes are final."""

import errno
import os
from typing import get_args

import pytest
import torch

from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError
from bench.store.files import Status
from bench.store.outcomes import (
    LOST,
    RESULTS,
    RETRIABLE,
    Outcome,
    SkippedError,
    is_final,
    outcome_of_error,
    parse_retry,
)

STATUSES = set(get_args(Status))


def test_every_status_is_a_result_a_failure_or_says_nothing() -> None:
    assert RESULTS | RETRIABLE | LOST == STATUSES
    assert len(RESULTS) + len(RETRIABLE) + len(LOST) == len(STATUSES)


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_results_stand_failures_until_named_and_the_rest_never(status: Status) -> None:
    assert is_final(status) == (status in RESULTS | RETRIABLE)
    assert is_final(status, RETRIABLE) == (status in RESULTS)
    assert is_final(status, {"timeout"}) == (status in RESULTS | RETRIABLE and status != "timeout")
    assert is_final(status, STATUSES) == (status in RESULTS)


@pytest.mark.parametrize("status", [None, "", "finished", 7])
def test_what_is_no_status_needs_work(status: object) -> None:
    assert not is_final(status)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timeout", {"timeout"}),
        ("failed,oom", {"failed", "oom"}),
        (" diverged , timeout ", {"diverged", "timeout"}),
        ("all", RETRIABLE),
        ("oom,all", RETRIABLE),
    ],
)
def test_endings_to_try_again(text: str, expected: set[str]) -> None:
    assert parse_retry(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("timeuot", "unknown outcome 'timeuot': did you mean 'timeout'?"),
        ("failed,", "unknown outcome ''"),
        ("done", "unknown outcome 'done'"),
        ("killed", "unknown outcome 'killed'"),
        ("unreachable", "unknown outcome 'unreachable'"),
    ],
)
def test_what_cannot_be_tried_again_is_one_clear_line(text: str, told: str) -> None:
    with pytest.raises(BenchError) as caught:
        parse_retry(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


CONTINUE = "interrupted; run the same command again to continue"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("first\nsecond"), Outcome(status="failed", reason="ValueError: first")),
        (ValueError("\n\n  first"), Outcome(status="failed", reason="ValueError: first")),
        (RuntimeError(), Outcome(status="failed", reason="RuntimeError")),
        (KeyError("x"), Outcome(status="failed", reason="KeyError: 'x'")),
        (RecursionError("too deep"), Outcome(status="failed", reason="RecursionError: too deep")),
        (NonFiniteLossError("the loss became nan"), Outcome(status="diverged", reason="the loss became nan")),
        (UnreachableBudgetError("too dear", 2.5), Outcome(status="unreachable", reason="too dear", nearest=2.5)),
        (SkippedError("no pretraining"), Outcome(status="skipped", reason="no pretraining")),
        (KeyboardInterrupt(), Outcome(status="interrupted", reason=CONTINUE)),
        (SystemExit(3), Outcome(status="interrupted", reason=CONTINUE)),
        (BenchError("no such file"), Outcome(status="failed", reason="no such file", error="user")),
        (MemoryError(), Outcome(status="oom", reason="MemoryError")),
        (OSError(errno.ENOMEM, "no"), Outcome(status="oom", reason="OSError: [Errno 12] no")),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a"),
            Outcome(status="failed", reason="FileNotFoundError: [Errno 2] No such file: 'a'"),
        ),
        (BrokenPipeError(errno.EPIPE, "x"), Outcome(status="failed", reason="BrokenPipeError: [Errno 32] x")),
    ],
    ids=repr,
)
def test_what_an_exception_means(error: BaseException, expected: Outcome) -> None:
    assert outcome_of_error(error) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_where_nothing_can_be_written_nothing_can_go_on(number: int) -> None:
    text = os.strerror(number)
    assert outcome_of_error(OSError(number, text, "a.pt")) == Outcome(
        status="failed", reason=f"{text}: a.pt", error="system"
    )
    assert outcome_of_error(OSError(number, text)).reason == f"{text}: unknown file"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 139.00 GiB total capacity)",
        "[enforce fail at alloc_cpu.cpp:113] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes",
        "mmap: Cannot allocate memory",
    ],
)
def test_libraries_say_in_words_that_memory_ran_out(text: str) -> None:
    assert outcome_of_error(RuntimeError(text)).status == "oom"
    assert outcome_of_error(torch.OutOfMemoryError(text)).status == "oom"
    assert outcome_of_error(ValueError(text)).status == "failed"


def test_more_than_there_is_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert outcome_of_error(caught.value).status == "oom"
