"""Policies layer by layer, against numbers worked out here."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.store.files import write_json
from reports.policies import Policies
from tests import fake_store
from tests.reports.reading import figures_of, layer, records, table_of


@pytest.fixture
def pruned(tmp_path: Path) -> Any:
    """Two runs, of which one lost 4 of 8 and the other 2 of 8 filters of its only layer that can lose some."""
    fake = fake_store.FakeStore(tmp_path)
    runs = fake.seeds("sbs", [70.0, 71.0], filters={"zz.first": 4, "aa.second": 8})
    for run, kept, bits in zip(runs, ([0, 1, 2, 3], [0, 1, 2, 5, 6, 7]), (2, 4), strict=True):
        layers = {"zz.first": layer(8, 8, None), "aa.second": layer(bits, 4, kept)}
        write_json(
            fake.store.unit("runs", run) / "policy.json", {"model": "resnet8", "dataset": "digits", "layers": layers}
        )
    return fake


def test_policies_are_means_over_seeds_in_the_networks_order(pruned: Any) -> None:
    first, second = records(table_of(Policies(), pruned, "policies"))
    assert (first["Layer"], first["Weight bits"], first["Filters pruned %"]) == ("zz.first", "8.00±0.00", "")
    shares = [50.0, 25.0]
    assert second["Weight bits"] == f"3.00±{statistics.stdev([2, 4]):.2f}"
    assert second["Filters pruned %"] == f"{statistics.mean(shares):.2f}±{statistics.stdev(shares):.2f}"


def test_shares_are_left_out_where_the_number_of_filters_is_not_known(pruned: Any) -> None:
    for run in pruned.runs:
        pruned.store.write_record("runs", run, pruned.store.record("runs", run) | {"filters": {}})
    assert {row["Filters pruned %"] for row in records(table_of(Policies(), pruned, "policies"))} == {""}
    assert "policy-filters" not in figures_of(Policies(), pruned)


def cells(figure: Any, kind: int) -> dict[tuple[str, str], float]:
    """The values of a heat map, by method and layer."""
    drawn = figure.draw().to_dict()
    view = drawn["vconcat"][kind] if "vconcat" in drawn else drawn
    rows = drawn["datasets"][view["data"]["name"]]
    return {(row["line"], row["layer"]): row["mean"] for row in rows}


def test_heat_maps_show_all_methods_beside_each_other(pruned: Any) -> None:
    (fixed,) = pruned.seeds("fixed", [70.0])
    layers = {"zz.first": layer(8, 8, None), "aa.second": layer(4, 3, None)}
    policy = {"model": "resnet8", "dataset": "digits", "layers": layers}
    write_json(pruned.store.unit("runs", fixed) / "policy.json", policy)
    figures = figures_of(Policies(), pruned)
    weights = {("sbs 4bit", "zz.first"): 8, ("sbs 4bit", "aa.second"): 3}
    assert cells(figures["policy-bits"], 0) == weights | {("fixed 4bit", "zz.first"): 8, ("fixed 4bit", "aa.second"): 4}
    assert cells(figures["policy-bits"], 1)["fixed 4bit", "aa.second"] == 3
    assert cells(figures["policy-filters"], 0) == {("sbs 4bit", "aa.second"): 37.5}
    (view, _) = figures["policy-bits"].draw().to_dict()["vconcat"]
    assert view["layer"][0]["encoding"]["x"]["sort"] == ["zz.first", "aa.second"]


def test_a_network_at_full_precision_does_not_set_the_scale_of_bits(pruned: Any) -> None:
    (reference,) = pruned.seeds("full_precision", [72.0], budget="")
    layers = {"zz.first": layer(32, 32, None), "aa.second": layer(32, 32, None)}
    write_json(
        pruned.store.unit("runs", reference) / "policy.json",
        {"model": "resnet8", "dataset": "digits", "layers": layers},
    )
    figure = figures_of(Policies(), pruned)["policy-bits"]
    assert {*cells(figure, 0).values(), *cells(figure, 1).values()} == {8.0, 4.0, 3.0}
    assert any("full_precision" in note and "not drawn" in note for note in figure.notes)
    assert "32.00" in {row["Weight bits"] for row in records(table_of(Policies(), pruned, "policies"))}
