"""The fairness statement: conditions from records, and the rows that break equality."""

import math
from pathlib import Path
from typing import Any

import pytest

from bench.results.fairness import Conditions, conditions, flags, summary
from tests import fake_store
from tests.reports.reading import results_of

EQUAL = {"trained_updates": 250, "training_images": 16000, "evaluated_images": 500, "repaired_gates": 1}


@pytest.fixture
def fake(tmp_path: Path) -> fake_store.FakeStore:
    """A store with two equal searches and a baseline without a search."""
    store = fake_store.FakeStore(tmp_path)
    store.seeds("sbs", [70.0, 71.0], metrics={**EQUAL, "start_top1": 52.0, "repair_share": 0.02})
    store.seeds("dnas", [69.0, 70.0], metrics={**EQUAL, "start_top1": 47.0})
    store.seeds("fixed", [70.0, 70.0], metrics={**EQUAL, "repaired_gates": 0})
    return store


def flagged(fake: fake_store.FakeStore) -> dict[str, tuple[str, ...]]:
    return {place[2]: breaches for place, breaches in flags(results_of(fake)).items()}


def test_equal_conditions_have_no_flags(fake: fake_store.FakeStore) -> None:
    assert flagged(fake) == {}
    rows = conditions(results_of(fake))
    assert [row.place[2] for row in rows] == ["sbs", "dnas", "fixed"]
    assert (rows[0].start_top1, rows[0].updates, rows[0].landed, rows[0].repairs) == (52.0, 250.0, 1.0, 1.0)
    assert rows[0].repair_share == pytest.approx(0.02)
    assert math.isnan(rows[2].start_top1)
    assert summary(rows, {}) == (
        "250 updates of every network after pretraining; searches start at 47.0 to 52.0 %; "
        "100 % of the runs met the budget with at most 2 choices repaired"
    )


def test_the_share_of_fine_tuning_in_the_updates_is_stated_where_it_differs(tmp_path: Path) -> None:
    """An update of a search and one of fine-tuning have different rates, and only the latter the final bits."""
    store = fake_store.FakeStore(tmp_path)
    for method, updates in {"sbs": 100, "fixed": 250}.items():
        use = {"search": {"training_batches": 250 - updates}, "finetune": {"training_batches": updates}}
        store.seeds(method, [70.0, 71.0], metrics=EQUAL, data_use=use)
    rows = conditions(results_of(store))
    assert [row.finetuning_updates for row in rows] == [100.0, 250.0]
    assert summary(rows, {}).startswith(
        "250 updates of every network after pretraining, 100 to 250 of them in fine-tuning; "
    )
    assert summary(rows[:1], {}).startswith("250 updates of every network after pretraining; ")


@pytest.mark.parametrize(
    ("metrics", "fields", "said"),
    [
        ({"start_top1": 8.0}, {}, "its searches start at 8.0 %, 39 points below the others"),
        ({"trained_updates": 100}, {}, "its networks saw 100 updates after pretraining, the others 250"),
        ({"trained_updates": 256}, {}, "its networks saw 256 updates after pretraining, the others 250"),
        ({"repaired_gates": 24}, {}, "repair made 24 choices of its policy"),
        ({}, {"within_budget": False}, "its networks are outside the window of the budget"),
    ],
)
def test_each_breach_is_flagged_on_its_row_alone(
    fake: fake_store.FakeStore, metrics: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    fake.seeds("edmips", [60.0, 61.0], metrics={**EQUAL, "start_top1": 50.0, **metrics}, **fields)
    assert flagged(fake) == {"edmips": (said,)}


@pytest.mark.parametrize("metrics", [{"start_top1": 39.5}, {"trained_updates": 254}, {"repaired_gates": 2}])
def test_differences_within_the_margins_are_no_breach(fake: fake_store.FakeStore, metrics: dict[str, Any]) -> None:
    fake.seeds("edmips", [60.0, 61.0], metrics={**EQUAL, "start_top1": 50.0, **metrics})
    assert flagged(fake) == {}


def test_variants_of_an_ablation_are_compared_with_each_other(fake: fake_store.FakeStore) -> None:
    longer = {**EQUAL, "trained_updates": 450}
    fake.seeds("sbs[finetune.epochs=4]", [70.0, 71.0], metrics={**longer, "start_top1": 52.0})
    fake.seeds("fixed[finetune.epochs=4]", [70.0, 71.0], metrics=longer)
    assert flagged(fake) == {}


def test_the_most_common_number_of_updates_is_what_the_others_have(tmp_path: Path) -> None:
    store = fake_store.FakeStore(tmp_path)
    for method in ("sbs", "dnas", "edmips", "dq"):
        store.seeds(method, [70.0, 71.0], metrics=EQUAL)
    for method in ("fixed", "random", "hawq"):
        store.seeds(method, [70.0, 71.0], metrics={**EQUAL, "trained_updates": 100})
    assert flagged(store) == dict.fromkeys(
        ("fixed", "random", "hawq"), ("its networks saw 100 updates after pretraining, the others 250",)
    )


def test_a_start_is_compared_at_its_own_budget(fake: fake_store.FakeStore) -> None:
    fake.seeds("sbs", [60.0, 61.0], budget="2bit", metrics={**EQUAL, "start_top1": 20.0})
    assert flagged(fake) == {}


def test_a_search_of_which_half_the_runs_landed(fake: fake_store.FakeStore) -> None:
    fake.run("haq", 0, 60.0, metrics={**EQUAL, "repaired_gates": 0})
    fake.run("haq", 1, 60.0, metrics={**EQUAL, "repaired_gates": 3})
    row = next(row for row in conditions(results_of(fake)) if row.place[2] == "haq")
    assert (row.landed, row.repairs) == (0.5, 1.5)
    assert flagged(fake) == {}


def test_trials_are_counted_per_knob(fake: fake_store.FakeStore) -> None:
    tuning = fake.tuning("multi_path", [0.1, 0.2, 0.4])
    fake.run("multi_path", 0, 60.0, metrics={**EQUAL, "start_top1": 50.0}, tuning=tuning)
    row = next(row for row in conditions(results_of(fake)) if row.place[2] == "multi_path")
    assert (row.trials, row.knobs, row.trials_per_knob) == (3, 1, 3.0)


def test_what_no_record_says_is_not_flagged_and_not_stated(tmp_path: Path) -> None:
    store = fake_store.FakeStore(tmp_path)
    store.seeds("sbs", [70.0, 71.0], metrics={"repaired_gates": 0})
    (row,) = conditions(results_of(store))
    assert isinstance(row, Conditions) and math.isnan(row.updates)
    assert flagged(store) == {}
    assert summary([row], {}) == "100 % of the runs met the budget with at most 2 choices repaired"
    assert summary([], {}) == ""
