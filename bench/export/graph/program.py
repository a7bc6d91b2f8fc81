"""The program of a network: the operations of its graph as JSON, without the weights and scales of the layers.

Every exported file has it, in the form of its own, so that `bench import` can make the graph again. Files may come from
anywhere. Reading a program checks that its operations fit together, and bounds the work that they ask for. That nothing
else is in the file is checked by making the file again: see `bench.export.importing`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bench.compression.kernels import steps
from bench.export.executor import DEFAULTS
from bench.export.graph.operations import (
    IMAGE,
    LOGITS,
    PIXEL_BITS,
    Add,
    AddConstant,
    Clip,
    Gelu,
    Graph,
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
    Reals,
    Rescale,
    Reshape,
    Select,
    Softmax,
)
from bench.inputs.reading import parse_json

VERSION = 2
"""Version of the program's meaning."""
MOST_BITS = 8
"""Largest number of bits of weights and activations in an exported network."""
_MOST_ELEMENTS = 1 << 25
"""Largest size of a tensor for one image, and of all windows that a layer reads."""
_MOST_MACS = 1 << 43
_MOST_OPERATIONS = 20_000

Shape: TypeAlias = tuple[int, ...]
Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}$")]
Title: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$")]
Size: TypeAlias = Annotated[int, Field(ge=1, le=1 << 16)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=64)]
Index: TypeAlias = Annotated[int, Field(ge=0, le=5)]
Padding: TypeAlias = Annotated[int, Field(ge=0, le=64)]
Real: TypeAlias = Annotated[float, Field(ge=-1e9, le=1e9)]
PositiveReal: TypeAlias = Annotated[float, Field(ge=1e-12, le=1e9)]
Codes: TypeAlias = Annotated[int, Field(ge=1, le=steps(MOST_BITS))]


class ProgramError(ValueError):
    """A program is none that this version writes; the message says where."""


# --- writing --------------------------------------------------------------------------------------------------------


def stated(operation: Operation) -> dict[str, Any]:
    """Return an operation as JSON, without values that are the default."""
    name, values = _STATED[type(operation)]
    made = {key: _plain(value) for key, value in values(operation).items()}
    further = {key: value for key, value in made.items() if DEFAULTS.get(key, ...) != value}
    return {"operation": name, "name": operation.name, "inputs": list(operation.inputs), **further}


def about(graph: Graph) -> dict[str, Any]:
    """Return what a program says of the whole network."""
    return {
        "version": VERSION,
        "model": graph.model,
        "dataset": graph.dataset,
        "image_shape": list(graph.image_shape),
        "mean": graph.mean.tolist(),
        "std": graph.std.tolist(),
        "output": graph.output,
    }


