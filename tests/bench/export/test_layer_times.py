"""Measuring layers one by one: models of a single layer, tables in the store, and studies with a measured budget."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.compression.policy import load_policy, uniform
from bench.costs.measured import LayerTimes, layer_key, read_times
from bench.costs.measures import MeasuredLatency
from bench.errors import BenchError
from bench.export import forms, layer_times
from bench.export.layer_times import measured_times, repeated_layer, with_measured_times
from bench.export.untrained import UntrainedNetwork, untrained_network
from bench.planning.networks import model_shape
from bench.spec.schema import AcceleratorSpec
from bench.spec.sources import build
from bench.store.files import Store
from datasets.digits import Digits
from tests.bench.export.networks import CASES

onnx_installed = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="needs the extra `export`")
pytestmark = onnx_installed


@pytest.fixture(scope="module")
def network() -> UntrainedNetwork:
    return untrained_network(model_shape("resnet8", "digits"), Digits.described())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures so little that the figures mean nothing."""
    monkeypatch.setattr(layer_times, "ROUNDS", 2)
    monkeypatch.setattr(layer_times, "_LEAST_SECONDS", 1e-4)


# --- models of a layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "path", "channels"),
    [
        ("resnet8", "stages.1.0.conv1", (16, 32)),
        ("resnet8", "stages.1.0.conv2", (5, 32)),
        ("resnet8", "stages.1.0.conv1", (16, 1)),
        ("resnet8", "fc", (64, 10)),
        ("inverted residuals", "1.conv.1.0", (7, 7)),
        ("shifting", "grouped", (8, 4)),
        ("tokens", "fc1", (8, 3)),
    ],
)
@pytest.mark.parametrize("quantized", [True, False])
def test_a_model_adds_up_copies_of_a_layer(case: str, path: str, channels: tuple[int, int], quantized: bool) -> None:
    """In real numbers every copy is the layer itself with other weights; with its quantizer, so is what it reads."""
    from bench.export.engines import OnnxruntimeEngine
    from bench.export.onnx_forms.float import FloatForm
    from bench.export.onnx_forms.qdq import QdqForm

    graph = CASES[case]().graph
    (layer,) = [layer for layer in graph.layers if layer.path == path]
    made = repeated_layer(
        graph, path, *(min(pair) for pair in zip(channels, sizes(layer), strict=True)), 3, quantized=quantized
    )
    form = (QdqForm if quantized else FloatForm)(made, reads_pixels=False)
    x = np.random.default_rng(1).random((2, *made.image_shape), dtype=np.float32) * 2
    answer = OnnxruntimeEngine(form.model().SerializeToString(), (), "none").logits(x)
    expected: Any = 0
    for copy in made.layers:
        value = torch.from_numpy(x).double()
        for quantizer in made.quantizers:
            if quantizer.layer == copy.path:
                inside = ((value - quantizer.offset) / quantizer.step).clamp(0, quantizer.levels)
                value = torch.ceil(inside - 0.5) * quantizer.step + quantizer.offset
        expected = expected + computed(copy, value)
    assert len({copy.codes.tobytes() for copy in made.layers}) == 3  # else a runtime could compute one of them
    assert answer.shape == tuple(expected.shape)
    assert np.abs(answer - expected.numpy()).max() <= 1e-4 * np.abs(expected.numpy()).max()


def sizes(layer: Any) -> tuple[int, int]:
    return len(layer.input_steps), layer.codes.shape[0]


