"""Data sets of image files, which are decoded while training goes on: the same interface as tensors in memory.

Everything random is drawn in the training's process at the beginning of an epoch, from the generator of its order. What
goes to the processes that decode is a list of images and draws, what comes back is pixels as `uint8`, in the order in
which they were asked for: batches do not depend on how many processes there are or which is faster.

An image that cannot be read is replaced by the next readable one of its class in the same part of the data, and told
of once. In training and for statistics that is all; in evaluation it counts as wrong.
"""

import hashlib
import logging
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from bench import replicas
from bench.data.dataset import UNREADABLE, Contents, Dataset, Fault, Subset
from bench.data.image_files import Framing, ImageTable, UnreadableError, classes_in, decode
from bench.errors import BenchError

_log = logging.getLogger(__name__)

UNREADABLE_SHARE = 0.01
"""Of the training or test images; with more of them a data set is refused."""
_CHUNK = 32
"""Images that a process decodes at once: a batch is divided among processes, and little waits in shared memory."""
_NAMED = 3
"""Unreadable images that an error names."""


def loading_workers(threads: int, device: torch.device) -> int:
    """How many processes decode images for a run.

    As many as the run may use threads, since those wait for the card meanwhile, or share the cores with the decoding.
    A run of one thread without a card decodes in its own process, and uses one core.

    Args:
        threads: CPU threads of the run.
        device: Where it trains.
    """
    return 0 if threads == 1 and device.type == "cpu" else threads


# --- what goes to the processes that decode, and what comes back -----------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Images that are wanted.

    Attributes:
        positions: In the subset, int64 (n,).
        draws: Row, column and flip of each, uniform in [0, 1), shape (n, 3); `None` for windows in the middle.
    """

    positions: NDArray[np.int64]
    draws: NDArray[np.float32] | None = None


Stumble = tuple[int, list[tuple[int, str]], int]
"""Place in the request, the unreadable images from there on as (position in the subset, reason), and the position of
the one that was taken instead; -1 for none."""
Answer = tuple[Tensor, list[Stumble]]
"""Pixels `uint8` (n, 3, crop, crop), and where it stumbled."""


_Load = Callable[[Iterable[Request], int], Iterator[Answer]]


class Reader(torch.utils.data.Dataset[Answer]):
    """Answers requests. The same in every process; it holds arrays only.

    Args:
        table: All images.
        rows: Those of the subset, int64 (N,).
        framing: How they become squares.
    """

    def __init__(self, table: ImageTable, rows: NDArray[np.int64], framing: Framing) -> None:
        self.table, self.rows, self.framing = table, rows, framing

    def __getitem__(self, request: Request) -> Answer:
        """Read, decode and frame every image of a request."""
        side = self.framing.crop
        images = _empty(len(request.positions), side)
        stumbles: list[Stumble] = []
        for place, position in enumerate(request.positions.tolist()):
            pixels, failed, taken = self._readable(position)
            if failed:
                stumbles.append((place, failed, taken))
            if pixels is not None:
                images[place] = self._framed(pixels, None if request.draws is None else request.draws[place])
        return images, stumbles

    def _framed(self, pixels: Tensor, draws: NDArray[np.float32] | None) -> Tensor:
        return self.framing.centre(pixels) if draws is None else self.framing.random(pixels, *draws.tolist())

    def _readable(self, position: int) -> tuple[Tensor | None, list[tuple[int, str]], int]:
        """The pixels of the first readable image from a position on, what failed before it, and its position."""
        failed: list[tuple[int, str]] = []
        for candidate in self._candidates(position):
            try:
                return decode(self.table.read(int(self.rows[candidate]))), failed, candidate
            except UnreadableError as error:
                failed.append((candidate, str(error)))
        return None, failed, -1

    def _candidates(self, position: int) -> Iterator[int]:
        """An image and those that may stand for it: the others of its class in the subset, in turn from there."""
        yield position
        labels = self.table.labels[self.rows]
        members = np.flatnonzero(labels == labels[position])
        start = int(np.searchsorted(members, position))
        yield from np.roll(members, -start)[1:].tolist()


def _empty(count: int, side: int, device: torch.device | None = None) -> Tensor:
    """Room for images, `uint8` (count, 3, side, side) with colours side by side."""
    size = (count, 3, side, side)
    return torch.empty(size, dtype=torch.uint8, device=device, memory_format=torch.channels_last)


class Loader:
    """Has requests answered in their order, by processes that work ahead, or in this one.

    Args:
        reader: Answers.
        workers: Processes; none when 0.
        pin: Whether answers lie in memory from which a card copies by itself.
    """

    def __init__(self, reader: Reader, workers: int, *, pin: bool) -> None:
        self._reader, self._workers, self._pin = reader, workers, pin
        self._kept: tuple[int, _Queue, DataLoader[Answer]] | None = None
        self._in_use = False

    def once(self, requests: Iterable[Request], ahead: int) -> Iterator[Answer]:
        """Answer requests, with processes that end thereafter.

        Args:
            requests: Read as they are needed.
            ahead: Answers that may be waiting.
        """
        if not self._workers:
            yield from map(self._reader.__getitem__, requests)
            return
        yield from self._made(_Queue(requests), ahead, keep=False)

    def again(self, requests: Iterable[Request], ahead: int) -> Iterator[Answer]:
        """The same, with processes that stay for the next epoch."""
        if not self._workers or self._in_use:  # an epoch is still open, e.g. of another loop over the same images
            yield from self.once(requests, ahead)
            return
        if self._kept is None or self._kept[0] != ahead:
            queue = _Queue(())
            self._kept = (ahead, queue, self._made(queue, ahead, keep=True))
        _, queue, answers = self._kept
        queue.requests = requests
        self._in_use = True
        try:
            yield from answers
        finally:
            self._in_use = False

    def _made(self, queue: "_Queue", ahead: int, *, keep: bool) -> "DataLoader[Answer]":
        # Forked where that is safe, so that nothing is copied. The generator is the loader's own, since it would draw
        # from the global one, and the more often the more processes there are.
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=queue,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin,
            prefetch_factor=max(2, math.ceil(ahead / self._workers)),
            persistent_workers=keep,
            multiprocessing_context=multiprocessing.get_context("fork") if sys.platform == "linux" else None,
            generator=torch.Generator(),
        )


class _Queue:
    """The requests of the present epoch."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)


