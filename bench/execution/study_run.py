"""A running command's study: what every supervisor of it needs, and the lease that says that the command is alive."""

import math
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.errors import EXIT_INTERRUPTED
from bench.execution.settings import RunSettings
from bench.planning.variants import variants
from bench.plugins.entry_points import Kind
from bench.plugins.registry import module_of
from bench.spec.schema import StudySpec
from bench.store.files import Store
from bench.store.leases import SESSION, Heartbeat, Lease, Leases, ignore_loss

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One command's work on a study. It is sent to supervisors on other machines.

    Attributes:
        spec: Specification of the study.
        settings: Settings of the command.
        data_checksum: Checksum of the data that the study is planned with.
        session: Name of the command's lease; supervisors stop when the lease is gone.
    """

    spec: StudySpec
    settings: RunSettings
    data_checksum: str
    session: str

    @property
    def leases(self) -> Leases:
        """Leases of the store."""
        return Leases(self.settings.store.root)

    @property
    def modules(self) -> list[str]:
        """Modules of the plug-ins and extras that the study uses."""
        files = self.spec.method_files
        plugins: list[tuple[Kind, str]] = [("methods", files.get(name, name)) for name in self.spec.methods]
        plugins += [("datasets", self.spec.task.dataset)]
        plugins += [("models", model) for model in {variant.spec.task.model for variant in variants(self.spec)}]
        modules = {module for kind, name in plugins if (module := module_of(kind, name)) is not None}
        return sorted(modules | {"lightning_fabric"} if self.spec.devices > 1 else modules)


class SessionWatch:
    """Tells whether the command of a study run has ended; looks at most once a second."""

    def __init__(self, study_run: StudyRun) -> None:
        self._leases, self._name = study_run.leases, study_run.session
        self._looked, self._ended = -math.inf, False

    def __call__(self) -> bool:
        """Return whether the command has ended."""
        if not self._ended and time.monotonic() - self._looked > _LOOK_SECONDS:
            view = self._leases.read(self._name)
            self._ended = view is None or self._leases.is_dead(view)
            self._looked = time.monotonic()
        return self._ended


@contextmanager
def session(store: Store, name: str) -> Iterator[str]:
    """Hold the lease of a command that runs a study during a `with` block.

    Ctrl-C and SIGTERM release it at once. Every process that works for the command, on any machine, stops then.

    Args:
        store: Store of the study.
        name: Name of the study.

    Yields:
        Name of the lease.
    """
    leases = Leases(store.root)
    lease = leases.acquire(f"{SESSION}{name}-{secrets.token_hex(4)}", f"bench run of study {name}")
    if lease is None:
        raise RuntimeError("another process holds a lease with a random name")
    with Heartbeat(lease, ignore_loss), _released_by_signals(lease):
        yield lease.name


@contextmanager
def _released_by_signals(lease: Lease) -> Iterator[None]:
    """Let signals release the lease first, and then end this process by `KeyboardInterrupt`."""

    def stop(_: int, __: Any) -> None:
        if not lease.path.exists():  # the second signal: other processes will notice by themselves that this one ended
            os._exit(EXIT_INTERRUPTED)
        lease.give_up()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
