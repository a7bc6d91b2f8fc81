"""Data sets: what one must provide, and contents that are tensors in memory.

There are two kinds of contents. Small data sets are tensors (`Arrays`, here). Their images stay `uint8` on the device;
cropping, flipping and normalising are batched tensor operations, so that loading does not slow training down. Large
data sets are files that are decoded during training (`bench.data.image_loading`). Both kinds give a `Subset` of
training images and one of test images. All other code deals with `TaskData` and does not depend on the kind.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from bench.data.subset import Augmentation, Fault, Subset, TensorSubset
from bench.errors import BenchError
from bench.spec.schema import ImageOptions


class Contents(ABC):
    """The images and labels of a data set, as its files hold them.

    Attributes:
        faults: Images that proved unreadable so far; the list grows while images are read.
    """

    faults: Sequence[Fault] = ()

    @abstractmethod
    def checksum(self) -> str:
        """Compute a checksum that changes with any image or label."""

    @abstractmethod
    def check(self, dataset: "Dataset") -> None:
        """Check that the contents agree with the data set's class.

        Raises:
            BenchError: They do not.
        """

    @abstractmethod
    def parts(self, dataset: "Dataset") -> tuple[Subset, Subset]:
        """Return all training images and all test images, not yet on the training device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays(Contents):
    """A whole data set in memory.

    Attributes:
        train_images, test_images: Images, `uint8` of shape (N, C, H, W).
        train_labels, test_labels: Labels, `int64` of shape (N,).
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def checksum(self) -> str:
        """Compute the SHA-256 of all images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check(self, dataset: "Dataset") -> None:
        """Check that shapes, types and labels agree with the data set's class.

        Raises:
            BenchError: They do not.
        """
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            _check_arrays(dataset, part, images, labels)

    def parts(self, dataset: "Dataset") -> tuple[TensorSubset, TensorSubset]:
        """Return the training images and the test images."""
        augmentation = dataset.augmentation
        return (
            TensorSubset(images=self.train_images, labels=self.train_labels, augmentation=augmentation),
            TensorSubset(images=self.test_images, labels=self.test_labels, augmentation=augmentation),
        )


class Dataset(ABC):
    """A data set: its shape, statistics and augmentation, and the code that loads it.

    A subclass is registered in the entry-point group `bench.datasets`. The harness makes an instance with `described`.

    Attributes:
        summary: One line for `bench list datasets`.
        image_shape: Channels, height and width of an image.
        num_classes: Number of classes.
        training_images: Number of training images, for estimates that do not load the data; `None` if it is unknown.
        mean, std: Mean and standard deviation per channel, of pixels scaled to [0, 1].
        augmentation: Random changes of training images that are tensors.
        counts_classes: Whether the number of classes is counted in the data folder.
    """

    summary: ClassVar[str]
    image_shape: tuple[int, int, int]
    num_classes: int
    training_images: ClassVar[int | None] = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: ClassVar[Augmentation] = Augmentation()
    counts_classes: ClassVar[bool] = False

    @classmethod
    def described(
        cls,
        *,
        image_size: int | None = None,
        classes: int | None = None,
        data_dir: Path | None = None,
        images: ImageOptions | None = None,
    ) -> Self:
        """Make the data set that a specification describes; no image is read.

        Args:
            image_size: Side of the images in pixels; the data set's own size by default.
            classes: Number of classes, for data sets that count them in their folder; counted there by default.
            data_dir: Folder in which data sets are looked for.
            images: Reading and random changes of images, for image folders; `None` is not passed to data sets.

        Raises:
            BenchError: The data set does not support the given value, or it needs its folder and the folder is missing.
        """
        if images is not None:
            raise BenchError(f"task.images has no effect on {cls.__name__}; it is for image folders, so leave it out")
        for key, value in (("image_size", image_size), ("classes", classes)):
            if value is not None:
                raise BenchError(
                    f"task.{key} = {value} has no effect on {cls.__name__}, which has {cls.num_classes} classes and "
                    f"images of {cls.image_shape[1]}×{cls.image_shape[2]}; leave it out"
                )
        return cls()

    @abstractmethod
    def load(self, data_dir: Path | None) -> Contents:
        """Read the data set. If it is missing and can be downloaded, download it first.

        Raises:
            BenchError: Files are missing and cannot be downloaded, or are corrupt. The message names the files that
                were looked for and says how to get them.
        """


def _check_arrays(dataset: Dataset, part: str, images: Tensor, labels: Tensor) -> None:
    """Check that one part's arrays agree with the data set's class."""
    name = type(dataset).__name__
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != dataset.image_shape or len(images) != len(labels):
        raise BenchError(
            f"the {part} images of {name} have shape {tuple(images.shape)} and type {images.dtype} "
            f"with {len(labels)} labels; expected uint8 images of shape (N, *{dataset.image_shape})"
        )
    known = labels.dtype == torch.int64 and len(labels) > 0
    if not known or int(labels.min()) < 0 or int(labels.max()) >= dataset.num_classes:
        raise BenchError(f"the {part} labels of {name} are not all int64 in 0 to {dataset.num_classes - 1}")


def as_uint8(images: np.ndarray) -> Tensor:
    """Turn images of shape (N, H, W, C) or (N, H, W), as in files, into a tensor of shape (N, C, H, W)."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
