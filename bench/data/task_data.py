"""The training, validation and test parts of a data set, as batches for training and evaluation."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench import replicas
from bench.data.dataset import Contents, Dataset
from bench.data.subset import Subset
from bench.errors import BenchError
from bench.spec.seeds import generator


class TaskData:
    """The three parts of a data set, ready for training.

    Args:
        dataset: Data set, with shapes and statistics.
        contents: Images and labels.
        validation_fraction: Share of each class of the training images that becomes the validation part.
        device: Device of the batches.
        train_images: Number of training images to use, the same share of each class; all by default.
        workers: Number of processes that decode images; see `Subset.on`.

    Attributes:
        train, validation, test: The parts; `test` is read once per run, after the last epoch.
        checksum: Checksum of the data and of the split.
        faults: Images that proved unreadable so far.
        drawn: Counts of batches and images that all replicas drew together: "training_batches" and their
            "training_images" (the same for other purposes that a search names), "evaluated_images", and
            "calibration_images".
        num_classes: Number of classes.
        image_shape: Channels, height and width of an image.
        pixel_mean, pixel_std: Mean and standard deviation of pixels, from 0 to 255, by channel.
        device: Device of the batches.

    Raises:
        BenchError: The contents do not agree with the data set's class, or there are fewer images than asked for.
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
        self.drawn: Counter[str] = Counter()
        self.num_classes = dataset.num_classes
        self.image_shape = dataset.image_shape
        self.device = device
        self.pixel_mean = 255 * torch.tensor(dataset.mean, device=device)
        self.pixel_std = 255 * torch.tensor(dataset.std, device=device)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn `uint8` images into normalised float32 images in channels-last memory order."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.pixel_mean.view(-1, 1, 1)).div_(self.pixel_std.view(-1, 1, 1))

    def training_batches(
        self,
        batch_size: int,
        order: torch.Generator,
        *,
        subset: Subset | None = None,
        skip: int = 0,
        purpose: str = "training",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of augmented training batches in random order; a last, smaller batch is dropped.

        All replicas draw the same numbers, and each gets its share of every batch.

        Args:
            batch_size: Images per batch; a smaller subset is one batch.
            order: Generator of the order and of the augmentation. Every epoch draws equally often.
            subset: Images to use; all training images by default.
            skip: Number of leading batches to skip. Their random numbers are drawn, but no image is decoded.
            purpose: Purpose under which `drawn` counts the batches: "training" if weights are trained on them,
                "architecture" for other parameters of a search, "calibration" for measurements.

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
            self.drawn.update({f"{purpose}_batches": 1, f"{purpose}_images": size})
            yield self.normalize(images), labels

    def batches_per_epoch(self, batch_size: int, subset: Subset | None = None) -> int:
        """Count the training batches of one epoch, at least one."""
        return max(1, len(self.train if subset is None else subset) // batch_size)

    def evaluation_batches(self, subset: Subset, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all normalised images of a subset in their order; each replica gets its share of every batch.

        Shares differ by one image where a batch cannot be divided evenly, and may be empty. An image that cannot be
        read has the label `UNREADABLE` and must be counted as wrong.

        Raises:
            BenchError: Too many images cannot be read.
        """
        for number, (images, labels) in enumerate(subset.unchanged(batch_size)):
            self.drawn.update(evaluated_images=min(batch_size, len(subset) - number * batch_size))
            yield self.normalize(images), labels

    def calibration_batches(self, count: int, batch_size: int) -> Sequence[Tensor]:
        """Return fixed, randomly chosen training images without augmentation, for statistics and metrics.

        A last, smaller batch is dropped, as in training: it might hold a single image, and a batch normalisation has
        no statistics of one value per channel. Every replica gets whole batches, for passes inside `replicas.alone`.
        """
        count = min(count, self.batches_per_epoch(batch_size))
        chosen = torch.randperm(len(self.train), generator=generator("calibration"))[: count * batch_size]
        self.drawn.update(calibration_images=len(chosen))
        with replicas.alone():
            return [self.normalize(images) for images, _ in self.train.take(chosen).unchanged(batch_size)]


class BatchStream:
    """Endless training batches of a subset, epoch after epoch, with a position that checkpoints can keep.

    Args:
        data: Data to read from.
        batch_size: Images per batch.
        order: Generator of the order and of the augmentation.
        subset: Images to use.
        purpose: Purpose of the batches; see `TaskData.training_batches`.
    """

    def __init__(
        self, data: TaskData, batch_size: int, order: torch.Generator, subset: Subset, purpose: str = "training"
    ) -> None:
        self._data, self._batch_size, self._order, self._subset = data, batch_size, order, subset
        self._purpose = purpose
        self._begin()

    def _begin(self, skip: int = 0) -> None:
        self._drawn_from = self._order.get_state()
        self._taken = skip
        self._batches = self._data.training_batches(
            self._batch_size, self._order, subset=self._subset, skip=skip, purpose=self._purpose
        )

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        if self._taken == self._data.batches_per_epoch(self._batch_size, self._subset):
            self._begin()
        self._taken += 1
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the generator's state before the current epoch, and the batches taken since."""
        return {"drawn_from": self._drawn_from, "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; batches before it are not made again."""
        self._order.set_state(state["drawn_from"])
        self._begin(skip=int(state["taken"]))
        if self._taken == self._data.batches_per_epoch(self._batch_size, self._subset):
            next(self._batches, None)  # an epoch is drawn completely before the next one begins


def split(labels: Tensor, validation_fraction: float) -> tuple[Tensor, Tensor]:
    """Split training indices into training and validation, class by class, always in the same way.

    Args:
        labels: Labels of all training images, shape (N,).
        validation_fraction: Share of each class that becomes validation data; the count is rounded.

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


def _thin_out(indices: Tensor, labels: Tensor, count: int) -> Tensor:
    """Choose about `count` of the indices, the same share of every class, in rising order.

    Raises:
        BenchError: There are fewer indices than that.
    """
    if count > len(indices):
        raise BenchError(f"task.train_images is {count}; the training part has {len(indices)} images")
    kept = split(labels[indices], count / len(indices))[1]
    return indices[kept]
