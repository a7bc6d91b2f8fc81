"""The processes of a command, found by a mark in their environment, and what part each of them plays."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MARK = "BENCH_FAULTS_MARK"
"""The environment variable that holds the mark; every process that a command starts inherits it."""

Role = Literal["command", "worker", "server", "supervisor", "helper"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A living process.

    Attributes:
        pid, parent, group: Numbers of it, its parent and its process group.
        line: Its command line.
    """

    pid: int
    parent: int
    group: int
    line: str


def marked(token: str) -> list[Process]:
    """The living processes with a mark."""
    needle = f"{MARK}={token}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            if needle not in (folder / "environ").read_bytes():
                continue
            state, parent, group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if state not in "ZX" and int(folder.name) != os.getpid():
                found.append(Process(pid=int(folder.name), parent=int(parent), group=int(group), line=line))
    return found


def roles(family: list[Process], command: int) -> dict[int, Role]:
    """What part each process of a command plays.

    Args:
        family: Its processes.
        command: The number of the command itself.
    """
    lines = {process.pid: process.line for process in family}
    found: dict[int, Role] = {}
    for process in family:
        if process.pid == command:
            found[process.pid] = "command"
        elif "forkserver import main" in process.line:
            forked = process.group == process.pid or "forkserver import main" in lines.get(process.parent, "")
            found[process.pid] = "worker" if forked else "server"
        elif "loky" in process.line and "tracker" not in process.line:
            found[process.pid] = "supervisor"
        else:
            found[process.pid] = "helper"
    return found


def kill_marked(token: str, seconds: float = 10.0) -> None:
    """Kill every process with a mark."""
    deadline = time.monotonic() + seconds
    while (found := marked(token)) and time.monotonic() < deadline:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)
