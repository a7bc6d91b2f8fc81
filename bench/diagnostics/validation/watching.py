"""Data that note what a search does with them, and that can interrupt it."""

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bench.data.subset import Subset
from bench.data.task_data import TaskData
from bench.method import Task


class Interruption(BaseException):
    """What takes the place of a process that is gone: no method may catch it."""


class WatchedData(TaskData):
    """The same data; reads of the test part are noted, and the search can be ended at a training batch.

    Args:
        data: The data.
        interrupted_at: The training batch, counted from 1, at which the search is ended.

    Attributes:
        batches: How many training batches were drawn.
        pretrained: The weights that the search was handed.
        readers: Where the test part was read, as "file:line".
    """

    def __init__(self, data: TaskData, interrupted_at: int | None = None) -> None:
        self.__dict__.update({name: value for name, value in vars(data).items() if name != "test"})
        self._test = data.test
        self._interrupted_at = interrupted_at
        self.batches = 0
        self.pretrained: Mapping[str, Tensor] = {}
        self._images = [tensor.clone() for tensor in self._tensors()]
        self.readers: list[str] = []

    def task(self, task: Task) -> Task:
        """The task on these data."""
        return replace(task, data=self)

    def images_changed(self) -> bool:
        """Whether images or labels are not what they were at first."""
        return not all(torch.equal(one, other) for one, other in zip(self._images, self._tensors(), strict=True))

    def _tensors(self) -> list[Tensor]:
        return [tensor for part in (self.train, self.validation) for tensor in part.tensors()]

    @property
    def test(self) -> Subset:  # type: ignore[override]
        """The test part; that it was read is noted."""
        frame = traceback.extract_stack(limit=2)[0]
        self.readers.append(f"{frame.filename}:{frame.lineno}")
        return self._test

    def training_batches(
        self, batch_size: int, order: torch.Generator, *, subset: Subset | None = None, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batches, counted."""
        for batch in super().training_batches(batch_size, order, subset=subset, skip=skip):
            self.batches += 1
            if self.batches == self._interrupted_at:
                raise Interruption
            yield batch
