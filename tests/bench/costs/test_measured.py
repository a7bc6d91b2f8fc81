"""Latency by a table of measured layers: exact and differentiable cost, budgets, repair."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from bench.compression.policy import LayerSpace, Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.breakdown import breakdown
from bench.costs.budget import Budget, parse_budget
from bench.costs.measured import is_free_input, is_free_output, layer_key, read_times
from bench.costs.measures import MeasuredLatency
from bench.errors import BenchError
from bench.interface.pricing import price
from bench.matching.repair import policy_of, repair
from bench.method import Decision
from bench.planning.networks import model_shape
from bench.spec.schema import AcceleratorSpec
from tests.bench.costs.tables import crooked, table, write_table

REST = 0.25


@pytest.fixture(scope="module")
def network() -> NetworkShape:
    return model_shape("resnet8", "digits")


@pytest.fixture(scope="module")
def mobile() -> NetworkShape:
    return model_shape("mobilenet_v2", "cifar10")


@pytest.fixture(scope="module")
def hardware(network: NetworkShape, mobile: NetworkShape, tmp_path_factory: pytest.TempPathFactory) -> AcceleratorSpec:
    path = tmp_path_factory.mktemp("measured") / "onnxruntime.json"
    return AcceleratorSpec(hardware=write_table(path, network, mobile, rest=REST))


def drawn(network: NetworkShape, seed: int) -> Policy:
    """A policy with random bits and numbers of filters."""
    draw = Random(seed)  # noqa: S311
    policy = uniform(network, 8)
    for layer in network.middle:
        kept = tuple(range(draw.randint(1, layer.filters))) if layer.prunable else None
        policy = policy.with_layer(
            layer.name, weight_bits=draw.choice([2, 4, 8]), activation_bits=draw.choice([2, 4, 8]), kept_filters=kept
        )
    return policy


def filters(network: NetworkShape, policy: Policy) -> dict[str, int]:
    return {
        layer.name: layer.filters if (kept := policy.layers[layer.name].kept_filters) is None else len(kept)
        for layer in network.layers
    }


def slowly(network: NetworkShape, policy: Policy) -> float:
    """The price by SciPy's interpolation of the figures that the table was written with."""
    left, total = filters(network, policy), REST
    for layer in network.layers:
        level = (8, 8) if policy.layers[layer.name].weight_bits == 8 else (7, 8)
        outputs = left[layer.leader or layer.name] if is_free_output(layer) else layer.out_channels
        inputs = left[layer.producer or ""] if is_free_input(layer) else layer.in_channels
        total += interpolated(layer, level, inputs, outputs)
    return total


def interpolated(layer: LayerShape, level: tuple[int, int], inputs: int, outputs: int) -> float:
    def axis(channels: int, free: bool) -> list[int]:
        return sorted({max(1, round(channels * part / 4)) for part in range(5)}) if free else [channels, channels + 1]

    rows, columns = (
        axis(layer.in_channels, is_free_input(layer)),
        axis(layer.out_channels, is_free_output(layer)),
    )
    figures = np.array([[crooked(layer, level, i, o) for o in columns] for i in rows])
    return float(RegularGridInterpolator((rows, columns), figures)((inputs, outputs)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["network", "mobile"])
def test_a_policy_costs_its_layers_and_the_rest(
    name: str, seed: int, hardware: AcceleratorSpec, request: pytest.FixtureRequest
) -> None:
    network: NetworkShape = request.getfixturevalue(name)
    policy = drawn(network, seed)
    measure = MeasuredLatency(hardware)
    assert measure.price(network, policy) == pytest.approx(slowly(network, policy), rel=1e-9)
    costs = breakdown(hardware, network, policy)
    assert costs.total("latency") == pytest.approx(measure.price(network, policy))
    assert costs.total("energy") is None
    document = costs.to_json()
    assert sum(layer["latency_ms"] for layer in document["layers"]) + document["rest_ms"] == pytest.approx(
        document["latency_ms"]
    )
    first, middle, third = document["layers"][1]["latency_quartiles_ms"]
    assert (first / middle, third / middle) == pytest.approx((0.9, 1.2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["network", "mobile"])
def test_the_differentiable_cost_is_the_price_of_discrete_choices(
    name: str, seed: int, hardware: AcceleratorSpec, request: pytest.FixtureRequest
) -> None:
    network: NetworkShape = request.getfixturevalue(name)
    policy, bits = drawn(network, seed), (2, 4, 8)
    spaces = {
        layer.name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=int(layer.prunable))
        for layer in network.middle
    }
    measure = MeasuredLatency(hardware)
    relaxed = measure.relaxed(network, spaces, torch.device("cpu"), 8)
    chosen = [
        torch.nn.functional.one_hot(
            torch.tensor([bits.index(getattr(policy.layers[layer.name], what)) for layer in relaxed.layers]), 3
        ).double()
        for what in ("weight_bits", "activation_bits")
    ]
    left = {
        name: torch.tensor(float(count)) for name, count in filters(network, policy).items() if network[name].prunable
    }
    cost = relaxed(chosen[0].requires_grad_(), chosen[1], **relaxed.channels(left))
    assert cost.item() == pytest.approx(measure.price(network, policy), rel=1e-9)
    (slope,) = torch.autograd.grad(cost, chosen[0])
    assert (slope[:, 0] == slope[:, 1]).all() and (slope[:, 1] > slope[:, 2]).all()  # 2 and 4 bits alike, 8 faster


# --- what was measured ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "level"), [((1, 8), (7, 8)), ((7, 2), (7, 8)), ((8, 4), (8, 8)), ((8, 8), (8, 8)), ((32, 32), (32, 32))]
)
def test_bits_have_the_time_of_their_kind_of_arithmetic(
    network: NetworkShape, hardware: AcceleratorSpec, bits: tuple[int, int], level: tuple[int, int]
) -> None:
    layer = network.layers[2]
    time = read_times(hardware.hardware).quartiles(layer, *bits, layer.in_channels, layer.out_channels)
    assert time[1] == pytest.approx(crooked(layer, level, layer.in_channels, layer.out_channels))


