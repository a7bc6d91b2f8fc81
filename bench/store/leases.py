"""Leases: which process works on what, and whether that process is still alive.

A lease is a file that its holder rewrites every few seconds with a counter, the time, and its progress. Whether the
holder is alive is decided by these signs of life, never by the existence of the file. On the same machine the process
itself is looked up by its number and start time, so that a reused number is not mistaken for the holder. On another
machine the counter must still rise within `PATIENCE_SECONDS` of the observer's own monotonic clock. Wall clocks do not
take part in the decision.

A lock of the operating system protects taking, renewing and releasing. If two processes find a dead holder, only one
of them takes the lease over. A holder that was declared dead by mistake, for example after hours of sleep, notices it
at its next renewal and must then end its work without writing anything.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from bench.errors import BenchError
from bench.inputs.names import FileName
from bench.outputs.commands import command
from bench.store.files import read_json, write_bytes

BEAT_SECONDS = 2.0
"""Seconds between two signs of life."""
PATIENCE_SECONDS = 30.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""
_LOCK_SECONDS = 30.0

SESSION = "session-"
"""Prefix of the lease names of commands that run a study."""


class LostLeaseError(Exception):
    """Another process took the lease over: this one must not write anything any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process, described so that it cannot be mistaken for another one.

    Attributes:
        host: Name of the machine.
        boot: Identifier that changes whenever the machine is started.
        pid: Process number.
        start_time: Start of the process, in the machine's own units.
    """

    host: str
    boot: str
    pid: int
    start_time: str

    @classmethod
    def this(cls) -> Self:
        """Describe the calling process."""
        return cls(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), start_time=start_time(os.getpid()) or "")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the fields of a lease file."""
        host, boot, pid, start = (document[key] for key in ("host", "boot", "pid", "born"))
        return cls(host=host, boot=boot, pid=pid, start_time=start)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a lease file."""
        return {"host": self.host, "boot": self.boot, "pid": self.pid, "born": self.start_time}

    def is_alive(self) -> bool | None:
        """Return whether the process runs; `None` when it is on another machine."""
        if self.host != socket.gethostname():
            return None
        return self.boot == _boot() and start_time(self.pid) == self.start_time

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time(), -1))


def start_time(pid: int) -> str | None:
    """Return when a process started; `None` when it does not exist or has ended.

    The value is not affected by changes of the wall clock.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _start_time_without_proc(pid)
    return None if state in "ZX" else fields[18]


