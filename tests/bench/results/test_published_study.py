"""Published studies: the same numbers as in the store, and files that contradict each other."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.results.differences import baseline_differences, write_numbers
from bench.results.published_study import PublishedStudy, is_published, published_below
from bench.results.tables import StudyResults
from tests import fake_store


@pytest.fixture
def results(tmp_path: Path) -> StudyResults:
    fake = fake_store.mixed(tmp_path / "store")
    return StudyResults(fake.store, fake.document())


@pytest.fixture
def folder(results: StudyResults, tmp_path: Path) -> Path:
    """A published study."""
    write_numbers(results)
    folder = tmp_path / "published" / "quick"
    folder.mkdir(parents=True)
    for name in ("runs.csv", "results.csv"):
        shutil.copy(results.store.study("quick") / name, folder)
    (folder / "specification.json").write_text(json.dumps(results.spec))
    (folder / "versions.json").write_text(json.dumps({"hardware": {"processor": "Abacus"}, "fingerprint": {}}))
    return folder


def changed(path: Path, row: int, **cells: str | None) -> None:
    """Change cells of a CSV file; a cell that is `None` loses its whole column."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    gone = {name for name, text in cells.items() if text is None}
    rows[row].update({name: text for name, text in cells.items() if text is not None})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name not in gone], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_the_rows_are_those_of_the_store(results: StudyResults, folder: Path) -> None:
    published = PublishedStudy(folder)
    assert baseline_differences(published) == baseline_differences(results)
    assert list(published.runs["status"]) == list(results.runs["status"])


def test_an_older_table_states_no_positions(results: StudyResults, folder: Path) -> None:
    changed(folder / "runs.csv", 0, position=None)
    assert list(PublishedStudy(folder).runs["position"]) == list(results.runs["position"].fillna(""))


def test_rows_that_do_not_follow_from_the_runs_are_refused(folder: Path) -> None:
    changed(folder / "results.csv", 1, top1_mean="99.0")
    with pytest.raises(BenchError, match=r"top1_mean of resnet8 digits sbs 4bit is 99\.0, and its runs"):
        PublishedStudy(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("specification.json", "[1]", "is a list, not an object"),
        ("specification.json", '{"name": "../up"}', "has no valid name of a study"),
        ("versions.json", "{", "is not valid JSON"),
        ("runs.csv", "id,model\n1,2\n", "lacks cells, or one of the columns"),
        ("results.csv", "model,dataset,method,budget\n1,2\n", "lacks cells"),
        ("runs.csv", b"\xff\xfe".decode("latin-1"), "lacks cells"),
    ],
)
def test_a_damaged_file_is_one_line(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(BenchError, match=message) as caught:
        PublishedStudy(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"top1": "1e999"}, "top1 of run fixed-4bit-0 is 1e999; allowed: 0 to 100"),
        ({"top1": "100.5"}, "is 100.5; allowed: 0 to 100"),
        ({"validation_top1": "-1"}, "validation_top1 of run fixed-4bit-0 is -1; allowed: 0 to 100"),
        ({"top5": "nan"}, "top5 of run fixed-4bit-0 is nan; allowed: 0 to 100"),
        ({"bops": "inf"}, "bops of run fixed-4bit-0 is inf; allowed: finite numbers"),
    ],
)
def test_figures_that_no_run_can_have_are_refused(folder: Path, cells: dict[str, str], words: str) -> None:
    changed(folder / "runs.csv", 0, **cells)
    with pytest.raises(BenchError) as told:
        PublishedStudy(folder)
    assert words in str(told.value)


def test_a_folder_stands_for_the_studies_in_it(folder: Path) -> None:
    assert list(published_below(folder)) == [folder] == list(published_below(folder.parent))
    (folder / "versions.json").unlink()
    assert not is_published(folder) and not list(published_below(folder.parent))
