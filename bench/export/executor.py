"""Run a packed network with NumPy alone: `python executor.py network.safetensors images.npy [logits.npy]`.

The images are `uint8` pixels of shape (N, C, H, W). The command prints the class of each image.

The file of the network has the layout of safetensors: the length of a header in 8 bytes, the header as JSON, and the
tensors. The tensor `program` is JSON too, and lists the operations. The other ones hold the numbers of all layers, one
layer after the other. The weights are one string of bits, in which a code of k bits has its lowest bit first.

A tensor between two operations holds whole numbers. It is either the codes of a layer's input, or numbers in units of
2^-fraction_bits.

Nearly everything is computed with whole numbers, and every rounding is defined, so the result is the same on every
machine. Sums of products are computed in floating point where it holds them exactly, because this is fast. 64 bits
suffice for all numbers: whoever made the file has checked it. Softmax, GELU and layer normalisation are computed in
float64, number by number, with additions, multiplications, divisions and square roots alone, whose results IEEE 754
defines; sums in them are of whole numbers. Their results are whole numbers again.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
Observer = Callable[[str, Array], None]

_DTYPES = {"U8": "<u1", "I8": "<i1", "I32": "<i4", "I64": "<i8", "F32": "<f4"}
DEFAULTS = {
    "stride": [1, 1],
    "dilation": [1, 1],
    "padding": [0, 0, 0, 0],
    "groups": 1,
    "linear": False,
    "sums_apart": False,
    "border_classes": [1, 1],
    "high": None,
    "right": False,
}
"""Values of an operation that are left out."""
_BATCH = 100
"""Images that are computed together."""
_LOW_BITS = 20
"""Bits of the lower part of a number that is squared."""
_EXPONENTIAL_BITS = 40
"""Fraction bits of exponentials in a softmax."""
_LN2, _LN2_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""The natural logarithm of 2 in two parts, of which whole multiples of the first are exact."""
_REACH, _STEP_BITS = 8, 7
"""GELU is interpolated from −8 to 8 in steps of 2^-7."""


