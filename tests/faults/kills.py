"""Kills of processes of running studies, at random and critical moments; the command is repeated until it is done."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tests.faults.faults import EQUAL, WRONG, Arena
from tests.faults.processes import Process, Role, roles
from tests.faults.study import UNITS, Command, Ended, leftover_temporaries, signal_name

Moment = Literal["any time", "checkpoint", "result", "lease", "table"]

_HERE: tuple[str, ...] = ()
_OTHER_HOST = ("unshare", "--uts", "--net", "bash", "-c", 'hostname another-machine && exec "$@"', "bash")
"""Command that runs another one as if on another machine: with another name and a network of its own."""
VARIANTS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "one job": ((), (_HERE,)),
    "two jobs": (("--jobs", "2"), (_HERE,)),
    "loky": (("--backend", "loky", "--jobs", "2"), (_HERE,)),
    "two commands": ((), (_HERE, _HERE)),
    "two hosts": ((), (_HERE, _OTHER_HOST)),
}
"""Arguments of the command, and the prefix of each of the commands that run at once."""

_ROLES: tuple[tuple[Role, float], ...] = (("worker", 0.68), ("command", 0.18), ("server", 0.14))
_LOKY_ROLES: tuple[tuple[Role, float], ...] = (
    *(("worker", 0.5), ("command", 0.15)),
    *(("server", 0.13), ("supervisor", 0.22)),
)
_SIGNALS = ((signal.SIGKILL, 0.6), (signal.SIGTERM, 0.25), (signal.SIGINT, 0.15))
_MOMENTS: tuple[tuple[Moment, float], ...] = (
    *(("any time", 0.4), ("checkpoint", 0.25), ("result", 0.2)),
    *(("lease", 0.08), ("table", 0.07)),
)
Victim = tuple[int, Command, Moment, Path | None]
"""Process to kill, its command, the moment, and the file that is being written."""

_AIM_SECONDS = 15.0
"""Time to wait for a file to be written; after it, the process is killed at any moment."""
_MOST_COMMANDS = 20


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill.

    Attributes:
        role: Role of the process that was killed.
        signal: Signal that was sent.
        moment: Moment of the kill: at any time, or while a file of some kind was being written.
        caught: Whether the file was left unfinished.
        effect: Observed effect.
    """

    role: Role
    signal: str
    moment: Moment
    caught: bool = False
    effect: str = ""

    def __str__(self) -> str:
        caught = " (left half a file)" if self.caught else ""
        when = "at any time" if self.moment == "any time" else f"while a {self.moment} was written"
        return f"{self.signal} to the {self.role} {when}{caught}: {self.effect}"


