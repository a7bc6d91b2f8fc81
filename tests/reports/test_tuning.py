"""Trials of tunings."""

from typing import Any

from reports.tuning import Tuning
from tests.reports.reading import figures_of, records, rows_in, table_of


def test_every_trial_is_shown_and_the_chosen_one_marked(mixed: Any) -> None:
    rows = records(table_of(Tuning(), mixed, "tuning"))
    assert [(row["Method"], row["Trial"], row["λ"], row["Chosen"]) for row in rows] == [
        ("sbs", "1", "0.2", "yes"),
        ("sbs", "2", "0.4", ""),
    ]
    assert {(row["Cost, % of budget"], row["Repaired, % of budget"]) for row in rows} == {("102.5", "97.5")}
    assert [row["Validation Top-1 %"] for row in rows] == ["90.00", "91.00"]
    drawn = rows_in(figures_of(Tuning(), mixed)["tuning-cost"], "strength")
    assert [(row["strength"], row["raw"], row["chosen"]) for row in drawn] == [(0.2, 102.5, True), (0.4, 102.5, False)]


def test_the_trials_of_a_tuning_at_work_are_shown_too(mixed: Any) -> None:
    for path in mixed.root.glob("tuning/*/record.json"):
        path.unlink()
    rows = records(table_of(Tuning(), mixed, "tuning"))
    assert [(row["Method"], row["Budget"], row["Chosen"]) for row in rows] == [("sbs", "4bit", "")] * 2
