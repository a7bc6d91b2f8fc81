"""The answer of a study in words."""

from pathlib import Path

import pytest

from bench.reporting.verdict import study_verdicts
from bench.results.differences import baseline_differences
from bench.results.statistics import pairs_needed, smallest_detectable, std
from bench.results.tables import StudyResults
from tests.fake_store import FakeStore

FIXED = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0]


def verdicts(fake: FakeStore, **flags: list[str]) -> list[str]:
    marked = {("resnet8", "digits", method, "4bit"): reasons for method, reasons in flags.items()}
    return study_verdicts(baseline_differences(StudyResults(fake.store, fake.document()), marked))


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    made = FakeStore(tmp_path)
    made.seeds("fixed", FIXED)
    return made


def shifted(*shifts: float) -> list[float]:
    return [value + shift for value, shift in zip(FIXED, shifts, strict=True)]


def test_a_method_is_better_or_worse_only_by_test_and_interval(fake: FakeStore) -> None:
    fake.seeds("sbs", shifted(1, 1.2, 0.9, 1, 1.1, 1))
    fake.seeds("dnas", shifted(-2, -2.1, -2, -1.9, -2, -2))
    fake.seeds("random", shifted(0.1, -0.2, 0.3, -0.1, 0, 0.1))
    (text,) = verdicts(fake)
    # Each has p = 2 / 2^6 before Holm's correction over three tests: 0.094, so that nothing is told apart.
    assert text.startswith("4bit: No method is shown to be better than fixed.")
    assert "Too few pairs for 3 corrected tests, which take 7: sbs +1.03 [+0.92, +1.14], random +0.03" in text
    (alone,) = verdicts(fake, random=["flag"], dnas=["flag"])
    assert alone == "4bit: Better than fixed: sbs +1.03 [+0.92, +1.14]. No verdict (†): dnas, random."
    (behind,) = verdicts(fake, random=["flag"], sbs=["flag"])
    assert "No method is shown to be better than fixed. Worse than fixed: dnas -2.00 [-2.07, -1.93]." in behind


def test_enough_pairs_for_all_tests_decide(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path)
    fixed = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0, 71.5]
    fake.seeds("fixed", fixed)
    fake.seeds("sbs", [value + 1 + number / 10 for number, value in enumerate(fixed)])
    fake.seeds("random", [value + (-1) ** number for number, value in enumerate(fixed)])
    fake.seeds("dnas", [value - 2 - number / 10 for number, value in enumerate(fixed)])
    (text,) = verdicts(fake)
    # 2 / 2^7 times three tests is 0.047: seven pairs are the fewest that can decide.
    assert "Better than fixed: sbs +1.30" in text
    assert "Not distinguishable from fixed: random +0.14" in text


def test_what_could_not_be_seen_is_stated(fake: FakeStore) -> None:
    shifts = (1.0, -1.0, 2.0, -2.0, 0.5, 0.0)
    fake.seeds("sbs", shifted(*shifts))
    (text,) = verdicts(fake)
    least, seeds = smallest_detectable(std(shifts), 6), pairs_needed(0.5, std(shifts))
    assert f"Differences below {least:.2f} points would not have been found reliably" in text
    assert text.endswith(f"; 0.5 points would take about {seeds} seeds.")


def test_few_pairs_are_untested(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    fake.seeds("sbs", [72.0, 73.5])
    (text,) = verdicts(fake)
    assert "Untested, with fewer than 6 pairs: sbs +2.25 [-0.93, +5.43]." in text


def test_without_a_baseline_or_a_rival_nothing_is_said(tmp_path: Path, fake: FakeStore) -> None:
    assert verdicts(fake) == []
    alone = FakeStore(tmp_path / "other")
    alone.seeds("sbs", FIXED)
    assert verdicts(alone) == []


def test_each_budget_has_a_sentence(tmp_path: Path) -> None:
    fake = FakeStore(tmp_path)
    for budget in ("3bit", "4bit"):
        fake.seeds("fixed", [70.0], budget=budget)
        fake.seeds("sbs", [71.0], budget=budget)
    assert [text.split(":")[0] for text in verdicts(fake)] == ["3bit", "4bit"]


def test_a_row_of_few_pairs_does_not_hide_what_the_others_could_show(fake: FakeStore) -> None:
    shifts = (1.0, -1.0, 2.0, -2.0, 0.5, 0.0)
    fake.seeds("sbs", shifted(*shifts))
    fake.seeds("hawq", [value + 30 * number for number, value in enumerate(FIXED[:2])])
    (text,) = verdicts(fake)
    assert f"Differences below {smallest_detectable(std(shifts), 6):.2f} points" in text