@pytest.mark.parametrize("bits", [(9, 8), (8, 16), (32, 8), (4, 32), (31, 31)])
def test_other_bits_are_refused(network: NetworkShape, hardware: AcceleratorSpec, bits: tuple[int, int]) -> None:
    layer = network.layers[2]
    with pytest.raises(BenchError, match=rf"{bits[0]}-bit weights and {bits[1]}-bit inputs are not measured"):
        read_times(hardware.hardware).quartiles(layer, *bits, layer.in_channels, layer.out_channels)


def test_layers_of_one_shape_share_their_times(network: NetworkShape) -> None:
    keys = [layer_key(layer) for layer in model_shape("resnet20", "digits").layers]
    assert len(set(keys)) < len(keys)
    assert keys[1] != keys[2]  # the first loses outputs, the second inputs


def test_another_network_is_refused(network: NetworkShape, hardware: AcceleratorSpec) -> None:
    other = replace(network, dataset="mnist")
    with pytest.raises(BenchError, match="not those of resnet8 on mnist; measure these with --set accelerator"):
        MeasuredLatency(hardware).price(other, uniform(other, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "cannot be read"), ("{}", "it is no table of measured times")],
)
def test_a_file_that_is_no_table_is_one_clear_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "openvino.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchError, match=message) as caught:
        read_times(str(path))
    assert "--set accelerator.hardware=openvino" in str(caught.value)


def test_a_table_of_another_batch_is_refused(network: NetworkShape, hardware: AcceleratorSpec) -> None:
    with pytest.raises(BenchError, match=r"are those of batch 1, but accelerator\.batch is 16; use --set accelerator"):
        breakdown(AcceleratorSpec(hardware=hardware.hardware, batch=16), network, uniform(network, 4))
    costs = price(network, 4, hardware=hardware.hardware)
    assert costs.total("latency") == MeasuredLatency(hardware).price(network, uniform(network, 4))


def test_a_table_that_was_changed_is_read_again(network: NetworkShape, tmp_path: Path) -> None:
    path = tmp_path / "onnxruntime.json"
    for rest in (0.5, 0.75):
        hardware = write_table(path, network, rest=rest)
        assert MeasuredLatency(AcceleratorSpec(hardware=hardware)).constant(network) == rest


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0.5x:ms@onnxruntime", "8bit:ms@onnxruntime", "0.3ms@onnxruntime", "0.5x:ms"])
def test_budgets_limit_measured_latency(network: NetworkShape, hardware: AcceleratorSpec, text: str) -> None:
    measure = MeasuredLatency(hardware)
    budget = parse_budget(text, network, 0.03, hardware)
    assert budget.measure == measure
    full = measure.price(network, uniform(network, 32))
    expected = {"0.5": full / 2, "8bi": measure.price(network, uniform(network, 8)), "0.3": 0.3}
    assert budget.limit == pytest.approx(expected[text[:3]])


