"""The form `qonnx`: nodes `Quant` with the number of bits, for tools that read the QONNX dialect, such as FINN's.

Quantized weights are odd numbers from −n to n, n = 2^k − 1. In this dialect they are whole numbers of k + 1 bits with a
zero point of 0, because its data types know no others; it cannot state that half of the numbers do not occur. So qonnx
counts (k + 1)/k times as many bit operations as the harness for the same layer; and a first layer reads normalised
pixels, which are real numbers of 32 bits to it. The bits of the policy are in the model's properties.

`HALF_DOWN` is exactly the rounding of the harness, ⌈t − 1/2⌉. Everything is stored in float32: such a file says nothing
about sizes.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.export.graph.operations import Layer, Quantize
from bench.export.onnx_forms.form import OnnxForm

FILE = "network-qonnx.onnx"
"""Name of the file of this form."""
DOMAIN = "qonnx.custom_op.general"
LIMITS = (
    "Weights of k bits have the data type of k + 1 bits: the grid has no level at zero, and the dialect has no such "
    "type. So qonnx counts (k + 1)/k times the bit operations of the harness, and 32 bits for normalised pixels.",
    "Operands of products of activations have offsets, so they are real numbers to qonnx.",
    "Weights are stored in float32.",
)
"""Differences from the network of the harness, in words."""


class QonnxForm(OnnxForm):
    """Writes a graph with nodes `Quant` on the weights and the input of every layer."""

    name = "qonnx"
    further_opsets: ClassVar[Mapping[str, int]] = {DOMAIN: 1}

    def properties(self) -> dict[str, str]:
        """Return the program, and the bits of every layer."""
        bits = {
            layer.path: {"weight_bits": layer.weight_bits, "activation_bits": layer.input_bits}
            for layer in self.graph.layers
        }
        for product in self.graph.products:
            bits[product.path] = {"weight_bits": product.right.bits, "activation_bits": product.left.bits}
        return {**super().properties(), "policy_bits": json.dumps(bits)}

    @classmethod
    def stored_codes(cls, layer: Layer, weights: NDArray[Any]) -> NDArray[Any]:
        """Return the codes of weights, which are multiples of their step."""
        return (np.rint(weights / layer.weight_step) + layer.weight_levels) / 2

    def quantize(self, operation: Quantize) -> None:
        """Write a quantizer of activations, without their offset."""
        x = self.source(operation)
        if operation.offset:
            x = self.node("Sub", [x, self.number(operation.offset)])
        self._quant(x, operation.step, operation.bits, result=operation.name, signed=0, rounding="HALF_DOWN")

    def layer(self, layer: Layer) -> None:
        """Write a layer with quantized weights."""
        matrix = layer.weights[:, :, 0, 0].T if layer.linear else layer.weights
        stored = self.constant(f"{layer.path}.weight", np.ascontiguousarray(matrix))
        weights = self._quant(stored, layer.weight_step, layer.weight_bits + 1, signed=1, rounding="ROUND")
        operands = [self.source(layer), weights]
        sums = self.node("MatMul", operands) if layer.linear else self.convolved("Conv", layer, operands)
        self.scaled(layer, sums, layer.factor)

    def _quant(self, x: str, step: float, bits: int, *, signed: int, rounding: str, result: str = "") -> str:
        """Write a node `Quant`; signed numbers are from −n to n, without −n − 1."""
        operands = [x, self.number(step), self.number(0), self.number(bits)]
        return self.node(
            "Quant", operands, result=result, domain=DOMAIN, signed=signed, narrow=signed, rounding_mode=rounding
        )
