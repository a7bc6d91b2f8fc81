"""Tasks so small that every policy can be trained: digits in noise, and chains of a few narrow convolutions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from bench.api import Arrays, Dataset
from bench.data import split
from bench.plugins import entry_points, registry
from bench.spec.seeds import generator

DATASET = "noisy_digits"
_TEST_FRACTION = 0.6
_COPIES = 3
"""Copies of each test digit, each in noise of its own, so that the test part is large."""
_NOISE = 60.0
"""Standard deviation of the noise, for pixels from 0 to 255."""


class NoisyDigits(Dataset):
    """Scikit-learn's digits in noise that is drawn once: 719 training images, and 3,234 test images of 1,078 digits."""

    summary = "10 classes of 8×8 handwritten digits in noise"
    image_shape = (1, 8, 8)
    num_classes = 10
    mean = (0.343,)
    std = (0.354,)

    def load(self, data_dir: Path | None) -> Arrays:
        """Read the installed digits, and add the noise; the folder is not used."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images * 255 / 16).unsqueeze(1)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        train, test = split(labels, _TEST_FRACTION)
        test = test.repeat(_COPIES)
        return Arrays(
            train_images=_noisy(images[train], "train"),
            train_labels=labels[train],
            test_images=_noisy(images[test], "test"),
            test_labels=labels[test],
        )


def _noisy(images: Tensor, part: str) -> Tensor:
    noise = torch.randn(images.shape, generator=generator("known answers", part))
    return (images + _NOISE * noise).clamp(0, 255).round().to(torch.uint8)


class Chain(nn.Module):
    """Convolutions, each with a normalisation and a ReLU, then the mean over the map and a classifier.

    Args:
        num_classes: Number of logits.
        convolutions: Input channels, output channels, kernel and stride of each convolution.
    """

    prunable = ()

    def __init__(self, num_classes: int, convolutions: tuple[tuple[int, int, int, int], ...]) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs, kernel, stride in convolutions:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            parts += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*parts)
        self.fc = nn.Linear(convolutions[-1][1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.fc(self.body(x).mean(dim=(2, 3)))
        return logits


def chain5(in_channels: int, num_classes: int) -> Chain:
    """Build a chain with five searched layers, of which the second passes on four channels only."""
    widths = ((in_channels, 8, 3, 1), (8, 8, 3, 1), (8, 4, 1, 1), (4, 12, 3, 2), (12, 12, 3, 1), (12, 16, 3, 2))
    return Chain(num_classes, widths)


def chain2(in_channels: int, num_classes: int) -> Chain:
    """Build a chain with two searched layers."""
    return Chain(num_classes, ((in_channels, 8, 3, 1), (8, 4, 3, 2), (4, 12, 3, 1)))


@contextmanager
def registered(methods: Mapping[str, type] | None = None) -> Iterator[None]:
    """Register the data set, and methods by name, during a `with` block."""
    extra: dict[str, Mapping[str, type]] = {"datasets": {DATASET: NoisyDigits}, "methods": methods or {}}
    original = entry_points.available

    def available(kind: entry_points.Kind) -> Mapping[str, Any]:
        added = {
            name: SimpleNamespace(module=thing.__module__, value=f"{thing.__module__}:{name}", load=lambda t=thing: t)
            for name, thing in extra.get(kind, {}).items()
        }
        return {**original(kind), **added}

    with patch.object(entry_points, "available", available):
        yield
    registry.load.cache_clear()
