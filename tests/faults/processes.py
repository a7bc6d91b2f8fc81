"""Processes of a command, identified by a mark in their environment, and the role of each."""

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
        pid, parent, group: Numbers of the process, its parent and its process group.
        line: Command line.
    """

    pid: int
    parent: int
    group: int
    line: str


def marked(token: str) -> list[Process]:
    """Return the living processes with a mark."""
    needle = f"{MARK}={token}".encode()
    living = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            if needle not in (folder / "environ").read_bytes():
                continue
            state, parent, group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if state not in "ZX" and int(folder.name) != os.getpid():
                living.append(Process(pid=int(folder.name), parent=int(parent), group=int(group), line=line))
    return living


def roles(family: list[Process], command: int) -> dict[int, Role]:
    """Return the role of each process of a command.

    Args:
        family: Processes of the command.
        command: Number of the command's own process.
    """
    lines = {process.pid: process.line for process in family}
    roles_by_pid: dict[int, Role] = {}
    for process in family:
        if process.pid == command:
            roles_by_pid[process.pid] = "command"
        elif "forkserver import main" in process.line:
            forked = process.group == process.pid or "forkserver import main" in lines.get(process.parent, "")
            roles_by_pid[process.pid] = "worker" if forked else "server"
        elif "loky" in process.line and "tracker" not in process.line:
            roles_by_pid[process.pid] = "supervisor"
        else:
            roles_by_pid[process.pid] = "helper"
    return roles_by_pid


def kill_marked(token: str, seconds: float = 10.0) -> None:
    """Kill every process with a mark."""
    deadline = time.monotonic() + seconds
    while (living := marked(token)) and time.monotonic() < deadline:
        for process in living:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.05)
