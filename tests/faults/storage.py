"""Stores that cannot be written: full disks, read-only file systems, files where folders should be."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.faults.faults import CLEAR, SKIPPED, WRONG, Arena, FaultOutcome
from tests.faults.study import Command, Ended, leftover_temporaries

SIZES = ("64k", "700k", "1200k", "2m", "3m", "4m")
"""Sizes of file systems that are too small for the study, which needs about 5 MB."""
_ROOMY = "64m"


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[str]:
    """Mount a small file system in memory during a `with` block; yield the reason if that fails, otherwise ""."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    try:
        yield reason
    finally:
        if not reason:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)  # noqa: S607


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)  # noqa: S607


def full_disks(arena: Arena, sizes: Sequence[str] = SIZES) -> Iterator[FaultOutcome]:
    """Start commands on disks that are too small, and enlarge the disks."""
    for size in sizes:
        began = time.monotonic()
        store = arena.fresh()
        with mounted(store, size) as reason:
            if reason:
                outcome, detail = SKIPPED, f"no small file system can be mounted: {reason}"
            else:
                ended = Command(store).wait()
                outcome, detail = _judged_full(arena, store, ended, partial(_remount, store, f"size={_ROOMY}"))
        yield _outcome_of("full disk", f"store of {size}", outcome, detail, began)
        arena.remove(store)


def disks_filled_at_work(arena: Arena, seed: int, count: int = 4) -> Iterator[FaultOutcome]:
    """Fill the disk while a command runs, and make room afterwards."""
    for number in range(count):
        draw = random.Random(f"{seed}/full/{number}")  # noqa: S311
        began = time.monotonic()
        store = arena.fresh()
        with mounted(store, _ROOMY) as reason:
            if reason:
                outcome, detail = SKIPPED, f"no small file system can be mounted: {reason}"
            else:
                command = Command(store)
                _wait(command, store, "runs/*/record.json" if number % 2 else "pretrained/*/record.json")
                time.sleep(draw.random() * arena.seconds / 4)
                ballast = store / "ballast"
                _fill(ballast)
                ended = command.wait()
                outcome, detail = _judged_full(arena, store, ended, partial(ballast.unlink, missing_ok=True))
        yield _outcome_of("full disk", f"filled at work, {number + 1}", outcome, detail, began)
        arena.remove(store)


def _fill(path: Path) -> None:
    """Write until the disk is full."""
    with suppress(OSError), path.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 16, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def _judged_full(arena: Arena, store: Path, ended: Ended, remedy: Callable[[], object]) -> tuple[str, str]:
    half_written = leftover_temporaries(store)
    if half_written:
        return WRONG, f"exit {ended.status}; left half-written: {[path.name for path in half_written]}"
    if ended.status == 0:  # there was no room for tables or tracking only: the command warns, the next one writes them
        if "bench: " not in ended.output:
            return WRONG, "exit 0 without a warning"
        remedy()
        arena.warm.run(store)
        return arena.judge(store, Ended(status=0, output=ended.output, seconds=0))
    return arena.judge(store, ended, remedy, statuses=(2,))


def read_only(arena: Arena) -> Iterator[FaultOutcome]:
    """Start commands on a read-only file system; `bench status` and `bench report` must work there."""
    for base in ("finished", "interrupted"):
        began = time.monotonic()
        store = arena.fresh()
        with mounted(store, _ROOMY) as reason:
            if reason:
                outcome, detail = SKIPPED, f"no file system can be mounted: {reason}"
            else:
                source = arena.finished if base == "finished" else arena.interrupted
                shutil.copytree(source, store, dirs_exist_ok=True)
                _remount(store, "ro")
                ended = arena.warm.run(store)
                unseen = arena.views(store)
                outcome, detail = arena.judge(store, ended, partial(_remount, store, "rw"), statuses=(2,))
                if unseen:
                    outcome, detail = WRONG, "; ".join(unseen)
        yield _outcome_of("read-only store", f"{base}, mounted read-only", outcome, detail, began)
        arena.remove(store)


