"""Checkpoints as people have them: what is taken is the network, tensor by tensor, and the rest is refused."""

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.models.fitting import fit
from bench.models.resnet import resnet8

State = dict[str, Tensor]


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    """A network with statistics like those after training."""
    torch.manual_seed(seed)
    model = resnet8(3, classes)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(70 + seed)
    return model


STATE: State = dict(network().state_dict())
AVERAGED: State = dict(network(1).state_dict())


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def without(state: Mapping[str, Tensor], *parts: str) -> State:
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


def with_head(state: Mapping[str, Tensor]) -> State:
    return {**state, "aux1.conv.weight": torch.ones(4, 4, 1, 1), "aux1.fc.bias": torch.zeros(4)}


def assert_taken(document: Any, expected: Mapping[str, Tensor]) -> str:
    """Check that exactly these tensors are taken, bit by bit; return the note."""
    model = network(7)
    before = copy.deepcopy(model.state_dict())
    fitted = fit(document, model, "resnet8")
    assert list(fitted.state) == list(before)
    for name, value in expected.items():
        taken = fitted.state[name]
        assert taken.dtype == before[name].dtype and torch.equal(taken, value), name
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "\n" not in fitted.note
    return fitted.note


def refusal(document: Any, model: nn.Module | None = None) -> str:
    with pytest.raises(BenchError) as caught:
        fit(document, model or network(7), "resnet8")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where it is -----------------------------------------------------------------------------------------------------


def test_a_state_as_it_is_needs_no_note() -> None:
    assert assert_taken(STATE, STATE) == ""
    assert assert_taken(OrderedDict(STATE), STATE) == ""
    assert assert_taken({name: nn.Parameter(v, v.is_floating_point()) for name, v in STATE.items()}, STATE) == ""


@pytest.mark.parametrize(
    ("document", "note"),
    [
        ({"state_dict": STATE}, "read its entry 'state_dict'"),
        ({"model": STATE}, "read its entry 'model'"),
        ({"model_state_dict": STATE}, "read its entry 'model_state_dict'"),
        ({"any": {"thing": STATE}}, "read its entry 'any.thing'"),
        (prefixed(STATE, "module."), "read without the prefix 'module.'"),
        (prefixed(STATE, "_orig_mod."), "read without the prefix '_orig_mod.'"),
        (prefixed(STATE, "module._orig_mod."), "read without the prefix 'module._orig_mod.'"),
        (prefixed(STATE, "model."), "read without the prefix 'model.'"),
        (prefixed(STATE, "anything.at.all."), "read without the prefix 'anything.at.all.'"),
        (
            {"state_dict": prefixed(STATE, "backbone.")},
            "read its entry 'state_dict' without the prefix 'backbone.'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrappers_and_prefixes_are_seen_through(document: Any, note: str) -> None:
    assert assert_taken(document, STATE) == note


def test_a_prefix_of_the_model_is_added() -> None:
    wrapped = nn.ModuleDict({"net": network(7)})
    fitted = fit(STATE, wrapped, "mine")
    assert fitted.note == "read with the prefix 'net.'"
    assert all(torch.equal(fitted.state[f"net.{name}"], value) for name, value in STATE.items())


def test_what_a_training_keeps_beside_the_network_is_left_out_by_name() -> None:
    document = {
        "epoch": 90,
        "arch": "resnet8",
        "state_dict": prefixed(STATE, "module."),
        "best_acc1": torch.tensor(93.1),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1),
    }
    assert assert_taken(document, STATE) == (
        "read its entry 'state_dict' without the prefix 'module.'; left out, as they are no part of the network: "
        "'epoch', 'arch', 'best_acc1', 'optimizer', 'args'"
    )


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")]
)
def test_of_plain_and_averaged_weights_the_plain_ones_are_taken(plain: str, averaged: str) -> None:
    kept = {averaged: {**prefixed(AVERAGED, "module."), "n_averaged": torch.tensor(9)}, plain: STATE}
    note = assert_taken(kept, STATE)
    assert note.startswith(f"read its entry '{plain}'; not its entry '{averaged}' without the prefix 'module.', which")
    alone = {averaged: kept[averaged]}
    assert assert_taken(alone, AVERAGED) == (
        f"read its entry '{averaged}' without the prefix 'module.'; left out, as they are no part of the network: "
        "'n_averaged'"
    )
    flat = {**prefixed(AVERAGED, "ema_model."), **prefixed(STATE, "model.")}
    assert "read without the prefix 'model.'; not without the prefix 'ema_model.'" in assert_taken(flat, STATE)


def test_averaged_weights_are_taken_where_the_plain_ones_are_not_whole() -> None:
    document = {"model": without(STATE, "fc."), "model_ema": AVERAGED}
    assert assert_taken(document, AVERAGED).startswith("read its entry 'model_ema'")


def test_two_networks_that_may_both_be_meant_are_refused() -> None:
    assert refusal({"student": STATE, "teacher": AVERAGED}) == (
        "holds several states that fit: its entry 'student', its entry 'teacher'; save the one to start from in a file "
        "of its own"
    )
    assert "several states" in refusal({**prefixed(STATE, "encoder_q."), **prefixed(AVERAGED, "encoder_k.")})


# --- what is converted -----------------------------------------------------------------------------------------------


def test_counters_that_old_files_lack_begin_at_zero() -> None:
    old = without(STATE, "num_batches_tracked")
    assert assert_taken(old, old) == "9 missing counters 'num_batches_tracked' begin at 0"
    fitted = fit(old, network(7), "resnet8")
    assert all(value == 0 for name, value in fitted.state.items() if "num_batches" in name)
    some = without(STATE, "bn1.num_batches_tracked")
    assert "missing counters" in assert_taken(some, some)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_single_precision(dtype: torch.dtype) -> None:
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in STATE.items()}
    wanted = {name: value.to(STATE[name].dtype) for name, value in given.items()}
    assert assert_taken(given, wanted) == f"converted from {str(dtype)[6:]} to float32"


