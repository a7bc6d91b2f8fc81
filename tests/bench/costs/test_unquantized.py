"""Multiplications outside of the layers: a constant part of every policy's bit operations, and of nothing else."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from bench.compression.operations import Operation
from bench.compression.policy import LayerSpace, Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.breakdown import breakdown
from bench.costs.counter import price
from bench.costs.measures import BOPS, Latency, Measure, Memory
from bench.errors import BenchError
from bench.reporting.cost_tables import cost_table
from bench.spec.schema import AcceleratorSpec


def layer(name: str, inputs: int, outputs: int, **others: object) -> LayerShape:
    plain = {"kind": "conv", "position": "middle", "in_size": (4, 4), "out_size": (4, 4)}
    return LayerShape(name=name, in_channels=inputs, out_channels=outputs, **{**plain, **others})  # type: ignore[arg-type]


LAYERS = NetworkShape(
    model="net",
    dataset="none",
    layers=(layer("first", 3, 4, position="first"), layer("middle", 4, 4), layer("last", 4, 2, position="last")),
)
NETWORK = replace(
    LAYERS,
    unquantized=(Operation(path="", name="bmm", macs=300), Operation(path="pool", name="convolution", macs=70)),
)
REST = 370 * 32 * 32
BITS = (2, 3)


def policies() -> list[Policy]:
    return [
        uniform(NETWORK, 8).with_layer("middle", weight_bits=w, activation_bits=a) for w, a in product(BITS, repeat=2)
    ]


@pytest.mark.parametrize("policy", policies())
def test_every_policy_pays_the_same_for_them(policy: Policy) -> None:
    with_rest, without = price(NETWORK, policy), price(LAYERS, policy)
    assert with_rest.macs == without.macs + 370
    assert with_rest.bops == without.bops + REST
    assert with_rest.memory_bits == without.memory_bits and with_rest.parameters == without.parameters
    assert with_rest.peak_memory_bits == without.peak_memory_bits
    assert with_rest.to_json()["unquantized"] == [
        {"name": ":bmm", "macs": 300, "bops": 300 * 1024},
        {"name": "pool:convolution", "macs": 70, "bops": 70 * 1024},
    ]
    assert BOPS.price(NETWORK, policy) == with_rest.bops


@pytest.mark.parametrize("measure", [BOPS, Memory()])
def test_layers_and_constant_add_up(measure: Measure) -> None:
    policy = uniform(NETWORK, 3)
    parts = sum(measure.price_layer(policy, shape) for shape in NETWORK.layers)
    assert parts + measure.constant(NETWORK) == pytest.approx(measure.price(NETWORK, policy))


@pytest.mark.parametrize("measure", [BOPS, Memory()])
def test_the_differentiable_cost_is_the_exact_one(measure: Measure) -> None:
    space = {"middle": LayerSpace(weight_bits=BITS, activation_bits=BITS)}
    relaxed = measure.relaxed(NETWORK, space, torch.device("cpu"), 8)
    for policy, (weight, activation) in zip(policies(), product(range(2), repeat=2), strict=True):
        shares = [torch.nn.functional.one_hot(torch.tensor([index]), 2).double() for index in (weight, activation)]
        assert float(relaxed(*shares)) == pytest.approx(measure.price(NETWORK, policy), rel=1e-12)


def test_latency_and_energy_are_not_known() -> None:
    spec, policy = AcceleratorSpec(), uniform(NETWORK, 4)
    assert breakdown(spec, LAYERS, policy).total("latency") == Latency(spec).price(LAYERS, policy)
    with pytest.raises(BenchError, match="latency and energy of 'net' are not known because of ':bmm': it multiplies"):
        Latency(spec).price(NETWORK, policy)
    found = breakdown(spec, NETWORK, policy)
    assert found.unknown.keys() == {":bmm", "pool:convolution"}
    assert found.total("latency") is found.total("energy") is None
    assert found.total("bops") == price(LAYERS, policy).bops + REST


def test_the_table_has_a_row_for_each() -> None:
    costs = breakdown(AcceleratorSpec(), NETWORK, uniform(NETWORK, 4))
    shown = cost_table(costs, "bops")
    titles = [column.title for column in shown.columns]
    rows = {row[0]: dict(zip(titles, row, strict=True)) for row in shown.rows}
    assert list(rows) == ["first", "middle", "last", ":bmm", "pool:convolution", "total"]
    assert rows[":bmm"]["Shape"] == "not quantized" and rows[":bmm"]["Bits w/a"] == "32/32"
    assert rows[":bmm"]["BOPs (M)"] == f"{300 * 1024 / 1e6:.2f}" and rows[":bmm"]["Memory KB"] == "–"
    shares = [float(row["Share of BOPs"].split("%")[0]) for name, row in rows.items() if name != "total"]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert rows["total"]["BOPs (M)"] == f"{costs.cost.bops / 1e6:.2f}"
