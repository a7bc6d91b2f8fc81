import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.compression.policy import LayerPolicy, Policy, check, kept_inputs, load_policy, policy_from_json, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.measures import BOPS, Memory
from bench.errors import BenchError
from bench.models.resnet import resnet8


def document() -> dict[str, Any]:
    return {
        "model": "resnet8",
        "dataset": "digits",
        "layers": {
            "conv1": {"weight_bits": 8, "activation_bits": 8, "kept_filters": None},
            "fc": {"weight_bits": 2, "activation_bits": 32, "kept_filters": [0, 3, 4]},
        },
    }


@pytest.fixture(scope="module")
def network() -> NetworkShape:
    return trace(resnet8(1, 10), (1, 8, 8), name="resnet8", dataset="digits")


filters = st.none() | st.sets(st.integers(0, 63), min_size=1).map(lambda kept: tuple(sorted(kept)))
layer_policies = st.builds(
    LayerPolicy, weight_bits=st.integers(1, 32), activation_bits=st.integers(1, 32), kept_filters=filters
)
policies = st.builds(
    Policy,
    model=st.text(min_size=1),
    dataset=st.text(min_size=1),
    layers=st.dictionaries(st.text(min_size=1), layer_policies, min_size=1, max_size=4),
)


@given(policies)
def test_json_round_trip(policy: Policy) -> None:
    assert policy_from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document()), encoding="utf-8")
    assert load_policy(path).to_json() == document()


def test_uniform_policy_leaves_the_edges_at_eight_bits(network: NetworkShape) -> None:
    policy = uniform(network, 3)
    bits = {name: (layer.weight_bits, layer.activation_bits) for name, layer in policy.layers.items()}
    assert bits.pop("conv1") == bits.pop("fc") == (8, 8)
    assert set(bits.values()) == {(3, 3)}
    check(network, policy)


def test_uniform_full_precision_is_full_everywhere(network: NetworkShape) -> None:
    assert {layer.weight_bits for layer in uniform(network, 32).layers.values()} == {32}


def test_with_layer_changes_a_copy(network: NetworkShape) -> None:
    policy = uniform(network, 4)
    changed = policy.with_layer("conv1", weight_bits=5)
    assert changed.layers["conv1"] == LayerPolicy(weight_bits=5, activation_bits=8)
    assert policy.layers["conv1"].weight_bits == 8
    assert changed.layers["fc"] == policy.layers["fc"]


def test_kept_inputs_are_the_producers_filters(network: NetworkShape) -> None:
    policy = uniform(network, 4).with_layer("stages.1.0.conv1", kept_filters=(2, 5))
    assert kept_inputs(policy, network["stages.1.0.conv2"]) == (2, 5)
    assert kept_inputs(policy, network["stages.1.0.conv1"]) is None
    assert kept_inputs(policy, network["stages.2.0.conv2"]) is None


BROKEN_LAYERS = {
    "no object": (3, "must be an object"),
    "empty": ({}, "lacks"),
    "misspelt key": (
        {"weight_bits": 4, "activation_bits": 4, "kept_filter": None},
        "did you mean 'kept_filters'",
    ),
    "missing key": ({"weight_bits": 4, "kept_filters": None}, "lacks 'activation_bits'"),
}
BROKEN_BITS = [0, -1, 33, 4.0, "4", None, True, [4], float("nan")]
BROKEN_FILTERS = [0, "0", {}, True, [1.0], ["1"], [None], [True], [2, 1], [1, 1], [[1]]]


def with_entry(key: str, value: object) -> dict[str, Any]:
    changed = document()
    changed["layers"]["fc"][key] = value
    return changed


@pytest.mark.parametrize(("entry", "message"), BROKEN_LAYERS.values(), ids=BROKEN_LAYERS.keys())
def test_broken_layer_is_refused(entry: object, message: str) -> None:
    changed = document()
    changed["layers"]["fc"] = entry
    with pytest.raises(BenchError, match=f"layer 'fc'.*{message}"):
        policy_from_json(changed)


@pytest.mark.parametrize("key", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("value", BROKEN_BITS, ids=repr)
def test_broken_bits_are_refused(key: str, value: object) -> None:
    with pytest.raises(BenchError, match=f"'fc', {key} is .*from 1 to 32"):
        policy_from_json(with_entry(key, value))


@pytest.mark.parametrize("value", BROKEN_FILTERS, ids=repr)
def test_broken_filters_are_refused(value: object) -> None:
    with pytest.raises(BenchError, match="'fc', kept_filters must be null or a list"):
        policy_from_json(with_entry("kept_filters", value))


@pytest.mark.parametrize("value", [None, 3, "policy", [], [{}], {}], ids=repr)
def test_broken_document_is_refused(value: object) -> None:
    with pytest.raises(BenchError, match="the policy"):
        policy_from_json(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("model", 3),
        ("dataset", ["digits"]),
        ("layers", {}),
        ("layers", []),
        ("layers", None),
    ],
)
def test_broken_field_is_refused(key: str, value: object) -> None:
    with pytest.raises(BenchError, match=f"'{key}'"):
        policy_from_json({**document(), key: value})


