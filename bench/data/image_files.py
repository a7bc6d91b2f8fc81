"""Image files: list them below a folder, decode them, and cut out squares of one size.

A table of a million images is a few arrays, not a million objects. A forked process that decodes images would otherwise
copy the memory of every object that it reads.
"""

import errno
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bench.errors import BenchError
from bench.spec.schema import ImageOptions

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (b".jpg", b".jpeg", b".png", b".ppm", b".pgm", b".bmp", b".tif", b".tiff", b".webp")
"""Endings of image files in small or capital letters, the same as in torchvision's folders."""

_MOST_ELONGATED = 100
"""Largest ratio of an image's sides. Resized images with a larger one could take gigabytes."""
_SCALED_TO_16_BITS = ("PNG", "PPM")
"""Formats whose 16-bit pixels Pillow may give as 32-bit numbers from 0 to 65535."""
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
"""Tags of TIFF files."""
_NOT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that do not mean that the file is unreadable."""


class UnreadableError(Exception):
    """An image cannot be read; the message gives the reason in a few words."""


# --- names of images ----------------------------------------------------------------------------------------


class ImageTable:
    """Name, size and class of every image below a folder, by class and then by name.

    Attributes:
        folder: Absolute path of the folder.
        classes: Sorted names of the folders in it, one per class.
        labels: Index of each image's class, int64 (N,).
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = classes
        names, lengths, sizes, labels = [], [], [], []
        for label, name in enumerate(classes):
            images = sorted(_images_below(os.fsencode(folder), os.fsencode(name)))
            names.append(b"".join(path for path, _ in images))
            lengths += [np.array([len(path) for path, _ in images], dtype=np.int64)]
            sizes += [np.array([size for _, size in images], dtype=np.int64)]
            labels += [np.full(len(images), label, dtype=np.int64)]
        self._names = b"".join(names)
        self._ends = np.cumsum(np.concatenate(lengths))
        self._sizes = np.concatenate(sizes)
        self.labels: NDArray[np.int64] = np.concatenate(labels)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, row: int) -> str:
        """Return the path of an image, relative to the folder."""
        return os.fsdecode(self._name(row))

    def read(self, row: int) -> bytearray:
        """Read the content of an image's file.

        Raises:
            UnreadableError: The file cannot be read, or is empty.
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
        """Compute the SHA-256 of names, file sizes in bytes and labels, in their order; no image is read."""
        digest = hashlib.sha256(self._names)
        for numbers in (self._ends, self._sizes, self.labels):
            digest.update(numbers.tobytes())
        return digest.digest()

    def _name(self, row: int) -> bytes:
        begin = int(self._ends[row - 1]) if row else 0
        return self._names[begin : int(self._ends[row])]


def classes_in(folder: Path) -> list[str]:
    """List the names of the folders in a folder, sorted, without those that begin with a dot.

    Raises:
        BenchError: The folder cannot be read.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise BenchError(f"cannot read the images in {folder}: {error.strerror or error}") from error