class PackedNetwork:
    """A network in a file.

    Args:
        content: Content of the file.

    Attributes:
        program: Description of the network and its operations.
        tensors: Tensors of the file by name.
        steps: Operations, with the values that the program leaves out.
    """

    def __init__(self, content: bytes) -> None:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        self.tensors = {name: _tensor(content[8 + length :], entry) for name, entry in header.items()}
        self.program: dict[str, Any] = json.loads(self.tensors["program"].tobytes())
        self.steps = [DEFAULTS | step for step in self.program["operations"]]
        self._unit = 1 << self.program["fraction_bits"]
        self._weights: dict[str, Array] = {}
        uses = [(name, number) for number, step in enumerate(self.steps) for name in step["inputs"]]
        self._last_use = dict(uses)

    def classify(self, images: Array) -> Array:
        """Return the class of each image; of two equal logits, the first one counts."""
        classes: Array = self.logits(images).argmax(axis=1)
        return classes

    def logits(self, images: Array) -> Array:
        """Compute the logits of images `uint8` (N, C, H, W), as whole numbers in units of 2^-fraction_bits."""
        parts = [self.run(images[first : first + _BATCH]) for first in range(0, len(images), _BATCH)]
        return np.concatenate(parts)

    def run(self, images: Array, observe: Observer | None = None) -> Array:
        """Compute the logits of one batch.

        Args:
            images: Pixels `uint8` (N, C, H, W).
            observe: Function that is called with the name and the numbers of every tensor.
        """
        if images.dtype != np.uint8 or list(images.shape[1:]) != self.program["image_shape"]:
            raise ValueError(f"images must be uint8 of shape (N, {self.program['image_shape']}), got {images.shape}")
        known: dict[str, Array] = {"image": images.astype(np.int64)}
        for number, step in enumerate(self.steps):
            operation = getattr(self, f"_{step['operation']}")
            result = operation(step, *(known[name] for name in step["inputs"]))
            if observe is not None:
                observe(step["name"], result)
            for name in step["inputs"]:
                if self._last_use[name] == number:
                    known.pop(name, None)
            known[step["name"]] = result
        return known[self.program["output"]]

    # --- layers ---------------------------------------------------------------------------------------------------

    def weights(self, step: Mapping[str, Any]) -> Array:
        """Return the weights of a layer in units of their step, shape (out, in/groups, kernel height, kernel width)."""
        if step["name"] not in self._weights:
            bits, shape = step["weight_bits"], step["weight_shape"]
            codes = unpack(self.tensors["weights"], bits, step["first_bit"], int(np.prod(shape)))
            self._weights[step["name"]] = 2 * codes.reshape(shape).astype(np.int64) - ((1 << bits) - 1)
        return self._weights[step["name"]]

    def numbers(self, name: str, first: int, shape: tuple[int, ...]) -> Array:
        """Return numbers of a layer, which begin at a position of a tensor."""
        return self.tensors[name][first : first + int(np.prod(shape))].astype(np.int64).reshape(shape)

    def _layer(self, step: Mapping[str, Any], codes: Array) -> Array:
        """Multiply codes by weights; then scale each channel, and add what normalisation and border add."""
        sums = self._sums(step, codes)
        factors = self.numbers("multipliers", step["first_multiplier"], sums.shape[1:3])
        shifts = self.numbers("shifts", step["first_shift"], sums.shape[2:3])
        total = (sums * factors[:, :, None, None]).sum(axis=1)
        result = shifted(total, shifts[:, None, None]) + self._border(step)
        if not step["linear"]:
            return result
        outputs = result.shape[1]
        return np.moveaxis(result.reshape(len(codes), outputs, *codes.shape[1:-1]), 1, -1)

    def _sums(self, step: Mapping[str, Any], codes: Array) -> Array:
        """Sum the products of weights and codes, shape (N, sums, out, height, width).

        There is one sum for each output, or one for each input channel if these have different steps.
        """
        if step["linear"]:  # channels are last
            codes = np.moveaxis(codes, -1, 1).reshape(len(codes), codes.shape[-1], -1, 1)
        weights = self.weights(step)
        outputs, inputs, height, width = weights.shape
        groups, apart = step["groups"], step["sums_apart"]
        windows = _windows(codes, (height, width), step)
        images, rows, columns = len(codes), windows.shape[2], windows.shape[3]
        blocks = groups * (inputs if apart else 1)
        columns_of = windows.transpose(0, 1, 4, 5, 2, 3).reshape(images, blocks, -1, rows * columns)
        if apart:
            matrix = weights.reshape(outputs, blocks, -1).swapaxes(0, 1)
        else:
            matrix = weights.reshape(groups, outputs // groups, -1)
        largest = int(np.abs(matrix).sum(axis=2).max()) * step["largest_code"]
        exact = np.float32 if largest < 1 << 24 else np.float64
        sums: Array = np.matmul(matrix.astype(exact), columns_of.astype(exact)).astype(np.int64)
        return sums.reshape(images, blocks if apart else 1, outputs, rows, columns)

    def _border(self, step: Mapping[str, Any]) -> Array:
        """Return what is added to each output channel, at each position if it depends on the position."""
        outputs, classes = step["weight_shape"][0], step["border_classes"]
        values = self.numbers("biases", step["first_bias"], (outputs, *classes))
        if classes == [1, 1]:
            return values
        height, width = step["positions"]
        rows = self.numbers("borders", step["first_border"], (height,))
        columns = self.numbers("borders", step["first_border"] + height, (width,))
        return values[:, rows][:, :, columns]

    def _quantize(self, step: Mapping[str, Any], x: Array) -> Array:
        """Round to the nearest code, and to the lower one half-way between two."""
        inside = np.clip(x - step["offset"], 0, step["top"]) * step["multiplier"]
        half = 1 << (step["shift"] - 1)
        codes: Array = np.minimum((inside + half - 1) >> step["shift"], step["largest_code"])
        return codes

    def _product(self, step: Mapping[str, Any], left: Array, right: Array) -> Array:
        """Multiply two tensors of codes, whose value is step·code + offset, and scale the sums."""
        sums = np.matmul(left.astype(np.float64), right.astype(np.float64)).astype(np.int64)
        parts = (sums, left.sum(axis=-1, keepdims=True), right.sum(axis=-2, keepdims=True))
        total: Array = np.asarray(step["bias"])
        for part, (number, shift) in zip(parts, step["factors"], strict=True):
            total = total + shifted(part * number, np.asarray(shift))
        return total

    # --- other operations -----------------------------------------------------------------------------------------

    def _clip(self, step: Mapping[str, Any], x: Array) -> Array:
        return np.maximum(x, 0) if step["high"] is None else np.clip(x, 0, step["high"] * self._unit)

    def _add(self, _: Mapping[str, Any], first: Array, second: Array) -> Array:
        return first + second

    def _multiply(self, _: Mapping[str, Any], first: Array, second: Array) -> Array:
        return divided(first * second, self._unit)

    def _mean(self, step: Mapping[str, Any], x: Array) -> Array:
        total = x.sum(axis=(2, 3), keepdims=step["keeps_dimensions"])
        return divided(total, x.shape[2] * x.shape[3])

    def _max_pool(self, step: Mapping[str, Any], x: Array) -> Array:
        windows = _windows(x, step["kernel"], step, fill=np.iinfo(np.int64).min)
        largest: Array = windows.max(axis=(4, 5))
        return largest

    def _hardsigmoid(self, _: Mapping[str, Any], x: Array) -> Array:
        return divided(np.clip(x + 3 * self._unit, 0, 6 * self._unit), 6)

    def _hardswish(self, _: Mapping[str, Any], x: Array) -> Array:
        inner = np.clip(x, -3 * self._unit, 3 * self._unit)
        return np.where(x > inner, x, divided(inner * (inner + 3 * self._unit), 6 * self._unit))

    def _rescale(self, step: Mapping[str, Any], x: Array) -> Array:
        return shifted(x * step["multiplier"], np.asarray(step["shift"]))

    def _softmax(self, step: Mapping[str, Any], x: Array) -> Array:
        axis = step["axis"] + 1
        below = (x - x.max(axis=axis, keepdims=True)) / self._unit
        sizes = np.rint(np.ldexp(exponential(below), _EXPONENTIAL_BITS))
        total = sizes.astype(np.int64).sum(axis=axis, keepdims=True)
        probabilities: Array = np.rint(sizes * self._unit / total).astype(np.int64)
        return probabilities

    def _gelu(self, _: Mapping[str, Any], x: Array) -> Array:
        """Interpolate the normal distribution function by a cubic polynomial between two steps."""
        reach = _REACH * self._unit
        place = np.clip(x, -reach, reach - 1) + reach
        step = self._unit >> _STEP_BITS
        number, part = place // step, (place % step) / step
        first, second, third, fourth = (values[number] for values in distribution())
        share = first + part * (second + part * (third + part * fourth))
        inner = np.rint(x * share).astype(np.int64)
        return np.where(x >= reach, x, np.where(x < -reach, 0, inner))

    def _layer_norm(self, step: Mapping[str, Any], x: Array) -> Array:
        count = x.shape[-1]
        apart = x - divided(x.sum(axis=-1, keepdims=True), count)
        high = apart >> _LOW_BITS
        low = apart - (high << _LOW_BITS)
        squares = [(one * other).sum(axis=-1, keepdims=True) for one, other in ((high, high), (high, low), (low, low))]
        total = squares[0] * 2.0 ** (2 * _LOW_BITS) + squares[1] * 2.0 ** (_LOW_BITS + 1) + squares[2]
        deviation = np.sqrt(total / count + step["epsilon"] * float(self._unit) ** 2)
        weight, bias = self._constants(step, (2, count)) * self._unit
        normalised: Array = np.rint(apart / deviation * weight + bias).astype(np.int64)
        return normalised

    def _add_constant(self, step: Mapping[str, Any], x: Array) -> Array:
        constants: Array = np.rint(self._constants(step, x.shape[1:]) * self._unit).astype(np.int64)
        return x + constants

    def _prepend(self, step: Mapping[str, Any], x: Array) -> Array:
        tokens = np.rint(self._constants(step, (step["tokens"], x.shape[-1])) * self._unit).astype(np.int64)
        return np.concatenate([np.broadcast_to(tokens, (len(x), *tokens.shape)), x], axis=1)

    def _constants(self, step: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
        first = step["first_constant"]
        return self.tensors["constants"][first : first + int(np.prod(shape))].astype(np.float64).reshape(shape)

    def _permute(self, step: Mapping[str, Any], x: Array) -> Array:
        return x.transpose(0, *(axis + 1 for axis in step["axes"]))

    def _select(self, step: Mapping[str, Any], x: Array) -> Array:
        return x[:, step["index"]]

    def _reshape(self, step: Mapping[str, Any], x: Array) -> Array:
        return x.reshape(len(x), *step["shape"])


def _tensor(data: bytes, entry: Mapping[str, Any]) -> Array:
    first, end = entry["data_offsets"]
    return np.frombuffer(data[first:end], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def unpack(packed: Array, bits: int, first_bit: int, count: int) -> Array:
    """Read codes from a string of bits.

    Args:
        packed: Bytes, of which the lowest bit is the first.
        bits: Bits of a code, 1 to 8; the lowest bit is the first.
        first_bit: Position of the first code.
        count: Number of codes.
    """
    end = first_bit + bits * count
    string: Array = np.unpackbits(packed[first_bit // 8 : -(-end // 8)], bitorder="little")
    string = string[first_bit % 8 : first_bit % 8 + bits * count].reshape(count, bits)
    return np.packbits(string, axis=1, bitorder="little")[:, 0]


def shifted(x: Array, shift: Array) -> Array:
    """Divide by 2^shift and round to the nearest whole number, upwards half-way; a negative shift multiplies."""
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    half = (np.int64(1) << right) >> 1
    return ((x << left) + half) >> right


def divided(x: Array, divisor: int) -> Array:
    """Divide by a whole number and round to the nearest whole number, upwards half-way."""
    return (2 * x + divisor) // (2 * divisor)


def exponential(x: Array) -> Array:
    """Compute exp(x) of float64 numbers up to 0; below −60 the result is that of −60, about 1e-26."""
    x = np.maximum(x, -60.0)
    power = np.rint(x * 1.4426950408889634)
    rest = (x - power * _LN2) - power * _LN2_REST
    series = np.ones_like(rest)
    for number in range(13, 0, -1):
        series = 1 + series * rest / number
    return np.ldexp(series, power.astype(np.intc))


@cache
def distribution() -> tuple[Array, Array, Array, Array]:
    """Return coefficients of cubic polynomials that are the normal distribution function between two steps.

    The function is the integral of its density by Simpson's rule. Values and slopes are met at the steps.
    """
    width = 2.0**-_STEP_BITS
    x = np.arange(2 * _REACH * 2 * 2**_STEP_BITS + 1) * (width / 2) - _REACH
    density = exponential(-(x * x) / 2) * (width * 0.3989422804014327)  # 1/√(2π)
    first, middle, last = density[:-2:2], density[1::2], density[2::2]
    rises = (first + 4 * middle + last) / 6
    values = np.concatenate([np.zeros(1), np.cumsum(rises)])
    return values[:-1], first, 3 * rises - 2 * first - last, first + last - 2 * rises


def _windows(x: Array, kernel: tuple[int, int], step: Mapping[str, Any], fill: int = 0) -> Array:
    """Cut maps (N, C, H, W) into windows, shape (N, C, rows, columns, kernel height, kernel width)."""
    above, left, below, right = step["padding"]
    padded = np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)), constant_values=fill)
    (down, across), (tall, wide) = step["stride"], step["dilation"]
    reach = (tall * (kernel[0] - 1) + 1, wide * (kernel[1] - 1) + 1)
    return sliding_window_view(padded, reach, axis=(2, 3))[:, :, ::down, ::across, ::tall, ::wide]


def main(arguments: list[str]) -> None:
    """Print the class of each image of a file; write the logits into a second one if it is named."""
    network = PackedNetwork(Path(arguments[0]).read_bytes())
    logits = network.logits(np.load(arguments[1]))
    if len(arguments) > 2:
        np.save(arguments[2], logits / 2.0 ** network.program["fraction_bits"])
    sys.stdout.write("".join(f"{number}\n" for number in logits.argmax(axis=1)))


if __name__ == "__main__":
    main(sys.argv[1:])
