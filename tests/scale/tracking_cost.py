"""Measure the cost of updating MLflow after one more run, as the number of finished runs grows.

    python -m tests.scale.tracking_cost [--server] [10 100 1000]

Runs are made up, five seeds in each group. `--server` uses an MLflow server on this machine instead of an SQLite file.
"""

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.reporting.mlflow.server import Address, server_command, start_server
from bench.reporting.mlflow.tracker import Tracker, resolve_uri
from bench.reporting.mlflow.ui import Ui
from tests import fake_store

SEEDS = 5


class Calls:
    """A counter of SQL statements and HTTP requests of this process."""

    def __init__(self) -> None:
        from requests.adapters import HTTPAdapter
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        self.sql = self.http = 0
        event.listen(Engine, "before_cursor_execute", self._statement)
        send = HTTPAdapter.send

        def counting(*arguments: Any, **named: Any) -> Any:
            self.http += 1
            return send(*arguments, **named)

        HTTPAdapter.send = counting  # type: ignore[method-assign]

    def _statement(self, *_: Any) -> None:
        self.sql += 1

    def measure(self, action: Callable[[], bool]) -> str:
        """Return the seconds and calls of an action."""
        self.sql = self.http = 0
        began = time.perf_counter()
        assert action()
        return f"{time.perf_counter() - began:8.2f} s {self.sql:6} SQL {self.http:5} HTTP"


@contextmanager
def server(root: Path) -> Iterator[str]:
    """Start an MLflow server on this machine; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = Address(host="127.0.0.1", port=port)
    command = server_command(root, address)
    with Ui("", start_server(command, resolve_uri(None, root, {}), address, 120)):
        yield f"http://127.0.0.1:{port}"


def measure(count: int, calls: Calls, *, over_network: bool) -> None:
    """Print the cost of each kind of update with a number of finished runs."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name)
        fake = fake_store.FakeStore(root / "store")
        for number in range(count):
            fake.run("sbs", number % SEEDS, 70.0, budget=f"{number // SEEDS + 1}M")
        fake.missing(f"sbs-1M-{SEEDS}")  # planned
        tracker = Tracker(stack.enter_context(server(root)) if over_network else None, fake.root)
        document = fake.document()
        assert tracker.prepare(document)

        def refresh() -> bool:
            return tracker.log_study(fake.store, document, thorough=False)

        while not refresh():  # as many as there is time for, each time
            pass
        fake.run("sbs", SEEDS, 70.0, budget="1M")
        for what, action in (
            ("one more run", refresh),
            ("nothing new", refresh),
            ("thorough", lambda: tracker.log_study(fake.store, document)),
        ):
            sys.stdout.write(f"{count:6} runs, {what:12} {calls.measure(action)}\n")
            sys.stdout.flush()


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="store_true")
    parser.add_argument("counts", nargs="*", type=int, default=[10, 100, 1000])
    asked = parser.parse_args()
    calls = Calls()
    for count in asked.counts:
        measure(count, calls, over_network=asked.server)


if __name__ == "__main__":
    main()
