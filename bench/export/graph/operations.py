"""The graph of a network that is exported: operations on named tensors, with the numbers that define them.

A quantizer turns a tensor into codes, whole numbers from 0 to n. A layer reads codes, or the pixels of the image. All
other operations read and write real numbers. Every form of export is made from this graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.compression.kernels import steps
from bench.export.graph.border import BorderMap

Codes: TypeAlias = NDArray[np.uint8]
Reals: TypeAlias = NDArray[np.float64]

IMAGE, LOGITS = "image", "logits"
"""Names of the image, whose codes are its pixels, and of the result of exported files. No operation has them."""
PIXEL_BITS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """An operation that makes one tensor.

    Attributes:
        name: Name of the result.
        inputs: Names of the tensors that are read.
        shape: Shape of the result for one image.
    """

    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantize(Operation):
    """Codes of a tensor x: (x − offset)/step, rounded to the nearest whole number, the lower one on a tie, from 0 to n.

    Attributes:
        layer: Path of the layer or product that reads the codes.
        bits: Number of bits k; n = 2^k − 1.
        clip: Clip value v; the step is v/n.
        offset: Value of code 0.
        right: Whether it is the right operand of a product, and not a layer's input or the left operand.
    """

    layer: str
    bits: int
    clip: float
    offset: float
    right: bool = False

    @property
    def module(self) -> str:
        """Path of the quantizer in the network."""
        return f"{self.layer}.{'weight' if self.right else 'activation'}_quantizer"

    @property
    def levels(self) -> int:
        """Largest code n."""
        return steps(self.bits)

    @property
    def step(self) -> float:
        """Difference of two neighbouring values."""
        return self.clip / self.levels


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer(Operation):
    """A convolution, or a linear layer over tokens or a vector; and the normalisation that follows it.

    The value of an input's code a in channel c is step[c]·a + offset[c], and that of a weight's code q is
    weight_step·(2q − n). Padding adds zeros to the values, not to the codes. The result in channel o is
    factor[o]·(sum of products) + constant[o].

    Attributes:
        path: Path of the layer.
        linear: Whether it is a linear layer, whose channels are last: (I,), or (tokens, I). Its kernel is 1×1.
        codes: Codes of the weights, shape (O, I/groups, kernel height, kernel width).
        weight_bits: Bits of the weights.
        weight_step: Half the difference of two neighbouring weights.
        input_bits: Bits of the input.
        input_steps, input_offsets: Steps and offsets of the input's channels, shape (I,).
        factor, constant: Scale and shift of the output's channels, shape (O,).
        input_shape: Shape of the input for one image.
        stride, dilation: Vertical and horizontal stride and dilation.
        padding: Rows and columns of zeros: above, left, below, right.
        groups: Number of groups.
    """

    path: str
    linear: bool
    codes: Codes
    weight_bits: int
    weight_step: float
    input_bits: int
    input_steps: Reals
    input_offsets: Reals
    factor: Reals
    constant: Reals
    input_shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight_levels(self) -> int:
        """Largest code n of a weight."""
        return steps(self.weight_bits)

    @property
    def input_levels(self) -> int:
        """Largest code of the input."""
        return steps(self.input_bits)

    @property
    def reads_image(self) -> bool:
        """Whether the layer reads pixels."""
        return self.inputs == (IMAGE,)

    @property
    def integers(self) -> NDArray[np.int64]:
        """Weights in units of their step: the odd numbers 2q − n."""
        return 2 * self.codes.astype(np.int64) - self.weight_levels

    @property
    def weights(self) -> Reals:
        """Quantized weights."""
        return self.weight_step * self.integers.astype(np.float64)

    @property
    def window_elements(self) -> int:
        """Number of input numbers in the windows of all positions."""
        positions = prod(self.shape[:-1] if self.linear else self.shape[1:])
        return prod(self.codes.shape[1:]) * self.groups * positions

    @cached_property
    def border(self) -> BorderMap:
        """What is added to the output at each position, because of offsets, bias and normalisation."""
        return border_map(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Product(Operation):
    """The matrix product of two tensors of codes, (…, rows, n) by (…, n, columns).

    Attributes:
        path: Path of the product.
        left, right: Quantizers of the operands.
    """

    path: str
    left: Quantize
    right: Quantize

    @property
    def contraction(self) -> int:
        """Number of products in a sum."""
        return self.left.shape[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip(Operation):
    """The smaller of x and `high`, and at least 0: ReLU and ReLU6.

    Attributes:
        high: Upper limit; `None` for none.
    """

    high: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operation):
    """Sum of two tensors of one shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiply(Operation):
    """Product of two tensors, one of which may have height and width 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean(Operation):
    """Mean over height and width, which the result keeps with size 1 or drops, as its shape says.

    Attributes:
        count: Number of positions.
    """

    count: int

    @property
    def keeps_dimensions(self) -> bool:
        """Whether the result has height and width 1."""
        return len(self.shape) == 3


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Operation):
    """Maximum over windows; padding is below every value.

    Attributes:
        kernel, stride: Height and width of the window, and its steps.
        padding: Rows and columns above, left, below, right.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hardswish(Operation):
    """x·clip(x + 3, 0, 6)/6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hardsigmoid(Operation):
    """clip(x + 3, 0, 6)/6."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescale(Operation):
    """A tensor times a number.

    Attributes:
        factor: The number.
    """

    factor: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Operation):
    """exp(x) divided by its sum along a dimension.

    Attributes:
        axis: The dimension; that of the images does not count.
    """

    axis: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Gelu(Operation):
    """x·Φ(x), where Φ is the normal distribution function."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorm(Operation):
    """(x − mean)/√(variance + epsilon) over the last dimension, times a weight, plus a bias.

    Attributes:
        epsilon: Number that is added to the variance.
        weight, bias: Numbers by channel.
    """

    epsilon: float
    weight: Reals
    bias: Reals


@dataclass(frozen=True, kw_only=True, eq=False)
class AddConstant(Operation):
    """A tensor plus numbers that are the same for all images, such as position embeddings.

    Attributes:
        values: The numbers, of the shape of the tensor.
    """

    values: Reals


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepend(Operation):
    """Tokens that are the same for all images, such as a class token, before those of a tensor.

    Attributes:
        values: The tokens, shape (tokens, channels).
    """

    values: Reals


@dataclass(frozen=True, kw_only=True, eq=False)
class Permute(Operation):
    """The dimensions in another order.

    Attributes:
        axes: Dimension of the input for each one of the result; that of the images does not count.
    """

    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Select(Operation):
    """One entry of the first dimension.

    Attributes:
        index: Number of the entry.
    """

    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Reshape(Operation):
    """The same numbers in another shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A network that is exported.

    Attributes:
        model, dataset: Names of the model and of the data set.
        image_shape: Channels, height and width of an image.
        mean, std: Mean and standard deviation of pixels, from 0 to 255, by channel.
        operations: Operations in order of execution.
        output: Name of the tensor of logits.
    """

    model: str
    dataset: str
    image_shape: tuple[int, int, int]
    mean: Reals
    std: Reals
    operations: tuple[Operation, ...]
    output: str

    @property
    def classes(self) -> int:
        """Number of logits."""
        return next(operation for operation in self.operations if operation.name == self.output).shape[0]

    @property
    def layers(self) -> Sequence[Layer]:
        """Layers in order of execution."""
        return [operation for operation in self.operations if isinstance(operation, Layer)]

    @property
    def products(self) -> Sequence[Product]:
        """Products of activations in order of execution."""
        return [operation for operation in self.operations if isinstance(operation, Product)]

    @property
    def quantizers(self) -> Sequence[Quantize]:
        """Quantizers of activations in order of execution."""
        return [operation for operation in self.operations if isinstance(operation, Quantize)]


def border_map(layer: Layer) -> BorderMap:
    """Compute what offsets of the input, bias and normalisation add to the output of a layer."""
    if not layer.input_offsets.any():
        nothing = np.zeros(1, dtype=np.intp)
        return BorderMap(values=layer.constant[:, None, None], rows=nothing, columns=nothing)
    rows, read_rows = _classes(layer, 0)
    columns, read_columns = _classes(layer, 1)
    outputs, inputs = layer.codes.shape[:2]
    read_by_group = layer.input_offsets.reshape(layer.groups, inputs)
    offsets = np.repeat(read_by_group, outputs // layer.groups, axis=0)
    taps = np.einsum("oi,oihw->ohw", offsets, layer.weights)
    sums = np.einsum("ohw,rh,cw->orc", taps, read_rows, read_columns)
    factor, constant = (values[:, None, None] for values in (layer.factor, layer.constant))
    return BorderMap(values=factor * sums + constant, rows=rows, columns=columns)


def _classes(layer: Layer, axis: int) -> tuple[NDArray[np.intp], Reals]:
    """Sort the positions of an axis of the output by the rows of the kernel that are inside of the input.

    Returns:
        Class of each position, and for each class 1 for rows inside and 0 for others, shape (classes, kernel size).
    """
    if layer.linear:
        return np.zeros(1, dtype=np.intp), np.ones((1, 1))
    size, outputs = layer.input_shape[1 + axis], layer.shape[1 + axis]
    first = np.arange(outputs) * layer.stride[axis] - layer.padding[axis]
    read = first[:, None] + np.arange(layer.codes.shape[2 + axis]) * layer.dilation[axis]
    inside, classes = np.unique((read >= 0) & (read < size), axis=0, return_inverse=True)
    return classes.reshape(-1), inside.astype(np.float64)
