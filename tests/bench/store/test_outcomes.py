"""What every way in which work can end is called, and which outcomes are final."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import get_args

import pytest
import torch

from bench.errors import BenchError, NonFiniteLossError, StudyHaltedError, UnreachableBudgetError, printable
from bench.store.files import Status
from bench.store.outcomes import (
    LOST,
    RESULTS,
    RETRIABLE,
    Outcome,
    SkippedError,
    StoppedError,
    is_final,
    outcome_of_error,
    parse_retry,
)

STATUSES = set(get_args(Status))
STORE = Path("/a store")


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
        (StoppedError(), Outcome(status="interrupted", reason=CONTINUE)),
        (SystemExit(3), Outcome(status="failed", reason="SystemExit: 3")),
        (BenchError("no such file"), Outcome(status="failed", reason="no such file")),
        (StudyHaltedError("other data"), Outcome(status="failed", reason="other data", error="user")),
        (ValueError("\x1b[31m\ud800\u202e"), Outcome(status="failed", reason=r"ValueError: \x1b[31m\ud800\u202e")),
        (ValueError("x" * 9999), Outcome(status="failed", reason=f"ValueError: {'x' * 500}…")),
        (
            PermissionError(errno.EACCES, "Permission denied", "/elsewhere/a"),
            Outcome(status="failed", reason="PermissionError: [Errno 13] Permission denied: '/elsewhere/a'"),
        ),
        (PermissionError(errno.EPERM, "no"), Outcome(status="failed", reason="PermissionError: [Errno 1] no")),
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
    assert outcome_of_error(error, STORE) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE])
def test_where_nothing_can_be_written_nothing_can_go_on(number: int) -> None:
    text = os.strerror(number)
    file = str(STORE / "runs" / "a.pt")
    assert outcome_of_error(OSError(number, text, file), STORE) == Outcome(
        status="failed", reason=f"{text}: {file}", error="system"
    )
    assert outcome_of_error(OSError(number, text, os.fsencode(file)), STORE).error == "system"
    nameless = outcome_of_error(OSError(number, text), STORE)
    assert (nameless.reason == f"{text}: unknown file") == (number != errno.EACCES) == (nameless.error == "system")
    for other in ("a.pt", "/dev/full", 3):  # of the method or the data: the end of the unit only
        assert outcome_of_error(OSError(number, text, other), STORE).error == ""


def test_an_exception_that_cannot_say_what_it_is() -> None:
    class SpeechlessError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for kind in (SpeechlessError, type("Speechless\nError", (SpeechlessError,), {})):
        outcome = outcome_of_error(kind(), STORE)
        assert outcome == Outcome(status="failed", reason=printable(kind.__name__))
        assert outcome.reason.isprintable()


def test_the_place_is_that_of_the_users_code() -> None:
    """It called a library, which raised the error."""
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        line = error.__traceback__.tb_lineno  # type: ignore[union-attr]
        reason = outcome_of_error(error, STORE).reason
    assert reason.endswith(f"({Path(__file__).relative_to(Path.cwd())}:{line})")
    try:
        json.loads("{")
    except ValueError as error:
        line = error.__traceback__.tb_lineno  # type: ignore[union-attr]
        assert f"test_outcomes.py:{line})" in outcome_of_error(error, STORE).reason


def test_where_ctrl_c_is_ignored_only_foreign_code_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)
    assert outcome_of_error(KeyboardInterrupt(), STORE) == Outcome(status="failed", reason="KeyboardInterrupt")
    assert outcome_of_error(StoppedError(), STORE).status == "interrupted"


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
    assert outcome_of_error(RuntimeError(text), STORE).status == "oom"
    assert outcome_of_error(torch.OutOfMemoryError(text), STORE).status == "oom"
    assert outcome_of_error(ValueError(text), STORE).status == "failed"


def test_more_than_there_is_runs_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert outcome_of_error(caught.value, STORE).status == "oom"