def test_the_costliest_network_need_not_have_the_most_bits(network: NetworkShape, hardware: AcceleratorSpec) -> None:
    measure = MeasuredLatency(hardware)
    assert measure.costliest_bits(network) == 7
    assert parse_budget("4bit:ms", network, 0.03, hardware).limit == measure.price(network, uniform(network, 7))
    with pytest.raises(BenchError, match=r"at most what resnet8 costs at 7 bits"):
        parse_budget("9999ms", network, 0.03, hardware)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4bit@onnxruntime", "only a budget in ms or mJ depends on hardware; leave out '@onnxruntime'"),
        ("1ms@openvino", "is on 'openvino', but the hardware is 'onnxruntime'; choose it with --set"),
        ("1mJ", "energy is not measured; on 'onnxruntime' budgets are in ms"),
        ("16bit:ms", "16-bit weights and 16-bit inputs are not measured"),
        ("1s@onnxruntime", "is not understood"),
    ],
)
def test_a_wrong_budget_is_one_clear_line(
    network: NetworkShape, hardware: AcceleratorSpec, text: str, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        parse_budget(text, network, 0.03, hardware)


@pytest.mark.parametrize("seed", range(6))
def test_repair_also_adds_bits_where_these_are_faster(
    network: NetworkShape, hardware: AcceleratorSpec, seed: int
) -> None:
    """All layers begin at 4 bits, the slowest; the window can be met by 8 bits and by fewer filters."""
    draw = Random(seed)  # noqa: S311
    base = uniform(network, 4)
    decisions = []
    for layer in network.middle:
        margins = (draw.random(), draw.random())
        decisions.append(Decision(layer=layer.name, what="weight_bits", options=(2, 4, 8), chosen=1, margins=margins))
        if layer.prunable:
            base = base.with_layer(layer.name, kept_filters=tuple(range(layer.filters)))
            decisions += [
                Decision(
                    layer=layer.name, what="filters", options=(0, 1), chosen=1, margins=(draw.random(),), filters=group
                )
                for group in zip(*[iter(range(layer.filters))] * 4, strict=True)
            ]
    measure = MeasuredLatency(hardware)
    full = measure.price(network, uniform(network, 4))
    budget = Budget(text="test", limit=0.8 * full, tolerance=0.03, measure=measure)
    made = repair(network, base, decisions, budget)
    assert budget.matches(made.cost)
    assert made.cost == pytest.approx(slowly(network, policy_of(base, made.decisions)), rel=1e-9)
    bits = [after.chosen for after in made.decisions if after.what == "weight_bits"]
    assert 0 not in bits  # 2 bits save nothing


# --- the specification ---------------------------------------------------------------------------------------------


def test_a_budget_names_the_hardware_of_a_study(tiny: Any) -> None:
    spec = tiny.spec({"budgets": ["0.9x:ms@onnxruntime", "1.2ms@onnxruntime"]})
    assert (spec.accelerator.hardware, spec.accelerator.batch) == ("onnxruntime", 1)
    assert tiny.spec({"budgets": ["21.6ms@bf_s"]}).accelerator.model_dump() == {
        "hardware": "bf_s",
        "batch": 16,
        "depthwise": "dense",
    }
    resolved = {"hardware": "/store/measured/0/onnxruntime.json", "batch": 4}
    again = tiny.spec({"budgets": ["0.9x:ms@onnxruntime"], "accelerator": resolved})
    assert again.accelerator.batch == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": ["1ms@onnxruntime", "1ms@openvino"]},
            "is on 'openvino', but the study's hardware is 'onnxruntime'",
        ),
        (
            {"budgets": ["1ms@onnxruntime"], "accelerator": {"hardware": "bf_e"}},
            "a study has one: --set accelerator.hardware=onnxruntime",
        ),
        ({"accelerator": {"hardware": "openvino", "depthwise": "channelwise"}}, "depthwise is about simulated"),
    ],
)
def test_a_study_has_one_hardware(tiny: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        tiny.spec(changes)


def test_the_fixture_is_a_table(hardware: AcceleratorSpec) -> None:
    document = json.loads(Path(hardware.hardware).read_text())
    counts = {len(entry["inputs"]) * len(entry["outputs"]) for entry in document["layers"]}
    assert counts == {1, 5}  # layers with no free channels, and with free inputs or outputs


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"outputs": [8, 8]},
        {"inputs": [0, 1]},
        {"levels": [{"weight_bits": 8, "activation_bits": 8, "ms": [[[1.0, 1.0, 1.0]]]}]},
        {"levels": [{"weight_bits": 8, "activation_bits": 8, "ms": []}]},
        {"levels": [{"weight_bits": 0, "activation_bits": 8, "ms": []}]},
    ],
    ids=range(6),
)
def test_tables_that_are_not_complete_are_refused(
    network: NetworkShape, change: dict[str, Any], tmp_path: Path
) -> None:
    document = table(network)
    for layer in document["layers"]:
        layer.update(change)
    (tmp_path / "times.json").write_text(json.dumps(document))
    with pytest.raises(BenchError, match="it is no table of measured times; name the runtime to measure again"):
        read_times(str(tmp_path / "times.json"))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_times_that_are_no_times_are_refused(network: NetworkShape, wrong: float, tmp_path: Path) -> None:
    for document in (table(network, rest=wrong), table(network, time=lambda *_: wrong)):
        (tmp_path / "times.json").write_text(json.dumps(document))
        with pytest.raises(BenchError, match="it is no table of measured times"):
            read_times(str(tmp_path / "times.json"))
