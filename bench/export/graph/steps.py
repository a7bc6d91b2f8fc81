"""The operations of a program that is read: each checks its values, and that it fits the tensors that it reads."""

from math import prod
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bench.compression.kernels import steps
from bench.export.graph.operations import (
    IMAGE,
    PIXEL_BITS,
    Add,
    AddConstant,
    Clip,
    Gelu,
    Hardsigmoid,
    Hardswish,
    Layer,
    LayerNorm,
    MaxPool,
    Mean,
    Multiply,
    Operation,
    Permute,
    Prepend,
    Product,
    Quantize,
    Rescale,
    Reshape,
    Select,
    Softmax,
)
from bench.export.graph.tensors import ProgramError, Shape, Tensors

MOST_BITS = 8
"""Largest number of bits of weights and activations in an exported network."""
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}$")]
Title: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")]
Size: TypeAlias = Annotated[int, Field(ge=1, le=1 << 16)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=64)]
Index: TypeAlias = Annotated[int, Field(ge=0, le=5)]
Padding: TypeAlias = Annotated[int, Field(ge=0, le=64)]
Real: TypeAlias = Annotated[float, Field(ge=-1e9, le=1e9)]
PositiveReal: TypeAlias = Annotated[float, Field(ge=1e-12, le=1e9)]
Codes: TypeAlias = Annotated[int, Field(ge=1, le=steps(MOST_BITS))]