@pytest.mark.parametrize("key", ["model", "dataset", "layers"])
def test_missing_field_is_refused(key: str) -> None:
    changed = document()
    del changed[key]
    with pytest.raises(BenchError, match=f"lacks '{key}'"):
        policy_from_json(changed)


def test_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(BenchError, match="did you mean 'layers'"):
        policy_from_json({**document(), "layer": {}})


BROKEN_FILES = {
    "empty": b"",
    "cut": b'{"model": "resnet8"',
    "not utf-8": b'{"model": "\xff"}',
    "number too long": b'{"model": ' + b"9" * 5000 + b"}",
    "nested too deeply": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES.keys())
def test_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(BenchError, match=r"policy\.json' is not valid JSON"):
        load_policy(path)


def test_file_error_names_the_file_and_the_layer(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(with_entry("weight_bits", 64)), encoding="utf-8")
    with pytest.raises(BenchError, match=r"policy\.json', layer 'fc', weight_bits is 64"):
        load_policy(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_unreadable_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match="cannot read the policy file"):
        load_policy(tmp_path / name)


# --- policies of methods and of repair, checked before they are priced ---

PRUNED = "stages.1.0.conv1"
BITS: list[Any] = [1.5, True, 64, 33, 0, -8, math.nan, math.inf, "4", None, 4.0, np.float64(4), np.int64(0), (4,)]


@pytest.mark.parametrize("bits", BITS, ids=repr)
@pytest.mark.parametrize("key", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("name", ["conv1", PRUNED])
def test_bits_that_are_none_are_never_priced(network: NetworkShape, bits: Any, key: str, name: str) -> None:
    policy = uniform(network, 4).with_layer(name, **{key: bits})
    for measure in (BOPS, Memory()):
        with pytest.raises(BenchError, match=f"layer '{name}' of resnet8: {key} is .*; allowed: a whole number from 1"):
            measure.price(network, policy)


KEPT: list[Any] = [(), (1, 1), (2, 1), (-1, 2), (0, 10**6), (0.0, 1.0), (True,), ("0",), "01", {0, 1}, 3, ((0,),)]


@pytest.mark.parametrize("kept", KEPT, ids=repr)
def test_filters_that_are_none_are_never_priced(network: NetworkShape, kept: Any) -> None:
    policy = uniform(network, 4).with_layer(PRUNED, kept_filters=kept)
    with pytest.raises(BenchError, match=rf"layer '{PRUNED}' keeps filters .*; allowed: one or more of 0 to 31, in"):
        BOPS.price(network, policy)


def test_layers_must_be_those_of_the_network(network: NetworkShape) -> None:
    layers = dict(uniform(network, 4).layers)
    missing = {name: layer for name, layer in layers.items() if name != "fc"}
    entries: list[tuple[Any, str]] = [
        (missing, "no entry for layer 'fc' of resnet8"),
        ({**layers, "cf": layers["fc"]}, "unknown layer in the policy 'cf': did you mean 'fc'"),
        ({**layers, 3: layers["fc"]}, "unknown layer in the policy '3'"),
        ({**layers, "fc": (4, 4)}, "layer 'fc' of resnet8 must have a bench.api.LayerPolicy, got tuple"),
        (list(layers), "a policy must be a bench.api.Policy"),
    ]
    for entry, told in entries:
        with pytest.raises(BenchError, match=told):
            BOPS.price(network, Policy(model="resnet8", dataset="digits", layers=entry))
    with pytest.raises(
        BenchError, match=r"a policy must be a bench\.api\.Policy with a dictionary of layers, got dict"
    ):
        check(network, layers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "number", [np.int64, np.int8, np.uint16, torch.tensor], ids=["int64", "int8", "uint16", "tensor"]
)
def test_whole_numbers_of_numpy_and_pytorch_become_pythons_own(network: NetworkShape, number: Any) -> None:
    plain = uniform(network, 4).with_layer(PRUNED, weight_bits=3, kept_filters=(0, 5, 7))
    forms: list[Any] = [
        tuple(map(number, (0, 5, 7))),
        [number(0), 5, 7],
        np.array([0, 5, 7]),
        torch.tensor([0, 5, 7]),
    ]
    for kept in forms:
        policy = uniform(network, 4).with_layer(PRUNED, weight_bits=number(3), kept_filters=kept)
        assert policy == plain
        assert json.dumps(policy.to_json()) == json.dumps(plain.to_json())
        assert {type(index) for index in policy.layers[PRUNED].kept_filters or ()} == {int}
        assert BOPS.price(network, policy) == BOPS.price(network, plain)
