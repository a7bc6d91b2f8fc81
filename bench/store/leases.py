"""Leases: who is working on what right now, and whether they still live.

A lease is a file that its holder rewrites every few seconds with a count, the time and its progress. Whether the
holder lives is told from that sign of life, never from the file's existence: on the same machine by its process
(number and start, so that a reused number is no sign), on another one by whether the count still rises as seen
by the observer's own steady clock; nobody's wall clock decides.

Taking, renewing and giving back happen under a lock of the operating system, so that of two who find a
dead holder only one takes over. A holder that was taken for dead, e.g. after hours of sleep, learns it when it
renews: its work must then end without writing anything.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

from bench.errors import BenchError
from bench.store.files import read_json, write_bytes

BEAT_SECONDS = 2.0
"""Time between two signs of life."""
PATIENCE_SECONDS = 30.0
"""A holder on another machine that gave no sign for so long is taken for dead."""
_LOCK_SECONDS = 30.0


SESSION = "session-"
"""Begins the name of the lease of a command that runs a study."""


class LostLeaseError(Exception):
    """The lease was taken over by somebody else: nothing may be written any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process, so that it cannot be mistaken for another one.

    Attributes:
        host: Name of the machine.
        boot: Changes when the machine starts anew.
        pid: Its number.
        born: When it started, in the machine's own count.
    """

    host: str
    boot: str
    pid: int
    born: str

    @classmethod
    def this(cls) -> Self:
        """The calling process."""
        return cls(host=socket.gethostname(), boot=_boot(), pid=os.getpid(), born=born(os.getpid()) or "")

    def is_alive(self) -> bool | None:
        """Whether the process runs; `None` when it is on another machine."""
        if self.host != socket.gethostname():
            return None
        return self.boot == _boot() and born(self.pid) == self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time(), -1))


def born(pid: int) -> str | None:
    """When a process started, `None` when there is none or it has ended; not moved by changes of the clock."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _born_elsewhere(pid)
    return None if state in "ZX" else fields[18]


def _born_elsewhere(pid: int) -> str | None:
    """The same on systems without `/proc`."""
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
    """What a lease's file says.

    Attributes:
        name: What is leased.
        token: Tells one lease from the next of the same name.
        holder: Who has it.
        beat: Number of signs of life.
        time: Of the latest one, by the holder's clock.
        title: What the holder does, in words.
        progress: How far it is.
    """

    name: str
    token: str
    holder: Holder
    beat: int
    time: str
    title: str
    progress: Mapping[str, Any] = field(default_factory=dict)


_seen: dict[Path, tuple[str, int, float]] = {}
"""Signs of life of holders on other machines, and when this process saw them first, by its steady clock; kept by the
process, since whoever asks for the next time may hold another copy of `Leases`."""


class Leases:
    """The leases of a store.

    Args:
        root: The store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "leases"

    def acquire(self, name: str, title: str) -> "Lease | None":
        """Take a lease; `None` while a living holder has it.

        Args:
            name: What is leased, a file name.
            title: What the holder is going to do, in words.
        """
        with self.lock():
            found = self.read(name)
            if found is not None and not self.is_dead(found):
                return None
            lease = Lease(self, name, title)
            lease.write()
            return lease

    def read(self, name: str) -> LeaseView | None:
        """What is known of a lease; `None` when nobody has it or its file is damaged."""
        path = self.folder / f"{name}.json"
        document = read_json(path)
        try:
            return LeaseView(**{**document, "holder": Holder(**document["holder"])})
        except (TypeError, KeyError):
            return None

    def all(self) -> Iterator[LeaseView]:
        """Every lease, of living and dead holders."""
        for path in sorted(self.folder.glob("*.json")):
            found = self.read(path.stem)
            if found is not None:
                yield found

    def is_dead(self, view: LeaseView) -> bool:
        """Whether a lease's holder is known to be gone.

        Of a holder on another machine this takes `PATIENCE_SECONDS` of asking again and again.
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

    def bury(self, view: LeaseView) -> None:
        """Remove the lease of a dead holder, for processes that have not watched it as long; called under the lock."""
        (self.folder / f"{view.name}.json").unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock under which leases change hands.

        Raises:
            BenchError: It cannot be had.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, NotImplementedError) as error:
            raise BenchError(
                f"the lock '{lock.lock_file}' cannot be had: another process holds it, or the file system has no "
                "locks; see `bench doctor`"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def age(self, view: LeaseView) -> float:
        """Seconds since a lease's latest sign of life, by the clock that stamps files in the store."""
        path = self.folder / f"{view.name}.json"
        probe = self.folder / f".clock.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # a store that cannot be written can still be looked at
            now = time.time()
        try:
            return max(0.0, now - path.stat().st_mtime)
        except OSError:
            return 0.0  # renewed or given back just now


def sessions(leases: Leases, study: str) -> list[LeaseView]:
    """The living commands that run a study."""
    found = [view for view in leases.all() if view.name.rpartition("-")[0] == f"{SESSION}{study}"]
    return [view for view in found if not leases.is_dead(view)]


def remove_dead_sessions(leases: Leases) -> None:
    """Remove the leases of commands that were killed; nobody else would ever take them over."""
    with leases.lock():
        for view in leases.all():
            if view.name.startswith(SESSION) and leases.is_dead(view):
                leases.bury(view)


class Lease:
    """A lease that this process holds. Made by `Leases.acquire`."""

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
        """The file."""
        return self._leases.folder / f"{self.name}.json"

    def write(self) -> None:
        """Write a sign of life; called under the lock."""
        document = {
            "name": self.name,
            "token": self._token,
            "holder": asdict(Holder.this()),
            "beat": self._beat,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": self._title,
            "progress": self.progress,
        }
        write_bytes(self.path, (json.dumps(document) + "\n").encode(), durable=False)

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            LostLeaseError: Somebody else has the lease by now.
        """
        with self._leases.lock():
            self.check()
            self._beat += 1
            self.write()
            if self._given_up:  # while this was written
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Make sure that the lease is still one's own.

        Raises:
            LostLeaseError: It is not.
        """
        found = read_json(self.path)
        if not isinstance(found, dict) or found.get("token") != self._token:
            raise LostLeaseError(f"the lease '{self.name}' was taken over")

    def give_up(self) -> None:
        """Give the lease back without the lock, from the handler of a signal that may have come while it is held."""
        self._given_up = True
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lease back; nothing happens when it is not one's own any more."""
        with suppress(LostLeaseError), self._leases.lock():
            self.check()
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Heartbeat:
    """Renews a lease from a thread of its own while the block runs.

    Args:
        lease: What to renew.
        lost: Called, from the thread, when the lease is not one's own any more.
    """

    def __init__(self, lease: Lease, lost: Any) -> None:
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
            except (OSError, BenchError):  # a full disk or a lock that is busy: the next sign may get through
                continue
