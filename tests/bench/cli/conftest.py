"""A specification in a file, and runs without MLflow."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.reporting.mlflow.tracker import Tracker
from tests.bench.cli.specification import toml


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's view is not what a test is about."""
    monkeypatch.setattr(Tracker, "prepare", lambda *_: True)
    monkeypatch.setattr(Tracker, "log_study", lambda *_, **__: True)


@pytest.fixture
def spec_file(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(toml(tiny.values))
    return tmp_path / "tiny.toml"
