"""Transformers and ConvNeXt: sizes and multiplications of their published forms.

The integers follow from the hyper-parameters alone.
"""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.compression.products import MatMul
from bench.errors import BenchError
from bench.models.build import build_model

PLACES = {
    "vit_b_16": "bench.models.transformers:vit_b_16",
    "vit_tiny": "bench.models.transformers:vit_tiny",
    "swin_t": "bench.models.transformers:swin_t",
    "convnext_tiny": "bench.models.transformers:convnext_tiny",
    "cct_2_3x2": "bench.models.cct:cct_2_3x2",
}
SETTINGS = dict.fromkeys(PLACES, (224, 1000)) | {"cct_2_3x2": (32, 100)}


def built(name: str, image: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network without memory; on the meta device PyTorch's counter sees every multiplication."""
    with torch.device("meta"):
        return build_model(PLACES[name], image, classes).eval()


def published(name: str) -> nn.Module:
    size, classes = SETTINGS[name]
    return built(name, (3, size, size), classes)


def macs(model: nn.Module, image: tuple[int, int, int]) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image, device="meta"))
    return counter.get_total_flops() / 2


# Parameters and MACs; operations, and of them products of two activations.
COUNTS = {
    "vit_b_16": (86_567_656, 17_563_828_224, 74, 24),
    "vit_tiny": (5_717_416, 1_253_683_200, 74, 24),
    "swin_t": (28_288_354, 4_490_566_656, 77, 24),
    "convnext_tiny": (28_589_128, 4_455_531_264, 59, 0),
    "cct_2_3x2": (295_333, 35_353_088, 17, 5),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_operations(name: str) -> None:
    model, size = published(name), SETTINGS[name][0]
    calls: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, MatMul | nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, _, __: calls.append(module))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = macs(model, (3, size, size))
    products = sum(isinstance(module, MatMul) for module in calls)
    assert (parameters, counted, len(calls), products) == COUNTS[name]


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
def test_torchvision_s_state_can_be_loaded(name: str) -> None:
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    published(name).load_state_dict(state)


@pytest.mark.parametrize(
    ("size", "tokens", "patch"), [(8, 64, 1), (28, 49, 4), (32, 64, 4), (96, 64, 12), (160, 100, 16), (224, 196, 16)]
)
def test_a_small_vision_transformer_reads_about_64_patches(size: int, tokens: int, patch: int) -> None:
    model: Any = built("vit_tiny", (3, size, size), 10)
    assert model.conv_proj.kernel_size == model.conv_proj.stride == (patch, patch)
    assert model.seq_length == tokens + 1


def swin_macs(size: int, patch: int, window: int) -> int:
    """Count Swin-T's multiplications from its hyper-parameters, for sizes that padding changes, and 10 classes."""
    side = size // patch
    total = side**2 * 96 * 3 * patch**2
    for stage, depth in enumerate((2, 2, 6, 2)):
        width, padded = 96 * 2**stage, -(-side // window) * window
        total += depth * (padded**2 * width * (4 * width + 2 * window**2) + side**2 * 8 * width**2)
        if stage < 3:
            side //= 2
            total += side**2 * 4 * width * 2 * width
    return total + 768 * 10


@pytest.mark.parametrize(("size", "patch", "window"), [(32, 2, 4), (48, 2, 4), (64, 4, 7), (224, 4, 7)])
def test_swin_has_a_form_for_small_images(size: int, patch: int, window: int) -> None:
    assert macs(built("swin_t", (3, size, size), 10), (3, size, size)) == swin_macs(size, patch, window)


@pytest.mark.parametrize(("size", "patch"), [(32, 2), (64, 4)])
def test_convnext_has_a_form_for_small_images(size: int, patch: int) -> None:
    stem: Any = built("convnext_tiny", (3, size, size), 10).get_submodule("features.0.0")
    assert stem.kernel_size == stem.stride == (patch, patch)


@pytest.mark.parametrize("name", PLACES)
def test_images_of_one_channel(name: str) -> None:
    model = built(name, (1, 32, 32), 10)
    assert next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels == 1
    assert model(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(("name", "deviation"), [("vit_tiny", 16**-0.5), ("cct_2_3x2", (2 / 9) ** 0.5)])
def test_a_new_stem_is_initialised_by_its_inputs(name: str, deviation: float) -> None:
    torch.manual_seed(0)
    model = build_model(PLACES[name], (1, 32, 32), 10)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert float(stem.weight.detach().std()) == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_16", 40, "vit_b_16 cannot read images 40 pixels high; allowed: multiples of 16"),
        ("vit_tiny", 200, "vit_tiny cannot read images 200 pixels high; allowed: multiples of 16"),
        ("cct_2_3x2", 30, "cct_2_3x2 cannot read images 30 pixels high; allowed: multiples of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(BenchError, match=f"^{message}$"):
        built(name, (3, size, size), 10)