class _Step(BaseModel):
    """An operation in a program."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    name: Name
    inputs: Annotated[list[Name], Field(min_length=1, max_length=2)]

    def made(self, tensors: Tensors) -> Operation:
        """Return the operation.

        Raises:
            ProgramError: It does not fit the tensors that it reads.
        """
        raise NotImplementedError

    def base(self, shape: Shape) -> dict[str, Any]:
        """Return the values that all operations have."""
        return {"name": self.name, "inputs": tuple(self.inputs), "shape": shape}


class _QuantizeStep(_Step):
    operation: Literal["quantize"]
    layer: Name
    largest_code: Codes
    clip: PositiveReal
    lowest: Real
    right: bool = False

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Quantize(
            layer=self.layer,
            bits=_bits(self.name, self.largest_code),
            clip=self.clip,
            offset=self.lowest,
            right=self.right,
            **self.base(shape),
        )


class _LayerStep(_Step):
    operation: Literal["layer"]
    path: Name
    linear: bool = False
    weight_bits: Annotated[int, Field(ge=1, le=MOST_BITS)]
    weight_shape: tuple[Size, Size, Side, Side]
    weight_step: PositiveReal
    largest_code: Codes
    stride: tuple[Side, Side] = (1, 1)
    padding: tuple[Padding, Padding, Padding, Padding] = (0, 0, 0, 0)
    dilation: tuple[Side, Side] = (1, 1)
    groups: Size = 1

    def made(self, tensors: Tensors) -> Operation:
        (source,) = tensors.codes(self, 1)
        before = source.shape
        outputs, inputs, *kernel = self.weight_shape
        if self.linear:
            fits = len(before) < 3 and before[-1] == inputs and kernel == [1, 1] and self.groups == 1
            shape: Shape = (*before[:-1], outputs)
        else:
            fits = len(before) == 3 and before[0] == inputs * self.groups and not outputs % self.groups
            shape = (outputs, *tensors.positions(self, before, kernel)) if fits else ()
        if not fits:
            raise ProgramError(f"'{self.name}' has weights of shape {self.weight_shape} and reads {before}")
        if isinstance(source, Quantize) and not (
            source.layer == self.path and source.levels == self.largest_code and not source.right
        ):
            raise ProgramError(f"'{self.name}' does not read its own codes")
        if source.name == IMAGE and self.largest_code != steps(PIXEL_BITS):
            raise ProgramError(f"'{self.name}' reads the image, and has {self.largest_code} as the largest pixel")
        positions = prod(shape[:-1] if self.linear else shape[1:])
        tensors.add_work(self.name, inputs * prod(kernel) * self.groups * positions, outputs // self.groups)
        steps_of_input, offsets = tensors.scale_of(source)
        return Layer(
            path=self.path,
            linear=self.linear,
            codes=np.broadcast_to(np.uint8(0), self.weight_shape),
            weight_bits=self.weight_bits,
            weight_step=self.weight_step,
            input_bits=_bits(self.name, self.largest_code),
            factor=np.zeros(outputs),
            constant=np.zeros(outputs),
            input_shape=before,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            input_steps=steps_of_input,
            input_offsets=offsets,
            **self.base(shape),
        )


class _ClipStep(_Step):
    operation: Literal["clip"]
    high: Annotated[int, Field(ge=1, le=1 << 10)] | None = None

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Clip(high=self.high, **self.base(shape))


class _AddStep(_Step):
    operation: Literal["add"]

    def made(self, tensors: Tensors) -> Operation:
        first, second = tensors.reals(self, 2)
        if first != second:
            raise ProgramError(f"'{self.name}' adds tensors of shape {first} and {second}")
        return Add(**self.base(first))


class _MultiplyStep(_Step):
    operation: Literal["multiply"]

    def made(self, tensors: Tensors) -> Operation:
        first, second = tensors.reals(self, 2)
        large, small = (first, second) if prod(first) >= prod(second) else (second, first)
        if small not in (large, (*large[:1], 1, 1)):
            raise ProgramError(f"'{self.name}' multiplies tensors of shape {first} and {second}")
        return Multiply(**self.base(large))


class _MeanStep(_Step):
    operation: Literal["mean"]
    keeps_dimensions: bool

    def made(self, tensors: Tensors) -> Operation:
        channels, height, width = tensors.map(self)
        shape = (channels, 1, 1) if self.keeps_dimensions else (channels,)
        return Mean(count=height * width, **self.base(shape))


class _MaxPoolStep(_Step):
    operation: Literal["max_pool"]
    kernel: tuple[Side, Side]
    stride: tuple[Side, Side] = (1, 1)
    padding: tuple[Padding, Padding, Padding, Padding] = (0, 0, 0, 0)
    dilation: ClassVar[tuple[int, int]] = (1, 1)

    def made(self, tensors: Tensors) -> Operation:
        before = tensors.map(self)
        if max(self.padding) >= min(self.kernel):
            raise ProgramError(f"'{self.name}' has windows without a number")
        shape = (before[0], *tensors.positions(self, before, self.kernel))
        tensors.add_work(self.name, prod(shape) * prod(self.kernel), 1)
        return MaxPool(kernel=self.kernel, stride=self.stride, padding=self.padding, **self.base(shape))


class _HardsigmoidStep(_Step):
    operation: Literal["hardsigmoid"]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Hardsigmoid(**self.base(shape))


class _HardswishStep(_Step):
    operation: Literal["hardswish"]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Hardswish(**self.base(shape))


class _ProductStep(_Step):
    operation: Literal["product"]
    path: Name

    def made(self, tensors: Tensors) -> Operation:
        left, right = tensors.codes(self, 2)
        if not isinstance(left, Quantize) or not isinstance(right, Quantize):
            raise ProgramError(f"'{self.name}' multiplies the image")
        if (left.layer, left.right, right.layer, right.right) != (self.path, False, self.path, True):
            raise ProgramError(f"'{self.name}' does not read its own codes")
        rows, columns = left.shape[-2:-1], right.shape[-1:]
        if not 2 <= len(left.shape) <= 4 or (*left.shape[:-2], *left.shape[-1:]) != right.shape[:-1]:
            raise ProgramError(f"'{self.name}' multiplies tensors of shape {left.shape} and {right.shape}")
        tensors.add_work(self.name, prod(left.shape), columns[0])
        return Product(path=self.path, left=left, right=right, **self.base((*left.shape[:-2], *rows, *columns)))


class _RescaleStep(_Step):
    operation: Literal["rescale"]
    factor: Real

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Rescale(factor=self.factor, **self.base(shape))


class _SoftmaxStep(_Step):
    operation: Literal["softmax"]
    axis: Index

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        if self.axis >= len(shape):
            raise ProgramError(f"'{self.name}' has no dimension {self.axis}")
        return Softmax(axis=self.axis, **self.base(shape))


class _GeluStep(_Step):
    operation: Literal["gelu"]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Gelu(**self.base(shape))


class _LayerNormStep(_Step):
    operation: Literal["layer_norm"]
    epsilon: PositiveReal

    def made(self, tensors: Tensors) -> Operation:
        shape = tensors.tokens(self)
        nothing = np.zeros(shape[-1])
        return LayerNorm(epsilon=self.epsilon, weight=nothing, bias=nothing, **self.base(shape))


class _AddConstantStep(_Step):
    operation: Literal["add_constant"]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        return AddConstant(values=np.broadcast_to(0.0, shape), **self.base(shape))


class _PrependStep(_Step):
    operation: Literal["prepend"]
    tokens: Side

    def made(self, tensors: Tensors) -> Operation:
        tokens, channels = tensors.tokens(self)
        values = np.zeros((self.tokens, channels))
        return Prepend(values=values, **self.base((tokens + self.tokens, channels)))


class _PermuteStep(_Step):
    operation: Literal["permute"]
    axes: Annotated[list[Index], Field(min_length=1, max_length=6)]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        if sorted(self.axes) != list(range(len(shape))):
            raise ProgramError(f"'{self.name}' has no order of the dimensions of {shape}")
        return Permute(axes=tuple(self.axes), **self.base(tuple(shape[axis] for axis in self.axes)))


class _SelectStep(_Step):
    operation: Literal["select"]
    index: Annotated[int, Field(ge=0, le=1 << 16)]

    def made(self, tensors: Tensors) -> Operation:
        (shape,) = tensors.reals(self, 1)
        if len(shape) < 2 or self.index >= shape[0]:
            raise ProgramError(f"'{self.name}' takes entry {self.index} of a tensor of shape {shape}")
        return Select(index=self.index, **self.base(shape[1:]))


class _ReshapeStep(_Step):
    operation: Literal["reshape"]
    shape: Annotated[list[Size], Field(min_length=1, max_length=6)]

    def made(self, tensors: Tensors) -> Operation:
        (before,) = tensors.reals(self, 1)
        if prod(before) != prod(self.shape):
            raise ProgramError(f"'{self.name}' makes shape {tuple(self.shape)} of {before}")
        return Reshape(**self.base(tuple(self.shape)))


AnyStep = Annotated[
    _QuantizeStep
    | _LayerStep
    | _ClipStep
    | _AddStep
    | _MultiplyStep
    | _MeanStep
    | _MaxPoolStep
    | _HardsigmoidStep
    | _HardswishStep
    | _ReshapeStep
    | _ProductStep
    | _RescaleStep
    | _SoftmaxStep
    | _GeluStep
    | _LayerNormStep
    | _AddConstantStep
    | _PrependStep
    | _PermuteStep
    | _SelectStep,
    Field(discriminator="operation"),
]


def _bits(name: str, largest: int) -> int:
    if largest & (largest + 1):
        raise ProgramError(f"'{name}' has {largest} as the largest code, and no number of bits gives it")
    return largest.bit_length()
