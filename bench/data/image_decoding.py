"""Decoding of image files during training, in processes that work ahead of it.

Everything random is drawn in the training's process at the beginning of an epoch. The decoding processes receive
requests, lists of images and draws, and return pixels as `uint8` in the order of the requests. Batches therefore do not
depend on the number or the speed of the processes.
"""

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from bench.data.image_files import Framing, ImageTable, UnreadableError, decode


def loading_workers(threads: int, device: torch.device) -> int:
    """Return the number of processes that decode images for a run.

    There are as many as the run has threads, since the threads wait for the GPU meanwhile, or share the cores with the
    decoding. A run of one thread on the CPU decodes in its own process, so that it uses one core.

    Args:
        threads: CPU threads of the run.
        device: Device of the training.
    """
    return 0 if threads == 1 and device.type == "cpu" else threads


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request for the images of a part of a batch.

    Attributes:
        positions: Positions of the images in the subset, int64 (n,).
        draws: Draws for row, column and flip of each image, and for its colours if they change, uniform in [0, 1),
            shape (n, 3) or (n, 6); `None` for windows in the middle.
    """

    positions: NDArray[np.int64]
    draws: NDArray[np.float32] | None = None


Replacement = tuple[int, list[tuple[int, str]], int]
"""Replacement of an unreadable image: its index in the request, all images that could not be read as pairs of position
in the subset and reason, and the position of the image that is used instead, -1 if there is none."""
Answer = tuple[Tensor, list[Replacement]]
"""Pixels `uint8` (n, channels, crop, crop), and replacements among them."""
Load = Callable[[Iterable[Request], int], Iterator[Answer]]
"""Function that has requests answered, given the number of answers that may be waiting."""


class Reader(torch.utils.data.Dataset[Answer]):
    """Reader of images, the same in every process; it holds arrays only.

    Args:
        table: All images.
        rows: Rows of the subset in the table, int64 (N,).
        framing: Size of the windows to cut out.
    """

    def __init__(self, table: ImageTable, rows: NDArray[np.int64], framing: Framing) -> None:
        self.table, self.rows, self.framing = table, rows, framing

    def __getitem__(self, request: Request) -> Answer:
        """Read, decode and frame every image of a request."""
        side = self.framing.crop
        images = empty_images(len(request.positions), self.framing.options.channels, side)
        replacements: list[Replacement] = []
        for index, position in enumerate(request.positions.tolist()):
            pixels, failed, used = self._readable(position)
            if failed:
                replacements.append((index, failed, used))
            if pixels is not None:
                images[index] = self._framed(pixels, None if request.draws is None else request.draws[index])
        return images, replacements

    def _framed(self, pixels: Tensor, draws: NDArray[np.float32] | None) -> Tensor:
        return self.framing.centre(pixels) if draws is None else self.framing.random(pixels, *draws.tolist())

    def _readable(self, position: int) -> tuple[Tensor | None, list[tuple[int, str]], int]:
        """Return the pixels of the first readable image from a position on, failed images, and its position."""
        failed: list[tuple[int, str]] = []
        for candidate in self._candidates(position):
            try:
                return decode(self.table.read(int(self.rows[candidate]))), failed, candidate
            except UnreadableError as error:
                failed.append((candidate, str(error)))
        return None, failed, -1

    def _candidates(self, position: int) -> Iterator[int]:
        """Yield an image's position and those that may replace it: the following ones of its class, in a circle."""
        yield position
        labels = self.table.labels[self.rows]
        members = np.flatnonzero(labels == labels[position])
        start = int(np.searchsorted(members, position))
        yield from np.roll(members, -start)[1:].tolist()


def empty_images(count: int, channels: int, side: int, device: torch.device | None = None) -> Tensor:
    """Allocate images, `uint8` (count, channels, side, side) in channels-last memory order."""
    size = (count, channels, side, side)
    return torch.empty(size, dtype=torch.uint8, device=device, memory_format=torch.channels_last)


class Loader:
    """Loader that has requests answered in their order, by processes that work ahead or by this process.

    Args:
        reader: Reader that answers the requests.
        workers: Number of processes; with 0 this process answers.
        pin: Whether answers are in pinned memory, from which a GPU copies by itself.
    """

    def __init__(self, reader: Reader, workers: int, *, pin: bool) -> None:
        self._reader, self._workers, self._pin = reader, workers, pin
        self._kept: tuple[int, _Queue, DataLoader[Answer]] | None = None
        self._in_use = False

    def once(self, requests: Iterable[Request], ahead: int) -> Iterator[Answer]:
        """Answer requests, with processes that end afterwards.

        Args:
            requests: Requests; they are consumed as they are needed.
            ahead: Number of answers that may be waiting.
        """
        if not self._workers:
            yield from map(self._reader.__getitem__, requests)
            return
        yield from self._data_loader(_Queue(requests), ahead, keep=False)

    def again(self, requests: Iterable[Request], ahead: int) -> Iterator[Answer]:
        """Answer requests, with processes that are kept for the next epoch."""
        if not self._workers or self._in_use:  # another loop over the same images has not ended
            yield from self.once(requests, ahead)
            return
        if self._kept is None or self._kept[0] != ahead:
            queue = _Queue(())
            self._kept = (ahead, queue, self._data_loader(queue, ahead, keep=True))
        _, queue, answers = self._kept
        queue.requests = requests
        self._in_use = True
        try:
            yield from answers
        finally:
            self._in_use = False

    def _data_loader(self, queue: "_Queue", ahead: int, *, keep: bool) -> "DataLoader[Answer]":
        # Processes are forked where that is safe, so that nothing is copied. The loader has a generator of its own:
        # otherwise it would draw from the global one, more often with more processes.
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=queue,
            num_workers=self._workers,
            collate_fn=_unchanged,
            pin_memory=self._pin,
            prefetch_factor=max(2, math.ceil(ahead / self._workers)),
            persistent_workers=keep,
            multiprocessing_context=multiprocessing.get_context("fork") if sys.platform == "linux" else None,
            generator=torch.Generator(),
        )


class _Queue:
    """The requests of the current epoch."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)


def _unchanged(answer: Any) -> Any:
    return answer
