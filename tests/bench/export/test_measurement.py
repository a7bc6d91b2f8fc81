"""Measured times of policies without trained weights, and `bench cost --measured`."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from bench.compression.policy import uniform
from bench.errors import BenchError
from bench.export import forms, measurement
from bench.export.measurement import in_turns, measured_policy
from bench.export.untrained import UntrainedNetwork, untrained_network
from bench.planning.networks import model_shape
from datasets.digits import Digits

onnx_installed = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="needs the extra `export`")
FORMS = {"float", "reduced float", "onnx", "onnx-qdq"}


@pytest.fixture(scope="module")
def network() -> UntrainedNetwork:
    return untrained_network(model_shape("resnet8", "digits"), Digits.described())


def test_a_graph_without_training_is_that_of_the_policy(network: UntrainedNetwork) -> None:
    policy = uniform(network.shape, 3).with_layer("stages.0.0.conv1", kept_filters=(0, 2, 5), weight_bits=2)
    graph, full = network.graph(policy), network.full_graph(policy)
    assert [(layer.weight_bits, layer.input_bits) for layer in graph.layers] == [
        (policy.layers[layer.path].weight_bits, policy.layers[layer.path].activation_bits) for layer in graph.layers
    ]
    kept = {layer.path: layer.codes.shape[0] for layer in graph.layers}
    assert kept["stages.0.0.conv1"] == 3
    assert {layer.path: layer.codes.shape[0] for layer in full.layers} == kept | {"stages.0.0.conv1": 16}
    assert graph.image_shape == (1, 8, 8)
    assert 0 < graph.mean[0] < 255 and 1 < graph.std[0] < 255
    assert all(np.unique(layer.codes).size > 1 for layer in graph.layers)  # random weights, not all alike


@onnx_installed
def test_a_policy_is_timed_beside_the_float_network(network: UntrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ROUNDS", 2)
    times = measured_policy(network, uniform(network.shape, 4))
    assert {time.form for time in times} == FORMS
    assert {time.batch for time in times} == {1, 16}
    assert all(time.milliseconds > 0 and list(time.ratio) == sorted(time.ratio) for time in times)
    assert {time.ratio for time in times if time.form == "float"} == {(1.0, 1.0, 1.0)}


def test_missing_packages_are_named(network: UntrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(BenchError, match=r"needs onnxruntime; install the extra: pip install 'sbs-bench\[export\]'"):
        measured_policy(network, uniform(network.shape, 4))


def test_calls_take_turns() -> None:
    order: list[str] = []
    seconds = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)  # type: ignore[misc]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert [name for name, before in zip(order, ["", *order], strict=False) if name != before][-6:] == list("ababab")


@onnx_installed
def test_the_command_adds_measured_times(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "ROUNDS", 2)
    command = ("cost", "--model", "resnet8", "--dataset", "digits", "--bits", "4", "--measured")
    answer = bench(*command)
    assert answer.status == 0, answer.err
    assert "Measured times on one thread, with random weights" in answer.out
    document = json.loads(bench(*command, "--json").out)
    assert {entry["form"] for entry in document["measured"]} == FORMS
    assert document["bops"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--diff 4bit 8bit", "--measured times the network of one policy; leave it out with --diff"),
        ("--bits 32 --model resnet8 --dataset digits", "only quantized layers are exported"),
        ("--bits 4 --model convnext_tiny --dataset cifar10", "'convnext_tiny' cannot be exported: 'layer_norm'"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(bench: Callable[..., Any], options: str, message: str) -> None:
    assert message in bench("cost", "--measured", *options.split()).refusal