def _start_time_without_proc(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return str(process.create_time())
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseView:
    """Content of a lease file.

    Attributes:
        name: Name of what is leased.
        token: Random text that tells one lease from the next of the same name.
        holder: Process that has the lease.
        beat: Number of signs of life so far.
        time: Time of the latest sign of life, by the holder's clock.
        title: Description of the holder's work.
        progress: Progress of that work.
    """

    name: str
    token: str
    holder: Holder
    beat: int
    time: str
    title: str
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tuning(self) -> str:
        """Identity of the tuning whose trial is leased; empty for anything else."""
        kind, _, identity = self.name.partition("-")
        return identity.rpartition("-")[0] if kind == "trials" else ""


_seen: dict[Path, tuple[str, int, float]] = {}
"""Latest signs of life of holders on other machines, with this process's monotonic time when it first saw them.

The dictionary belongs to the process because the next question may be asked through another `Leases` object.
"""


class Leases:
    """The leases of a store.

    Args:
        root: Folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "leases"

    def acquire(self, name: str, title: str) -> "Lease | None":
        """Take a lease; return `None` while a living process has it.

        Args:
            name: Name of what is leased; must be a valid file name.
            title: Description of the intended work.
        """
        with self.lock():
            current = self.read(name)
            if current is not None and not self.is_dead(current):
                return None
            lease = Lease(self, name, title)
            lease.write()
            return lease

    def read(self, name: str) -> LeaseView | None:
        """Read a lease; return `None` when it does not exist or its file is damaged."""
        from bench.store.schemas import StoredLease, fitting

        document = fitting(read_json(self.path(name)), StoredLease)
        if document is None or document["name"] != name:
            return None
        return LeaseView(**{**document, "holder": Holder.from_json(document["holder"])})

    def all(self) -> Iterator[LeaseView]:
        """Yield every lease, of living and dead holders."""
        for path in sorted(self.folder.glob("*.json")):
            view = self.read(path.stem)
            if view is not None:
                yield view

    def is_dead(self, view: LeaseView) -> bool:
        """Return whether a lease's holder is known to be dead.

        For a holder on another machine it takes repeated calls over `PATIENCE_SECONDS` to find out.
        """
        alive = view.holder.is_alive()
        if alive is not None:
            return not alive
        token, beat, since = _seen.get(self.folder / view.name, ("", -1, 0.0))
        now = time.monotonic()
        if (token, beat) != (view.token, view.beat):
            _seen[self.folder / view.name] = (view.token, view.beat, now)
            return False
        return now - since > PATIENCE_SECONDS

    def remove_dead(self, view: LeaseView) -> None:
        """Remove the lease of a dead holder, so that other processes need not wait for it; call it under the lock."""
        self.path(view.name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Return the path of a lease's file.

        Raises:
            BenchError: The name cannot be that of a file.
        """
        return self.folder / FileName(f"{name}.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock under which leases change hands.

        Raises:
            BenchError: Another process keeps the lock, or the file system has no locks.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, NotImplementedError) as error:
            raise BenchError(
                f"cannot acquire the lock '{lock.lock_file}': another process holds it, or the file system has no "
                f"locks; see `{command('doctor', store=self.folder.parent)}`"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def age(self, view: LeaseView) -> float:
        """Return the seconds since a lease's latest sign of life, by the clock that stamps files in the store."""
        probe = self.folder / f".clock.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # a read-only store can still be inspected
            now = time.time()
        try:
            return max(0.0, now - self.path(view.name).stat().st_mtime)
        except OSError:
            return 0.0  # it was renewed or released a moment ago


def sessions(leases: Leases, study: str) -> list[LeaseView]:
    """Return the leases of all living commands that run a study."""
    own = [view for view in leases.all() if view.name.rpartition("-")[0] == f"{SESSION}{study}"]
    return [view for view in own if not leases.is_dead(view)]


def remove_dead_sessions(leases: Leases) -> None:
    """Remove the leases of commands that were killed; no later command would take them over."""
    with leases.lock():
        for view in leases.all():
            if view.name.startswith(SESSION) and leases.is_dead(view):
                leases.remove_dead(view)


class Lease:
    """A lease that this process holds. Made by `Leases.acquire`.

    Attributes:
        name: Name of what is leased.
        progress: Progress of the work; other processes see it after the next sign of life.
    """

    def __init__(self, leases: Leases, name: str, title: str) -> None:
        self.name = name
        self._leases = leases
        self._title = title
        self._token = secrets.token_hex(8)
        self._beat = 0
        self._given_up = False
        self.progress: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """Path of the lease file."""
        return self._leases.path(self.name)

    def write(self) -> None:
        """Write the lease file; call it under the lock."""
        document = {
            "name": self.name,
            "token": self._token,
            "holder": Holder.this().to_json(),
            "beat": self._beat,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": self._title,
            "progress": self.progress,
        }
        write_bytes(self.path, (json.dumps(document) + "\n").encode(), durable=False)

    def beat(self) -> None:
        """Renew the lease.

        Raises:
            LostLeaseError: Another process has it now.
        """
        with self._leases.lock():
            self.check()
            self._beat += 1
            self.write()
            if self._given_up:  # a signal came while the file was written
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that this process still holds the lease.

        Raises:
            LostLeaseError: Another process has it now.
        """
        document = read_json(self.path)
        if not isinstance(document, dict) or document.get("token") != self._token:
            raise LostLeaseError(f"the lease '{self.name}' was taken over")

    def give_up(self) -> None:
        """Release the lease without taking the lock: a signal handler may run while this process holds the lock."""
        self._given_up = True
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Release the lease; does nothing when another process has it now."""
        with suppress(LostLeaseError), self._leases.lock():
            self.check()
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Heartbeat:
    """Renews a lease from a thread of its own during a `with` block, and releases the lease at its end.

    Args:
        lease: Lease to renew.
        lost: Function called from that thread when another process has taken the lease over.
    """

    def __init__(self, lease: Lease, lost: Callable[[], object]) -> None:
        self._lease = lease
        self._lost = lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {lease.name}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self._lease

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._lease.release()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._lease.beat()
            except LostLeaseError:
                self._lost()
                return
            except (OSError, BenchError):  # the disk is full or the lock is busy: the next attempt may succeed
                continue


def ignore_loss() -> None:
    """Continue although another process took the lease over; for `Heartbeat` where that does no harm."""
