"""Data: what a data set must provide, the split, and batches as tensors on the training device.

There are two kinds. Small data sets are tensors (here): images stay `uint8` on the device; cropping, flipping and
normalising are batched tensor code, so loading is never the bottleneck. Pixels are padded with 0 before they are
normalised, as the usual pipelines do, which keeps the first layer's input on its 8-bit grid. Large ones are files that
are decoded while training goes on (`bench.data.image_loading`). What they share is `Contents` and `Subset`; everything
else deals with `TaskData` and sees no difference.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from bench import replicas
from bench.errors import BenchError
from bench.spec.seeds import generator

UNREADABLE = -100
"""The label, in evaluation, of an image that cannot be read: no class, and what PyTorch's losses leave out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """An image that cannot be read.

    Attributes:
        name: Of its file.
        reason: Why.
        instead: The name of the image that takes its place.
    """

    name: str
    reason: str
    instead: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of training images: zero padding and random crop back, random horizontal flip."""

    pad: int = 0
    flip: bool = False


class Subset(ABC):
    """Some images of a data set, and how they are read.

    Attributes:
        labels: `int64` (N,), on the training device.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """The images at `indices`, in that order."""

    @abstractmethod
    def on(self, device: torch.device, workers: int) -> Self:
        """The same images, ready for training.

        Args:
            device: Where batches are wanted.
            workers: Processes that may decode images; 0 for none but this one. They change no result.
        """

    @abstractmethod
    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of randomly changed images in random order, each replica its share.

        Everything random is drawn from `order`, alike on every replica: by the number of images and of batches alone.

        Args:
            batch_size: Images a batch; a smaller subset is one batch.
            batches: How many.
            order: The generator.
            skip: Leading batches that are drawn, but neither made nor returned.

        Returns:
            Images `uint8` (n, C, H, W) and labels (n,), on the device.
        """

    @abstractmethod
    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order without random changes, each replica its share, which may be empty.

        The label of one that cannot be read is `UNREADABLE`.
        """

    def tensors(self) -> Sequence[Tensor]:
        """What it holds in memory."""
        return [self.labels]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSubset(Subset):
    """Images and labels on the training device: `uint8` (N, C, H, W) and `int64` (N,)."""

    images: Tensor
    labels: Tensor
    augmentation: Augmentation = Augmentation()

    def take(self, indices: Tensor) -> Self:
        """The images at `indices`, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def on(self, device: torch.device, workers: int) -> Self:
        """The same images on the device; there is nothing to decode."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The order is drawn first, then the changes batch by batch as they are asked for."""
        permutation = torch.randperm(len(self), generator=order).to(self.labels.device)
        for number in range(batches):
            batch = self.take(permutation[number * batch_size : (number + 1) * batch_size])
            images = augment(batch.images, self.augmentation, order)
            if number >= skip:
                yield replicas.mine(images), replicas.mine(batch.labels)

    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield replicas.mine(self.images[part]), replicas.mine(self.labels[part])

    def tensors(self) -> Sequence[Tensor]:
        """Images and labels."""
        return [self.images, self.labels]


class Contents(ABC):
    """What a data set's files hold.

    Attributes:
        faults: Images that turned out to be unreadable so far; grows while images are read.
    """

    faults: Sequence[Fault] = ()

    @abstractmethod
    def checksum(self) -> str:
        """Changes with any image or label; each kind says how it is computed."""

    @abstractmethod
    def check(self, dataset: "Dataset") -> None:
        """Refuse contents that are not what the data set promises.

        Raises:
            BenchError: They are not.
        """

    @abstractmethod
    def parts(self, dataset: "Dataset") -> tuple[Subset, Subset]:
        """All training images and all test images, not on any device yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays(Contents):
    """A data set as it comes from its files, in memory as a whole.

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

    def check(self, dataset: "Dataset") -> None:
        """Compare shapes, types and labels.

        Raises:
            BenchError: They differ from what the data set's class says.
        """
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            _check_arrays(dataset, part, images, labels)

    def parts(self, dataset: "Dataset") -> tuple[TensorSubset, TensorSubset]:
        """Both parts, as they lie in memory."""
        how = dataset.augmentation
        return (
            TensorSubset(images=self.train_images, labels=self.train_labels, augmentation=how),
            TensorSubset(images=self.test_images, labels=self.test_labels, augmentation=how),
        )


class Dataset(ABC):
    """A data set: its shape, its statistics, its augmentation, and how to load it.

    A subclass is registered in the entry-point group `bench.datasets`. The harness makes it by `described`.

    Attributes:
        summary: One line for `bench list datasets`.
        image_shape: Channels, height, width.
        num_classes: Number of classes.
        training_images: How many there are, for estimates made without the data; `None` where that is not known.
        mean, std: Per channel, of pixels scaled to [0, 1].
        augmentation: Applied to training images that are tensors.
        counts_classes: Whether the number of classes is found in the data folder.
    """

    summary: ClassVar[str]
    image_shape: tuple[int, int, int]
    num_classes: int
    training_images: ClassVar[int | None] = None
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    augmentation: ClassVar[Augmentation] = Augmentation()
    counts_classes: ClassVar[bool] = False

    @classmethod
    def described(
        cls, *, image_size: int | None = None, classes: int | None = None, data_dir: Path | None = None
    ) -> Self:
        """The data set as a specification asks for it; no image is read.

        Args:
            image_size: Side of the images in pixels; the data set's own when absent.
            classes: Number of classes, for data sets that find it in their folder; looked up there when absent.
            data_dir: Where data sets are looked for.

        Raises:
            BenchError: The data set has no choice in what is asked for, or its folder is needed and is not there.
        """
        for key, value in (("image_size", image_size), ("classes", classes)):
            if value is not None:
                raise BenchError(
                    f"task.{key} = {value} has no effect on {cls.__name__}, which has {cls.num_classes} classes and "
                    f"images of {cls.image_shape[1]}×{cls.image_shape[2]}; leave it out"
                )
        return cls()

    @abstractmethod
    def load(self, data_dir: Path | None) -> Contents:
        """Read the data set, downloading it first when it is absent and the data set knows from where.

        Raises:
            BenchError: Files are missing and cannot be fetched, or are corrupt; the message says what was
                looked for and how to get it.
        """