def _as_it_is(answer: Any) -> Any:
    return answer


# --- what cannot be read ---------------------------------------------------------------------------------------------


class Ledger:
    """The unreadable images of a part of the data, each once.

    Args:
        table: All images of the part.
        faults: Where they are told of.
    """

    def __init__(self, table: ImageTable, faults: list[Fault]) -> None:
        self._table, self._faults = table, faults
        self._rows: set[int] = set()

    def note(self, failed: Sequence[tuple[int, str]], taken: int | None) -> None:
        """Note unreadable images as (row, reason), and the row of what is taken instead.

        Raises:
            BenchError: There is nothing to take, or there are too many of them.
        """
        names = [self._table.name(row) for row, _ in failed]
        if taken is None:
            label = self._table.classes[int(self._table.labels[failed[0][0]])]
            raise BenchError(f"no image of class '{label}' in {self._table.folder} can be read, {_some(names)}")
        instead = self._table.name(taken)
        for (row, reason), name in zip(failed, names, strict=True):
            if row not in self._rows:
                self._rows.add(row)
                self._faults.append(Fault(name=name, reason=reason, instead=instead))
                _log.warning("cannot read %s in %s: %s; taking %s", name, self._table.folder, reason, instead)
        if len(self._rows) > UNREADABLE_SHARE * len(self._table):
            named = [self._table.name(row) for row in sorted(self._rows)]
            raise BenchError(
                f"{len(named)} of the {len(self._table)} images in {self._table.folder} cannot be read, more than "
                f"{UNREADABLE_SHARE:.0%}: {_some(named)}; replace or delete them"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")


# --- subsets, contents, data sets ------------------------------------------------------------------------------------


class FileSubset(Subset):
    """Images in files.

    Args:
        table: All images of the part.
        rows: Those of the subset, int64 (N,).
        framing: How they become squares.
        ledger: Where unreadable ones are noted.
        device: Where batches are wanted.
        workers: Processes that decode.
    """

    def __init__(
        self,
        table: ImageTable,
        rows: NDArray[np.int64],
        framing: Framing,
        ledger: Ledger,
        device: torch.device,
        workers: int,
    ) -> None:
        self._table, self._rows, self._framing, self._ledger = table, rows, framing, ledger
        self._device, self._workers = device, workers
        self.labels = torch.from_numpy(table.labels[rows]).to(device)
        self._loader = Loader(Reader(table, rows, framing), workers, pin=device.type == "cuda")

    @property
    def names(self) -> list[str]:
        """Of all its images, relative to the folder of the part."""
        return [self._table.name(row) for row in self._rows.tolist()]

    def take(self, indices: Tensor) -> Self:
        """The images at `indices`, in that order."""
        rows = self._rows[indices.cpu().numpy()]
        return type(self)(self._table, rows, self._framing, self._ledger, self._device, self._workers)

    def on(self, device: torch.device, workers: int) -> Self:
        """The same images, decoded by so many processes for batches on a device."""
        return type(self)(self._table, self._rows, self._framing, self._ledger, device, workers)

    def augmented(
        self, batch_size: int, batches: int, order: torch.Generator, skip: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random windows and flips; a whole epoch is drawn before its first batch."""
        permutation = torch.randperm(len(self), generator=order).numpy()
        draws = torch.rand(len(self), 3, generator=order).numpy()
        shares = []
        for number in range(skip, batches):
            mine = _share(slice(number * batch_size, (number + 1) * batch_size), len(self))
            shares.append(Request(positions=permutation[mine], draws=draws[mine]))
        for images, labels, _ in self._batches(shares, self._loader.again):
            yield images, labels

    def unchanged(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows in the middle; what cannot be read shows another image of its class under no label."""
        everything = np.arange(len(self))
        parts = (slice(start, start + batch_size) for start in range(0, len(self), batch_size))
        shares = [Request(positions=everything[_share(part, len(self))]) for part in parts]
        for images, labels, unreadable in self._batches(shares, self._loader.once):
            if unreadable:
                labels[unreadable] = UNREADABLE
            yield images, labels

    def _batches(self, shares: Sequence[Request], load: _Load) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Images, labels, and which of them could not be read, of each request, put together from chunks."""
        chunks = (chunk for share in shares for chunk in _chunks(share))
        ahead = math.ceil(max((len(share.positions) for share in shares), default=0) / _CHUNK)
        answers = load(chunks, ahead)
        for share in shares:
            size, side = len(share.positions), self._framing.crop
            images = _empty(size, side, self._device)
            unreadable: list[int] = []
            for start in range(0, size, _CHUNK):
                pixels, stumbles = next(answers)
                images[start : start + len(pixels)].copy_(pixels, non_blocking=True)
                for place, failed, taken in stumbles:
                    unreadable.append(start + place)
                    self._note(failed, taken)
            yield images, self.labels[torch.from_numpy(share.positions).to(self._device)], unreadable
        next(answers, None)  # ends processes or has them wait, before the caller goes on

    def _note(self, failed: Sequence[tuple[int, str]], taken: int) -> None:
        rows = [(int(self._rows[position]), reason) for position, reason in failed]
        self._ledger.note(rows, None if taken < 0 else int(self._rows[taken]))


def _share(part: slice, count: int) -> slice:
    """This replica's part of a slice of `count` things."""
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
        train, test: Its parts, with the same classes.
        framing: How images become squares.
    """

    def __init__(self, train: ImageTable, test: ImageTable, framing: Framing) -> None:
        self.train, self.test, self.framing = train, test, framing
        self.faults: list[Fault] = []

    def checksum(self) -> str:
        """SHA-256 over names relative to their folders, sizes of files and labels, in order; files are not read.

        An image that is replaced by another of the same size in bytes goes unnoticed, which is the price of not
        reading 150 GB whenever a run begins.
        """
        return hashlib.sha256(self.train.digest() + self.test.digest()).hexdigest()

    def check(self, dataset: Dataset) -> None:
        """Compare classes.

        Raises:
            BenchError: The parts have different ones, one is empty, or their number is not the data set's.
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
        """All images of both parts, decoded in this process."""
        train, test = (
            FileSubset(
                table, np.arange(len(table)), self.framing, Ledger(table, self.faults), torch.device("cpu"), workers=0
            )
            for table in (self.train, self.test)
        )
        return train, test


def _difference(train: ImageTable, test: ImageTable) -> str:
    """How the classes of two parts differ, in one line."""
    only = {
        table.folder: sorted(set(table.classes) - set(other.classes)) for table, other in ((train, test), (test, train))
    }
    words = [f"only {folder} has {_some(names)}" for folder, names in only.items() if names]
    return f"training and test images must be of the same classes; {'; '.join(words)}"


class ImageDataset(Dataset):
    """A data set of image files, with the preprocessing that is common for ImageNet.

    Training: the shorter side is resized to `resize` pixels, a window of `crop` pixels is cut out anywhere and
    mirrored at random. Testing: the window in the middle. A subclass says where the files are.

    Args:
        classes: Number of classes.
        image_size: Side of the window; the resize before it keeps its ratio to it. The class's own when absent.

    Attributes:
        resize: Of the shorter side, in pixels.
        crop: Side of the window, in pixels.
    """

    resize: int = 256
    crop: int = 224
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, classes: int, image_size: int | None = None) -> None:
        if image_size is not None:
            self.crop, self.resize = image_size, round(image_size * self.resize / self.crop)
        self.num_classes = classes
        self.image_shape = (3, self.crop, self.crop)

    @property
    def framing(self) -> Framing:
        """How images become squares."""
        return Framing(resize=self.resize, crop=self.crop)

    def read(self, train: Path, test: Path) -> ImageFiles:
        """List the images of both parts: every file is looked at, none is read.

        Raises:
            BenchError: A folder cannot be read, or both are not of the same classes.
        """
        training, testing = (ImageTable(folder, classes_in(folder)) for folder in (train, test))
        contents = ImageFiles(training, testing, self.framing)
        contents.check(self)
        return contents
