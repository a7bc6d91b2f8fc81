"""The form `onnx`: layers multiply codes by integer weights in 32-bit accumulators, by standard operators alone.

Weights have no level at zero: in units of half their step they are the odd numbers 2q − n, for codes q from 0 to n.
With up to 7 bits, 2q fits into `uint8`, and n is its zero point. With 8 bits it does not. Such a layer multiplies
twice, by q with the zero points 127 and 128, because (q − 127) + (q − 128) = 2q − 255.

The first layer multiplies normalised pixels by its quantized weights in float32, because the channels of an image have
different scales, and padding is no pixel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bench.export.graph.operations import Layer, Quantize
from bench.export.onnx_forms.form import OnnxForm

FILE = "network.onnx"
"""Name of the file of this form."""
LIMITS = (
    "The first layer, scales, additions and means are computed in float32; products of activations, softmax, GELU and "
    "layer normalisation too.",
)
"""Differences from exact arithmetic, in words."""
ZERO_POINTS = (127, 128)
"""Zero points of the two products of a layer with 8-bit weights; their sum is the largest code."""


class IntegerForm(OnnxForm):
    """Writes a graph with `ConvInteger` and `MatMulInteger`."""

    name = "onnx"

    @classmethod
    def stored_codes(cls, layer: Layer, weights: NDArray[Any]) -> NDArray[Any]:
        """Return the codes of weights, which are doubled if there is room."""
        return weights if layer.reads_image or layer.weight_bits == 8 else weights // 2

    @classmethod
    def scale_unit(cls, layer: Layer) -> float:
        """Return the scale of integer sums."""
        return 1.0 if layer.reads_image else layer.weight_step * float(layer.input_steps[0])

    def quantize(self, operation: Quantize) -> None:
        """Write a quantizer whose result are codes of type `uint8`."""
        self.node("Cast", [self.position(operation)], result=operation.name, to=TensorProto.UINT8)

    def operand(self, operation: Quantize) -> str:
        """Write the values of an operand of a product, whose codes are integers."""
        reals = self.node("Cast", [operation.name], to=TensorProto.FLOAT)
        scaled = self.node("Mul", [reals, self.number(operation.step)])
        return self.node("Add", [scaled, self.number(operation.offset)])

    def layer(self, layer: Layer) -> None:
        """Write a layer with integer accumulators, which are named `<path>.sums`."""
        if layer.reads_image:
            self.float_layer(layer, self.source(layer))
            return
        sums = f"{layer.path}.sums"
        if layer.weight_bits < 8:
            self._products(layer, 2 * layer.codes, layer.weight_levels, sums)
        else:
            halves = [self._products(layer, layer.codes, zero) for zero in ZERO_POINTS]
            self.node("Add", halves, result=sums)
        self.scaled(layer, self.node("Cast", [sums], to=TensorProto.FLOAT), layer.factor * self.scale_unit(layer))

    def _products(self, layer: Layer, weights: np.ndarray, zero: int, result: str = "") -> str:
        matrix = weights[:, :, 0, 0].T if layer.linear else weights
        weight = self.constant(f"{layer.path}.weight", matrix)
        points = [self.constant(f"zero.{number}", np.array(number, dtype=np.uint8)) for number in (0, zero)]
        operands = [self.source(layer), weight, *points]
        if layer.linear:
            return self.node("MatMulInteger", operands, result=result)
        return self.convolved("ConvInteger", layer, operands, result)
