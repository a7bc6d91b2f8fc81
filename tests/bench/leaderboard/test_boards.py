"""Boards: what is ranked together, in which order, and which rows somebody else repeated."""

from pathlib import Path
from typing import Any

import pytest

from tests.bench.leaderboard.boards import MINE, THEIRS, boards, ours, ranks, source
from tests.fake_store import FakeStore


def test_rows_are_ranked_by_accuracy_and_unequal_ones_are_shown_without_a_rank(tmp_path: Path) -> None:
    (board,) = boards(source(ours(tmp_path)))
    assert ranks(board) == [("1", "sbs"), ("2", "fixed"), ("†", "dnas"), ("–", "full_precision")]
    assert board.budget == "4bit" and board.limit_in_words == "40,000,000 BOPs"


@pytest.mark.parametrize(
    "change",
    [
        {"search": {"epochs": 2}},
        {"finetune": {"epochs": 3}},
        {"pretrain": {"epochs": 3}},
        {"allowance": "policy"},
        {"recipe": "own"},
        {"task": {"dataset": "digits", "model": "resnet8", "train_images": 100}},
        {"tuning": {"tolerance": 0.05}},
    ],
)
def test_unequal_schedules_are_never_ranked_together(tmp_path: Path, change: dict[str, Any]) -> None:
    both = source(ours(tmp_path / "a")), source(ours(tmp_path / "b", THEIRS), "theirs", **change)
    first, second = boards(*both)
    assert len(first.ranked) == len(second.ranked) == 2
    assert first.terms.identity != second.terms.identity or "tolerance" in str(change)


def test_what_does_not_change_the_training_is_ranked_together(tmp_path: Path) -> None:
    both = source(ours(tmp_path / "a")), source(ours(tmp_path / "b", THEIRS), "theirs", threads=1, device="cpu")
    (board,) = boards(*both)
    assert len(board.ranked) == 4


def test_an_ablated_schedule_has_a_board_of_its_own(tmp_path: Path) -> None:
    fake = ours(tmp_path, ablate={"allowance": ["policy"], "group_size": [2]})
    variants = {"sbs[allowance=policy]": [90.0, 91.0], "sbs[group_size=2]": [60.0, 61.0]}
    places = {
        run: {"model": "resnet8", "dataset": "digits", "method": label, "budget": "4bit", "seed": seed}
        for label, values in variants.items()
        for seed, run in enumerate(fake.seeds("sbs", values, budget_measure="bops", id_suffix=label[4:9]))
    }
    found = {tuple(label for _, label in ranks(board)) for board in boards(source(fake, places=places))}
    assert found == {
        ("sbs", "fixed", "sbs[group_size=2]", "dnas", "full_precision"),
        ("sbs[allowance=policy]",),
    }


def test_equal_means_have_one_rank(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    fake.seeds("hawq", [70.0, 71.0, 72.0], budget_measure="bops")
    (board,) = boards(source(fake))
    assert [rank for rank, _ in ranks(board)] == ["1", "2", "2", "†", "–"]


def test_a_row_outside_the_window_is_not_ranked(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    fake.seeds("random", [90.0, 91.0], budget_measure="bops", within_budget=False, metrics={"bops": 60e6})
    (board,) = boards(source(fake))
    assert ("–", "random") in ranks(board)


def test_a_repetition_by_somebody_else_says_whether_the_numbers_are_the_same(tmp_path: Path) -> None:
    theirs = FakeStore(tmp_path / "b", name="again")
    theirs.seeds("fixed", [70.0, 71.0, 72.0], started=THEIRS, budget_measure="bops")
    theirs.seeds("sbs", [72.0, 72.1], started=THEIRS, budget_measure="bops")
    (board,) = boards(source(ours(tmp_path / "a")), source(theirs, "theirs"))
    found = {
        (entry.source.name, entry.label): [(one.by, one.seeds, one.is_equal, one.largest) for one in made]
        for entry in board.ranked
        if (made := board.repetitions[id(entry)])
    }
    assert found["mine", "fixed"] == [("theirs", 3, True, 0.0)]
    assert found["theirs", "fixed"] == [("mine", 3, True, 0.0)]
    assert found["mine", "sbs"] == [("theirs", 2, False, pytest.approx(0.4))]


def test_copies_of_the_same_runs_are_shown_once_and_are_no_repetition(tmp_path: Path) -> None:
    copies = source(ours(tmp_path / "a")), source(ours(tmp_path / "b"), "theirs", "numbers")
    (board,) = boards(*copies)
    assert {entry.source.name for entry in board.entries} == {"theirs"}  # it was checked
    assert not any(board.repetitions.values())


def test_two_studies_of_one_store_are_no_repetition(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    more = FakeStore(tmp_path, name="more", spec=fake.spec)
    more.seeds("sbs", [72.0, 72.5, 74.5, 73.0], started=MINE, budget_measure="bops")
    both = source(fake)
    joined = source(more)
    (board,) = boards(type(both)(name="mine", kind="store", studies=(*both.studies, *joined.studies)))
    assert [entry.study for entry in board.entries if entry.label == "sbs"] == ["quick"]  # the one with a difference
    assert not any(board.repetitions.values())


def test_options_that_differ_are_no_repetition(tmp_path: Path) -> None:
    theirs = ours(tmp_path / "b", THEIRS)
    for run in theirs.runs:
        theirs.store.write_record(
            "runs", run, (theirs.store.record("runs", run) or {}) | {"options": {"group_size": 2}}
        )
    (board,) = boards(source(ours(tmp_path / "a")), source(theirs, "theirs"))
    assert not any(board.repetitions.values())


def test_a_method_from_the_authors_file_does_not_pass_for_a_registered_one(tmp_path: Path) -> None:
    fake = ours(tmp_path, method_files={"sbs": "/nowhere/mine.py:Sbs"})
    labels = [label for board in boards(source(fake)) for _, label in ranks(board)]
    assert "sbs (own file)" in labels and "sbs" not in labels


def test_a_row_of_several_versions_of_a_method_is_not_ranked(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    record = fake.store.record("runs", "sbs-4bit-1") or {}
    older = record["fingerprint"] | {"method_source": "syntax-1:0"}
    fake.store.write_record("runs", "sbs-4bit-1", record | {"fingerprint": older})
    (board,) = boards(source(fake))
    assert ("–", "sbs") in ranks(board)


def test_a_row_made_by_other_code_says_so(tmp_path: Path) -> None:
    fake = ours(tmp_path)
    for run in fake.runs[:3]:
        record = fake.store.record("runs", run) or {}
        fake.store.write_record(
            "runs", run, record | {"fingerprint": record["fingerprint"] | {"method_source": "syntax-1:0"}}
        )
    (board,) = boards(source(fake))
    assert {entry.label: bool(entry.remark) for entry in board.entries} == {
        "sbs": False,
        "fixed": True,
        "dnas": False,
        "full_precision": False,
    }
