"""Tensors that are known while a program is read: their shapes fit together, and their sizes are bounded."""

from collections.abc import Sequence
from math import prod
from typing import Protocol, TypeAlias

import numpy as np

from bench.export.graph.operations import (
    IMAGE,
    Operation,
    Quantize,
    Reals,
)

Shape: TypeAlias = tuple[int, ...]
_MOST_ELEMENTS = 1 << 25
"""Largest size of a tensor for one image, and of all windows that a layer reads."""
_MOST_MACS = 1 << 43


class ProgramError(ValueError):
    """A program is none that this version writes; the message says where."""


class Reading(Protocol):
    """An operation that reads tensors.

    Attributes:
        name: Name of its result.
        inputs: Names of the tensors that it reads.
    """

    @property
    def name(self) -> str:
        """Name of the result."""
        ...

    @property
    def inputs(self) -> list[str]:
        """Names of the tensors that are read."""
        ...


class Windows(Reading, Protocol):
    """A convolution or a pooling."""

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Rows and columns above, left, below, right."""
        ...

    @property
    def stride(self) -> tuple[int, int]:
        """Vertical and horizontal stride."""
        ...

    @property
    def dilation(self) -> tuple[int, int]:
        """Vertical and horizontal dilation."""
        ...


class Tensors:
    """Tensors that are known while a program is checked.

    Attributes:
        known: Operations by the names of the tensors that they make; the image among them.
        read: Names of tensors that an operation reads.
    """

    def __init__(self, image_shape: Shape, mean: Reals, std: Reals) -> None:
        self._mean, self._std = mean, std
        self.known = {IMAGE: Operation(name=IMAGE, inputs=(), shape=image_shape)}
        self.read: set[str] = set()
        self._macs = 0
        self._check_size(IMAGE, prod(image_shape))

    def add(self, operation: Operation) -> None:
        """Add the result of an operation."""
        self._check_size(operation.name, prod(operation.shape))
        self.known[operation.name] = operation

    def reals(self, step: Reading, count: int) -> list[Shape]:
        """Return the shapes of the real tensors that an operation reads."""
        sources = self._sources(step, count)
        for source in sources:
            if isinstance(source, Quantize) or source.name == IMAGE:
                raise ProgramError(f"'{step.name}' reads codes, which only layers may read")
        return [source.shape for source in sources]

    def map(self, step: Reading) -> Shape:
        """Return the shape of the only map that an operation reads."""
        (shape,) = self.reals(step, 1)
        if len(shape) != 3:
            raise ProgramError(f"'{step.name}' reads a tensor of shape {shape}, which has no height and width")
        return shape

    def tokens(self, step: Reading) -> Shape:
        """Return the shape of the only tensor of tokens that an operation reads."""
        (shape,) = self.reals(step, 1)
        if len(shape) != 2:
            raise ProgramError(f"'{step.name}' reads a tensor of shape {shape}, which has no tokens")
        return shape

    def codes(self, step: Reading, count: int) -> list[Operation]:
        """Return what makes the codes that a layer or a product reads."""
        sources = self._sources(step, count)
        if any(not isinstance(source, Quantize) and source.name != IMAGE for source in sources):
            raise ProgramError(f"'{step.name}' reads numbers that are no codes")
        return sources

    def scale_of(self, source: Operation) -> tuple[Reals, Reals]:
        """Return the steps and offsets of the channels of a layer's input."""
        if not isinstance(source, Quantize):
            return 1 / self._std, -self._mean / self._std
        channels = source.shape[0 if len(source.shape) == 3 else -1]
        return np.full(channels, source.step), np.full(channels, source.offset)

    def add_work(self, name: str, window_elements: int, times: int) -> None:
        """Count the numbers in the windows that an operation reads, and how often each is multiplied."""
        self._check_size(name, window_elements)
        self._macs += window_elements * times
        if self._macs > _MOST_MACS:
            raise ProgramError(f"up to '{name}' it needs {self._macs:,} multiplications for one image")

    def positions(self, step: Windows, before: Shape, kernel: Sequence[int]) -> Shape:
        """Return height and width of the result of a convolution or a pooling of maps."""
        channels, height, width = before
        above, left, below, right = step.padding
        reach = [spread * (size - 1) + 1 for spread, size in zip(step.dilation, kernel, strict=True)]
        padded = (height + above + below, width + left + right)
        self._check_size(step.name, channels * prod(padded))
        if any(size < least for size, least in zip(padded, reach, strict=True)):
            raise ProgramError(f"'{step.name}' reads windows that are larger than its input")
        return tuple((size - least) // by + 1 for size, least, by in zip(padded, reach, step.stride, strict=True))

    def _sources(self, step: Reading, count: int) -> list[Operation]:
        sources = [self.known[name] for name in step.inputs if name in self.known]
        if not len(sources) == len(step.inputs) == count:
            raise ProgramError(f"'{step.name}' reads tensors that are not made before it")
        self.read.update(step.inputs)
        return sources

    def _check_size(self, name: str, elements: int) -> None:
        if elements > _MOST_ELEMENTS:
            raise ProgramError(f"'{name}' has {elements:,} numbers for one image")
