"""The lines of `bench verify` on costs, and that they fail when a cost is wrong."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs import counter
from bench.costs.relaxed import RelaxedBops, RelaxedMemory
from bench.diagnostics.verify import CheckLine, accelerator, costs, printed
from bench.diagnostics.verify.networks import MODELS, network
from bench.results import published
from bench.results.published import Printed

PRICE_LAYER = counter.price_layer


def failed(lines: Iterator[CheckLine]) -> list[str]:
    return [line.what for line in lines if not line.passed]


def priced_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[counter.LayerCost], dict[str, Any]]) -> None:
    """Break the counter in one figure of every layer."""

    def broken(*arguments: Any) -> counter.LayerCost:
        cost = PRICE_LAYER(*arguments)
        return dataclasses.replace(cost, **change(cost))

    monkeypatch.setattr(counter, "price_layer", broken)


def test_every_line_passes_and_says_something_of_its_own() -> None:
    lines = list(costs.checks())
    assert failed(iter(lines)) == []
    assert len({line.what for line in lines}) == len(lines) > 50
    assert all(line.figure for line in lines)
    assert {line.verdict for line in lines} == {"yes", "deviation"}


def test_networks_take_no_memory() -> None:
    assert network("resnet50") is network("resnet50")
    assert network("resnet50").layers[0].out_size == (112, 112)


# What the paper prints.


def test_every_printed_cost_of_uniform_networks_has_a_line() -> None:
    """Counted in the file itself: rows of full and uniform precision, with each of their costs."""
    rows = [row for table in (*map(str, range(1, 13)), "I") for row in published.printed(table)]
    uniform_rows = [row for row in rows if row.row in ("full_precision", "fixed")]
    values = [
        value
        for row in uniform_rows
        for value in (row.bops, row.memory_kb, row.latency_ms, row.energy_mj)
        if value == value  # noqa: PLR0124  (NaN is what is not printed)
    ]
    lines = [line for table in printed._TABLES for line in printed._table_lines(table)]
    assert len(lines) == len(values) == 32
    assert {row.table for row in uniform_rows} == {"1", "2", "3", "4", "6", "10", "11", "12", "I"}


def test_a_row_whose_bits_are_unknown_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    row = published.printed("1")[1]

    def more(table: str) -> tuple[Printed, ...]:
        extra = (dataclasses.replace(row, model="resnet18"),) if table == "1" else ()
        return (*published.printed(table), *extra)

    monkeypatch.setattr(printed, "printed", more)
    assert failed(printed.lines()) == ["Table 1, resnet18, fixed: a row of uniform precision"]


def test_a_figure_that_is_printed_differently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(table: str) -> tuple[Printed, ...]:
        rows = published.printed(table)
        return tuple(dataclasses.replace(row, bops=row.bops + 1e5) if row.row == "fixed" else row for row in rows)

    monkeypatch.setattr(printed, "printed", other)
    found = failed(printed.lines())
    assert "Table 1, ResNet-20, fixed at 4 bits: paper prints 674.7 M" in found
    assert any("1482.2 M, a misprint" in what for what in found)  # rounding twice does not explain this one
    assert not any("Table 2" in what for what in found)


def test_deviations_are_reported_and_not_hidden() -> None:
    found = {line.what: line.figure for line in costs.checks() if line.deviation}
    words = ("1482.1 M", "24.9 ms", "37.0 mJ", "of 62.9", "of 1.9", "34.0 G", "783.52 M", "4778.0 KB", "4.3e34")
    assert all(any(word in what for what in found) for word in words) and len(found) == len(words)
    (latency,) = (figure for what, figure in found.items() if "24.9 ms" in what)
    assert latency == "24.940 ms; with the real classifier 24.57 ms"
    (energy,) = (figure for what, figure in found.items() if "37.0 mJ" in what)
    assert energy == "37.013 mJ; with the real classifier 36.41 mJ"
    (lattice,) = (figure for what, figure in found.items() if "783.52" in what)
    assert "783.499264 and 783.532032 M" in lattice
    (memory,) = (figure for what, figure in found.items() if "4778.0" in what)
    assert "4777.92 and 4778.176 KB" in memory


# Wrong implementations are noticed.


def test_bops_off_by_one_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    priced_with(monkeypatch, lambda cost: {"bops": cost.bops + (cost.name in ("fc", "classifier.1", "classifier.3"))})
    found = failed(costs.checks())
    assert sum(" BOPs, uniform " in what for what in found) == len(MODELS)


def test_memory_off_by_one_byte_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    priced_with(monkeypatch, lambda cost: {"weight_memory_bits": cost.weight_memory_bits + 8 * (cost.name == "fc")})
    found = failed(costs.checks())
    assert {"ResNet-20 memory", "ResNet-56 memory"} == {what.split(",")[0] for what in found if "uniform" in what}
    assert sum("differentiable" in what for what in found) == 4  # the networks with a layer of that name


def test_wrong_edges_miss_the_printed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(shape: NetworkShape, bits: int) -> Policy:
        return uniform(shape, bits).with_layer(shape.layers[0].name, weight_bits=1)

    monkeypatch.setattr(printed, "uniform", wrong)
    found = failed(printed.lines())
    for value in ("674.6 M", "1156.46 M", "711.7 KB", "71.2 G", "2412.6 M"):
        assert any(f"paper prints {value}" in what for what in found)


def test_readers_that_do_not_shrink_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter, "kept_inputs", lambda policy, layer: None)
    found = failed(costs.checks())
    assert sum("hand count" in what for what in found) == 2
    assert sum("differentiable" in what for what in found) == len(MODELS)
    assert sum("SBS-P, paper prints" in what for what in found) >= 2


@pytest.mark.parametrize("kind", [RelaxedBops, RelaxedMemory])
def test_a_differentiable_cost_that_is_off_is_noticed(
    monkeypatch: pytest.MonkeyPatch, kind: type[RelaxedBops | RelaxedMemory]
) -> None:
    exact = kind._price
    monkeypatch.setattr(kind, "_price", lambda self, *arguments: exact(self, *arguments) + 1)
    assert failed(costs.checks()) == [line.what for line in costs.checks() if "differentiable" in line.what]


def test_other_cycles_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_CYCLES", {"resnet18": 58_992_482})
    assert failed(accelerator.lines()) == [
        "ResNet-18: cycles on BitFusion at 8 bits, batch 16, equal those of the simulator"
    ]
