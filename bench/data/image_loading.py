"""Data sets of image files, which are decoded during training: the same interface as tensors in memory.

An image that cannot be read is replaced by the next readable one of its class in the same part of the data, with one
warning. In evaluation it also counts as wrong.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import replicas
from bench.data.dataset import Contents, Dataset
from bench.data.image_decoding import Load, Loader, Reader, Request, empty_images
from bench.data.image_files import Framing, ImageTable, classes_in
from bench.data.subset import UNREADABLE, Fault, Subset
from bench.errors import BenchError
from bench.spec.schema import ImageOptions

_log = logging.getLogger(__name__)

UNREADABLE_SHARE = 0.01
"""Largest share of unreadable training or test images; a data set with more of them is refused."""
_CHUNK = 32
"""Images that a process decodes at once. A batch is divided among processes, and few images wait in shared memory."""
_GREY_MEAN, _GREY_STD = (0.449,), (0.226,)
"""ImageNet's statistics for grey images: the means over its channels."""
_NAMED = 3
"""Largest number of images that an error names."""


# --- unreadable images ---------------------------------------------------------------------------------------------


class FaultLog:
    """The unreadable images of a part of the data, each listed once.

    Args:
        table: All images of the part.
        faults: List that unreadable images are added to.
    """

    def __init__(self, table: ImageTable, faults: list[Fault]) -> None:
        self._table, self._faults = table, faults
        self._rows: set[int] = set()

    def add(self, failed: Sequence[tuple[int, str]], used: int | None) -> None:
        """Add unreadable images, each warned about once.

        Args:
            failed: Unreadable images as pairs of row and reason.
            used: Row of the image that is used instead; `None` if there is none.

        Raises:
            BenchError: There is no readable image of the class, or too many images are unreadable.
        """
        names = [self._table.name(row) for row, _ in failed]
        if used is None:
            label = self._table.classes[int(self._table.labels[failed[0][0]])]
            raise BenchError(f"no image of class '{label}' in {self._table.folder} can be read, {_some(names)}")
        instead = self._table.name(used)
        for (row, reason), name in zip(failed, names, strict=True):
            if row not in self._rows:
                self._rows.add(row)
                self._faults.append(Fault(name=name, reason=reason, instead=instead))
                _log.warning("cannot read %s in %s: %s; using %s instead", name, self._table.folder, reason, instead)
        if len(self._rows) > UNREADABLE_SHARE * len(self._table):
            unreadable = [self._table.name(row) for row in sorted(self._rows)]
            raise BenchError(
                f"{len(unreadable)} of the {len(self._table)} images in {self._table.folder} cannot be read, more than "
                f"{UNREADABLE_SHARE:.0%}: {_some(unreadable)}; replace or delete them"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")


# --- subsets, contents, data sets ------------------------------------------------------------------------------------


class FileSubset(Subset):
    """Some images of a data set that are decoded from files.

    Args:
        table: All images of the part.
        rows: Rows of the subset in the table, int64 (N,).
        framing: Size of the windows to cut out.
        fault_log: Log of unreadable images.
        device: Device of the batches.
        workers: Number of processes that decode.
    """

    def __init__(
        self,
        table: ImageTable,
        rows: NDArray[np.int64],
        framing: Framing,
        fault_log: FaultLog,
        device: torch.device,
        workers: int,
    ) -> None:
        self._table, self._rows, self._framing, self._fault_log = table, rows, framing, fault_log
        self._device, self._workers = device, workers
        self.labels = torch.from_numpy(table.labels[rows]).to(device)
        self._loader = Loader(Reader(table, rows, framing), workers, pin=device.type == "cuda")

    @property
    def names(self) -> list[str]:
        """Paths of all images, relative to the folder of the part."""
        return [self._table.name(row) for row in self._rows.tolist()]

    def take(self, indices: Tensor) -> Self:
        """Return the images at `indices`, in that order."""
        rows = self._rows[indices.cpu().numpy()]
        return type(self)(self._table, rows, self._framing, self._fault_log, self._device, self._workers)

    def on(self, device: torch.device, workers: int) -> Self:
        """Return the same images, decoded by `workers` processes for batches on a device."""
        return type(self)(self._table, self._rows, self._framing, self._fault_log, device, workers)

    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of random windows and flips. A whole epoch is drawn before its first batch."""
        permutation = torch.randperm(len(self), generator=order).numpy()
        draws = torch.rand(len(self), self._framing.draws, generator=order).numpy()
        shares = []
        for number in range(skip, batches):
            mine = _share(slice(number * batch_size, (number + 1) * batch_size), len(self))
            shares.append(Request(positions=permutation[mine], draws=draws[mine]))
        for images, labels, _ in self._batches(shares, self._loader.again):
            yield images, labels

    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the windows in the middle. An unreadable image is replaced and gets the label `UNREADABLE`."""
        everything = np.arange(len(self))
        parts = (slice(start, start + batch_size) for start in range(0, len(self), batch_size))
        shares = [Request(positions=everything[_share(part, len(self))]) for part in parts]
        for images, labels, unreadable in self._batches(shares, self._loader.once):
            if unreadable:
                labels[unreadable] = UNREADABLE
            yield images, labels

    def _batches(self, shares: Sequence[Request], load: Load) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Yield images, labels and indices of unreadable images for each request, joined from chunks."""
        chunks = (chunk for share in shares for chunk in _chunks(share))
        ahead = math.ceil(max((len(share.positions) for share in shares), default=0) / _CHUNK)
        answers = load(chunks, ahead)
        for share in shares:
            size, side = len(share.positions), self._framing.crop
            images = empty_images(size, self._framing.options.channels, side, self._device)
            unreadable: list[int] = []
            for start in range(0, size, _CHUNK):
                pixels, replacements = next(answers)
                images[start : start + len(pixels)].copy_(pixels, non_blocking=True)
                for index, failed, used in replacements:
                    unreadable.append(start + index)
                    self._report(failed, used)
            yield images, self.labels[torch.from_numpy(share.positions).to(self._device)], unreadable
        next(answers, None)  # processes end or wait before the caller continues

    def _report(self, failed: Sequence[tuple[int, str]], used: int) -> None:
        rows = [(int(self._rows[position]), reason) for position, reason in failed]
        self._fault_log.add(rows, None if used < 0 else int(self._rows[used]))


def _share(part: slice, count: int) -> slice:
    """Return this replica's part of a slice of `count` images."""
    start, stop, _ = part.indices(count)
    return slice(start + replicas.rank(), stop, replicas.count())


def _chunks(share: Request) -> Iterator[Request]:
    for start in range(0, len(share.positions), _CHUNK):
        part = slice(start, start + _CHUNK)
        draws = None if share.draws is None else share.draws[part]
        yield Request(positions=share.positions[part], draws=draws)


class ImageFiles(Contents):
    """A data set whose images stay in their files.

    Args:
        train: Training images.
        test: Test images, with the same classes.
        framing: Size of the windows to cut out.
    """

    def __init__(self, train: ImageTable, test: ImageTable, framing: Framing) -> None:
        self.train, self.test, self.framing = train, test, framing
        self.faults: list[Fault] = []

    def checksum(self) -> str:
        """Compute the SHA-256 of relative names, file sizes and labels, in order; files are not read.

        An image that is replaced by another of the same size in bytes is not noticed. Otherwise every run would have
        to read up to 150 GB when it begins.
        """
        return hashlib.sha256(self.train.digest() + self.test.digest()).hexdigest()

    def check(self, dataset: Dataset) -> None:
        """Check the classes of both parts.

        Raises:
            BenchError: The parts have different classes, a class is empty, or their number is not the data set's.
        """
        if self.train.classes != self.test.classes:
            raise BenchError(_difference(self.train, self.test))
        for table in (self.train, self.test):
            counts = np.bincount(table.labels, minlength=len(table.classes))
            if empty := [name for name, count in zip(table.classes, counts, strict=True) if not count]:
                raise BenchError(f"there are no images in {table.folder} of the classes {_some(empty)}")
        if len(self.train.classes) != dataset.num_classes:
            raise BenchError(
                f"{self.train.folder} has {len(self.train.classes)} folders of classes; "
                f"{type(dataset).__name__} is expected to have {dataset.num_classes}"
            )

    def parts(self, dataset: Dataset) -> tuple[FileSubset, FileSubset]:
        """Return all images of both parts, decoded in this process."""
        train, test = (
            FileSubset(
                table, np.arange(len(table)), self.framing, FaultLog(table, self.faults), torch.device("cpu"), workers=0
            )
            for table in (self.train, self.test)
        )
        return train, test


def _difference(train: ImageTable, test: ImageTable) -> str:
    """Describe in one line how the classes of two parts differ."""
    only = {
        table.folder: sorted(set(table.classes) - set(other.classes)) for table, other in ((train, test), (test, train))
    }
    words = [f"only {folder} has {_some(names)}" for folder, names in only.items() if names]
    return f"training and test images must be of the same classes; {'; '.join(words)}"


class ImageDataset(Dataset):
    """A data set of image files, with the preprocessing that is common for ImageNet.

    The shorter side is resized to `resize` pixels, then a window of `crop` × `crop` pixels is cut out. For training its
    position is random and it is flipped at random; for testing it is the window in the middle. A subclass implements
    `load`, which says where the files are.

    Args:
        classes: Number of classes.
        image_size: Side of the window; `resize` changes in proportion. The class's own `crop` by default.
        images: Channels, statistics, and random changes in training; the defaults when absent.

    Attributes:
        resize: Length of the shorter side in pixels.
        crop: Side of the window in pixels.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __init__(self, classes: int, image_size: int | None = None, images: ImageOptions | None = None) -> None:
        self.images = images or ImageOptions()
        if image_size is not None:
            self.crop, self.resize = image_size, round(image_size * self.resize / self.crop)
        self.num_classes = classes
        self.image_shape = (self.images.channels, self.crop, self.crop)
        grey = self.images.channels == 1
        self.mean = self.images.mean or (_GREY_MEAN if grey else self.mean)
        self.std = self.images.std or (_GREY_STD if grey else self.std)

    @property
    def framing(self) -> Framing:
        """Size of the windows to cut out."""
        return Framing(resize=self.resize, crop=self.crop, options=self.images)

    def read(self, train: Path, test: Path) -> ImageFiles:
        """List the images of both parts; no file is opened.

        Raises:
            BenchError: A folder cannot be read, or the parts have different classes.
        """
        training, testing = (ImageTable(folder, classes_in(folder)) for folder in (train, test))
        contents = ImageFiles(training, testing, self.framing)
        contents.check(self)
        return contents