def unwritable_at_work(arena: Arena, seed: int, count: int = 3) -> Iterator[FaultOutcome]:
    """Make folders read-only while a command runs."""
    for number in range(count):
        began = time.monotonic()
        draw = random.Random(f"{seed}/immutable/{number}")  # noqa: S311
        store = arena.fresh()
        store.mkdir()
        if not _immutable(store, "+i"):
            yield _outcome_of(
                "read-only store", "becomes so at work", SKIPPED, "no file can be made immutable here", began
            )
            arena.remove(store)
            return
        _immutable(store, "-i")
        command = Command(store)
        _wait(command, store, "runs/*/record.json" if number % 2 else "tuning/*/trials/*/record.json")
        time.sleep(draw.random() * arena.seconds / 4)
        try:
            _immutable(store, "+i")
            ended = command.wait()
        finally:
            _immutable(store, "-i")
        outcome, detail = arena.judge(store, ended, statuses=(1, 2))
        yield _outcome_of("read-only store", f"becomes so at work, {number + 1}", outcome, detail, began)
        if outcome != WRONG:
            arena.remove(store)


def _immutable(store: Path, change: str) -> bool:
    """Forbid changes of a store's folders and records, or allow them again."""
    done = subprocess.run(["chattr", "-R", "-f", change, str(store)], capture_output=True, check=False)  # noqa: S607
    if change == "-i":
        return done.returncode == 0
    try:
        (store / "probe").touch()
    except OSError:
        return True
    (store / "probe").unlink()
    return False


def bad_paths(arena: Arena) -> Iterator[FaultOutcome]:
    """Start commands with stores that are not folders, or that the user may not write."""
    file = arena.fresh()
    file.write_text("no folder")
    for what, store in (
        ("the store is a file", file),
        ("the store lies below a file", file / "below"),
        ("the store lies where nothing can be made", Path("/proc/nothing-here")),
    ):
        began = time.monotonic()
        ended = arena.warm.run(store)
        clear = ended.status == 2 and ended.is_clear
        detail = f"exit {ended.status} '{ended.last_line[:160]}'"
        yield _outcome_of("bad path", what, CLEAR if clear else WRONG, detail, began)
    file.unlink()
    yield _without_permission(arena)


def _without_permission(arena: Arena) -> FaultOutcome:
    """Start a command as a user who may read the store but not write it."""
    began = time.monotonic()
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    fault = "the user may not write to the store"
    try:
        probe = subprocess.run(
            [*prefix, sys.executable, "-c", "import torch"], capture_output=True, check=False, cwd="/"
        )
        reason = "" if probe.returncode == 0 else "another user cannot start Python here"
    except OSError as error:
        reason = str(error)
    if reason or os.getuid() != 0:
        return _outcome_of("bad path", fault, SKIPPED, reason or "only root can become another user", began)
    store = arena.copy("interrupted")
    ended = Command(store, prefix=prefix).wait()
    outcome, detail = arena.judge(store, ended, statuses=(2,))
    arena.remove(store)
    return _outcome_of("bad path", fault, outcome, detail, began)


def file_size_limits(arena: Arena, limits: Sequence[int] = (8, 200, 400)) -> Iterator[FaultOutcome]:
    """Limit the size of files, as quotas of some clusters do, and lift the limit afterwards.

    Args:
        arena: Arena to use.
        limits: Limits in KiB.
    """
    for limit in limits:
        began = time.monotonic()
        store = arena.fresh()
        prefix = ("bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash")
        ended = Command(store, prefix=prefix).wait()
        outcome, detail = _judged_full(arena, store, ended, lambda: None)
        yield _outcome_of("full disk", f"files up to {limit} KiB", outcome, detail, began)
        if outcome != WRONG:
            arena.remove(store)


def _wait(command: Command, store: Path, pattern: str) -> None:
    while command.running and not any(store.glob(pattern)):
        time.sleep(0.02)


def _outcome_of(kind: str, fault: str, outcome: str, detail: str, began: float) -> FaultOutcome:
    return FaultOutcome(kind=kind, fault=fault, outcome=outcome, detail=detail, seconds=time.monotonic() - began)
