"""Faults around a study: clocks that jump, locked databases, servers that do not answer, processes that sleep."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.faults import EQUAL, SKIPPED, WRONG, Arena, FaultOutcome
from tests.faults.points import points_of_a_study
from tests.faults.processes import roles
from tests.faults.study import Command, Ended, Warm

_MOST_EXTRA_SECONDS = 120.0
"""Largest delay that a tracking database or server which does not answer may cause."""


# --- clocks ------------------------------------------------------------------------------------------------------


_DAY = 86_400


class ShiftedClock:
    """Shifts the wall clock of commands, also while they run.

    Args:
        folder: Folder for the library and the file with the offset.

    Raises:
        FileNotFoundError: There is no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        self._library, self._offset = folder / "clock.so", folder / "clock.offset"
        if not self._library.exists():
            source = Path(__file__).with_name("clock.c")
            command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source)]
            subprocess.run(command, check=True)
        self.set(0)

    def set(self, seconds: int) -> None:
        """Shift the clock from now on; the file is written in place because processes map it into memory."""
        with self._offset.open("r+b" if self._offset.exists() else "w+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    @property
    def variables(self) -> dict[str, str]:
        """Variables for the environment of a command."""
        return {"LD_PRELOAD": str(self._library), "SHIFTED_CLOCK": str(self._offset)}


def clock_jumps(arena: Arena) -> Iterator[FaultOutcome]:
    """Run commands whose clocks differ by weeks, and let the clock jump while a command runs."""
    try:
        clock = ShiftedClock(arena.folder)
    except FileNotFoundError:
        yield FaultOutcome(kind="clock", fault="all jumps", outcome=SKIPPED, detail="there is no C compiler 'gcc'")
        return
    for first, second in ((40, -40), (-40, 40)):
        yield _continued_at_another_time(arena, clock, first, second)
    for jumps in ((_DAY, -2 * _DAY), (-30 * _DAY, 0), (3600, -3600, 7200)):
        yield _jumping(arena, clock, jumps)


def clock_between_points(arena: Arena, seed: int, count: int = 40) -> Iterator[FaultOutcome]:
    """Kill a command at one write after the other, and let the clock jump by weeks before it is repeated."""
    try:
        clock = ShiftedClock(arena.folder)
    except FileNotFoundError:
        yield FaultOutcome(kind="clock", fault="between kills", outcome=SKIPPED, detail="there is no C compiler 'gcc'")
        return
    draw = random.Random(seed)  # noqa: S311
    with Warm(arena.folder, **clock.variables) as warm:

        def jump() -> None:
            clock.set(draw.choice((-1, 1)) * draw.choice((3600, _DAY, 40 * _DAY)))

        for outcome in points_of_a_study(arena, seed + 1000, "kill", count, warm, jump):
            yield replace(outcome, kind="clock", fault=f"jumps before and after: {outcome.fault}")


def _continued_at_another_time(arena: Arena, clock: ShiftedClock, first: int, second: int) -> FaultOutcome:
    """Kill a command with all its processes, and continue it under a different clock; both offsets are in days."""
    began = time.monotonic()
    store = arena.fresh()
    clock.set(first * _DAY)
    lost = Command(store, **clock.variables)
    while lost.running and not any(store.glob("runs/*/checkpoints/*.pt")):
        time.sleep(0.02)
    lost.kill_all()
    clock.set(second * _DAY)
    outcome, detail = _ended(arena, store, Command(store, **clock.variables))
    fault = f"begun at {first:+} days, continued at {second:+} days"
    return _outcome_of(arena, store, "clock", fault, outcome, detail, began)


def _jumping(arena: Arena, clock: ShiftedClock, jumps: Sequence[int]) -> FaultOutcome:
    """Let the clock jump again and again while a command runs."""
    began = time.monotonic()
    store = arena.fresh()
    clock.set(0)
    command = Command(store, "--jobs", "2", **clock.variables)
    while command.running and not any(store.glob("pretrained/*/record.json")):
        time.sleep(0.02)
    number = 0
    while command.running:
        clock.set(jumps[number % len(jumps)])
        number += 1
        time.sleep(arena.seconds / 10)
    outcome, detail = _ended(arena, store, command)
    if outcome == EQUAL and not number:
        outcome, detail = WRONG, f"{detail}, before the clock could jump"
    fault = f"jumps at work: {', '.join(f'{jump:+} s' for jump in jumps)}"
    return _outcome_of(arena, store, "clock", fault, outcome, f"{detail}, {number} jumps", began)


# --- tracking ----------------------------------------------------------------------------------------------------

_HOLDER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Lock an SQLite file during a `with` block."""
    line = [sys.executable, "-c", _HOLDER, str(database)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        if holder.stdout.readline().strip() != "held":
            raise RuntimeError(f"{database} cannot be locked")
        try:
            yield
        finally:
            holder.stdin.close()


def locked_databases(arena: Arena) -> Iterator[FaultOutcome]:
    """Lock the tracking database while a command runs, or from its middle on."""
    began = time.monotonic()
    store = arena.fresh()
    store.mkdir()
    with _locked(store / "mlflow.db"):
        outcome, detail = _without_tracking(arena, store, Command(store))
    yield _outcome_of(arena, store, "SQLite locked", "before there is a table", outcome, detail, began)

    began = time.monotonic()
    store = arena.copy("interrupted")
    with _locked(store / "mlflow.db"):
        outcome, detail = _without_tracking(arena, store, Command(store))
    yield _outcome_of(arena, store, "SQLite locked", "all the time", outcome, detail, began)

    began = time.monotonic()
    store = arena.fresh()
    command = Command(store)
    while command.running and not any(store.glob("runs/*/record.json")):
        time.sleep(0.02)
    with _locked(store / "mlflow.db"):
        outcome, detail = _without_tracking(arena, store, command)
    yield _outcome_of(arena, store, "SQLite locked", "from the first run on", outcome, detail, began)


def servers_gone(arena: Arena) -> Iterator[FaultOutcome]:
    """Give commands tracking servers that do not answer."""
    began = time.monotonic()
    store = arena.fresh()
    command = Command(store, "--tracking-uri", f"http://127.0.0.1:{_closed_port()}")
    outcome, detail = _without_tracking(arena, store, command)
    yield _outcome_of(arena, store, "tracking server", "port closed", outcome, detail, began)

    began = time.monotonic()
    store = arena.fresh()
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        command = Command(store, "--tracking-uri", f"http://127.0.0.1:{silent.getsockname()[1]}")
        outcome, detail = _without_tracking(arena, store, command)
    yield _outcome_of(arena, store, "tracking server", "accepts and never answers", outcome, detail, began)


def _closed_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def _without_tracking(arena: Arena, store: Path, command: Command) -> tuple[str, str]:
    """Judge a command that must end with status 0, a warning, and in time."""
    try:
        ended = command.wait(3 * arena.seconds + 2 * _MOST_EXTRA_SECONDS)
    except TimeoutError as error:
        return WRONG, str(error)
    extra = ended.seconds - arena.seconds
    detail = f"exit {ended.status}, {extra:+.0f} s"
    if ended.status or "Traceback" in ended.output:
        return WRONG, f"{detail}: {ended.output.strip()[-400:]}"
    if "not up to date" not in ended.output:
        return WRONG, f"{detail}, without a warning"
    if extra > 2 * arena.seconds + _MOST_EXTRA_SECONDS:
        return WRONG, f"{detail}: too long"
    wrong = arena.reference.differences(store, tracking=False)
    return (WRONG, "; ".join(wrong[:3])) if wrong else (EQUAL, detail)


# --- locks and sleep ---------------------------------------------------------------------------------------------


def lock_held(arena: Arena) -> Iterator[FaultOutcome]:
    """Hold the lock of the leases while a command runs."""
    from filelock import FileLock

    began = time.monotonic()
    store = arena.copy("interrupted")
    lock = FileLock(store / "leases" / ".lock")
    lock.acquire()
    ended = arena.warm.run(store)
    outcome, detail = arena.judge(store, ended, lock.release, statuses=(2,))
    lock.release()
    yield _outcome_of(arena, store, "lock", "that of the leases is held for ever", outcome, detail, began)


def sleepers(arena: Arena, seconds: float = 45.0) -> Iterator[FaultOutcome]:
    """Stop processes for longer than others wait for them, and let them continue."""
    for role in ("worker", "command", "server"):
        began = time.monotonic()
        store = arena.fresh()
        command = Command(store)
        pid = _when_at_work(command, store, role)
        if pid is None:
            outcome, detail = WRONG, f"no {role} was seen"
        else:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)
            outcome, detail = _ended(arena, store, command)
        yield _outcome_of(arena, store, "sleep", f"{role} stopped for {seconds:.0f} s", outcome, detail, began)
    yield _taken_over(arena, seconds)


def _taken_over(arena: Arena, seconds: float) -> FaultOutcome:
    """Stop a command on another machine, let one here take its work over, and wake the first one up."""
    began = time.monotonic()
    fault = "a command on another machine, taken over, wakes up"
    prefix = ("unshare", "--uts", "bash", "-c", 'hostname another-machine && exec "$@"', "bash")
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return FaultOutcome(
            kind="sleep", fault=fault, outcome=SKIPPED, detail="only root can give a process a host name"
        )
    store = arena.fresh()
    asleep = Command(store, prefix=prefix)
    if _when_at_work(asleep, store, "worker") is None:
        asleep.kill_all()
        return FaultOutcome(kind="sleep", fault=fault, outcome=SKIPPED, detail=f"unshare: {asleep.output()[-200:]}")
    stopped = asleep.family()
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    here = Command(store)
    time.sleep(seconds)
    ended = here.wait()
    for process in stopped:
        os.kill(process.pid, signal.SIGCONT)
    woken = asleep.wait()
    left = asleep.leftovers()
    outcome, detail = arena.judge(store, ended)
    detail += f"; the other one {woken.status}"
    if woken.status not in (0, 1, 2, 130) or "Traceback" in woken.output or left:
        outcome, detail = WRONG, f"{detail}: {woken.output.strip()[-300:]} {[process.line[:60] for process in left]}"
    return _outcome_of(arena, store, "sleep", fault, outcome, detail, began)


def _when_at_work(command: Command, store: Path, role: str) -> int | None:
    """Return the process of a command with a given role, as soon as runs have checkpoints."""
    while command.running:
        if any(store.glob("runs/*/checkpoints/*.pt")):
            family = command.family()
            matching = [pid for pid, played in roles(family, command.process.pid).items() if played == role]
            if matching:
                return matching[0]
        time.sleep(0.02)
    return None


def _ended(arena: Arena, store: Path, command: Command) -> tuple[str, str]:
    """Judge a command that must end with equal results by itself."""
    try:
        ended: Ended = command.wait()
    except TimeoutError as error:
        return WRONG, str(error)
    if left := command.leftovers():
        return WRONG, f"left processes behind: {[process.line[:80] for process in left]}"
    return arena.judge(store, ended)


def _outcome_of(
    arena: Arena, store: Path, kind: str, fault: str, outcome: str, detail: str, began: float
) -> FaultOutcome:
    if outcome != WRONG:
        arena.remove(store)
    else:
        detail += f" [kept: {store}]"
    return FaultOutcome(kind=kind, fault=fault, outcome=outcome, detail=detail, seconds=time.monotonic() - began)
