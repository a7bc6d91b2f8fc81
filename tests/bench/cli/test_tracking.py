"""`bench sync`."""

from pathlib import Path
from typing import Any

import pytest

from bench.reporting.mlflow.tracker import resolve_uri
from bench.store.files import write_text
from tests import fake_store
from tests.bench.reporting.mlflow.reading import by_name, short


@pytest.fixture
def fake(tracked: Path) -> Any:
    return fake_store.two_done(tracked)


def test_sync_tells_what_it_did_and_does_it_once(bench: Any, fake: Any) -> None:
    fake.document()
    assert "quick: 3 runs added, 0 updated, 0 unchanged" in bench("sync", "--store", fake.root).out
    assert "quick: 0 runs added, 0 updated, 3 unchanged" in bench("sync", "--store", fake.root).out
    fake.run("sbs", 2, 74.0)
    assert "quick: 1 runs added, 1 updated, 2 unchanged" in bench("sync", "quick", "--store", fake.root).out
    (fake.root / "mlflow.db").unlink()
    answer = bench("sync", "--store", fake.root)
    assert (answer.status, answer.err) == (0, "")
    assert "quick: 4 runs added, 0 updated, 0 unchanged" in answer.out
    assert len(by_name(fake.root)) == 4


def test_sync_takes_all_studies_that_can_be_read(bench: Any, fake: Any) -> None:
    fake.document()
    other = fake_store.FakeStore(fake.root, name="other")
    other.run("fixed", 0, 60.0)
    other.document()
    write_text(fake.store.study("broken") / "study.json", "{")
    answer = bench("sync", "--all", "--store", fake.root)
    assert answer.status == 1
    assert "quick: 3 runs added" in answer.out and "other: 2 runs added" in answer.out
    assert "broken" in answer.err and "is damaged" in answer.err


def test_rebuilding_leaves_other_stores_runs_alone(bench: Any, fake: Any, tmp_path: Path) -> None:
    shared = resolve_uri(None, fake.root, {})
    ours = fake_store.FakeStore(tmp_path / "ours")
    ours.seeds("fixed", [60.0])
    theirs = fake_store.FakeStore(tmp_path / "theirs")
    theirs.seeds("dnas", [65.0, 66.0])
    for one in (ours, theirs):
        one.document()
        bench("sync", "--store", one.root, "--tracking-uri", shared)
    before = by_name(fake.root)
    message = bench("sync", "--rebuild", "--store", ours.root, "--tracking-uri", shared).out
    assert "quick: 2 runs added, 0 updated, 0 unchanged" in message
    after = by_name(fake.root)
    assert after.keys() == before.keys()
    same = {name for name in after if after[name].info.run_id == before[name].info.run_id}
    assert same == {"dnas 4bit", "dnas 4bit seed 0", "dnas 4bit seed 1"}


def test_sync_to_nowhere_is_one_clear_line(bench: Any, fake: Any) -> None:
    fake.document()
    uri = "http://user:secret@127.0.0.1:9"
    with short():
        message = bench("sync", "--store", fake.root, "--tracking-uri", uri).refusal
    assert message.startswith("cannot bring MLflow at http://user:***@127.0.0.1:9 up to date: Connection refused;")
    assert f"`bench sync quick --tracking-uri 'http://user:***@127.0.0.1:9' --store '{fake.root}'`" in message
    assert "exclude each other" in bench("sync", "quick", "--all", "--store", fake.root).refusal
    assert "no study" in bench("sync", "--all", "--store", fake.root / "nothing").refusal