def test_a_file_whose_counters_are_halves_too() -> None:
    given = {name: value.half() for name, value in STATE.items()}
    wanted = {name: value.float() for name, value in given.items() if "num_batches" not in name}
    assert "missing counters" in assert_taken(given, wanted)


def test_branches_beside_the_network_are_left_out_by_name() -> None:
    note = "left out, as they are no part of the network: 'aux1' (2 tensors)"
    assert assert_taken(with_head(STATE), STATE) == note
    assert assert_taken(prefixed(with_head(STATE), "module."), STATE).endswith(note)
    counted = {**STATE, "total_ops": torch.zeros(1), "stages.0.0.conv1.total_ops": torch.zeros(1)}
    counted["stages.0.0.index"] = torch.arange(9)
    del counted["total_ops"]
    assert "'stages' (2 tensors)" in assert_taken(counted, STATE)


class _Renaming(nn.Module):
    """A network that has renamed its layer since version 1, and reads old files, as PyTorch's own modules do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for kind in ("weight", "bias"):
            if f"{prefix}linear_1.{kind}" in state_dict:
                state_dict[f"{prefix}first.{kind}"] = state_dict.pop(f"{prefix}linear_1.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = _Renaming(), nn.Linear(2, 2)


def test_old_names_are_translated_by_the_model_itself() -> None:
    torch.manual_seed(0)
    source, model = _Renamed(), _Renamed()
    old = {name.replace("first", "linear_1"): value for name, value in source.state_dict().items()}
    fitted = fit({"model": old}, model, "mine")
    assert fitted.note == "read its entry 'model'; its old names are translated by the model"
    assert all(torch.equal(fitted.state[name], value) for name, value in source.state_dict().items())
    old["inner.linear_1.weight"][0, 0] = torch.nan
    assert "NaN or infinite numbers in 'inner.first.weight'" in refusal(old, model)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (without(STATE, "fc."), "does not fit resnet8: it lacks 'fc.weight', 'fc.bias'; it has no last layer 'fc'"),
        (
            with_head(without(STATE, "bn1.weight")),
            "does not fit resnet8: it lacks 'bn1.weight', 'stages.0.0.bn1.weight', 'stages.1.0.bn1.weight' and 1 more",
        ),
        (
            dict(network(classes=1000).state_dict()),
            "has 'fc.weight' in shape (1000, 64), not (10, 64), 'fc.bias' in shape (1000,), not (10,); "
            "it has 1000 classes, the data set has 10",
        ),
        (
            {**STATE, "conv1.weight": torch.zeros(16, 1, 3, 3)},
            "has 'conv1.weight' in shape (16, 1, 3, 3), not (16, 3, 3, 3); it reads images of 1 channels",
        ),
        ({"layer": torch.zeros(3)}, "; it is of another network"),
        ({"epoch": 3, "name": "x"}, "; it holds no tensors"),
        ({}, "; it holds no tensors"),
        (
            {"state_dict": prefixed(without(STATE, "stages.2.0.conv2"), "module.")},
            "resnet8 (its entry 'state_dict' without the prefix 'module.'): it lacks 'stages.2.0.conv2.weight'",
        ),
        (
            {**STATE, "stages.0.1.conv1.weight": torch.zeros(16, 16, 3, 3)},
            "it has 'stages.0.1.conv1.weight', which the network lacks; it is of a larger network",
        ),
        ({**STATE, "conv1.bias": torch.zeros(16)}, "it has 'conv1.bias', which the network lacks"),
        ({**STATE, "mean": torch.zeros(3)}, "it has 'mean', which the network lacks"),
        ({**STATE, "7.weight": torch.zeros(3, 3)}, "it has '7.weight', which the network lacks"),
    ],
    ids=range(12),
)
def test_what_does_not_fit_is_one_line_with_the_first_differences(document: Any, told: str) -> None:
    assert told in refusal(document)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("fc.weight", lambda value: value.index_fill(1, torch.tensor(3), torch.nan), "NaN or infinite numbers in"),
        ("conv1.weight", lambda value: value / 0, "NaN or infinite numbers in"),
        ("conv1.weight", lambda value: value.double() * 1e300, "NaN or infinite numbers in"),
        ("bn1.running_var", lambda value: value - 3, "negative variances in"),
        ("bn1.running_mean", lambda value: value + torch.inf, "NaN or infinite numbers in"),
        ("conv1.weight", lambda value: value.to(torch.int8), "numbers of an unusable type in"),
        ("conv1.weight", lambda value: value.bool(), "numbers of an unusable type in"),
        ("conv1.weight", lambda value: value.to(torch.complex64), "numbers of an unusable type in"),
        ("fc.bias", lambda value: value.to(torch.float8_e4m3fn), "numbers of an unusable type in"),
        ("fc.bias", lambda value: value.to_sparse(), "numbers of an unusable type in"),
        ("fc.bias", lambda value: value.to("meta"), "numbers of an unusable type in"),
        ("fc.bias", lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "of an unusable type in"),
    ],
    ids=range(12),
)
def test_numbers_that_cannot_be_weights_are_refused_by_name(
    name: str, change: Callable[[Tensor], Tensor], told: str
) -> None:
    words = refusal({"state_dict": {**STATE, name: change(STATE[name])}})
    assert told in words and words.endswith(f"in '{name}'; start from another file")


def test_an_infinite_mask_that_the_model_is_built_with_is_no_fault() -> None:
    model = network(7)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    state = {**STATE, "mask": model.state_dict()["mask"]}
    assert torch.equal(fit(state, model, "mine").state["mask"], state["mask"])


@pytest.mark.parametrize("missing", [name for name in STATE if not name.endswith("num_batches_tracked")][::7])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": prefixed(s, "module."), "epoch": 3}])
def test_no_tensor_of_the_network_may_be_missing(missing: str, wrap: Callable[[State], Any]) -> None:
    others = {name: value for name, value in STATE.items() if name != missing}
    assert f"it lacks '{missing}'" in refusal(wrap(with_head(others)))