@dataclass(kw_only=True)
class KilledStudy:
    """A study, its kills, and its outcome.

    Attributes:
        number: Number of the study.
        variant: Way in which its command was run.
        kills: Kills in their order.
        commands: Number of times that the command was started.
        outcome, detail: Outcome and observations.
        untidy: Number of commands that printed a traceback.
        seconds: Time from the first command to the end.
    """

    number: int
    variant: str
    kills: list[Kill]
    commands: int = 0
    outcome: str = WRONG
    detail: str = ""
    untidy: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields, for the summary."""
        return asdict(self)


class KillCampaign:
    """Kills processes in one study after the other.

    Args:
        arena: Arena of the studies.
        seed: Seed of all choices.
        say: Function that prints each kill.
    """

    def __init__(self, arena: Arena, seed: int, say: Any = lambda _: None) -> None:
        self._arena, self._seed, self._say = arena, seed, say

    def study(self, number: int, kills: int, variant: str | None = None) -> KilledStudy:
        """Run a study to its end while processes of it are killed.

        Args:
            number: Number of the study; with the seed it determines all choices.
            kills: Largest number of kills.
            variant: Way in which the command is run; by turns when absent.
        """
        chosen = variant or _possible()[number % len(_possible())]
        study = KilledStudy(number=number, variant=chosen, kills=[])
        began = time.monotonic()
        store = self._arena.fresh()
        attempt = _Attempt(self._arena, store, study, random.Random(f"{self._seed}/{number}"), self._say)  # noqa: S311
        try:
            attempt.run(kills)
            wrong = self._arena.reference.differences(store) or self._arena.views(store)
            study.outcome, study.detail = (WRONG, "; ".join(wrong[:3])) if wrong else (EQUAL, "")
        except (TimeoutError, _UnexpectedError) as error:
            study.detail = f"{type(error).__name__}: {error}"
        finally:
            attempt.clean()
        study.seconds = time.monotonic() - began
        if study.outcome == EQUAL:
            self._arena.remove(store)
        else:
            study.detail += f" [kept: {store}]"
        return study


@cache
def _possible() -> list[str]:
    """Return the variants that this machine can run: only root can give a process another host name and network."""
    done = subprocess.run([*_OTHER_HOST, "true"], capture_output=True, check=False) if os.getuid() == 0 else None
    return [name for name in VARIANTS if name != "two hosts" or (done is not None and done.returncode == 0)]


class _UnexpectedError(Exception):
    """A command ended in a way that is not allowed."""


class _Attempt:
    """Works on one study."""

    def __init__(self, arena: Arena, store: Path, study: KilledStudy, draw: random.Random, say: Any) -> None:
        self._arena, self._store, self._study, self._draw, self._say = arena, store, study, draw, say
        self._arguments, self._prefixes = VARIANTS[study.variant]
        self._commands: list[Command] = []

    def run(self, kills: int) -> None:
        """Start the command until it has ended by itself with status 0."""
        while self._study.commands < _MOST_COMMANDS:
            self._start()
            while self._running():
                if len(self._study.kills) < kills:
                    self._strike()
                else:
                    time.sleep(0.1)
            ended = [command.wait() for command in self._commands]
            for command, end in zip(self._commands, ended, strict=True):
                self._look_at(command, end)
            if all(end.status == 0 for end in ended):
                break
        else:
            raise _UnexpectedError(f"not done after {_MOST_COMMANDS} commands: {self._commands[0].output()[-300:]}")
        self._wait_for_families()

    def clean(self) -> None:
        """Leave no process behind."""
        for command in self._commands:
            command.kill_all()

    def _start(self) -> None:
        if self._draw.random() < 0.5:
            self._wait_for_families()
        self._commands = [command for command in self._commands if command.family()]
        self._earlier = self._commands
        self._commands = [Command(self._store, *self._arguments, prefix=prefix) for prefix in self._prefixes]
        self._study.commands += len(self._prefixes)

    def _wait_for_families(self) -> None:
        """After a command has ended, all its processes must end by themselves."""
        for command in self._commands:
            if left := command.leftovers():
                raise _UnexpectedError(f"left processes behind: {[process.line[:80] for process in left]}")

    def _running(self) -> list[Command]:
        return [command for command in self._commands if command.running]

    def _look_at(self, command: Command, ended: Ended) -> None:
        statuses = [0, 1, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT]
        if ended.status == 2 and "workers died" in ended.last_line and ended.is_clear:
            statuses.append(2)
        if ended.status not in statuses:
            raise _UnexpectedError(f"exit status {ended.status}: {ended.output[-600:]}")
        if "Traceback" in ended.output:
            self._study.untidy += 1
            self._say(f"   traceback: {' | '.join(ended.output.strip().splitlines()[-3:])}")
            kept = command.log.with_suffix(".traceback")
            kept.write_text(ended.output)

    # --- one kill ---

    def _strike(self) -> None:
        role = self._pick(_LOKY_ROLES if self._study.variant == "loky" else _ROLES)
        number = self._pick(_SIGNALS)
        moment = self._pick(_MOMENTS)
        if moment == "table":
            role = "command"
        victim = self._victim(role, moment)
        if victim is None:
            return
        pid, command, moment, target = victim
        before = set(leftover_temporaries(self._store))
        try:
            if number == signal.SIGINT and role == "command" and self._draw.random() < 0.5:
                os.killpg(pid, number)  # what a terminal does
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            return
        effect = self._effect(pid, command, number)
        caught = target is not None and target in before | set(leftover_temporaries(self._store)) and target.exists()
        kill = Kill(role=role, signal=signal_name(number), moment=moment, caught=caught, effect=effect)
        self._study.kills.append(kill)
        self._say(f"study {self._study.number} ({self._study.variant}) kill {len(self._study.kills)}: {kill}")

    def _effect(self, pid: int, command: Command, number: int) -> str:
        """Observe for a moment what a signal does."""
        deadline = time.monotonic() + (0.3 if number == signal.SIGKILL else 3.0)
        while time.monotonic() < deadline:
            if not command.running:
                return f"the command ended with {command.process.returncode}"
            if pid != command.process.pid and not any(process.pid == pid for process in command.family()):
                return "the process ended, the command continued"
            time.sleep(0.02)
        return "nothing within 3 s" if number != signal.SIGKILL else "the process is still to end"

    def _pick(self, weighted: Any) -> Any:
        values, weights = zip(*weighted, strict=True)
        return self._draw.choices(values, weights)[0]

    def _victim(self, role: Role, moment: Moment) -> Victim | None:
        """Wait for the moment, and return the process to kill; `None` if the moment did not come."""
        share = self._draw.random()
        if role == "command" and moment == "any time":
            self._pause(share * self._arena.seconds)
            running = self._running()
            return (running[0].process.pid, running[0], moment, None) if running else None
        if moment == "any time":
            if self._wait_for(role):
                self._pause(share * self._arena.seconds / UNITS)
            return self._present(role, moment, None)
        return self._aimed(role, moment)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._running() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _wait_for(self, role: Role) -> bool:
        while self._running():
            if any(played == role for _, played, _ in self._family()):
                return True
            time.sleep(0.05)
        return False

    def _family(self) -> Iterator[tuple[Process, Role, Command]]:
        for command in self._running():
            family = command.family()
            played = roles(family, command.process.pid)
            yield from ((process, played[process.pid], command) for process in family)

    def _present(self, role: Role, moment: Moment, target: Path | None) -> Victim | None:
        candidates = [(process.pid, command) for process, played, command in self._family() if played == role]
        if not candidates:
            return None
        pid, command = self._draw.choice(candidates)
        return pid, command, moment, target

    def _aimed(self, role: Role, moment: Moment) -> Victim | None:
        """Return the process as soon as a file of the moment's kind is being written."""
        if moment != "table" and not self._wait_for(role):
            return None
        known: list[tuple[Process, Role, Command]] = []
        looked = 0.0
        deadline = time.monotonic() + _AIM_SECONDS * (4 if moment == "table" else 1)
        skipped = self._draw.randrange(4)  # not always the first file
        seen: set[Path] = set()
        while self._running() and time.monotonic() < deadline:
            if time.monotonic() - looked > 0.5:
                known, looked = list(self._family()), time.monotonic()
            folders = list(_folders(self._store, moment))
            for _ in range(50):
                target = next(_unfinished(folders), None)
                if target is None or (target not in seen and len(seen) < skipped):
                    if target is not None:
                        seen.add(target)
                    time.sleep(0.0005)
                    continue
                pid = _holder(self._store, target) if role == "worker" else None
                candidates = [entry for entry in known if entry[1] == role]
                exact = [entry for entry in candidates if entry[0].pid == pid]
                if exact or candidates:
                    process, _, command = (exact or candidates)[0]
                    return process.pid, command, moment, target
                break
        return self._present(role, "any time", None)


def _folders(store: Path, moment: Moment) -> Iterator[Path]:
    """Yield the folders in which files of a moment's kind are written now."""
    if moment in ("lease", "table"):
        yield store / ("leases" if moment == "lease" else "studies/tiny")
        return
    with suppress(OSError):
        for lease in (store / "leases").iterdir():
            kind, _, identity = lease.stem.partition("-")
            if kind not in ("pretrained", "runs", "trials") or lease.name.startswith("."):
                continue
            tuning, _, number = identity.rpartition("-")
            folder = store / "tuning" / tuning / "trials" / number if kind == "trials" else store / kind / identity
            yield folder / "checkpoints" if moment == "checkpoint" else folder


def _unfinished(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        with suppress(OSError):
            yield from (folder / name for name in os.listdir(folder) if name.endswith(".tmp"))  # noqa: PTH208


def _holder(store: Path, target: Path) -> int | None:
    """Return the process that works on the unit in whose folder a file lies."""
    parts = target.relative_to(store).parts
    name = f"trials-{parts[1]}-{parts[3]}" if parts[0] == "tuning" and len(parts) > 4 else "-".join(parts[:2])
    try:
        return int(json.loads((store / "leases" / f"{name}.json").read_text())["holder"]["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
