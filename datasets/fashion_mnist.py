"""Fashion-MNIST (Xiao et al. 2017): 28×28 grey pictures, 60,000 for training and 10,000 for testing."""

import struct
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.api import Arrays, Augmentation, BenchError, Dataset
from datasets.shared.files import Check, PublishedFiles, layout_check, locate, paths

_FOLDER = "FashionMNIST/raw"
_COUNTS = {"train": 60_000, "t10k": 10_000}
# The IDX format's first word: two zero bytes, the type (8: bytes), the number of dimensions.
_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801


class FashionMnist(Dataset):
    """Ten classes. Mean and standard deviation are the values of the 60,000 training images that are usually published.

    The published checksums are those of the compressed files; torchvision compares them after a download. Unpacked
    files are checked by size and header.
    """

    summary = "10 classes of 28×28 grey pictures of clothing; 60,000 training and 10,000 test images"
    image_shape = (1, 28, 28)
    num_classes = 10
    training_images = 60_000
    mean = (0.2860,)
    std = (0.3530,)
    augmentation = Augmentation(pad=2, flip=True)

    @classmethod
    def files(cls, data_dir: Path | None) -> list[Path]:
        """List the paths of all files; nothing is read or downloaded."""
        import torchvision.datasets

        return paths(_published(torchvision.datasets.FashionMNIST), data_dir)

    def load(self, data_dir: Path | None) -> Arrays:
        """Read the arrays from torchvision's folder; missing files are downloaded.

        Raises:
            BenchError: Files are missing and cannot be downloaded, or are corrupt.
        """
        import torchvision.datasets

        folder = locate(_published(torchvision.datasets.FashionMNIST), data_dir) / _FOLDER
        train_images, train_labels = _read(folder, "train")
        test_images, test_labels = _read(folder, "t10k")
        return Arrays(
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
        )


def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Read images (N, 1, 28, 28) and labels (N,) of one part."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images, labels = (folder / name for name in _files(part))
    return read_image_file(str(images)).unsqueeze(1), read_label_file(str(labels))


def _files(part: str) -> dict[str, Check]:
    """List the two files of a part with their checks, images first."""
    count = _COUNTS[part]
    images = struct.pack(">4I", _IMAGES_MAGIC, count, 28, 28)
    labels = struct.pack(">2I", _LABELS_MAGIC, count)
    return {
        f"{part}-images-idx3-ubyte": _idx_check(images, count, 28 * 28),
        f"{part}-labels-idx1-ubyte": _idx_check(labels, count, 1),
    }


def _idx_check(header: bytes, count: int, item: int) -> Check:
    """Make a check of a file in the idx format; one that is intact but holds other items is not called corrupt.

    Args:
        header: Header of the published file.
        count: Number of its items.
        item: Size of an item in bytes.
    """
    check = layout_check(header, len(header) + count * item)

    def checked(path: Path) -> str | None:
        with path.open("rb") as file:
            found = file.read(len(header))
        held = int.from_bytes(found[4:8], "big")
        alike = found[:4] + found[8:] == header[:4] + header[8:]
        if alike and held != count and path.stat().st_size == len(header) + held * item:
            raise BenchError(
                f"{path} is intact but holds {held:,} items, and the published file {count:,}; give a folder with the "
                "published files with --data-dir DIR"
            )
        return check(path)

    return checked


def _published(torchvision_class: Any) -> PublishedFiles:
    """Collect files, checksums and download from torchvision's class."""
    return PublishedFiles(
        name="fashion_mnist",
        folder=_FOLDER,
        files=_files("train") | _files("t10k"),
        archives={f"{_FOLDER}/{file}": md5 for file, md5 in torchvision_class.resources},
        download=lambda folder: torchvision_class(folder, download=True),
    )