class TaskData:
    """The three parts of a data set, ready for training.

    Args:
        dataset: Shapes and statistics.
        contents: What its files hold.
        validation_fraction: Share of the training images, class by class, that become the validation part.
        device: Where batches are wanted.
        train_images: Use only so many training images, class by class alike; all when absent.
        workers: Processes that may decode images; see `Subset.on`.

    Attributes:
        train, validation, test: The parts; `test` is read once per run, after the last epoch.
        checksum: Of the data and of the split.
        faults: Images that turned out to be unreadable so far.
        num_classes: Number of classes.
        image_shape: Channels, height, width.
        device: Where batches come.

    Raises:
        BenchError: The contents are not what the data set promises, or there are fewer images than asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        contents: Contents,
        *,
        validation_fraction: float,
        device: torch.device,
        train_images: int | None = None,
        workers: int = 0,
    ) -> None:
        contents.check(dataset)
        everything, test = contents.parts(dataset)
        train_indices, validation_indices = split(everything.labels, validation_fraction)
        if train_images is not None:
            train_indices = _thin_out(train_indices, everything.labels, train_images)
        self.train: Subset = everything.take(train_indices).on(device, workers)
        self.validation: Subset = everything.take(validation_indices).on(device, workers)
        self.test: Subset = test.on(device, workers)
        digest = hashlib.sha256(contents.checksum().encode())
        digest.update(validation_indices.numpy().tobytes())
        digest.update(train_indices.numpy().tobytes())
        self.checksum = digest.hexdigest()
        self.faults = contents.faults
        self.num_classes = dataset.num_classes
        self.image_shape = dataset.image_shape
        self.device = device
        self._mean = 255 * torch.tensor(dataset.mean, device=device).view(1, -1, 1, 1)
        self._std = 255 * torch.tensor(dataset.std, device=device).view(1, -1, 1, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn `uint8` images into normalised float32 images in channels-last memory order."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self._mean).div_(self._std)

    def training_batches(
        self, batch_size: int, order: torch.Generator, *, subset: Subset | None = None, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of augmented training batches in random order; a last, smaller batch is dropped.

        Replicas draw the same for the whole batch and are given each its share.

        Args:
            batch_size: Images a batch; a subset smaller than that gives one batch of all it has.
            order: Draws the order and the augmentation; an epoch draws always the same number of times.
            subset: The images to use; all training images when absent.
            skip: Leading batches to leave out, with everything drawn as if they were not; nothing is decoded for them.

        Raises:
            BenchError: A batch cannot be divided evenly among replicas, or too many images cannot be read.
        """
        source = self.train if subset is None else subset
        if (size := min(batch_size, len(source))) % replicas.count():
            raise BenchError(
                f"a batch of {size} images cannot be divided evenly among {replicas.count()} devices: this "
                f"part of the training data has fewer images than batch_size = {batch_size}; choose a smaller "
                "batch_size, a multiple of the devices"
            )
        for images, labels in source.augmented(batch_size, self.batches_per_epoch(batch_size, source), order, skip):
            yield self.normalize(images), labels

    def batches_per_epoch(self, batch_size: int, subset: Subset | None = None) -> int:
        """Number of training batches in one epoch, at least one."""
        return max(1, len(self.train if subset is None else subset) // batch_size)

    def evaluation_batches(self, subset: Subset, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of a subset in their order, unchanged but for normalising; replicas are given shares of batches.

        Shares differ by one image where a batch cannot be divided evenly, and may be empty. An image that cannot be
        read has the label `UNREADABLE`: it is to be counted as wrong.

        Raises:
            BenchError: Too many images cannot be read.
        """
        for images, labels in subset.unchanged(batch_size):
            yield self.normalize(images), labels

    def calibration_batches(self, count: int, batch_size: int) -> Sequence[Tensor]:
        """A fixed choice of training images without augmentation, for statistics and metrics.

        As in training a last, smaller batch is dropped, which might hold one image: a batch normalisation has no
        statistics of one value a channel. The whole batches on every replica, for passes inside `replicas.alone`.
        """
        count = min(count, self.batches_per_epoch(batch_size))
        chosen = torch.randperm(len(self.train), generator=generator("calibration"))[: count * batch_size]
        with replicas.alone():
            return [self.normalize(images) for images, _ in self.train.take(chosen).unchanged(batch_size)]


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

    def _begin(self, skip: int = 0) -> None:
        self._drawn_from = self._order.get_state()
        self._taken = skip
        self._batches = self._data.training_batches(self._batch_size, self._order, subset=self._subset, skip=skip)

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
        """Go to a place in the stream; batches before it are not made again."""
        self._order.set_state(state["drawn_from"])
        self._begin(skip=int(state["taken"]))
        if self._taken == self._data.batches_per_epoch(self._batch_size, self._subset):
            next(self._batches, None)  # the next epoch is drawn after all of this one


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


def _check_arrays(dataset: Dataset, part: str, images: Tensor, labels: Tensor) -> None:
    """Refuse arrays that are not what the data set's class promises."""
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
