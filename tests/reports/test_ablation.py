"""The ablation table: which runs it compares with which, and what it says of them."""

from pathlib import Path
from typing import Any

import pytest

from bench.reporting.report import Table
from bench.results.statistics import compare_pairs
from bench.results.tables import StudyResults
from reports.ablation import Ablation
from reports.comparison import Comparison
from tests import fake_store

DEFAULT = [71.0, 72.5, 73.0, 71.5, 72.0, 73.5]
CHANGED = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0]


def tables_of(fake: Any, document: dict[str, Any]) -> list[Table]:
    return Ablation().build(StudyResults(fake.store, document))


def place(**changes: Any) -> dict[str, Any]:
    return {"model": "resnet8", "dataset": "digits", "budget": "4bit", "seed": 2, **changes}


def cells(table: Table, value: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row[0] == value]
    return {column.title: cell for column, cell in zip(table.columns, row, strict=True)}


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    return fake_store.FakeStore(tmp_path)


@pytest.fixture
def document(fake: Any) -> dict[str, Any]:
    """Six seeds of the default, which is group size 4, and of 2; of 8 one is done, one failed, one is to come."""
    own = fake.seeds("sbs", DEFAULT)
    other = fake.seeds("fixed", CHANGED)
    two = [fake.run("sbs", seed, value, budget="4bit", id_suffix="two") for seed, value in enumerate(CHANGED)]
    eight = [fake.run("sbs", 0, 70.5, id_suffix="eight"), fake.run("sbs", 1, status="failed", id_suffix="eight")]
    labels = {**dict.fromkeys(two, "sbs[group_size=2]"), **dict.fromkeys(eight, "sbs[group_size=8]")}
    values = (("2", two), ("4", own), ("8", [*eight, "not-yet"]))
    fake.missing("not-yet")
    places = {identity: place(method=method) for identity, method in labels.items()}
    places["not-yet"] = place(method="sbs[group_size=8]")
    return {
        **fake.document(),
        "places": places,
        "ablations": [
            {"key": "", "value": "", "runs": [*own, *other]},
            *({"key": "group_size", "value": value, "runs": runs} for value, runs in values),
        ],
    }


def test_each_value_is_compared_with_the_default_seed_by_seed(fake: Any, document: dict[str, Any]) -> None:
    (table,) = tables_of(fake, document)
    expected = compare_pairs(CHANGED, DEFAULT)
    two = cells(table, "2")
    assert two["Δ default"] == f"{expected.mean:+.2f}" == "-1.33"
    assert two["Δ 95 % interval"] == f"[{expected.interval.low:+.2f}, {expected.interval.high:+.2f}]"
    assert (two["Method"], two["Budget"], two["n"], two["p"]) == ("sbs", "4bit", "6", "0.031")
    default = cells(table, "4 (default)")
    assert (default["Δ default"], default["Top-1 %"], default["n"]) == ("default", "72.25±0.94", "6")
    assert any(note.startswith("Smallest difference found") for note in table.notes)


def test_failed_and_missing_runs_are_not_compared(fake: Any, document: dict[str, Any]) -> None:
    (table,) = tables_of(fake, document)
    eight = cells(table, "8")
    assert (eight["n"], eight["Δ default"], eight["p"], eight["Top-1 %"]) == ("1/2", "-0.50", "n<6", "70.50")


def test_values_of_options_are_methods_of_their_own_in_the_comparison(fake: Any, document: dict[str, Any]) -> None:
    table, _ = Comparison().build(StudyResults(fake.store, document))
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["sbs", "fixed", "sbs[group_size=2]", "sbs[group_size=8]"]
    differences = {row[0]: row[5] for row in table.rows}
    assert (differences["sbs[group_size=2]"], differences["sbs"]) == ("+0.00", "+1.33")


def test_models_are_kept_apart(fake: Any) -> None:
    ids = {}
    for model, shift in (("resnet8", 0.0), ("resnet20", 5.0)):
        for value, gain in (("", 0.0), ("2", 1.0 + shift)):
            made = [
                fake.run("sbs", seed, 70 + shift + gain + seed, model=model, id_suffix=f"{model}{value}")
                for seed in range(2)
            ]
            ids.setdefault(value, []).extend(made)
    places = {identity: {"method": "sbs[group_size=2]"} for identity in ids["2"]}
    ablations = [{"key": "", "value": "", "runs": ids[""]}, {"key": "group_size", "value": "2", "runs": ids["2"]}]
    (table,) = tables_of(fake, {**fake.document(), "places": places, "ablations": ablations})
    assert [(row[1], row[6]) for row in table.rows] == [("resnet8", "+1.00"), ("resnet20", "+6.00")]


def test_a_study_without_ablations_has_nothing_to_say(fake: Any) -> None:
    fake.seeds("sbs", DEFAULT)
    assert tables_of(fake, fake.document()) == []
    assert tables_of(fake, {**fake.document(), "ablations": [{"key": "", "value": "", "runs": fake.runs}]}) == []


def test_files_of_options_with_dots_have_plain_names(fake: Any) -> None:
    own = fake.seeds("sbs", DEFAULT[:2])
    ablations = [{"key": "", "value": "", "runs": own}, {"key": "search.lr", "value": "0.1", "runs": own}]
    (table,) = tables_of(fake, {**fake.document(), "ablations": ablations})
    assert (table.name, table.title) == ("ablation_search_lr", "Ablation of search.lr")


def test_runs_outside_the_window_are_part_of_no_difference(fake: Any) -> None:
    own = fake.seeds("sbs", [71.0, 72.5, 73.0])
    cheap = {"within_budget": False, "metrics": {"bops": 20e6}, "id_suffix": "two"}
    two = [fake.run("sbs", 0, 70.0, id_suffix="two"), fake.run("sbs", 1, 71.5, id_suffix="two")]
    two += [fake.run("sbs", 2, 10.0, **cheap)]
    ablations = [{"key": "", "value": "", "runs": own}, {"key": "group_size", "value": "2", "runs": two}]
    places = {identity: place(method="sbs[group_size=2]") for identity in two}
    (table,) = tables_of(fake, {**fake.document(), "places": places, "ablations": ablations})
    row = cells(table, "2")
    assert row["Δ default"] == "-1.00" and row["Δ 95 % interval"] == ""  # two equal pairs are left
    text = " | ".join(table.notes)
    assert "part of no difference: 2 sbs 4bit (50.0 %)" in text
    assert "all of them are equal" in text and "Smallest difference" not in text


def test_the_limited_cost_is_shown(fake: Any) -> None:
    own = fake.seeds("sbs", [71.0, 72.5], budget_measure="memory", metrics={"memory_kb": 39.5})
    two = [fake.run("sbs", 0, 70.0, id_suffix="two", budget_measure="memory", metrics={"memory_kb": 39.0})]
    ablations = [{"key": "", "value": "", "runs": own}, {"key": "group_size", "value": "2", "runs": two}]
    (table,) = tables_of(fake, {**fake.document(), "places": {two[0]: place()}, "ablations": ablations})
    assert cells(table, "2")["Memory KB"] == "39.00"
