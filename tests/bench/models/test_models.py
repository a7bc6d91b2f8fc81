"""The networks that come with the harness: exact costs of their published forms."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.errors import BenchError
from bench.models.build import build_model
from bench.plugins.registry import load

# Image size and classes with which the paper counts.
SETTINGS = {
    "resnet20": (32, 100),
    "resnet56": (32, 100),
    "resnet18": (224, 1000),
    "resnet50": (224, 1000),
    "mobilenet_v2": (224, 1000),
    "mobilenet_v3_large": (32, 100),
}


@cache
def shape_of(model: str) -> NetworkShape:
    size, classes = SETTINGS[model]
    return trace(build_model(model, (3, size, size), classes), (3, size, size), name=model, dataset="none")


# MACs, of which the first and the last layer, and weights, counted independently from the layers' shapes.
COUNTS = {
    "resnet20": (40_818_944, 448_768, 276_656),
    "resnet56": (125_753_600, 448_768, 857_264),
    "resnet18": (1_814_073_344, 118_525_952, 11_678_912),
    "resnet50": (4_089_184_256, 120_061_952, 25_502_912),
    "mobilenet_v2": (300_774_272, 12_118_016, 3_469_760),
    "mobilenet_v3_large": (66_572_384, 570_368, 4_297_448),
}
LAYERS = {"resnet20": 22, "resnet56": 58, "resnet18": 21, "resnet50": 54, "mobilenet_v2": 53, "mobilenet_v3_large": 64}


@pytest.mark.parametrize("model", COUNTS)
def test_macs_and_weights(model: str) -> None:
    cost = price(shape_of(model), uniform(shape_of(model), 4))
    edges = cost.layers[0].macs + cost.layers[-1].macs
    assert (cost.macs, edges, cost.parameters) == COUNTS[model]
    assert len(cost.layers) == LAYERS[model]


# BOPs of uniform k bits, first and last layer at 8 (at 32: at 32).
BOPS: Mapping[str, Mapping[int, int]] = {
    "resnet18": {
        2: 14_367_850_496,
        3: 22_845_587_456,
        4: 34_714_419_200,
        5: 49_974_345_728,
        6: 68_625_367_040,
        8: 116_100_694_016,
        32: 1_857_611_104_256,
    },
    "resnet50": {
        2: 23_560_454_144,
        3: 43_406_065_664,
        4: 71_189_921_792,
        5: 106_912_022_528,
        6: 150_572_367_872,
        8: 261_707_792_384,
        32: 4_187_324_678_144,
    },
    "mobilenet_v2": {
        2: 1_930_178_048,
        3: 3_373_459_328,
        4: 5_394_053_120,
        5: 7_991_959_424,
        6: 11_167_178_240,
        8: 19_249_553_408,
        32: 307_992_854_528,
    },
    "mobilenet_v3_large": {
        2: 300_511_616,
        3: 630_521_696,
        4: 1_092_535_808,
        6: 2_412_576_128,
        8: 4_260_632_576,
        32: 68_170_121_216,
    },
}


@pytest.mark.parametrize(("model", "bits"), [(model, bits) for model, row in BOPS.items() for bits in row])
def test_bops(model: str, bits: int) -> None:
    assert price(shape_of(model), uniform(shape_of(model), bits)).bops == BOPS[model][bits]


@pytest.mark.parametrize("model", BOPS)
@pytest.mark.parametrize("bits", [3, 32])
def test_memory_is_the_slow_sum(model: str, bits: int) -> None:
    """Counted from the tensors of one forward pass, since no costs are published for these networks."""
    size, classes = SETTINGS[model]
    total, largest = slow_memory(build_model(model, (3, size, size), classes), (3, size, size), bits)
    cost = price(shape_of(model), uniform(shape_of(model), bits))
    assert cost.memory_bits == total
    assert cost.peak_memory_bits == largest
    assert cost.memory_kb == total / 8 / 1000


def slow_memory(model: nn.Module, image: tuple[int, int, int], bits: int) -> tuple[int, int]:
    """Bits of all weights plus all layer inputs, and plus the largest input only."""
    seen: list[tuple[int, int]] = []

    def look(module: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        seen.append((module.weight.numel(), inputs[0][0].numel()))

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(look)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image))
    all_bits = [bits if bits == 32 or 0 < index < len(seen) - 1 else 8 for index in range(len(seen))]
    weights = sum(weight * own for (weight, _), own in zip(seen, all_bits, strict=True))
    inputs = [elements * own for (_, elements), own in zip(seen, all_bits, strict=True)]
    return weights + sum(inputs), weights + max(inputs)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 32])
def test_peak_memory_by_hand(bits: int) -> None:
    cost = price(shape_of("resnet20"), uniform(shape_of("resnet20"), bits))
    edge = 32 if bits == 32 else 8
    by_hand = (276_656 - 432 - 6400) * bits + (432 + 6400) * edge + max(16 * 1024 * bits, 3 * 1024 * edge)
    assert cost.peak_memory_bits == by_hand


@pytest.mark.parametrize("model", BOPS)
def test_images_of_one_channel(model: str) -> None:
    """Only the stem differs, and it is initialised like the other layers."""
    torch.manual_seed(0)
    size = 32
    one, three = (build_model(model, (channels, size, size), 10) for channels in (1, 3))
    networks = [
        trace(built, (channels, size, size), name=model, dataset="none") for built, channels in ((one, 1), (three, 3))
    ]
    costs = [price(network, uniform(network, 4)) for network in networks]
    assert (costs[0].layers[0].in_channels, costs[1].layers[0].in_channels) == (1, 3)
    assert 3 * costs[0].layers[0].macs == costs[1].layers[0].macs
    assert costs[0].layers[1:] == costs[1].layers[1:]
    stem = next(module for module in one.modules() if isinstance(module, nn.Conv2d))
    assert stem.bias is None
    deviation = math.sqrt(2 / (stem.out_channels * math.prod(stem.kernel_size)))  # of kaiming_normal_, mode fan_out
    assert float(stem.weight.detach().std()) == pytest.approx(deviation, rel=0.2)
    assert one(torch.zeros(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize(("size", "small"), [(32, True), (63, True), (64, False), (224, False)])
def test_mobilenet_v3_has_a_form_for_small_images(size: int, small: bool) -> None:
    model = build_model("mobilenet_v3_large", (3, size, size), 10)
    strides = [module.stride[0] for module in model.modules() if isinstance(module, nn.Conv2d) and module.stride[0] > 1]
    assert len(strides) == (3 if small else 5)
    gates = [
        module.out_channels
        for name, module in model.named_modules()
        if name.endswith("fc1") and isinstance(module, nn.Conv2d)
    ]
    assert gates == ([18, 30, 30, 120, 168, 168, 240, 240] if small else [24, 32, 32, 120, 168, 168, 240, 240])


# --- what is no model -------------------------------------------------------------------------------------------


def too_few_arguments(in_channels: int) -> nn.Module:
    return nn.Identity()


def no_module(in_channels: int, num_classes: int) -> Any:
    return [in_channels, num_classes]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (too_few_arguments, r"cannot be called with \(in_channels, num_classes\)"),
        (no_module, r"returned a list; it must return a torch\.nn\.Module"),
    ],
)
def test_what_is_no_model_is_refused(plugin: Callable[..., None], make: Callable[..., Any], message: str) -> None:
    plugin("models", "odd", make)
    with pytest.raises(BenchError, match=f"model 'odd' {message}"):
        build_model("odd", (3, 8, 8), 10)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(BenchError, match=r"unknown model 'resnet81': did you mean 'resnet8'\?"):
        build_model("resnet81", (3, 8, 8), 10)


# --- models by their place --------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module in the working directory, with a unique name."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def make(in_channels, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "def sized(in_channels, num_classes, image_size):\n"
        "    return nn.Linear(image_size, num_classes)\n"
        "def none(in_channels, num_classes):\n"
        "    return None\n"
        "number = 3\n",
        encoding="utf-8",
    )
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    load.cache_clear()
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_a_model_of_ones_own_is_built(mine: str) -> None:
    model = build_model(f"{mine}:make", (2, 8, 8), 7)
    assert model(torch.zeros(1, 2, 8, 8)).shape == (1, 7)
    sized = build_model(f"{mine}:sized", (2, 9, 8), 7)
    assert isinstance(sized, nn.Linear) and sized.in_features == 9  # the height


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("{}:missing", "cannot load model '{}:missing'"),
        ("{}_nowhere:make", "cannot load model '{}_nowhere:make'.*No module named '{}_nowhere'"),
        ("{}_broken:make", "cannot load model '{}_broken:make'.*no_such_module_at_all"),
        ("{}:number", "model '{}:number' is a int; it must be a function"),
        ("{}:none", r"model '{}:none' returned a NoneType; it must return a torch\.nn\.Module"),
        ("{}:", "model '{}:' is not of the form package.module:function"),
        (":make", "model ':make' is not of the form package.module:function"),
        ("{}.py:make twice", "is not of the form package.module:function"),
        ("{}:make:make", "is not of the form package.module:function"),
        ("../{}:make", "is not of the form package.module:function"),
    ],
)
def test_a_place_that_holds_no_model_is_refused(mine: str, place: str, message: str) -> None:
    with pytest.raises(BenchError, match=message.replace("{}", mine)):
        build_model(place.replace("{}", mine), (3, 8, 8), 10)