def text(program: Mapping[str, Any]) -> str:
    """Return the text of a program."""
    return json.dumps(program, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quantize_values(operation: Quantize) -> dict[str, Any]:
    return {
        "layer": operation.layer,
        "largest_code": operation.levels,
        "clip": operation.clip,
        "lowest": operation.offset,
        "right": operation.right,
    }


def _layer_values(layer: Layer) -> dict[str, Any]:
    return {
        "path": layer.path,
        "linear": layer.linear,
        "weight_bits": layer.weight_bits,
        "weight_shape": layer.codes.shape,
        "weight_step": layer.weight_step,
        "largest_code": layer.input_levels,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }


def _pool_values(operation: MaxPool) -> dict[str, Any]:
    return {"kernel": operation.kernel, "stride": operation.stride, "padding": operation.padding}


_STATED: Mapping[type[Operation], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    Quantize: ("quantize", _quantize_values),
    Layer: ("layer", _layer_values),
    Clip: ("clip", lambda operation: {"high": operation.high}),
    Add: ("add", lambda _: {}),
    Multiply: ("multiply", lambda _: {}),
    Mean: ("mean", lambda operation: {"keeps_dimensions": operation.keeps_dimensions}),
    MaxPool: ("max_pool", _pool_values),
    Hardsigmoid: ("hardsigmoid", lambda _: {}),
    Hardswish: ("hardswish", lambda _: {}),
    Product: ("product", lambda operation: {"path": operation.path}),
    Rescale: ("rescale", lambda operation: {"factor": operation.factor}),
    Softmax: ("softmax", lambda operation: {"axis": operation.axis}),
    Gelu: ("gelu", lambda _: {}),
    LayerNorm: ("layer_norm", lambda operation: {"epsilon": operation.epsilon}),
    AddConstant: ("add_constant", lambda _: {}),
    Prepend: ("prepend", lambda operation: {"tokens": len(operation.values)}),
    Permute: ("permute", lambda operation: {"axes": operation.axes}),
    Select: ("select", lambda operation: {"index": operation.index}),
    Reshape: ("reshape", lambda operation: {"shape": operation.shape}),
}
"""Name of each operation, and a function that returns its values."""


# --- reading --------------------------------------------------------------------------------------------------------


class _Step(BaseModel):
    """An operation in a program."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    name: Name
    inputs: Annotated[list[Name], Field(min_length=1, max_length=2)]

    def made(self, tensors: "_Tensors") -> Operation:
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

    def made(self, tensors: "_Tensors") -> Operation:
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

    def made(self, tensors: "_Tensors") -> Operation:
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

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Clip(high=self.high, **self.base(shape))


class _AddStep(_Step):
    operation: Literal["add"]

    def made(self, tensors: "_Tensors") -> Operation:
        first, second = tensors.reals(self, 2)
        if first != second:
            raise ProgramError(f"'{self.name}' adds tensors of shape {first} and {second}")
        return Add(**self.base(first))


class _MultiplyStep(_Step):
    operation: Literal["multiply"]

    def made(self, tensors: "_Tensors") -> Operation:
        first, second = tensors.reals(self, 2)
        large, small = (first, second) if prod(first) >= prod(second) else (second, first)
        if small not in (large, (*large[:1], 1, 1)):
            raise ProgramError(f"'{self.name}' multiplies tensors of shape {first} and {second}")
        return Multiply(**self.base(large))


class _MeanStep(_Step):
    operation: Literal["mean"]
    keeps_dimensions: bool

    def made(self, tensors: "_Tensors") -> Operation:
        channels, height, width = tensors.map(self)
        shape = (channels, 1, 1) if self.keeps_dimensions else (channels,)
        return Mean(count=height * width, **self.base(shape))


class _MaxPoolStep(_Step):
    operation: Literal["max_pool"]
    kernel: tuple[Side, Side]
    stride: tuple[Side, Side] = (1, 1)
    padding: tuple[Padding, Padding, Padding, Padding] = (0, 0, 0, 0)
    dilation: ClassVar[tuple[int, int]] = (1, 1)

    def made(self, tensors: "_Tensors") -> Operation:
        before = tensors.map(self)
        if max(self.padding) >= min(self.kernel):
            raise ProgramError(f"'{self.name}' has windows without a number")
        shape = (before[0], *tensors.positions(self, before, self.kernel))
        tensors.add_work(self.name, prod(shape) * prod(self.kernel), 1)
        return MaxPool(kernel=self.kernel, stride=self.stride, padding=self.padding, **self.base(shape))


class _HardsigmoidStep(_Step):
    operation: Literal["hardsigmoid"]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Hardsigmoid(**self.base(shape))


class _HardswishStep(_Step):
    operation: Literal["hardswish"]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Hardswish(**self.base(shape))


class _ProductStep(_Step):
    operation: Literal["product"]
    path: Name

    def made(self, tensors: "_Tensors") -> Operation:
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

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Rescale(factor=self.factor, **self.base(shape))


class _SoftmaxStep(_Step):
    operation: Literal["softmax"]
    axis: Index

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        if self.axis >= len(shape):
            raise ProgramError(f"'{self.name}' has no dimension {self.axis}")
        return Softmax(axis=self.axis, **self.base(shape))


class _GeluStep(_Step):
    operation: Literal["gelu"]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return Gelu(**self.base(shape))


class _LayerNormStep(_Step):
    operation: Literal["layer_norm"]
    epsilon: PositiveReal

    def made(self, tensors: "_Tensors") -> Operation:
        shape = tensors.tokens(self)
        nothing = np.zeros(shape[-1])
        return LayerNorm(epsilon=self.epsilon, weight=nothing, bias=nothing, **self.base(shape))


class _AddConstantStep(_Step):
    operation: Literal["add_constant"]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        return AddConstant(values=np.broadcast_to(0.0, shape), **self.base(shape))


class _PrependStep(_Step):
    operation: Literal["prepend"]
    tokens: Side

    def made(self, tensors: "_Tensors") -> Operation:
        tokens, channels = tensors.tokens(self)
        values = np.zeros((self.tokens, channels))
        return Prepend(values=values, **self.base((tokens + self.tokens, channels)))


class _PermuteStep(_Step):
    operation: Literal["permute"]
    axes: Annotated[list[Index], Field(min_length=1, max_length=6)]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        if sorted(self.axes) != list(range(len(shape))):
            raise ProgramError(f"'{self.name}' has no order of the dimensions of {shape}")
        return Permute(axes=tuple(self.axes), **self.base(tuple(shape[axis] for axis in self.axes)))


class _SelectStep(_Step):
    operation: Literal["select"]
    index: Annotated[int, Field(ge=0, le=1 << 16)]

    def made(self, tensors: "_Tensors") -> Operation:
        (shape,) = tensors.reals(self, 1)
        if len(shape) < 2 or self.index >= shape[0]:
            raise ProgramError(f"'{self.name}' takes entry {self.index} of a tensor of shape {shape}")
        return Select(index=self.index, **self.base(shape[1:]))


class _ReshapeStep(_Step):
    operation: Literal["reshape"]
    shape: Annotated[list[Size], Field(min_length=1, max_length=6)]

    def made(self, tensors: "_Tensors") -> Operation:
        (before,) = tensors.reals(self, 1)
        if prod(before) != prod(self.shape):
            raise ProgramError(f"'{self.name}' makes shape {tuple(self.shape)} of {before}")
        return Reshape(**self.base(tuple(self.shape)))


_AnyStep = Annotated[
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


class Program(BaseModel):
    """A program that was read, whose operations are not yet known to fit together."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: Title
    dataset: Title
    image_shape: tuple[Size, Size, Size]
    mean: list[Real]
    std: list[PositiveReal]
    output: Name
    operations: Annotated[list[_AnyStep], Field(max_length=_MOST_OPERATIONS)]


def read_program(content: bytes) -> Graph:
    """Read a program.

    Args:
        content: Text of the program.

    Returns:
        The graph, in which the layers have no codes, factors and constants yet.

    Raises:
        ProgramError: It is none that this version writes, its operations do not fit together, or it asks for more work
            than any network that is exported.
    """
    try:
        document = parse_json(content)
    except ValueError as error:
        raise ProgramError(f"its program is not JSON: {error}") from error
    version = document.get("version") if isinstance(document, dict) else None
    if type(version) is int and version != VERSION:
        raise ProgramError(f"its program has version {version}, and this version of the harness reads {VERSION}")
    try:
        program = Program.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise ProgramError(f"its program is not valid: {place}: {first['msg']}") from error
    return _checked(program)


def _checked(program: Program) -> Graph:
    """Return the graph of a program, with shapes of all tensors."""
    if not len(program.mean) == len(program.std) == program.image_shape[0]:
        raise ProgramError("its program has not one mean and one deviation for each channel of an image")
    tensors = _Tensors(program)
    operations = []
    for step in program.operations:
        if step.name in tensors.known or step.name == LOGITS:
            raise ProgramError(f"'{step.name}' is made twice")
        made = step.made(tensors)
        tensors.add(made)
        operations.append(made)
    layers = [operation for operation in operations if isinstance(operation, Layer | Product)]
    if not layers or len({layer.path for layer in layers}) < len(layers):
        raise ProgramError("it has no layers, or two of one path")
    output = tensors.known.get(program.output)
    if output is None or isinstance(output, Quantize) or len(output.shape) != 1 or output.name in tensors.read:
        raise ProgramError(f"'{program.output}' is no vector of logits")
    return Graph(
        model=program.model,
        dataset=program.dataset,
        image_shape=program.image_shape,
        mean=np.array(program.mean),
        std=np.array(program.std),
        operations=tuple(operations),
        output=program.output,
    )


class _Tensors:
    """Tensors that are known while a program is checked.

    Attributes:
        known: Operations by the names of the tensors that they make; the image among them.
        read: Names of tensors that an operation reads.
    """

    def __init__(self, program: Program) -> None:
        self._mean, self._std = np.array(program.mean), np.array(program.std)
        self.known = {IMAGE: Operation(name=IMAGE, inputs=(), shape=program.image_shape)}
        self.read: set[str] = set()
        self._macs = 0
        self._check_size(IMAGE, prod(program.image_shape))

    def add(self, operation: Operation) -> None:
        """Add the result of an operation."""
        self._check_size(operation.name, prod(operation.shape))
        self.known[operation.name] = operation

    def reals(self, step: _Step, count: int) -> list[Shape]:
        """Return the shapes of the real tensors that an operation reads."""
        sources = self._sources(step, count)
        for source in sources:
            if isinstance(source, Quantize) or source.name == IMAGE:
                raise ProgramError(f"'{step.name}' reads codes, which only layers may read")
        return [source.shape for source in sources]

    def map(self, step: _Step) -> Shape:
        """Return the shape of the only map that an operation reads."""
        (shape,) = self.reals(step, 1)
        if len(shape) != 3:
            raise ProgramError(f"'{step.name}' reads a tensor of shape {shape}, which has no height and width")
        return shape

    def tokens(self, step: _Step) -> Shape:
        """Return the shape of the only tensor of tokens that an operation reads."""
        (shape,) = self.reals(step, 1)
        if len(shape) != 2:
            raise ProgramError(f"'{step.name}' reads a tensor of shape {shape}, which has no tokens")
        return shape

    def codes(self, step: _Step, count: int) -> list[Operation]:
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

    def positions(self, step: _LayerStep | _MaxPoolStep, before: Shape, kernel: Sequence[int]) -> Shape:
        """Return height and width of the result of a convolution or a pooling of maps."""
        channels, height, width = before
        above, left, below, right = step.padding
        reach = [spread * (size - 1) + 1 for spread, size in zip(step.dilation, kernel, strict=True)]
        padded = (height + above + below, width + left + right)
        self._check_size(step.name, channels * prod(padded))
        if any(size < least for size, least in zip(padded, reach, strict=True)):
            raise ProgramError(f"'{step.name}' reads windows that are larger than its input")
        return tuple((size - least) // by + 1 for size, least, by in zip(padded, reach, step.stride, strict=True))

    def _sources(self, step: _Step, count: int) -> list[Operation]:
        sources = [self.known[name] for name in step.inputs if name in self.known]
        if not len(sources) == len(step.inputs) == count:
            raise ProgramError(f"'{step.name}' reads tensors that are not made before it")
        self.read.update(step.inputs)
        return sources

    def _check_size(self, name: str, elements: int) -> None:
        if elements > _MOST_ELEMENTS:
            raise ProgramError(f"'{name}' has {elements:,} numbers for one image")


def _bits(name: str, largest: int) -> int:
    if largest & (largest + 1):
        raise ProgramError(f"'{name}' has {largest} as the largest code, and no number of bits gives it")
    return largest.bit_length()