def _images_below(root: bytes, name: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield path relative to the root and size of every image below a folder of it, without hidden ones."""
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
    """Return the size of a file in bytes; -1 for a broken link, which is reported when its image is read."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return -1


# --- pixels ----------------------------------------------------------------------------------------------------------


def decode(content: bytearray) -> Tensor:
    """Decode an image file into pixels, `uint8` (3, H, W): red, green, blue, in channels-last memory order.

    Grey images get three equal channels, transparency is dropped, and the upper 8 of 16 bits are kept. An orientation
    in the file (EXIF) is ignored, as is common for ImageNet.

    Raises:
        UnreadableError: The file is not an image, is damaged, or has pixels without a fixed range.
    """
    try:
        pixels = _pixels(content)
    except MemoryError:
        raise
    except Exception as error:  # libraries raise all kinds of exceptions when a file is damaged
        raise UnreadableError(_in_short(error)) from error
    if max(pixels.shape[1:]) > _MOST_ELONGATED * min(pixels.shape[1:]):
        raise UnreadableError(f"{pixels.shape[2]}×{pixels.shape[1]} pixels are too long for their width")
    return _channels_last(pixels)


def _channels_last(pixels: Tensor) -> Tensor:
    """Put pixels into channels-last memory order, the order of most files, in which later operations are fastest."""
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _pixels(content: bytearray) -> Tensor:
    """Decode a file with Pillow; for JPEG it gives the same bits as torchvision, whose own decoders are deprecated."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        if image.mode[0] in "IF":  # `convert` would clip values above 255
            return torch.from_numpy(_upper_byte(image)).expand(3, -1, -1)
        pixels: NDArray[Any] = np.array(image if image.mode == "RGB" else image.convert("RGB"))  # no second copy
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _upper_byte(image: "Image.Image") -> NDArray[np.uint8]:
    """Return the upper 8 bits of grey values with 9 to 16 bits, (H, W).

    Raises:
        UnreadableError: The values have no fixed range: floating-point, signed or 32-bit numbers.
    """
    scaled = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SCALED_TO_16_BITS)
    if not scaled:
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise UnreadableError(f"its pixels are {kind} numbers without a fixed range; convert it to 8 bits")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    grey: NDArray[np.uint8] = (np.asarray(image).astype(np.uint16) >> (bits - 8)).astype(np.uint8)
    return np.invert(grey) if tags.get(_PHOTOMETRIC) == 0 else grey  # 0: large values are dark


def _in_short(error: Exception) -> str:
    """Return the first line of an error, or its kind."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its message names an object in memory
        return "it is not an image, or its beginning is damaged"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """Cut squares of one size out of images, after resizing their shorter side.

    Attributes:
        resize: Length of the shorter side in pixels; the ratio of the sides is kept.
        crop: Side of the square window, at most `resize`.
        options: Channels, and random changes in training.
    """

    resize: int
    crop: int
    options: ImageOptions = field(default_factory=ImageOptions)

    @property
    def draws(self) -> int:
        """Number of draws for each training image."""
        return 6 if self.options.colour else 3

    def centre(self, pixels: Tensor) -> Tensor:
        """Cut out the window in the middle, (channels, crop, crop)."""
        return self._in_channels(self._middle(self._resized(pixels)))

    def random(self, pixels: Tensor, row: float, column: float, flip: float, *colour: float) -> Tensor:
        """Change an image at random: by default a window at a random position, possibly flipped.

        Args:
            pixels: Pixels, `uint8` (3, H, W).
            row: Draw of the vertical position, uniform in [0, 1).
            column: Draw of the horizontal position, uniform in [0, 1).
            flip: Draw of the flip; below ½ the window is flipped horizontally.
            colour: Draws of brightness, contrast and saturation, if colours are changed.

        Returns:
            Pixels, `uint8` (channels, crop, crop).
        """
        resized = self._resized(pixels)
        if self.options.crop == "middle":
            window = self._middle(resized)
        else:
            positions = (side - self.crop + 1 for side in resized.shape[1:])
            top, left = (int(draw * count) for draw, count in zip((row, column), positions, strict=True))
            window = resized[:, top : top + self.crop, left : left + self.crop]
        if self.options.mirror and flip < 0.5:
            window = window.flip(2)
        return self._in_channels(self._recoloured(window, colour))

    def _middle(self, resized: Tensor) -> Tensor:
        top, left = (round((side - self.crop) / 2.0) for side in resized.shape[1:])
        return resized[:, top : top + self.crop, left : left + self.crop]

    def _recoloured(self, window: Tensor, draws: tuple[float, ...]) -> Tensor:
        """Change brightness, contrast and saturation, in this order, as torchvision does."""
        if not self.options.colour:
            return window
        from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation

        for change, draw in zip((adjust_brightness, adjust_contrast, adjust_saturation), draws, strict=True):
            window = change(window, 1 + self.options.colour * (2 * draw - 1))
        return window

    def _in_channels(self, window: Tensor) -> Tensor:
        """Return the image as it is, or in grey."""
        if self.options.channels == 3:
            return window
        from torchvision.transforms.v2.functional import rgb_to_grayscale

        grey: Tensor = rgb_to_grayscale(window)
        return grey

    def _resized(self, pixels: Tensor) -> Tensor:
        """Resize bilinearly with antialiasing, like Pillow; round sizes like torchvision's `Resize`."""
        height, width = pixels.shape[1:]
        short, long = min(height, width), max(height, width)
        if short == self.resize:
            return pixels
        longer = int(self.resize * long / short)
        size = (self.resize, longer) if height <= width else (longer, self.resize)
        # A batch of one in channels-last order: nearly twice as fast.
        batch = pixels.permute(1, 2, 0).unsqueeze(0).permute(0, 3, 1, 2)
        return F.interpolate(batch, size, mode="bilinear", antialias=True)[0]
