"""Running commands as a user does, in this process; stores with a database of MLflow."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.reporting.mlflow.tracker import Tracker


@dataclass
class Answer:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line of a refused command."""
        assert self.status == 2, (self.status, self.out, self.err)
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("bench: ") and "Traceback" not in line
        return line.removeprefix("bench: ")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """Runs a command in an empty folder."""
    for variable in ("BENCH_STORE", "BENCH_DATA_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Answer(int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables. Making them takes seconds; copying them does not."""
    root = tmp_path_factory.mktemp("mlflow")
    assert Tracker(f"sqlite:///{root / 'mlflow.db'}", root).prepare({"name": "template"})
    return root / "mlflow.db"


@pytest.fixture
def tracked(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store's folder with an empty database of MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a störe%20 ?#"
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    return folder
