"""The paper's figures, and the table that sets ours beside them."""

from pathlib import Path
from typing import Any

import pytest

from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.costs.counter import price
from bench.planning.networks import model_shape
from bench.results.published import printed
from bench.results.tables import StudyResults
from reports.published import Published
from tests import fake_store


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    return fake_store.FakeStore(tmp_path)


@pytest.mark.parametrize(
    ("table", "model", "row", "bits"),
    [
        ("1", "resnet20", "fixed", 4),
        ("1", "resnet20", "full_precision", FULL_PRECISION_BITS),
        ("1", "resnet56", "fixed", 4),
        ("1", "resnet56", "full_precision", FULL_PRECISION_BITS),
        ("10", "resnet56", "fixed", 6),
    ],
)
def test_printed_costs_of_uniform_precision_are_the_counters(table: str, model: str, row: str, bits: int) -> None:
    """The data file against the counter, which knows nothing of it."""
    network = model_shape(model, "cifar100")
    (found,) = [line for line in printed(table) if (line.model, line.row) == (model, row)]
    assert found.bops / 1e6 == round(price(network, uniform(network, bits)).bops / 1e6, 1)


def test_a_misprint_is_footnoted() -> None:
    (found,) = [line for line in printed("10") if (line.model, line.row) == ("resnet20", "fixed")]
    assert "1482.0" in found.note


def test_every_table_has_rows_and_others_have_none() -> None:
    assert all(printed(table) for table in [*map(str, range(1, 13)), "I"])
    assert printed("13") == printed("None") == ()
    assert (
        len({(row.table, row.model, row.row, row.note, row.bops) for n in range(1, 13) for row in printed(str(n))}) > 80
    )


def test_ours_stands_beside_theirs(fake: Any) -> None:
    metrics = {"bops": 649.5e6}
    for seed, top1 in enumerate((60.0, 62.0)):
        fake.run("sbs_q", seed, top1, model="resnet20", metrics=metrics)
    fake.spec.update(published="5")
    (table,) = Published().build(StudyResults(fake.store, fake.document()))
    assert table.title == "Table 5 of the SBS paper, as printed and in study quick"
    titles = [column.title for column in table.columns]
    rows = {row[:2]: dict(zip(titles, row, strict=True)) for row in table.rows}
    own = rows["resnet20", "sbs_q"]
    assert (own["Top-1 %, printed"], own["Top-1 %, here"], own["n here"]) == ("68.1±0.1", "61.00±1.41", "2")
    assert (own["BOPs (M), printed"], own["BOPs (M), here"]) == ("649.5", "649.50±0.00")
    assert (own["Search h, printed"], own["Peak GB, printed"]) == ("0.8", "1.5")
    other = rows["resnet20", "multi_path"]
    assert (other["Top-1 %, printed"], other["Top-1 %, here"], other["n here"]) == ("67.8±0.1", "", "")
    assert any("Without a result here: resnet20 multi_path, resnet56" in note for note in table.notes)
    assert any("Here: digits" in note for note in table.notes)


def test_what_must_be_known_of_printed_figures_is_said(fake: Any) -> None:
    fake.run("sbs_q", 0, 60.0)
    fake.spec.update(published="4")
    (table,) = Published().build(StudyResults(fake.store, fake.document()))
    assert any("where 308.0/19.6 is 15.7" in note for note in table.notes)


def test_a_study_of_its_own_has_nothing_to_say(fake: Any) -> None:
    fake.run("sbs", 0, 60.0)
    assert Published().build(StudyResults(fake.store, fake.document())) == []


def test_of_several_budgets_the_nearest_cost_stands_beside_the_printed_one(fake: Any) -> None:
    for budget, bops, top1 in (("8bit", 110e9, 70.0), ("4bit", 33e9, 60.0)):
        metrics = {"bops": bops}
        fake.run("sbs", 0, top1, model="resnet18", dataset="imagenet", budget=budget, metrics=metrics)
    fake.spec.update(published="3")
    (table,) = Published().build(StudyResults(fake.store, fake.document()))
    titles = [column.title for column in table.columns]
    rows = [dict(zip(titles, row, strict=True)) for row in table.rows]
    own = [row for row in rows if (row["Model"], row["Method"]) == ("resnet18", "sbs")]
    assert [(row["BOPs (M), printed"], row["Budget here"], row["Top-1 %, here"]) for row in own] == [
        ("108400.0", "8bit", "70.00"),
        ("34000.0", "4bit", "60.00"),
    ]


def test_only_what_a_table_prints_has_columns(fake: Any) -> None:
    fake.run("sbs", 0, 70.0, model="mobilenet_v2", metrics={"latency_ms": 21.5, "energy_mj": 33.0})
    fake.spec.update(published="6")
    (table,) = Published().build(StudyResults(fake.store, fake.document()))
    titles = [column.title for column in table.columns]
    assert [title for title in titles if "," in title and "Top" not in title] == [
        *("Latency ms, printed", "Latency ms, here", "Energy mJ, printed", "Energy mJ, here")
    ]
    rows = [dict(zip(titles, row, strict=True)) for row in table.rows]
    assert [(row["Latency ms, printed"], row["Latency ms, here"]) for row in rows if row["Method"] == "sbs"] == [
        ("21.6", "21.5"),
        ("", "21.5"),
    ]
