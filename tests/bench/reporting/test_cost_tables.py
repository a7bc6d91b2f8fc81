from functools import cache

import pytest

from bench.compression.policy import uniform
from bench.costs.breakdown import CostBreakdown, breakdown
from bench.costs.measures import MeasureName
from bench.errors import BenchError
from bench.planning.networks import model_shape
from bench.plugins.registry import load
from bench.reporting.cost_tables import cost_table, table
from bench.reporting.report import Document, Section, Table
from bench.spec.schema import AcceleratorSpec


@cache
def overall(model: str, dataset: str, bits: int) -> CostBreakdown:
    network = model_shape(model, dataset)
    return breakdown(AcceleratorSpec(), network, uniform(network, bits))


def text(shown: Table, width: int) -> list[str]:
    document = Document(study="", sections=(Section(name="", title="", parts=(shown,)),))
    lines: list[str] = load("forms", "terminal").render(document, width).splitlines()
    return lines


def test_every_layer_and_the_totals_are_in_the_table() -> None:
    found = overall("resnet8", "digits", 4)
    shown = cost_table(found, "bops")
    assert [row[0] for row in shown.rows] == [*(layer.name for layer in found.cost.layers), "total"]
    cells = dict(zip([column.title for column in shown.columns], shown.rows[1], strict=True))
    layer = found.cost.layers[1]
    assert cells["Bits w/a"] == "4/4" and cells["Shape"] == "3×3 16→16 at 8×8" and cells["Groups"] == "1"
    assert cells["BOPs (M)"] == f"{layer.bops / 1e6:.2f}" and cells["Memory KB"] == f"{layer.memory_bits / 8000:.1f}"
    assert cells["Share of BOPs"].startswith(f"{layer.bops / found.cost.bops:5.1%} █")
    assert shown.rows[-1][5] == f"{found.cost.bops / 1e6:.2f}"


def test_shapes_say_what_a_layer_is() -> None:
    shapes = [row[1:3] for row in cost_table(overall("mobilenet_v3_large", "cifar100", 4), "bops").rows]
    assert ("5×5/2 72→72 at 16×16", "72") in shapes  # depthwise
    assert ("1×1 72→18 at 1×1", "1") in shapes  # a gate's
    assert ("linear 960→1280", "1") in shapes


@pytest.mark.parametrize("by", ["bops", "memory", "latency", "energy"])
def test_bars_show_the_measure_that_was_asked_for(by: MeasureName) -> None:
    found = overall("resnet8", "digits", 4)
    shown = cost_table(found, by)
    shares = found.shares(by)
    assert sum(shares.values()) == pytest.approx(1)
    bars = {row[0]: row[-1].split() for row in shown.rows[:-1]}
    largest = max(shares, key=lambda name: shares[name])
    assert bars[largest][-1] == "█" * 8
    assert all(float(bar[0].rstrip("%")) == pytest.approx(100 * shares[name], abs=0.06) for name, bar in bars.items())
    lengths = [len(bars[name][-1]) for name in sorted(bars, key=lambda name: shares[name])]
    assert lengths == sorted(lengths)


def test_a_measure_that_is_not_known_has_no_bars() -> None:
    with pytest.raises(BenchError, match="--by energy needs the energy of every layer"):
        cost_table(overall("resnet8", "digits", 32), "energy")


@pytest.mark.parametrize(
    ("model", "dataset", "bits"), [("mobilenet_v3_large", "cifar100", 4), ("resnet50", "imagenet", 32)]
)
def test_tables_fit_a_narrow_terminal(model: str, dataset: str, bits: int) -> None:
    found = overall(model, dataset, bits)
    lines = text(table(found, "bops"), 80)
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith(f" {found.cost.layers[5].name} ")]
    assert len(rows) == 1 and "%" in rows[0]  # the name is whole, and no cell is broken
    assert any("Left out at this width" in line for line in lines)


def test_the_measure_that_was_asked_for_stays_in_a_narrow_terminal() -> None:
    shown = cost_table(overall("mobilenet_v3_large", "cifar100", 4), "energy")
    head = " ".join(text(shown, 60)[:5])
    assert "Energy" in head and "Groups" not in head
