"""What every way in which work can end is called, and which endings stand."""

import errno
import os
from typing import get_args

import pytest
import torch

from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError
from bench.store.files import Status
from bench.store.outcomes import LOST, RESULTS, RETRIABLE, Ending, SkippedError, ending_of, is_final, parse_retry

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
        ("timeuot", "unknown ending 'timeuot': did you mean 'timeout'?"),
        ("failed,", "unknown ending ''"),
        ("done", "unknown ending 'done'"),
        ("killed", "unknown ending 'killed'"),
        ("unreachable", "unknown ending 'unreachable'"),
    ],
)
def test_what_cannot_be_tried_again_is_one_clear_line(text: str, told: str) -> None:
    with pytest.raises(BenchError) as caught:
        parse_retry(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


GOES_ON = "interrupted; the same command goes on from here"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("first\nsecond"), Ending(status="failed", reason="ValueError: first")),
        (ValueError("\n\n  first"), Ending(status="failed", reason="ValueError: first")),
        (RuntimeError(), Ending(status="failed", reason="RuntimeError: ")),
        (KeyError("x"), Ending(status="failed", reason="KeyError: 'x'")),
        (RecursionError("too deep"), Ending(status="failed", reason="RecursionError: too deep")),
        (NonFiniteLossError("the loss became nan"), Ending(status="diverged", reason="the loss became nan")),
        (UnreachableBudgetError("too dear", 2.5), Ending(status="unreachable", reason="too dear", nearest=2.5)),
        (SkippedError("no pretraining"), Ending(status="skipped", reason="no pretraining")),
        (KeyboardInterrupt(), Ending(status="interrupted", reason=GOES_ON)),
        (SystemExit(3), Ending(status="interrupted", reason=GOES_ON)),
        (BenchError("no such file"), Ending(status="failed", reason="no such file", error="user")),
        (MemoryError(), Ending(status="oom", reason="MemoryError: ")),
        (OSError(errno.ENOMEM, "no"), Ending(status="oom", reason="OSError: [Errno 12] no")),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "a"),
            Ending(status="failed", reason="FileNotFoundError: [Errno 2] No such file: 'a'"),
        ),
        (BrokenPipeError(errno.EPIPE, "x"), Ending(status="failed", reason="BrokenPipeError: [Errno 32] x")),
    ],
    ids=repr,
)
def test_what_an_exception_means(error: BaseException, expected: Ending) -> None:
    assert ending_of(error) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_where_nothing_can_be_written_nothing_can_go_on(number: int) -> None:
    text = os.strerror(number)
    assert ending_of(OSError(number, text, "a.pt")) == Ending(status="failed", reason=f"{text}: a.pt", error="system")
    assert ending_of(OSError(number, text)).reason == f"{text}: no file named"


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
    assert ending_of(RuntimeError(text)).status == "oom"
    assert ending_of(torch.OutOfMemoryError(text)).status == "oom"
    assert ending_of(ValueError(text)).status == "failed"


def test_more_than_there_is_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ending_of(caught.value).status == "oom"
