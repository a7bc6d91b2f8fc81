"""Image files for tests, made here."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth random colour picture."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def make_folder(root: Path, *, train: int = 20, test: int = 5, classes: str = "abcd", test_name: str = "val") -> Path:
    """A folder with so many pictures of each class in both parts, all of different sizes."""
    for part, count in (("train", train), (test_name, test)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = picture(1000 * label + number + 500 * (part != "train"), 30 + number % 7, 30 + number % 5)
                image.save(root / part / name / f"{number:03}.jpg", quality=90)
    return root


def cut_short(path: Path, size: int = 300) -> None:
    """Keep the first bytes of a file only."""
    path.write_bytes(path.read_bytes()[:size])
