"""Comparisons that would not be fair: runs outside their budget's window, flagged groups, and pairs without scatter."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.reporting.compare import Comparison, compare
from bench.reporting.compare_views import table, to_json, verdicts
from bench.results.selection import select
from tests import fake_store
from tests.bench.reporting.comparing import FIXED, SBS, compared, two_methods

OUTSIDE = {"within_budget": False, "metrics": {"bops": 22.76e6}}
"""56.9 % of the made-up budget of 40 M."""


def flagged(fake: SimpleNamespace, *methods: str, budget: str = "4bit") -> Comparison:
    fake.document()
    flags = {("resnet8", "digits", name, budget): ["its searches start 44 points below the others"] for name in methods}
    return compare(select(fake.store, "sbs"), select(fake.store, "fixed"), flags, flags)


def test_a_side_outside_the_window_is_no_partner(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["sbs", "fixed"]})
    fake.seeds("sbs", SBS)
    fake.seeds("fixed", [26.0] * 6, **OUTSIDE)
    found = compared(fake, "sbs", "fixed")
    assert verdicts(found) == [
        "no verdict: fixed is outside the window of 4bit (56.9 % of the budget), so no pair has the same cost"
    ]
    (row,) = table(found).rows
    assert row[1] == "0" and row[3:8] == ("", "", "", "", "")
    assert "Outside the window of 4bit, in no pair: seeds 0, 1, 2, 3, 4, 5 of B (56.9 % of it)" in table(found).notes
    (line,) = to_json(found)["lines"]
    assert line["difference"] is line["p"] is None and line["seeds"] == []
    assert line["second"]["outside"]["0"] == pytest.approx(56.9) and line["second"]["top1"] == {}


def test_only_the_runs_outside_are_left_out(tmp_path: Path) -> None:
    fake = two_methods(tmp_path, SBS, FIXED)
    fake.run("sbs", 6, 99.0, within_budget=False, metrics={"bops": 42e6})
    fake.run("fixed", 6, 10.0)
    found = compared(fake, "sbs", "fixed")
    assert found.lines[0].seeds == [0, 1, 2, 3, 4, 5]
    assert found.lines[0].difference is not None and found.lines[0].difference.mean == pytest.approx(0.42)
    # The fairness statement marks the whole row: the seeds that are left may not be like those that missed the budget.
    assert verdicts(found) == ["no verdict: sbs: its networks are outside the window of the budget"]
    assert "Outside the window of 4bit, in no pair: seeds 6 of A (105.0 % of it)" in table(found).notes


def test_a_budget_that_one_side_misses_is_not_averaged_in(budgets: SimpleNamespace) -> None:
    """At 20KB the baseline costs 57 % of the budget and is 45 points behind; the mean must not have these points."""
    budgets.seeds("sbs", [71.0] * 6, budget="20KB")
    budgets.seeds("fixed", [26.0] * 6, budget="20KB", **OUTSIDE)
    found = compared(budgets, "sbs", "fixed")
    assert [line.label for line in found.lines] == ["4bit", "2bit", "20KB", "mean of these"]
    assert found.lines[2].difference is None and found.lines[2].family == 2
    assert found.lines[3].difference is not None
    assert found.lines[3].difference.mean == pytest.approx((1.42 + 3.42) / 2)
    assert "In the mean: 4bit, 2bit" in table(found).notes


def test_a_flagged_side_gets_no_verdict(tmp_path: Path) -> None:
    fake = two_methods(tmp_path, SBS, FIXED)
    assert verdicts(flagged(fake))[0].startswith("sbs is better than fixed")
    for methods in (("sbs",), ("fixed",), ("sbs", "fixed")):
        found = flagged(fake, *methods)
        reasons = "; ".join(f"{name}: its searches start 44 points below the others" for name in methods)
        assert verdicts(found) == [f"no verdict: {reasons}"]
        (row,) = table(found).rows
        assert row[0] == "4bit" and row[4] == "+0.42" and row[6] == "†"  # the figures stay, the test does not
        assert any(note.startswith("†: takes no part in tests") for note in table(found).notes)
        assert to_json(found)["lines"][0]["p"] is None
    assert to_json(flagged(fake, "sbs"))["lines"][0]["first"]["flags"]


def test_a_flagged_line_is_in_no_family_and_in_no_mean(budgets: SimpleNamespace) -> None:
    found = flagged(budgets, "sbs", budget="2bit")
    assert [line.label for line in found.lines] == ["4bit", "2bit"]  # one line is left, which is no mean
    assert [line.family for line in found.lines] == [1, 1]
    assert verdicts(found)[0].startswith("4bit: sbs is better than fixed by 1.42")  # alone in its family
    assert verdicts(found)[1].startswith("2bit: no verdict: sbs: its searches")


def test_flags_of_another_study_are_its_own(tmp_path: Path) -> None:
    old, new = (fake_store.FakeStore(tmp_path, name=name) for name in ("old", "new"))
    for fake, values in ((old, FIXED), (new, SBS)):
        for seed, top1 in enumerate(values):
            fake.run("sbs", seed, top1, id=f"{fake.name}-{seed}")
        fake.document()
    flags = {("resnet8", "digits", "sbs", "4bit"): ["its knobs were not tuned"]}
    found = compare(select(new.store, "new/sbs"), select(new.store, "old/sbs"), {}, flags)
    assert verdicts(found) == ["no verdict: old/sbs: its knobs were not tuned"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, "undecided: sbs minus fixed is +1.00 points in each of 2 pairs, which shows no scatter, 2 pairs (too few"),
        (6, "sbs is better than fixed by 1.00 points in each of 6 pairs, which shows no scatter, 6 pairs, p = 0.031"),
    ],
)
def test_equal_pairs_have_no_interval(tmp_path: Path, n: int, expected: str) -> None:
    found = compared(two_methods(tmp_path, [value + 1 for value in FIXED[:n]], FIXED[:n]), "sbs", "fixed")
    assert verdicts(found)[0].startswith(expected)
    (row,) = table(found).rows
    assert row[4:6] == ("+1.00", "") and row[7] == ""
    notes = " | ".join(table(found).notes)
    assert "all of them are equal, which shows no scatter" in notes and "Detectable" not in notes
    json.dumps(to_json(found), allow_nan=False)


def test_the_costs_are_those_that_the_budget_limits(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for method, memory in (("sbs", 39.6), ("fixed", 39.9)):
        fake.seeds(method, [70.0, 71.0], budget="40KB", budget_measure="memory", metrics={"memory_kb": memory})
    found = table(compared(fake, "sbs", "fixed"))
    cells = {column.title: (column.drop, cell) for column, cell in zip(found.columns, found.rows[0], strict=True)}
    assert cells["Memory KB A"] == (0, "39.6") and cells["Memory KB B"] == (0, "39.9")
    titles = [column.title for column in found.columns]
    assert titles.index("Memory KB A") < titles.index("BOPs (M) A")
    assert cells["BOPs (M) A"][0] > 0
