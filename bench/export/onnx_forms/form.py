"""What all ONNX forms share: the model with its image and logits, and the operations between layers, in float32."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.export.graph import program
from bench.export.graph.operations import (
    IMAGE,
    LOGITS,
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

PROGRAM = "program"
"""Name of the property with the program."""
_PIXELS = "image.pixels"


class OnnxForm:
    """Writes a graph as an ONNX model; subclasses say how quantizers and layers are written.

    The model reads images `uint8` (N, C, H, W), and normalises them itself.

    Args:
        graph: Graph of the network.
        reads_pixels: Whether it reads such images; if not, it reads real numbers of the same shape, as layers inside of
            a network do.

    Attributes:
        name: Name of the form.
        opset, ir_version: Versions of the operators and of the file, which every runtime of the last years reads.
        further_opsets: Versions of other sets of operators, by domain.
    """

    name: ClassVar[str]
    opset: ClassVar[int] = 13
    ir_version: ClassVar[int] = 8
    further_opsets: ClassVar[Mapping[str, int]] = {}

    def __init__(self, graph: Graph, *, reads_pixels: bool = True) -> None:
        self.graph = graph
        self._input = _PIXELS if reads_pixels else IMAGE
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        graph, kind = self.graph, TensorProto.FLOAT
        if self._input == _PIXELS:
            kind = TensorProto.UINT8
            pixels = self.node("Cast", [IMAGE], to=TensorProto.FLOAT)
            centred = self.node("Sub", [pixels, self.constant("image.mean", _by_channel(graph.mean))])
            self.node("Div", [centred, self.constant("image.std", _by_channel(graph.std))], result=_PIXELS)
        for operation in graph.operations:
            _WRITE[type(operation)](self, operation)
        self.node("Identity", [graph.output], result=LOGITS)
        outputs = next(operation for operation in graph.operations if operation.name == graph.output).shape
        made = helper.make_graph(
            self._nodes,
            graph.model,
            [helper.make_tensor_value_info(IMAGE, kind, ["N", *graph.image_shape])],
            [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", *outputs])],
            list(self._constants.values()),
        )
        opsets = {"": self.opset, **self.further_opsets}
        model = helper.make_model(
            made,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=self.ir_version,
            producer_name="sbs-bench",
        )
        helper.set_model_props(model, self.properties())
        onnx.checker.check_model(model)
        return model

    def properties(self) -> dict[str, str]:
        """Return what the model says of itself: its program, from which `bench import` makes the graph again."""
        operations = [program.stated(operation) for operation in self.graph.operations]
        stated = {**program.about(self.graph), "form": self.name, "operations": operations}
        return {PROGRAM: program.text(stated)}

    def node(self, kind: str, inputs: Sequence[str], *, result: str = "", **attributes: Any) -> str:
        """Add a node with one result, and return the name of it."""
        name = result or f"node.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}:{name}", **attributes))
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant with a name of its own, and return the name; real numbers get float32."""
        array = values.astype(np.float32) if values.dtype == np.float64 else values
        self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        """Add a number as a constant in float32, and return its name."""
        return self.constant(f"number.{float(np.float32(value))!r}", np.array(value, dtype=np.float64))

    def source(self, operation: Operation) -> str:
        """Return the name of the only tensor that an operation reads; the normalised pixels for the image."""
        return self._input if operation.inputs[0] == IMAGE else operation.inputs[0]

    def position(self, operation: Quantize) -> str:
        """Write the code of a tensor as a number in float32, rounded as the harness does."""
        x = self.source(operation)
        if operation.offset:
            x = self.node("Sub", [x, self.number(operation.offset)])
        inside = self.node("Clip", [x, self.number(0), self.number(operation.clip)])
        scaled = self.node("Mul", [inside, self.number(1 / operation.step)])
        return self.node("Ceil", [self.node("Sub", [scaled, self.number(0.5)])])

    def scaled(self, layer: Layer, sums: str, scale: Reals) -> None:
        """Write the end of a layer: scale each channel, and add what depends on the channel and the position.

        Args:
            layer: The layer.
            sums: Name of the sums of products.
            scale: Scale of each channel, by which sums become outputs without what is added, shape (O,).
        """
        shape = (-1,) if layer.linear else (1, -1, 1, 1)
        product = self.node("Mul", [sums, self.constant(f"{layer.path}.scale", scale.reshape(shape))])
        self.node("Add", [product, self._border(layer)], result=layer.name)

    def _border(self, layer: Layer) -> str:
        if layer.reads_image:  # real pixels have no offset
            values, uniform = layer.constant[:, None, None], True
        else:
            values, uniform = layer.border.values, layer.border.uniform
        name = self.constant(f"{layer.path}.constant", values.reshape(-1) if layer.linear else values[None])
        if uniform:
            return name
        for axis, classes in ((2, layer.border.rows), (3, layer.border.columns)):
            indices = self.constant(f"{layer.path}.classes{axis}", classes.astype(np.int64))
            name = self.node("Gather", [name, indices], axis=axis)
        return name

    def convolved(self, kind: str, layer: Layer, inputs: Sequence[str], result: str = "") -> str:
        """Write a convolution, in a floating-point or integer form, with the geometry of a layer."""
        return self.node(
            kind,
            inputs,
            result=result,
            kernel_shape=layer.codes.shape[2:],
            strides=layer.stride,
            pads=layer.padding,
            dilations=layer.dilation,
            group=layer.groups,
        )

    def float_layer(self, layer: Layer, values: str) -> None:
        """Write a layer that multiplies real numbers by its quantized weights in float32.

        Args:
            layer: The layer.
            values: Name of its input, without offset.
        """
        operands = [values, self._float_weights(layer)]
        sums = self.node("MatMul", operands) if layer.linear else self.convolved("Conv", layer, operands)
        self.scaled(layer, sums, layer.factor)

    def _float_weights(self, layer: Layer) -> str:
        """Write weights as their codes, from which a runtime computes them once, when it loads the file."""
        codes = layer.codes[:, :, 0, 0].T if layer.linear else layer.codes
        reals = self.node("Cast", [self.constant(f"{layer.path}.weight", codes)], to=TensorProto.FLOAT)
        doubled = self.node("Mul", [reals, self.number(2)])
        odd = self.node("Sub", [doubled, self.number(layer.weight_levels)])
        return self.node("Mul", [odd, self.number(layer.weight_step)])

    @classmethod
    def stored_codes(cls, layer: Layer, weights: NDArray[Any]) -> NDArray[Any]:
        """Return the codes of a layer's weights, of the form in which the model has these."""
        return weights

    @classmethod
    def scale_unit(cls, layer: Layer) -> float:
        """Return the scale of a layer's channels whose factor is 1."""
        return 1.0

    def quantize(self, operation: Quantize) -> None:
        """Write a quantizer."""
        raise NotImplementedError

    def layer(self, layer: Layer) -> None:
        """Write a layer."""
        raise NotImplementedError

    def operand(self, operation: Quantize) -> str:
        """Write the values of an operand of a product, and return their name."""
        return self.node("Add", [operation.name, self.number(operation.offset)])

    # --- operations in float32 ------------------------------------------------------------------------------------

    def clip(self, operation: Clip) -> None:
        """Write ReLU and its like."""
        if operation.high is None:
            self.node("Relu", operation.inputs, result=operation.name)
        else:
            limits = [self.number(0), self.number(operation.high)]
            self.node("Clip", [*operation.inputs, *limits], result=operation.name)

    def mean(self, operation: Mean) -> None:
        """Write a mean over positions."""
        keeps = int(operation.keeps_dimensions)
        self.node("ReduceMean", operation.inputs, result=operation.name, axes=[2, 3], keepdims=keeps)

    def max_pool(self, operation: MaxPool) -> None:
        """Write a maximum over windows."""
        window = {"kernel_shape": operation.kernel, "strides": operation.stride, "pads": operation.padding}
        self.node("MaxPool", operation.inputs, result=operation.name, **window)

    def hardsigmoid(self, operation: Hardsigmoid) -> None:
        """Write clip(x + 3, 0, 6)/6."""
        self.node("Div", [self._shifted_clip(operation), self.number(6)], result=operation.name)

    def hardswish(self, operation: Hardswish) -> None:
        """Write x·clip(x + 3, 0, 6)/6."""
        product = self.node("Mul", [self.source(operation), self._shifted_clip(operation)])
        self.node("Div", [product, self.number(6)], result=operation.name)

    def _shifted_clip(self, operation: Operation) -> str:
        shifted = self.node("Add", [self.source(operation), self.number(3)])
        return self.node("Clip", [shifted, self.number(0), self.number(6)])

    def product(self, operation: Product) -> None:
        """Write a product of activations."""
        operands = [self.operand(operand) for operand in (operation.left, operation.right)]
        self.node("MatMul", operands, result=operation.name)

    def rescale(self, operation: Rescale) -> None:
        """Write a product with a number."""
        self.node("Mul", [*operation.inputs, self.number(operation.factor)], result=operation.name)

    def softmax(self, operation: Softmax) -> None:
        """Write a softmax along a dimension."""
        self.node("Softmax", operation.inputs, result=operation.name, axis=operation.axis + 1)

    def gelu(self, operation: Gelu) -> None:
        """Write x·(1 + erf(x/√2))/2."""
        x = self.source(operation)
        spread = self.node("Erf", [self.node("Div", [x, self.number(math.sqrt(2))])])
        doubled = self.node("Mul", [x, self.node("Add", [spread, self.number(1)])])
        self.node("Mul", [doubled, self.number(0.5)], result=operation.name)

    def layer_norm(self, operation: LayerNorm) -> None:
        """Write a normalisation over the last dimension."""
        x = self.source(operation)
        apart = self.node("Sub", [x, self.node("ReduceMean", [x], axes=[-1])])
        variance = self.node("ReduceMean", [self.node("Mul", [apart, apart])], axes=[-1])
        deviation = self.node("Sqrt", [self.node("Add", [variance, self.number(operation.epsilon)])])
        weighted = self.node(
            "Mul",
            [self.node("Div", [apart, deviation]), self.constant(f"{operation.name}.norm_weight", operation.weight)],
        )
        bias = self.constant(f"{operation.name}.norm_bias", operation.bias)
        self.node("Add", [weighted, bias], result=operation.name)

    def add_constant(self, operation: AddConstant) -> None:
        """Write a sum with numbers that are the same for all images."""
        values = self.constant(f"{operation.name}.values", operation.values[None])
        self.node("Add", [*operation.inputs, values], result=operation.name)

    def prepend(self, operation: Prepend) -> None:
        """Write tokens before others: zeros, to which the tokens are added."""
        count = len(operation.values)
        pads = self.constant(f"{operation.name}.pads", np.array([0, count, 0, 0, 0, 0], dtype=np.int64))
        padded = self.node("Pad", [*operation.inputs, pads, self.number(0)])
        rows = np.zeros(operation.shape)
        rows[:count] = operation.values
        self.node("Add", [padded, self.constant(f"{operation.name}.values", rows[None])], result=operation.name)

    def permute(self, operation: Permute) -> None:
        """Write another order of the dimensions."""
        order = [0, *(axis + 1 for axis in operation.axes)]
        self.node("Transpose", operation.inputs, result=operation.name, perm=order)

    def select(self, operation: Select) -> None:
        """Write one entry of the first dimension."""
        index = self.constant(f"index.{operation.index}", np.array(operation.index, dtype=np.int64))
        self.node("Gather", [*operation.inputs, index], result=operation.name, axis=1)

    def reshape(self, operation: Reshape) -> None:
        """Write another shape; the first dimension are the images."""
        shape = self.constant(f"{operation.name}.shape", np.array([0, *operation.shape], dtype=np.int64))
        self.node("Reshape", [*operation.inputs, shape], result=operation.name)

    def add(self, operation: Add) -> None:
        """Write a sum."""
        self.node("Add", operation.inputs, result=operation.name)

    def multiply(self, operation: Multiply) -> None:
        """Write a product."""
        self.node("Mul", operation.inputs, result=operation.name)


def _by_channel(values: Reals) -> Reals:
    return values[None, :, None, None]


_WRITE: Mapping[type[Operation], Callable[[OnnxForm, Any], None]] = {
    Quantize: lambda form, operation: form.quantize(operation),
    Layer: lambda form, operation: form.layer(operation),
    Clip: OnnxForm.clip,
    Add: OnnxForm.add,
    Multiply: OnnxForm.multiply,
    Mean: OnnxForm.mean,
    MaxPool: OnnxForm.max_pool,
    Hardsigmoid: OnnxForm.hardsigmoid,
    Hardswish: OnnxForm.hardswish,
    Product: OnnxForm.product,
    Rescale: OnnxForm.rescale,
    Softmax: OnnxForm.softmax,
    Gelu: OnnxForm.gelu,
    LayerNorm: OnnxForm.layer_norm,
    AddConstant: OnnxForm.add_constant,
    Prepend: OnnxForm.prepend,
    Permute: OnnxForm.permute,
    Select: OnnxForm.select,
    Reshape: OnnxForm.reshape,
}
