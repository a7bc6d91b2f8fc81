"""The artifacts of a store in MLflow, after the store was moved or copied."""

import shutil
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.reporting.mlflow.artifacts import artifact_root, follow_store
from bench.reporting.mlflow.tracker import Tracker
from tests.bench.reporting.mlflow.reading import by_name, log_study


def places(database: Path) -> list[tuple[str, str]]:
    """All experiments' and runs' places of artifacts."""
    with sqlite3.connect(database) as connection:
        return [
            *connection.execute("select name, artifact_location from experiments where experiment_id > 0"),
            *connection.execute("select run_uuid, artifact_uri from runs"),
        ]


@pytest.fixture
def copy(mixed: Any, tmp_path: Path) -> Path:
    """A copy of a store with artifacts, in a folder whose name needs escapes."""
    log_study(mixed)
    return Path(shutil.copytree(mixed.root, tmp_path / "a copy, 100 %" / "store"))


def test_artifacts_of_a_copy_are_its_own(mixed: Any, copy: Path) -> None:
    before = places(mixed.root / "mlflow.db")
    assert Tracker(None, copy).get_experiment("quick") is not None
    (folder,) = {place.partition("/mlartifacts/")[0] for _, place in places(copy / "mlflow.db")}
    assert folder == copy.as_uri()
    assert places(mixed.root / "mlflow.db") == before  # the original is as it was
    after = places(copy / "mlflow.db")
    assert [place.partition("/mlartifacts/")[2] for _, place in after] == [
        place.partition("/mlartifacts/")[2] for _, place in before
    ]


def test_artifacts_of_a_moved_store_can_be_read(mixed: Any, copy: Path) -> None:
    shutil.rmtree(mixed.root)
    Tracker(None, copy).get_experiment("quick")
    run = by_name(copy)["sbs 4bit seed 0"]
    folder = Path(urllib.request.url2pathname(run.info.artifact_uri.removeprefix("file://")))
    assert (folder / "policy.json").is_file() and folder.is_relative_to(artifact_root(copy))


def test_a_store_that_stays_is_not_written(mixed: Any) -> None:
    log_study(mixed)
    database = mixed.root / "mlflow.db"
    database.chmod(0o444)
    before = database.read_bytes()
    assert follow_store(database, mixed.root) == 0
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/mlartifacts/quick",  # somebody put them elsewhere on purpose
        "file:///elsewhere/artifacts/quick",
        "/relative/mlruns/0",
        None,
    ],
)
def test_places_outside_of_stores_stay(tmp_path: Path, place: str | None) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table experiments (experiment_id, artifact_location)")
        connection.execute("create table runs (experiment_id, artifact_uri)")
        connection.execute("insert into experiments values (1, ?)", (place,))
    assert follow_store(tmp_path / "mlflow.db", tmp_path) == 0


@pytest.mark.parametrize("table", ["experiments", "runs"])
@pytest.mark.parametrize("ending", ["", "/mlartifacts/quick/../../.."])
def test_places_outside_of_a_store_are_not_written(mixed: Any, tmp_path: Path, table: str, ending: str) -> None:
    """Its own database may come from somebody else, with any folder in it."""
    log_study(mixed)
    victim = tmp_path / "victim"
    victim.mkdir()
    column = {"experiments": "artifact_location", "runs": "artifact_uri"}[table]
    with sqlite3.connect(mixed.root / "mlflow.db") as connection:
        place = victim.as_uri() + ending
        connection.execute(f"update {table} set {column} = ? where experiment_id > 0", (place,))  # noqa: S608
    with pytest.raises(BenchError, match="outside of the store; nothing was written there"):
        Tracker(None, mixed.root).sync(mixed.store, mixed.document(), rebuild=True)
    assert not list(victim.iterdir())


def test_a_link_out_of_the_folder_of_artifacts_is_not_followed(mixed: Any, tmp_path: Path) -> None:
    log_study(mixed)
    folder = artifact_root(mixed.root) / "quick"
    shutil.rmtree(folder)
    (tmp_path / "victim").mkdir()
    folder.symlink_to(tmp_path / "victim")
    with pytest.raises(BenchError, match="outside of the store"):
        Tracker(None, mixed.root).sync(mixed.store, mixed.document(), rebuild=True)
    assert not list((tmp_path / "victim").iterdir())


def test_names_that_look_like_the_folder_are_kept_apart(tmp_path: Path) -> None:
    old = "file:///a/mlartifacts/b/mlartifacts/mlartifacts"
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table experiments (experiment_id, artifact_location)")
        connection.execute("create table runs (experiment_id, artifact_uri)")
        connection.execute("insert into experiments values (1, ?)", (old,))
        connection.executemany("insert into runs values (?, ?)", [(1, f"{old}/x/artifacts"), (2, f"{old}/y/artifacts")])
    assert follow_store(tmp_path / "mlflow.db", tmp_path) == 1
    root = artifact_root(tmp_path).as_uri()
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("select artifact_location from experiments").fetchall() == [(f"{root}/mlartifacts",)]
        runs = [place for (place,) in connection.execute("select artifact_uri from runs")]
    assert runs == [f"{root}/mlartifacts/x/artifacts", f"{old}/y/artifacts"]


def test_an_empty_database_has_nothing_to_follow(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "mlflow.db").close()
    assert follow_store(tmp_path / "mlflow.db", tmp_path) == 0
