"""Networks that cannot compute an image, or cannot be built, are one line with model, image, layer and place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import densenet121

from bench.compression.shapes import trace
from bench.errors import BenchError


def refusal(model: nn.Module, side: int) -> str:
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(BenchError) as caught:
        trace(model, (3, side, side), name="mine", dataset="digits")
    assert model.training
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_too_deep_for_the_images_names_its_layer() -> None:
    words = refusal(densenet121(num_classes=10), 8)
    assert words.startswith(
        "model 'mine' cannot compute an image of 8×8 pixels and 3 channels: it fails in layer "
        "'features.transition2.pool' (AvgPool2d) with RuntimeError: Given input size: (256x1x1)."
    )
    assert words.endswith("e.g. --set task.image_size=64")
    assert "torchvision/models/densenet.py:" in words


class Raising(nn.Module):
    """Raises in its own forward, after a layer that works."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv, self.error = nn.Conv2d(3, 4, 3), error

    def forward(self, images: Tensor) -> Tensor:
        self.conv(images)
        raise self.error


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten(), nn.Linear(4, 10)), "fails in layer '0' (Conv2d) with Runtime"),
        (
            nn.Sequential(nn.Conv2d(3, 4, 8), nn.InstanceNorm2d(4)),
            "fails in layer '1' (InstanceNorm2d) with ValueError",
        ),
        (nn.Sequential(Raising(KeyError("left"))), "fails in layer '0' (Raising) with KeyError: 'left' ("),
        (Raising(AssertionError("first\nsecond")), "fails with AssertionError: first ("),
        (nn.Sequential(nn.Flatten()), "must run at least two convolution or linear layers; it runs 0"),
    ],
    ids=range(5),
)
def test_any_failure_of_a_forward_pass_is_one_line(model: nn.Module, told: str) -> None:
    words = refusal(model, 8)
    assert told in words
    assert "Raising" not in told or f"({Path(__file__).relative_to(Path.cwd())}:" in words


MODULE = """
from torch import nn


def small(channels, classes):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, classes, 7))


def wrong(channels, classes):
    return nn.Conv2d(channels, 6, 3, groups=4)
"""


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("small", "cannot compute an image of 8×8 pixels and 1 channels: it fails in layer '1' (Conv2d)"),
        ("wrong", "cannot be built for images of 8×8 pixels and 1 channels, and 10 classes: ValueError: in_channels"),
    ],
)
def test_the_command_says_so_in_one_line(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, function: str, told: str
) -> None:
    Path("nets_that_fail.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    options = ("--model", f"nets_that_fail:{function}", "--dataset", "digits")
    words = bench("cost", *options, "--bits", 4).refusal
    assert told in words
    assert function == "small" or "nets_that_fail.py:10)" in words


def test_an_interruption_is_no_failure_of_the_network() -> None:
    class Interrupted(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(nn.Sequential(Interrupted(3, 3)), (3, 8, 8), name="mine", dataset="digits")
    assert torch.is_grad_enabled()
