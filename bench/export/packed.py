"""The packed form: codes of k bits, and integers that define every operation. `bench.export.executor` runs it.

A real number is held in units of 2^-24. A scale is a whole number of 31 bits and a shift. Both are so fine that codes
are those of exact arithmetic, except where a number lies within about 1e-6 steps of the middle between two codes.
Bounds of all numbers are computed from the weights. A network whose numbers could exceed 63 bits is refused.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.export import executor
from bench.export.graph import program
from bench.export.graph.operations import (
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

FILE, EXECUTOR = "network.safetensors", "executor.py"
"""Names of the files of this form."""
FRACTION_BITS = 24
MULTIPLIER_BITS = 31
_MOST_BITS = 62
"""Largest number of bits of a number's size anywhere in the computation."""
_UNIT = 1 << FRACTION_BITS
_NUMBERS = {
    "multipliers": np.int32,
    "shifts": np.int8,
    "biases": np.int32,
    "borders": np.uint8,
    "constants": np.float32,
}
"""Tensors with the numbers of all layers, and their types; biases get 64 bits if one needs them."""
_LEAST_MULTIPLIER_BITS = 20
"""Least number of bits of a multiplier of numbers that are large."""
_MOST_NORM_BITS = 45
"""Largest number of bits of a number whose square a layer normalisation adds up."""
_DTYPES = {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64", "float32": "F32"}

Tensors: TypeAlias = dict[str, NDArray[Any]]
Step: TypeAlias = tuple[dict[str, Any], int]
"""Integers that define an operation, as JSON, and a bound of the size of its result's numbers."""


def pack(codes: list[tuple[NDArray[np.uint8], int]]) -> NDArray[np.uint8]:
    """Pack codes into a string of bits, one array after the other, each code with its lowest bit first.

    Args:
        codes: Arrays of codes with the bits of each code, 1 to 8.

    Returns:
        Bytes, of which the lowest bit is the first; the last one is filled with zeros.
    """
    strings = [np.unpackbits(array.reshape(-1, 1), axis=1, bitorder="little")[:, :bits] for array, bits in codes]
    return np.packbits(np.concatenate([string.reshape(-1) for string in strings]), bitorder="little")


def packed_files(graph: Graph) -> dict[str, bytes]:
    """Make the files of the packed form: the network, and the program that executes it with NumPy alone.

    Raises:
        BenchError: A number of the computation could have more than 63 bits.
    """
    return {FILE: packed_network(graph), EXECUTOR: Path(executor.__file__).read_bytes()}


def packed_network(graph: Graph) -> bytes:
    """Make the file of a network.

    Raises:
        BenchError: A number of the computation could have more than 63 bits.
    """
    return _safetensors(packed_tensors(graph), {"format": "packed network"})


def packed_tensors(graph: Graph) -> Tensors:
    """Make the tensors of a network's file.

    Raises:
        BenchError: A number of the computation could have more than 63 bits.
    """
    writer = _Writer(graph)
    stated = program.text({**program.about(graph), "fraction_bits": FRACTION_BITS, "operations": writer.steps})
    return {
        **writer.tensors(),
        "weights": pack([(layer.codes, layer.weight_bits) for layer in graph.layers]),
        "program": np.frombuffer(stated.encode(), dtype=np.uint8),
    }


def parts(content: bytes) -> dict[str, int]:
    """Return the bytes of a packed network's parts: weights, other numbers, and the program with the header."""
    tensors = executor.PackedNetwork(content).tensors
    weights = tensors["weights"].nbytes
    scales = sum(tensors[name].nbytes for name in _NUMBERS)
    return {"weights": weights, "scales": scales, "program": len(content) - weights - scales}


def _safetensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """Write the layout of safetensors: the length of the header, the header, and the tensors."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.tobytes() for tensor in tensors.values())])


class _Writer:
    """Writes the operations of a graph as integers, and bounds every tensor.

    Attributes:
        steps: Operations as JSON values, without those that are the default.
    """

    def __init__(self, graph: Graph) -> None:
        self.steps: list[dict[str, Any]] = []
        self._numbers: dict[str, list[NDArray[Any]]] = {name: [] for name in _NUMBERS}
        self._model = graph.model
        self._bounds: dict[str, int] = {}
        self._first_bit = 0
        for operation in graph.operations:
            bounds = [self._bounds.get(name, 0) for name in operation.inputs]
            values, bound = _STEPS[type(operation)](self, operation, bounds)
            self._bounds[operation.name] = self._checked(operation, bound)
            further = {key: value for key, value in values.items() if executor.DEFAULTS.get(key, ...) != value}
            self.steps.append({**program.stated(operation), **further})

    def tensors(self) -> Tensors:
        """Return the numbers of all layers, one layer after the other."""
        return {name: np.concatenate([np.zeros(0, kind), *self._numbers[name]]) for name, kind in _NUMBERS.items()}

    def _add(self, name: str, *arrays: NDArray[Any]) -> int:
        """Add a layer's numbers to those of the layers before, and return their position."""
        first = sum(array.size for array in self._numbers[name])
        self._numbers[name] += [array.reshape(-1) for array in arrays]
        return first

    def quantize(self, operation: Quantize, _: list[int]) -> Step:
        """Write a quantizer: a scale, and the number above which every code is the largest."""
        top = math.ceil(operation.clip * _UNIT) + 1
        bits = min(MULTIPLIER_BITS, _MOST_BITS - top.bit_length())
        multiplier, shift = fixed_point(1 / (operation.step * _UNIT), bits)
        values = {
            "offset": round(operation.offset * _UNIT),
            "top": top,
            "multiplier": multiplier,
            "shift": shift,
        }
        return values, operation.levels

    def layer(self, layer: Layer, _: list[int]) -> Step:
        """Write a layer: its weights, scales and shifts by channel, and what is added at each position."""
        apart = len(set(layer.input_steps.tolist())) > 1
        if apart and layer.groups > 1:
            raise BenchError(
                f"'{self._model}' cannot be exported: layer '{layer.path}' has groups, and its input's channels have "
                "different scales; nothing was written"
            )
        steps = layer.input_steps if apart else layer.input_steps[:1]
        scales = layer.factor * layer.weight_step * steps[:, None] * _UNIT
        multipliers, shifts = _fixed_points(scales)
        border = np.rint(layer.border.values * _UNIT)
        largest_bias = self._checked(layer, math.ceil(np.abs(border).max()))
        bias = border.astype(np.int32 if largest_bias < 1 << 31 else np.int64)
        first_bit = self._first_bit
        self._first_bit += layer.codes.size * layer.weight_bits
        values = {
            "first_multiplier": self._add("multipliers", multipliers),
            "first_shift": self._add("shifts", shifts),
            "first_bias": self._add("biases", bias),
            "first_bit": first_bit,
            "sums_apart": apart,
            **self._border(layer),
        }
        sizes = np.abs(layer.integers).sum(axis=(2, 3))  # (O, I/groups)
        sums = (sizes.T if apart else sizes.sum(axis=1)[None]) * layer.input_levels
        products = _products(sums, multipliers, shifts)
        self._checked(layer, products)
        largest = float((sums * np.abs(scales)).sum(axis=0).max()) + largest_bias
        return values, math.ceil(largest) + 2

    def _border(self, layer: Layer) -> dict[str, Any]:
        """Write which rows and columns of a layer's output have the same bias; nothing if all have."""
        border = layer.border
        if border.uniform:
            return {}
        return {
            "border_classes": list(border.values.shape[1:]),
            "positions": [len(border.rows), len(border.columns)],
            "first_border": self._add("borders", border.rows.astype(np.uint8), border.columns.astype(np.uint8)),
        }

    def product(self, product: Product, _: list[int]) -> Step:
        """Write a product: factors of its sums, and of the sums of both operands' codes, as these have offsets."""
        left, right, count = product.left, product.right, product.contraction
        scales = (left.step * right.step, left.step * right.offset, left.offset * right.step)
        sums = (count * left.levels * right.levels, count * left.levels, count * right.levels)
        factors = [fixed_point(scale * _UNIT, MULTIPLIER_BITS) for scale in scales]
        for size, (number, shift) in zip(sums, factors, strict=True):
            self._checked(product, (size * abs(number) << max(-shift, 0)) + (1 << max(shift, 0)))
        bias = round(count * left.offset * right.offset * _UNIT)
        sizes = (math.ceil(size * abs(scale) * _UNIT) for size, scale in zip(sums, scales, strict=True))
        return {"factors": [list(pair) for pair in factors], "bias": bias}, sum(sizes) + abs(bias) + 4

    def rescale(self, operation: Rescale, bounds: list[int]) -> Step:
        """Write a factor."""
        bits = min(MULTIPLIER_BITS, _MOST_BITS - 1 - bounds[0].bit_length())
        if bits < _LEAST_MULTIPLIER_BITS:
            raise self._too_large(operation)
        multiplier, shift = fixed_point(operation.factor, bits)
        self._checked(operation, (bounds[0] * abs(multiplier) << max(-shift, 0)) + (1 << max(shift, 0)))
        return {"multiplier": multiplier, "shift": shift}, math.ceil(bounds[0] * abs(operation.factor)) + 1

    def layer_norm(self, operation: LayerNorm, bounds: list[int]) -> Step:
        """Write weights and biases of a normalisation."""
        if (2 * bounds[0]).bit_length() > _MOST_NORM_BITS:
            raise self._too_large(operation)
        first = self._add("constants", operation.weight.astype(np.float32), operation.bias.astype(np.float32))
        largest = math.sqrt(operation.shape[-1]) * float(np.abs(operation.weight).max())
        return {"first_constant": first}, math.ceil((largest + float(np.abs(operation.bias).max())) * _UNIT) + 1

    def constant(self, operation: AddConstant, bounds: list[int]) -> Step:
        """Write numbers that are added."""
        first = self._add("constants", operation.values.astype(np.float32))
        return {"first_constant": first}, bounds[0] + self._largest(operation)

    def prepend(self, operation: Prepend, bounds: list[int]) -> Step:
        """Write tokens."""
        first = self._add("constants", operation.values.astype(np.float32))
        return {"first_constant": first}, max(bounds[0], self._largest(operation))

    def _largest(self, operation: AddConstant | Prepend) -> int:
        return math.ceil(float(np.abs(operation.values).max()) * _UNIT) + 1

    def clip(self, operation: Clip, bounds: list[int]) -> Step:
        """Bound a limit."""
        return {}, bounds[0] if operation.high is None else min(bounds[0], operation.high * _UNIT)

    def multiply(self, operation: Multiply, bounds: list[int]) -> Step:
        """Bound a product."""
        return {}, self._checked(operation, bounds[0] * bounds[1]) // _UNIT + 1

    def mean(self, operation: Mean, bounds: list[int]) -> Step:
        """Bound a mean over positions."""
        self._checked(operation, 2 * bounds[0] * operation.count)
        return {}, bounds[0]

    def _checked(self, operation: Operation, bound: int) -> int:
        """Return a bound of a number's size.

        Raises:
            BenchError: It is too large.
        """
        if bound.bit_length() > _MOST_BITS:
            raise self._too_large(operation)
        return bound

    def _too_large(self, operation: Operation) -> BenchError:
        return BenchError(
            f"'{self._model}' cannot be exported as packed: numbers in '{operation.name}' could have more than "
            f"{_MOST_BITS} bits; nothing was written"
        )


_STEPS: Mapping[type[Operation], Callable[[_Writer, Any, list[int]], Step]] = {
    Quantize: _Writer.quantize,
    Layer: _Writer.layer,
    Clip: _Writer.clip,
    Add: lambda _, __, bounds: ({}, sum(bounds)),
    Multiply: _Writer.multiply,
    Mean: _Writer.mean,
    MaxPool: lambda _, __, bounds: ({}, bounds[0]),
    Hardsigmoid: lambda _, __, ___: ({}, _UNIT),
    Hardswish: lambda _, __, bounds: ({}, bounds[0]),
    Product: _Writer.product,
    Rescale: _Writer.rescale,
    Softmax: lambda _, __, ___: ({}, _UNIT + 1),
    Gelu: lambda _, __, bounds: ({}, bounds[0]),
    LayerNorm: _Writer.layer_norm,
    AddConstant: _Writer.constant,
    Prepend: _Writer.prepend,
    Permute: lambda _, __, bounds: ({}, bounds[0]),
    Select: lambda _, __, bounds: ({}, bounds[0]),
    Reshape: lambda _, __, bounds: ({}, bounds[0]),
}
"""Function for each operation that returns the integers that define it, and a bound of its result's size."""


def fixed_point(value: float, bits: int) -> tuple[int, int]:
    """Return a whole number of at most `bits` bits and a shift, such that value ≈ number·2^-shift; (0, 0) for 0."""
    if value == 0:
        return 0, 0
    exponent = math.frexp(value)[1]
    shift = min(bits - exponent, _MOST_BITS - 1)
    number = round(math.ldexp(value, shift))
    return (number, shift) if abs(number) < 1 << bits else (round(math.ldexp(value, shift - 1)), shift - 1)


def _fixed_points(scales: Reals) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Write scales (sums, outputs) as whole numbers and one shift for each output."""
    shifts = [fixed_point(float(column), MULTIPLIER_BITS)[1] for column in np.abs(scales).max(axis=0)]
    numbers = np.rint(np.ldexp(scales, np.array(shifts, dtype=np.intc)))
    return numbers.astype(np.int32), np.array(shifts, dtype=np.int8)


def _products(sums: NDArray[np.int64], multipliers: NDArray[np.int32], shifts: NDArray[np.int8]) -> int:
    """Return a bound of a layer's sums times their multipliers, before they are shifted to the right."""
    bound = 0
    for channel, shift in enumerate(shifts.tolist()):
        pairs = zip(sums[:, channel].tolist(), np.abs(multipliers[:, channel]).tolist(), strict=True)
        total = sum(size * number for size, number in pairs)
        bound = max(bound, (total << max(-shift, 0)) + (1 << max(shift, 0)))
    return bound
