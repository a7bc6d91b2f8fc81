"""Sources of a leaderboard: stores, archives and published studies; what is refused."""

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.leaderboard import read_sources
from bench.store.archive import archive
from tests.bench.leaderboard.boards import ours


def test_a_store_has_all_its_studies_and_says_what_is_damaged(tmp_path: Path) -> None:
    fake = ours(tmp_path / "store")
    fake.document()
    (tmp_path / "store" / "studies" / "broken").mkdir()
    (tmp_path / "store" / "studies" / "broken" / "study.json").write_text("{}")
    with read_sources([tmp_path / "store"]) as (source,):
        assert [results.name for results in source.studies] == ["quick"]
        assert source.remarks == ("the document of study broken is damaged",)
        assert source.in_words == "store of 1 study; checked: no; the document of study broken is damaged"


def test_a_damaged_archive_is_refused_and_the_others_are_read(tmp_path: Path) -> None:
    fake = ours(tmp_path / "store")
    fake.document()
    archive(fake.store, "quick", tmp_path / "quick.tar.gz")
    content = (tmp_path / "quick.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with read_sources([tmp_path / "cut.tar.gz", tmp_path / "store"]) as (cut, store):
        assert "damaged" in cut.refused and not cut.studies
        assert not store.refused


def test_an_archive_that_fails_a_check_is_refused_with_the_reason(tmp_path: Path) -> None:
    fake = ours(tmp_path / "store")  # its runs have no specification
    fake.document()
    archive(fake.store, "quick", tmp_path / "quick.tar.gz")
    with read_sources([tmp_path / "quick.tar.gz"]) as (source,):
        assert (
            "ids, specifications, records and files of the units agree: runs dnas-4bit-0: its specification is miss"
            in (source.refused)
        )


def test_paths_that_are_no_source_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="is no store, no archive and no published study"), read_sources([tmp_path]):
        pass
    for name in ("a", "b"):
        (tmp_path / name / "store" / "studies").mkdir(parents=True)
    twice = [tmp_path / "a" / "store", tmp_path / "b" / "store"]
    with pytest.raises(BenchError, match="two sources are called 'store'"), read_sources(twice):
        pass
