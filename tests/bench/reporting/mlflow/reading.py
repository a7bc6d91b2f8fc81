"""Readers of MLflow for tests, and a limit on time."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.mlflow.tracker import Tracker

SHORT = 12.0
"""Seconds that no failure may take, on a busy machine; MLflow itself would take 20 to 200."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def short() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SHORT


def search(root: Path, text: str = "", uri: str | None = None) -> list[Any]:
    tracker = Tracker(uri, root)
    return list(tracker._client.search_runs([tracker.find_experiment("quick")], text, max_results=1000))


def log_study(fake: Any, **spec: Any) -> None:
    assert Tracker(None, fake.root).log_study(fake.store, fake.document(**spec))


def by_name(root: Path, text: str = "", uri: str | None = None) -> dict[str, Any]:
    """Return MLflow's runs by name; no name may occur twice."""
    runs = search(root, text, uri)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}
