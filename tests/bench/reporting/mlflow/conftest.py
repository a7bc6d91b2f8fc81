"""Stores with made-up results and a database of MLflow."""

from pathlib import Path
from typing import Any

import pytest

from bench.reporting.mlflow import tracker
from tests import fake_store


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, a few seconds may not be enough for a refresh."""
    monkeypatch.setattr(tracker, "_REFRESH_SECONDS", 60.0)


@pytest.fixture
def root(tmp_path: Path, tracked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's folder with an empty database, seen from another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tracked


@pytest.fixture
def mixed(root: Path) -> Any:
    return fake_store.mixed(root)


@pytest.fixture
def fake(root: Path) -> Any:
    """A store with two runs that are done and one that is planned."""
    return fake_store.two_done(root)
