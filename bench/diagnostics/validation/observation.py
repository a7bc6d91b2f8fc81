"""Data that observe how a search uses them, and that can interrupt it."""

import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bench.data.subset import Subset
from bench.data.task_data import TaskData
from bench.method import Task


class Interruption(BaseException):
    """A simulated end of the process; no method may catch it."""


class ObservedData(TaskData):
    """Data that record reads of the test part, and can end the search at a training batch.

    Args:
        data: Data to observe.
        interrupted_at: Number of the training batch, counted from 1, at which the search is ended.

    Attributes:
        batches: Number of training batches drawn.
        pretrained: Weights that the search was given.
        readers: Places in the code that read the test part, as "file:line".
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
        """Return a task with these data."""
        return replace(task, data=self)

    def images_changed(self) -> bool:
        """Whether images or labels differ from those at the beginning."""
        return not all(torch.equal(one, other) for one, other in zip(self._images, self._tensors(), strict=True))

    def _tensors(self) -> list[Tensor]:
        return [tensor for part in (self.train, self.validation) for tensor in part.tensors()]

    @property
    def test(self) -> Subset:  # type: ignore[override]
        """Test part; reading it is recorded."""
        frame = traceback.extract_stack(limit=2)[0]
        self.readers.append(f"{frame.filename}:{frame.lineno}")
        return self._test

    def training_batches(
        self,
        batch_size: int,
        order: torch.Generator,
        *,
        subset: Subset | None = None,
        skip: int = 0,
        purpose: str = "training",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same batches as the original data, and count them."""
        for batch in super().training_batches(batch_size, order, subset=subset, skip=skip, purpose=purpose):
            self.batches += 1
            if self.batches == self._interrupted_at:
                raise Interruption
            yield batch
