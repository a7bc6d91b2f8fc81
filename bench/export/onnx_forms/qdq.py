"""The form `onnx-qdq`: quantizers as pairs of `QuantizeLinear` and `DequantizeLinear`, as runtimes for integers expect.

Runtimes replace the pairs and the convolution between them by convolutions of 8-bit integers, which are fast. Weights
of up to 7 bits are stored as `int8` in units of half their step. The odd numbers of 8 bits, up to ±255, do not fit, and
layers that have them multiply in float32. Normalisations stay operations of their own: as a bias of the convolution,
some runtimes would round them to its accumulator.

`QuantizeLinear` rounds a number half-way between two codes to the even one, and the harness to the lower one. Of real
numbers hardly any are exactly half-way.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.export.graph.operations import Graph, Layer, Quantize
from bench.export.onnx_forms.form import OnnxForm

FILE = "network-qdq.onnx"
"""Name of the file of this form."""
LIMITS = (
    "Layers with 8-bit weights, as the first and the last, are computed in float32.",
    "Exactly half-way between two codes, the even one is taken instead of the lower one.",
    "A runtime may compute convolutions of 8-bit integers in ways that saturate; predictions are counted for each.",
)
"""Differences from the network of the harness, in words."""


class QdqForm(OnnxForm):
    """Writes a graph with quantizers as pairs of operations."""

    name = "onnx-qdq"

    def __init__(self, graph: Graph, *, reads_pixels: bool = True) -> None:
        super().__init__(graph, reads_pixels=reads_pixels)
        self._bits = {layer.path: layer.weight_bits for layer in graph.layers}
        self._bits |= {
            product.path: 8 for product in graph.products
        }  # codes of products are not multiplied as integers

    @classmethod
    def stored_codes(cls, layer: Layer, weights: NDArray[Any]) -> NDArray[Any]:
        """Return the codes of weights, which are odd numbers if they have at most 7 bits."""
        return weights if layer.weight_bits == 8 else (weights.astype(np.int64) + layer.weight_levels) // 2

    def quantize(self, operation: Quantize) -> None:
        """Write a quantizer, whose result are multiples of its step, without the offset."""
        step = self.number(operation.step)
        if self._bits[operation.layer] == 8:
            self.node("Mul", [self.position(operation), step], result=operation.name)
            return
        x = self.source(operation)
        if operation.offset:
            x = self.node("Sub", [x, self.number(operation.offset)])
        inside = self.node("Clip", [x, self.number(0), self.number(operation.clip)])
        point = self.constant("zero.codes", np.array(0, dtype=np.uint8))
        codes = self.node("QuantizeLinear", [inside, step, point])
        self.node("DequantizeLinear", [codes, step, point], result=operation.name)

    def layer(self, layer: Layer) -> None:
        """Write a layer, of which runtimes may see that it multiplies integers."""
        if layer.weight_bits == 8:
            self.float_layer(layer, self.source(layer))
            return
        weights = layer.integers.astype(np.int8)
        matrix = weights[:, :, 0, 0].T if layer.linear else weights
        point = self.constant("zero.weights", np.array(0, dtype=np.int8))
        stored = [self.constant(f"{layer.path}.weight", matrix), self.number(layer.weight_step), point]
        operands = [self.source(layer), self.node("DequantizeLinear", stored)]
        sums = self.node("MatMul", operands) if layer.linear else self.convolved("Conv", layer, operands)
        self.scaled(layer, sums, layer.factor)
