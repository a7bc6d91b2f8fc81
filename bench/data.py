"""Data: what a data set must provide, the split, and batches as tensors on the training device.

Images stay `uint8` on the device; cropping, flipping and normalising are batched tensor code, so loading is
never the bottleneck. Pixels are padded with 0 before they are normalised, as the usual pipelines do, which
keeps the first layer's input on its 8-bit grid.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import replicas
from bench.errors import BenchError
from bench.seeds import generator


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of training images: zero padding and random crop back, random horizontal flip."""

    pad: int = 0
    flip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """A data set as it comes from its files.

    Attributes:
        train_images, test_images: `uint8`, shape (N, C, H, W).
        train_labels, test_labels: `int64`, shape (N,).
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def checksum(self) -> str:
        """SHA-256 over all images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


class Dataset(ABC):
    """A data set: its shape, its statistics, its augmentation, and how to load it.

    A subclass is registered in the entry-point group `bench.datasets`.

    Attributes:
        summary: One line for `bench list datasets`.
        image_shape: Channels, height, width.
        num_classes: Number of classes.
        training_images: How many there are, for estimates made without the data; `None` where that is not known.
        mean, std: Per channel, of pixels scaled to [0, 1].
        augmentation: Applied to training images.
    """

    summary: ClassVar[str]
    image_shape: ClassVar[tuple[int, int, int]]
    num_classes: ClassVar[int]
    training_images: ClassVar[int | None] = None
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    augmentation: ClassVar[Augmentation]

    @abstractmethod
    def load(self, data_dir: Path | None) -> Arrays:
        """Read the arrays, downloading them first when they are absent and the data set knows from where.

        Raises:
            BenchError: Files are missing and cannot be fetched, or are corrupt; the message says what was
                looked for and how to get it.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """Images and labels on the training device: `uint8` (N, C, H, W) and `int64` (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Subset":
        """The images at `indices`, in that order."""
        return Subset(images=self.images[indices], labels=self.labels[indices])


class TaskData:
    """The three parts of a data set, ready for training.

    Attributes:
        train, validation, test: The parts; `test` is read once per run, after the last epoch.
        checksum: Of the data and of the split.
    """

    def __init__(
        self,
        dataset: Dataset,
        arrays: Arrays,
        *,
        validation_fraction: float,
        device: torch.device,
        train_images: int | None = None,
    ) -> None:
        _check_arrays(dataset, arrays)
        train_indices, validation_indices = split(arrays.train_labels, validation_fraction)
        if train_images is not None:
            train_indices = _thin_out(train_indices, arrays.train_labels, train_images)
        everything = Subset(images=arrays.train_images, labels=arrays.train_labels)
        self.train = _to_device(everything.take(train_indices), device)
        self.validation = _to_device(everything.take(validation_indices), device)
        self.test = _to_device(Subset(images=arrays.test_images, labels=arrays.test_labels), device)
        digest = hashlib.sha256(arrays.checksum().encode())
        digest.update(validation_indices.numpy().tobytes())
        digest.update(train_indices.numpy().tobytes())
        self.checksum = digest.hexdigest()
        self.num_classes = dataset.num_classes
        self.image_shape = dataset.image_shape
        self.augmentation = dataset.augmentation
        self.device = device
        self._mean = 255 * torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(dataset.std, device=device).view(1, -1, 1, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn `uint8` images into normalised float32 images in channels-last memory order."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self._mean).div_(self._std)

    def training_batches(
        self, batch_size: int, order: torch.Generator, *, subset: Subset | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of augmented training batches in random order; a last, smaller batch is dropped.

        Replicas draw the same for the whole batch and are given each its share.

        Args:
            batch_size: Images a batch; a subset smaller than that gives one batch of all it has.
            order: Draws the order and the augmentation.
            subset: The images to use; all training images when absent.

        Raises:
            BenchError: A batch cannot be divided evenly among replicas.
        """
        source = self.train if subset is None else subset
        permutation = torch.randperm(len(source), generator=order).to(self.device)
        for start in range(0, self.batches_per_epoch(batch_size, source) * batch_size, batch_size):
            batch = source.take(permutation[start : start + batch_size])
            if len(batch) % replicas.count():
                raise BenchError(
                    f"a batch of {len(batch)} images cannot be divided evenly among {replicas.count()} devices: this "
                    f"part of the training data has fewer images than batch_size = {batch_size}; choose a smaller "
                    "batch_size, a multiple of the devices"
                )
            images = augment(batch.images, self.augmentation, order)
            yield self.normalize(replicas.mine(images)), replicas.mine(batch.labels)

    def batches_per_epoch(self, batch_size: int, subset: Subset | None = None) -> int:
        """Number of training batches in one epoch, at least one."""
        return max(1, len(self.train if subset is None else subset) // batch_size)

    def evaluation_batches(self, subset: Subset, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a subset in their order, unchanged but for normalising; replicas are given shares of batches.

        Shares differ by one image where a batch cannot be divided evenly, and may be empty.
        """
        for start in range(0, len(subset), batch_size):
            part = slice(start, start + batch_size)
            yield self.normalize(replicas.mine(subset.images[part])), replicas.mine(subset.labels[part])

    def calibration_batches(self, count: int, batch_size: int) -> Sequence[Tensor]:
        """A fixed choice of training images without augmentation, for statistics and metrics.

        The whole batches on every replica, for passes inside `replicas.alone`.
        """
        chosen = torch.randperm(len(self.train), generator=generator("calibration"))[: count * batch_size]
        images = self.train.take(chosen.to(self.device)).images
        return [self.normalize(part) for part in torch.split(images, batch_size)]


class BatchStream:
    """Training batches without end, epoch after epoch, from a subset; its place can be kept and found again.

    Args:
        data: Where the images come from.
        batch_size: Images a batch.
        order: Draws the order and the augmentation.
        subset: The images to use.
    """

    def __init__(self, data: TaskData, batch_size: int, order: torch.Generator, subset: Subset) -> None:
        self._data, self._batch_size, self._order, self._subset = data, batch_size, order, subset
        self._begin()

    def _begin(self) -> None:
        self._drawn_from = self._order.get_state()
        self._taken = 0
        self._batches = self._data.training_batches(self._batch_size, self._order, subset=self._subset)

    def __next__(self) -> tuple[Tensor, Tensor]:
        """The next batch."""
        if self._taken == self._data.batches_per_epoch(self._batch_size, self._subset):
            self._begin()
        self._taken += 1
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream: the generator before the present epoch, and batches taken since."""
        return {"drawn_from": self._drawn_from, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a place in the stream."""
        self._order.set_state(state["drawn_from"])
        self._begin()
        for _ in range(state["taken"]):
            next(self)


def split(labels: Tensor, validation_fraction: float) -> tuple[Tensor, Tensor]:
    """Split training indices into training and validation, class by class, always in the same way.

    Args:
        labels: Shape (N,).
        validation_fraction: Share of each class that goes to validation, rounded.

    Returns:
        Indices for training and for validation, each in rising order.
    """
    shuffled = torch.randperm(len(labels), generator=generator("split"))
    validation = []
    for label in torch.unique(labels, sorted=True):
        members = shuffled[labels[shuffled] == label]
        validation.append(members[: round(validation_fraction * len(members))])
    chosen = torch.cat(validation).sort().values
    is_training = torch.ones(len(labels), dtype=torch.bool)
    is_training[chosen] = False
    return is_training.nonzero().flatten(), chosen


def augment(images: Tensor, augmentation: Augmentation, order: torch.Generator) -> Tensor:
    """Random crop after zero padding and random horizontal flip, each image by its own draw.

    Args:
        images: Shape (N, C, H, W), any type.
        augmentation: What to do.
        order: The generator (CPU) that draws offsets and flips.
    """
    count, _, height, width = images.shape
    rows = torch.arange(height).expand(count, height)
    columns = torch.arange(width).expand(count, width)
    if augmentation.flip:
        flipped = torch.rand(count, 1, generator=order) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    if augmentation.pad:
        offsets = torch.randint(0, 2 * augmentation.pad + 1, (2, count, 1), generator=order)
        rows, columns = rows + offsets[0], columns + offsets[1]
        images = torch.nn.functional.pad(images, (augmentation.pad,) * 4)
    if not augmentation.flip and not augmentation.pad:
        return images
    # One gather: index every pixel of the result in the padded images.
    rows, columns = rows.to(images.device), columns.to(images.device)
    image = torch.arange(count, device=images.device).view(-1, 1, 1)
    gathered = images.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)]
    return gathered.permute(0, 3, 1, 2)


def _thin_out(indices: Tensor, labels: Tensor, count: int) -> Tensor:
    """The same share of every class, `count` images in all but for rounding, in rising order.

    Raises:
        BenchError: There are not so many.
    """
    if count > len(indices):
        raise BenchError(f"task.train_images is {count}; the training part has {len(indices)} images")
    kept = split(labels[indices], count / len(indices))[1]
    return indices[kept]


def _to_device(subset: Subset, device: torch.device) -> Subset:
    return Subset(images=subset.images.to(device), labels=subset.labels.to(device))


def _check_arrays(dataset: Dataset, arrays: Arrays) -> None:
    """Refuse arrays that are not what the data set's class promises."""
    for part, images, labels in (
        ("training", arrays.train_images, arrays.train_labels),
        ("test", arrays.test_images, arrays.test_labels),
    ):
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
    """Images (N, H, W, C) or (N, H, W) as files hold them → tensor (N, C, H, W)."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
