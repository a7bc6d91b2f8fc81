"""Differences to the baseline, and the file that states them, against a slow count of sign patterns."""

from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from bench.results.differences import DIFFERENCE_COLUMNS, baseline_differences, result_lines, write_numbers
from bench.results.tables import RESULT_COLUMNS, StudyResults
from tests import fake_store

FIXED = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0]
SBS = [70.4, 71.55, 72.3, 70.92, 70.5, 71.95]
DNAS = [69.0, 70.5, 71.0, 70.7, 69.5, 71.5]
NAMES = {"sbs": SBS, "dnas": DNAS}


def sign_flip_p(differences: list[float]) -> float:
    patterns = list(product((1, -1), repeat=len(differences)))
    sums = [sum(sign * value for sign, value in zip(pattern, differences, strict=True)) for pattern in patterns]
    return sum(abs(flipped) >= abs(sum(differences)) - 1e-9 for flipped in sums) / len(patterns)


@pytest.fixture
def fake(tmp_path: Path) -> fake_store.FakeStore:
    made = fake_store.FakeStore(tmp_path)
    for name, values in {"fixed": FIXED, **NAMES}.items():
        made.seeds(name, values)
    made.seeds("sbs", SBS, budget="20KB")
    made.seeds("fixed", FIXED, budget="20KB", within_budget=False, metrics={"bops": 20e6})
    made.failed("edmips", 0, "NaN loss")
    return made


def test_results_csv_has_what_the_table_has(fake: fake_store.FakeStore) -> None:
    results = StudyResults(fake.store, fake.document())
    write_numbers(results)
    read = pd.read_csv(fake.store.study("quick") / "results.csv").set_index(["method", "budget"])
    assert tuple(read.reset_index().columns[4:]) == (*RESULT_COLUMNS[4:], *DIFFERENCE_COLUMNS)
    raw = {}
    for name, values in NAMES.items():
        row = read.loc[name, "4bit"]
        differences = [first - second for first, second in zip(values, FIXED, strict=True)]
        expected = stats.ttest_rel(values, FIXED).confidence_interval(0.95)
        assert row["pairs"] == 6 and row["delta"] == pytest.approx(sum(differences) / 6)
        assert (row["delta_low"], row["delta_high"]) == pytest.approx((expected.low, expected.high))
        raw[name] = sign_flip_p(differences)
    small, large = sorted(raw, key=raw.__getitem__)  # Holm over two tests
    corrected = {small: min(1, 2 * raw[small]), large: max(raw[large], min(1, 2 * raw[small]))}
    assert {name: read.loc[name, "4bit"]["p"] for name in raw} == pytest.approx(corrected)
    # Neither a baseline outside the window, nor the baseline itself, nor a failure has a difference.
    for key in (("sbs", "20KB"), ("fixed", "20KB"), ("fixed", "4bit"), ("edmips", "4bit")):
        assert read.loc[key, ["pairs", "delta", "delta_low", "delta_high", "p"]].isna().all()


def test_few_pairs_have_no_p(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED[:5])
    fake.seeds("sbs", SBS[:5])
    row = result_lines(StudyResults(fake.store, fake.document())).set_index("method").loc["sbs"]
    assert row["pairs"] == 5 and row["delta"] > 0 and pd.isna(row["p"])


def test_flagged_rows_are_named_and_not_tested(fake: fake_store.FakeStore) -> None:
    flags = {("resnet8", "digits", "dnas", "4bit"): ["repair made 24 of its choices", "second"]}
    results = StudyResults(fake.store, fake.document())
    lines = result_lines(results, flags).set_index(["method", "budget"])
    assert lines.loc[("dnas", "4bit"), "flags"] == "repair made 24 of its choices; second"
    assert pd.isna(lines.loc[("dnas", "4bit"), "p"]) and lines.loc[("dnas", "4bit"), "pairs"] == 6
    alone = sign_flip_p([first - second for first, second in zip(SBS, FIXED, strict=True)])
    assert lines.loc[("sbs", "4bit"), "p"] == pytest.approx(alone)
    of_baseline = {("resnet8", "digits", "fixed", "4bit"): ["it saw 0.7 of the images"]}
    assert all(pd.isna(row.p) for row in baseline_differences(results, of_baseline))


def test_names_of_knobs_are_no_instructions_to_what_shows_the_table(tmp_path: Path) -> None:
    """The names of knobs become titles of columns, and may come from somebody else's archive."""
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0], knobs={"\x1b]0;title\x07": 1.0, "a\u202eb": 2.0})
    results = StudyResults(fake.store, fake.document())
    write_numbers(results)
    text = (fake.store.study("quick") / "runs.csv").read_text()
    assert text.replace("\n", "").isprintable()
    assert r"\x1b]0;title\x07" in text and r"a\u202eb" in text
