"""Generated images whose classes can be learned, for tests and for measuring speed."""

from pathlib import Path

import torch
from torch import Tensor

from bench.api import Arrays, Augmentation, Dataset, generator

_CLASSES = 10
_SIDE = 16
_BLOCK = 4
_NOISE = 48


class Synthetic(Dataset):
    """Ten classes. Each class is a fixed random pattern of coloured blocks; each image is that pattern plus noise.

    Mean and standard deviation were measured on the training part.
    """

    summary = "10 classes of 16×16 generated colour patterns; 512 training and 256 test images; needs no download"
    image_shape = (3, _SIDE, _SIDE)
    num_classes = _CLASSES
    training_images = 512
    mean = (0.4791, 0.4836, 0.5034)
    std = (0.2113, 0.2042, 0.2104)
    augmentation = Augmentation(pad=1)

    def load(self, data_dir: Path | None) -> Arrays:
        """Generate the arrays, which are always the same; the folder is not used."""
        patterns = _patterns(generator("synthetic", "patterns"))
        train_images, train_labels = _draw(patterns, 512, generator("synthetic", "train"))
        test_images, test_labels = _draw(patterns, 256, generator("synthetic", "test"))
        return Arrays(
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
        )


def _patterns(draws: torch.Generator) -> Tensor:
    """Draw one pattern a class, shape (10, 3, 16, 16), of blocks that are wider than the random shift of one pixel."""
    blocks = torch.randint(_NOISE, 256 - _NOISE, (_CLASSES, 3, _SIDE // _BLOCK, _SIDE // _BLOCK), generator=draws)
    return blocks.repeat_interleave(_BLOCK, dim=2).repeat_interleave(_BLOCK, dim=3)


def _draw(patterns: Tensor, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw images, `uint8` of shape (count, 3, 16, 16), and labels; classes are as even as the count allows."""
    labels = torch.arange(count) % _CLASSES
    noise = torch.randint(-_NOISE, _NOISE + 1, (count, *patterns.shape[1:]), generator=draws)
    return (patterns[labels] + noise).clamp(0, 255).to(torch.uint8), labels
