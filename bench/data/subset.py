"""Subsets: some images of a data set with their labels, read as batches on the training device."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bench import replicas

UNREADABLE = -100
"""Label of an unreadable image in evaluation. It is no class, and PyTorch's losses ignore it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """An image that cannot be read.

    Attributes:
        name: Name of its file.
        reason: Reason in a few words.
        instead: Name of the image that replaces it.
    """

    name: str
    reason: str
    instead: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        pad: Pixels of zero padding on each side, before a random crop to the original size.
        flip: Whether images are flipped horizontally at random.
    """

    pad: int = 0
    flip: bool = False


class Subset(ABC):
    """Some images of a data set with their labels.

    Attributes:
        labels: Labels of all images, `int64` (N,), on the training device.
    """

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def take(self, indices: Tensor) -> Self:
        """Return the images at `indices`, in that order."""

    @abstractmethod
    def on(self, device: torch.device, workers: int) -> Self:
        """Return the same images, ready for training.

        Args:
            device: Device of the batches.
            workers: Number of processes that decode images; with 0 this process does. Results do not depend on it.
        """

    @abstractmethod
    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of randomly changed images in random order; each replica gets its share of every batch.

        Every replica draws the same numbers from `order`. They depend on the number of images and batches only.

        Args:
            batch_size: Images per batch; a smaller subset is one batch.
            batches: Number of batches.
            order: Generator of the order and of the changes.
            skip: Number of leading batches that are drawn, but neither made nor returned.

        Yields:
            Images `uint8` (n, C, H, W) and labels (n,), on the device.
        """

    @abstractmethod
    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in their order, without random changes; each replica gets its share of every batch.

        A share may be empty. The label of an image that cannot be read is `UNREADABLE`.
        """

    def tensors(self) -> Sequence[Tensor]:
        """Return all tensors that the subset holds in memory."""
        return [self.labels]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSubset(Subset):
    """Images and labels on the training device: `uint8` (N, C, H, W) and `int64` (N,)."""

    images: Tensor
    labels: Tensor
    augmentation: Augmentation = Augmentation()

    def take(self, indices: Tensor) -> Self:
        """Return the images at `indices`, in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def on(self, device: torch.device, workers: int) -> Self:
        """Return the same images on the device; nothing has to be decoded."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield random batches. The order is drawn first, the changes batch by batch."""
        permutation = torch.randperm(len(self), generator=order).to(self.labels.device)
        for number in range(batches):
            batch = self.take(permutation[number * batch_size : (number + 1) * batch_size])
            images = augment(batch.images, self.augmentation, order)
            if number >= skip:
                yield replicas.mine(images), replicas.mine(batch.labels)

    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images in their order."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield replicas.mine(self.images[part]), replicas.mine(self.labels[part])

    def tensors(self) -> Sequence[Tensor]:
        """Return images and labels."""
        return [self.images, self.labels]


def augment(images: Tensor, augmentation: Augmentation, order: torch.Generator) -> Tensor:
    """Crop each image at random after zero padding, and flip it horizontally at random.

    Args:
        images: Images of any type, shape (N, C, H, W).
        augmentation: Changes to make.
        order: CPU generator that draws offsets and flips.
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
