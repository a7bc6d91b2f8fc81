"""Images in files: finds them below a folder, and turns each into pixels of one size.

A table of a million images is a few arrays, not a million objects: a process that is forked to decode images would
copy every object that it only looks at.
"""

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import BenchError

SUFFIXES = (b".jpg", b".jpeg", b".png", b".ppm", b".pgm", b".bmp", b".tif", b".tiff", b".webp")
"""What names of images end in, in small or capital letters; those that torchvision's folders take."""

_JPEG = b"\xff\xd8\xff"
_MOST_ELONGATED = 100
"""Sides of an image. The resized one of a longer image would take gigabytes."""
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableError(Exception):
    """An image cannot be read; the text says why in a few words."""


# --- which images there are ----------------------------------------------------------------------------------------


class ImageTable:
    """Name, size and class of every image below a folder, by class and then by name.

    Attributes:
        folder: Absolute.
        classes: Names of classes: those of the folders in it, sorted.
        labels: Index of the class, int64 (N,).
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = classes
        names, lengths, sizes, labels = [], [], [], []
        for label, name in enumerate(classes):
            found = sorted(_images_below(os.fsencode(folder), os.fsencode(name)))
            names.append(b"".join(path for path, _ in found))
            lengths += [np.array([len(path) for path, _ in found], dtype=np.int64)]
            sizes += [np.array([size for _, size in found], dtype=np.int64)]
            labels += [np.full(len(found), label, dtype=np.int64)]
        self._names = b"".join(names)
        self._ends = np.cumsum(np.concatenate(lengths))
        self._sizes = np.concatenate(sizes)
        self.labels: NDArray[np.int64] = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, row: int) -> str:
        """Of an image, relative to the folder."""
        return os.fsdecode(self._name(row))

    def read(self, row: int) -> bytearray:
        """The file of an image.

        Raises:
            UnreadableError: It cannot be read, or is empty.
        """
        try:
            with open(os.path.join(os.fsencode(self.folder), self._name(row)), "rb", buffering=0) as file:  # noqa: PTH118, PTH123
                content = bytearray(file.read())
        except OSError as error:
            if error.errno in _NOT_THE_FILE:
                raise
            raise UnreadableError(error.strerror or str(error)) from error
        if not content:
            raise UnreadableError("the file is empty")
        return content

    def digest(self) -> bytes:
        """SHA-256 over names, sizes of files in bytes, and labels, in their order; no image is read."""
        digest = hashlib.sha256(self._names)
        for numbers in (self._ends, self._sizes, self.labels):
            digest.update(numbers.tobytes())
        return digest.digest()

    def _name(self, row: int) -> bytes:
        begin = int(self._ends[row - 1]) if row else 0
        return self._names[begin : int(self._ends[row])]


def classes_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; those that begin with a dot are left out.

    Raises:
        BenchError: The folder cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise BenchError(f"cannot read the images in {folder}: {error.strerror or error}") from error


def _images_below(root: bytes, name: bytes) -> Iterator[tuple[bytes, int]]:
    """Name relative to the root and size of every image below a folder of it; hidden ones are left out."""
    try:
        with os.scandir(os.path.join(root, name)) as entries:  # noqa: PTH118
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                inner = name + b"/" + entry.name
                if entry.name.lower().endswith(SUFFIXES):
                    yield inner, _size(entry)
                elif entry.is_dir():
                    yield from _images_below(root, inner)
    except OSError as error:
        raise BenchError(f"cannot read the images in {os.fsdecode(root)}: {error}") from error


def _size(entry: "os.DirEntry[bytes]") -> int:
    """Of a file in bytes; -1 of a link that leads nowhere, which turns out to be unreadable when it is its turn."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return -1


# --- pixels ----------------------------------------------------------------------------------------------------------


def decode(content: bytearray) -> Tensor:
    """The pixels of an image file, `uint8` (3, H, W): red, green, blue, side by side in memory.

    Grey images have three equal channels; transparency is dropped; of 16 bits the upper 8 are taken; an orientation
    that the file notes (EXIF) is ignored, as networks for ImageNet are commonly trained.

    Raises:
        UnreadableError: It is no image, or it is damaged.
    """
    try:
        pixels = _decode_jpeg(content) if content.startswith(_JPEG) else None
        pixels = _decode_any(content) if pixels is None else pixels
    except MemoryError:
        raise
    except Exception as error:  # libraries raise whatever comes to hand when a file is damaged
        raise UnreadableError(_in_short(error)) from error
    if max(pixels.shape[1:]) > _MOST_ELONGATED * min(pixels.shape[1:]):
        raise UnreadableError(f"{pixels.shape[2]}×{pixels.shape[1]} pixels are too long for their width")
    return _side_by_side(pixels)


def _side_by_side(pixels: Tensor) -> Tensor:
    """The same pixels in memory as files mostly have them, and as everything after this is fastest."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _decode_jpeg(content: bytearray) -> Tensor | None:
    """Pixels of a JPEG file by the fastest decoder; `None` where its colours need the other one (CMYK)."""
    from torchvision.io import decode_jpeg

    pixels: Tensor = decode_jpeg(torch.frombuffer(content, dtype=torch.uint8))
    if len(pixels) == 1:
        return pixels.expand(3, -1, -1)
    return pixels if len(pixels) == 3 else None


def _decode_any(content: bytearray) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith("I;16"):  # `convert` would cut everything above 255 off
            grey = torch.from_numpy((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
            return grey.expand(3, -1, -1)
        pixels: NDArray[Any] = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _in_short(error: Exception) -> str:
    """The last words of an error's first line: decoders begin with places in their sources."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition(".cpp:")[2].partition(", ")[2] or lines[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """How an image becomes a square of one size: its shorter side is resized, then a window is cut out.

    Attributes:
        resize: Of the shorter side, in pixels; the ratio of the sides is kept.
        crop: Side of the window, at most that.
    """

    resize: int
    crop: int

    def centre(self, pixels: Tensor) -> Tensor:
        """The window in the middle, (3, crop, crop)."""
        resized = self._resized(pixels)
        top, left = (round((side - self.crop) / 2.0) for side in resized.shape[1:])
        return resized[:, top : top + self.crop, left : left + self.crop]

    def random(self, pixels: Tensor, row: float, column: float, flip: float) -> Tensor:
        """A window anywhere, mirrored or not, (3, crop, crop).

        Args:
            pixels: `uint8` (3, H, W).
            row: Where it is, of all places from top to bottom: uniform in [0, 1).
            column: The same from left to right.
            flip: Mirrored below ½.
        """
        resized = self._resized(pixels)
        places = (side - self.crop + 1 for side in resized.shape[1:])
        top, left = (int(share * count) for share, count in zip((row, column), places, strict=True))
        window = resized[:, top : top + self.crop, left : left + self.crop]
        return window.flip(2) if flip < 0.5 else window

    def _resized(self, pixels: Tensor) -> Tensor:
        """Bilinear with antialiasing, as Pillow does it; sizes are rounded as torchvision's `Resize` does."""
        height, width = pixels.shape[1:]
        short, long = min(height, width), max(height, width)
        if short == self.resize:
            return pixels
        longer = int(self.resize * long / short)
        size = (self.resize, longer) if height <= width else (longer, self.resize)
        # As a batch of one whose strides say that colours are side by side: nearly twice as fast as without.
        batch = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]
