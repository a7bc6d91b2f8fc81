"""`bench leaderboard` and `bench verify ARCHIVE`."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.store.archive import archive
from tests import fake_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fake = fake_store.mixed(tmp_path / "store")
    fake.document()
    return fake.root


def test_a_site_is_written_and_says_where(bench: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    answer = bench("leaderboard", store, "--out", tmp_path / "site")
    assert answer.status == 0 and answer.err == ""
    first, last = answer.out.splitlines()
    assert first == "store: store of 1 study; checked: no"
    assert last.endswith(f"files in {tmp_path / 'site'}, 1 ranking; open {tmp_path / 'site' / 'index.html'}")
    assert (tmp_path / "site" / "index.html").is_file() and list((tmp_path / "site").glob("task-*.html"))


def test_a_refused_archive_is_a_failure_and_the_site_is_written(
    bench: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs.tar.gz").write_bytes(b"\x1f\x8b" + bytes(50))
    answer = bench("leaderboard", store, tmp_path / "theirs.tar.gz", "--out", tmp_path / "site")
    assert answer.status == 1
    assert "theirs.tar.gz: refused: cannot restore" in answer.out
    assert "cannot restore" in (tmp_path / "site" / "index.html").read_text()


def test_what_is_no_source_is_refused_in_one_line(bench: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        "is no store, no archive and no published study"
        in bench("leaderboard", tmp_path / "empty", "--out", "s").refusal
    )
    assert "does not exist" in bench("leaderboard", "nowhere", "--out", "s").refusal
    assert "Missing option '--out'" in bench("leaderboard", store).refusal
    assert "Missing argument 'SOURCES...'" in bench("leaderboard", "--out", "s").refusal
    (tmp_path / "bare" / "studies").mkdir(parents=True)
    assert (
        "no source has a run with a result at a budget" in bench("leaderboard", tmp_path / "bare", "--out", "s").refusal
    )


def test_verify_says_of_each_check_what_it_found(
    bench: Callable[..., Any], finished: SimpleNamespace, tmp_path: Path
) -> None:
    archive(finished.store, "tiny", tmp_path / "tiny.tar.gz")
    answer = bench("verify", tmp_path / "tiny.tar.gz")
    assert answer.status == 0
    *lines, last = answer.out.splitlines()
    assert len(lines) == 5 and all(line.startswith("pass  ") for line in lines)
    assert last == "all checks passed; --networks evaluates the networks too"


def test_verify_fails_for_an_archive_that_cannot_be_true(
    bench: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    bench("archive", "quick", tmp_path / "quick.tar.gz", "--store", store)
    answer = bench("verify", tmp_path / "quick.tar.gz")
    assert answer.status == 1
    assert answer.out.startswith("FAIL  ids, specifications, records and files of the units agree: ")
    assert answer.out.splitlines()[-1] == "1 check failed: the archive cannot stand on a leaderboard"


def test_options_of_verify_that_do_not_fit(bench: Callable[..., Any], tmp_path: Path) -> None:
    assert "--networks is about an archive" in bench("verify", "--networks").refusal
    (tmp_path / "x.tar.gz").touch()
    assert "leave it out with an archive" in bench("verify", tmp_path / "x.tar.gz", "--out", "o").refusal