def computed(layer: Any, value: torch.Tensor) -> torch.Tensor:
    """A layer by PyTorch in float64."""
    weights, factor, constant = (torch.from_numpy(v) for v in (layer.weights, layer.factor, layer.constant))
    if layer.linear:
        return value @ weights[:, :, 0, 0].T * factor + constant
    top, left, bottom, right = layer.padding
    padded = F.pad(value, (left, right, top, bottom))
    sums = F.conv2d(padded, weights, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
    return sums * factor[:, None, None] + constant[:, None, None]


# --- tables --------------------------------------------------------------------------------------------------------


def test_a_table_is_measured_once(network: UntrainedNetwork, tmp_path: Path, quick: None) -> None:
    said: list[str] = []
    store = Store(tmp_path / "store")
    path = measured_times("onnxruntime", [network], 1, store, said.append)
    assert measured_times("onnxruntime", [network], 1, store, said.append) == path
    assert len(said) == 1 and "once on this machine" in said[0]
    table: LayerTimes = read_times(str(path))
    assert {entry.layer for entry in table.layers} == {layer_key(layer) for layer in network.shape.layers}
    assert table.machine["processor"] and "instructions" in table.machine
    cells = [cell for entry in table.layers for level in entry.levels for row in level.ms for cell in row]
    assert all(0 <= first <= middle <= third for first, middle, third in cells)
    measure = MeasuredLatency(AcceleratorSpec(hardware=str(path)))
    for bits in (2, 4, 7, 8, 32):
        assert measure.price(network.shape, uniform(network.shape, bits)) > 0
    whole = {(entry.weight_bits, entry.activation_bits) for entry in table.network(network.shape).whole}
    assert whole == {(32, 32), (8, 8), (7, 8)}
    floats = sum(measure.price_layer(uniform(network.shape, 32), layer) for layer in network.shape.layers)
    assert table.network(network.shape).rest_ms >= 0 and floats > 0


def test_another_machine_or_batch_has_a_table_of_its_own(
    network: UntrainedNetwork, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    paths = [measured_times("onnxruntime", [network], batch, store, str) for batch in (1, 2)]
    monkeypatch.setattr(layer_times, "instructions", lambda: ["abacus"])
    paths.append(measured_times("onnxruntime", [network], 1, store, str))
    assert len(set(paths)) == 3
    assert {path.name for path in paths} == {"onnxruntime.json"}


def test_a_runtime_that_is_missing_is_named(
    network: UntrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    with pytest.raises(BenchError, match="measuring with openvino needs openvino; install the extra"):
        measured_times("openvino", [network], 1, Store(tmp_path), str)


def test_products_of_activations_are_refused(tmp_path: Path) -> None:
    network = untrained_network(model_shape("cct_2_3x2", "digits"), Digits.described())
    with pytest.raises(BenchError, match=r"the layers of 'cct_2_3x2' are not measured: '.*' multiplies activations"):
        measured_times("onnxruntime", [network], 1, Store(tmp_path), str)


@pytest.mark.parametrize(("budget", "words"), [("@onnxruntime", "is not understood"), ("0ms@onnxruntime", "above 0")])
def test_a_wrong_budget_is_found_before_anything_is_measured(budget: str, words: str, tmp_path: Path) -> None:
    spec = build([{"name": "s", "task": {"model": "resnet8", "dataset": "digits"}, "budgets": [budget]}])
    with pytest.raises(BenchError, match=words):
        with_measured_times(spec, Store(tmp_path / "store"), pytest.fail)


# --- commands ------------------------------------------------------------------------------------------------------


def test_cost_shows_measured_layers_and_their_spread(bench: Callable[..., Any], quick: None) -> None:
    command = ("cost", "--model", "resnet8", "--dataset", "digits", "--bits", "4", "--hardware", "onnxruntime")
    first = bench(*command, "--by", "latency")
    assert first.status == 0, first.err
    assert "measuring 10 kinds of layers with onnxruntime" in first.err
    words = " ".join(first.out.split())
    assert "Latency: measured with onnxruntime" in words and "% of the median apart" in words
    again = bench(*command, "--json")
    assert again.err == ""
    document = json.loads(again.out)
    assert document["energy_mj"] is None
    assert document["hardware"].endswith("onnxruntime.json")
    refusal = bench(*command, "--by", "energy").refusal
    assert refusal == "--by energy: on 'onnxruntime' only latency is measured; allowed: --by latency"


def test_a_study_meets_a_measured_budget(bench: Callable[..., Any], quick: None) -> None:
    answer = bench(
        *("run", "--methods", "fixed,sbs", "--budget", "8bit:ms@onnxruntime", "--seeds", "1", "--in-process"),
        *(
            "--dataset",
            "synthetic",
            "--model",
            "resnet8",
            "--set",
            "task.train_images=96",
            "--set",
            "pretrain.epochs=1",
        ),
        *("--set", "search.epochs=1", "--set", "finetune.epochs=1", "--name", "measured", "--set", "threads=1"),
    )
    assert answer.status in (0, 1), answer.err
    store = Store(Path("bench-store"))
    document = store.load_study("measured")
    accelerator = AcceleratorSpec.model_validate_json(json.dumps(document["spec"]["accelerator"]))
    network = model_shape("resnet8", "synthetic")
    done = [record for run in document["runs"] if (record := store.record("runs", run))["status"] == "done"]  # type: ignore[index]
    for record in done:
        policy = load_policy(store.unit("runs", record["id"]) / "policy.json")
        price = MeasuredLatency(accelerator).price(network, policy)
        assert record["metrics"]["latency_ms"] == pytest.approx(price)
        assert record["metrics"]["energy_mj"] is None
        assert record["budget"] == "8bit:ms@onnxruntime"
    assert "fixed" in {record["method"] for record in done}  # with 8 bits everywhere
    assert answer.err.count("measuring ") == 1
