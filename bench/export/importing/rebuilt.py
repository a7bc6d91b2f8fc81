"""A network of PyTorch that is rebuilt from the graph of an exported file, and the shapes from which it is priced."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, QuantizedProduct
from bench.compression.geometry import MatMul
from bench.compression.policy import LayerPolicy, Policy
from bench.compression.quantizer import Shifted, UniformQuantizer
from bench.compression.shapes import LayerShape, NetworkShape, Position
from bench.export.graph.operations import (
    IMAGE,
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
from bench.export.graph.tensors import ProgramError


class RebuiltLayer(QuantizedLayer):
    """A quantized layer, followed by a scale and a shift of each channel in place of a normalisation."""

    def __init__(self, layer: Layer, activation_quantizer: nn.Module) -> None:
        weight_quantizer = UniformQuantizer(bits=layer.weight_bits, kind="weight")
        weight_quantizer.clip.data.fill_(layer.weight_step * layer.weight_levels)
        super().__init__(_float_layer(layer), weight_quantizer, activation_quantizer)
        by_channel = (-1,) if layer.linear else (-1, 1, 1)
        self.factor = nn.Parameter(_tensor(layer.factor).view(by_channel))
        self.constant = nn.Parameter(_tensor(layer.constant).view(by_channel))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a quantized input with the quantized weight, and scale and shift the result."""
        return super().forward(x) * self.factor + self.constant


class RebuiltNetwork(nn.Module):
    """A network that is executed operation by operation.

    It reads images that are normalised by `pixel_mean` and `pixel_std`, and returns logits. It computes in float32, as
    the harness does. So a number nearly half-way between two codes may be rounded in another way than by the file.

    Attributes:
        pixel_mean, pixel_std: Mean and standard deviation of pixels, from 0 to 255, by channel.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._steps = graph.operations
        self._output = graph.output
        self.register_buffer("pixel_mean", _tensor(graph.mean))
        self.register_buffer("pixel_std", _tensor(graph.std))
        quantizers = {made.name: made for made in graph.quantizers}
        for layer in graph.layers:
            read = quantizers.get(layer.inputs[0])
            made = RebuiltLayer(layer, nn.Identity() if read is None else _quantizer(read))
            _place(self, layer.path, made)
        for product in graph.products:
            _place(self, product.path, QuantizedProduct(MatMul(), _quantizer(product.right), _quantizer(product.left)))
        for step in graph.operations:
            constants = _constants(step)
            if constants:
                _place(self, _constants_path(step), nn.ParameterList(constants))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, classes)."""
        known = {IMAGE: images}
        for step in self._steps:
            operands = [known[name] for name in step.inputs]
            if isinstance(step, Layer | Product):
                known[step.name] = self.get_submodule(step.path)(*operands)
            elif isinstance(step, LayerNorm | AddConstant | Prepend):
                constants = self.get_submodule(_constants_path(step)).parameters()
                known[step.name] = _COMPUTE[type(step)](step, *operands, *constants)
            else:
                known[step.name] = _COMPUTE[type(step)](step, *operands)
        return known[self._output]


def _max_pool(step: MaxPool, x: Tensor) -> Tensor:
    above, left, below, right = step.padding
    padded = F.pad(x, (left, right, above, below), value=-torch.inf)
    return F.max_pool2d(padded, step.kernel, step.stride)


_COMPUTE: Mapping[type[Operation], Callable[..., Tensor]] = {
    Quantize: lambda _, x: x,  # the layer that reads the codes quantizes them
    Clip: lambda step, x: x.clamp(0, step.high),
    Add: lambda _, first, second: first + second,
    Multiply: lambda _, first, second: first * second,
    Mean: lambda step, x: x.mean((2, 3), keepdim=step.keeps_dimensions),
    MaxPool: _max_pool,
    Hardsigmoid: lambda _, x: F.hardsigmoid(x),
    Hardswish: lambda _, x: F.hardswish(x),
    Rescale: lambda step, x: x * step.factor,
    Softmax: lambda step, x: x.softmax(step.axis + 1),
    Gelu: lambda _, x: F.gelu(x),
    LayerNorm: lambda step, x, weight, bias: F.layer_norm(x, step.shape[-1:], weight, bias, step.epsilon),
    AddConstant: lambda _, x, values: x + values,
    Prepend: lambda _, x, tokens: torch.cat([tokens.expand(len(x), -1, -1), x], 1),
    Permute: lambda step, x: x.permute(0, *(axis + 1 for axis in step.axes)),
    Select: lambda step, x: x[:, step.index],
    Reshape: lambda step, x: x.reshape(len(x), *step.shape),
}


def _float_layer(layer: Layer) -> nn.Module:
    """Return a layer with the quantized weights, and without a bias."""
    weights = _tensor(layer.weights)
    outputs, inputs, *kernel = layer.codes.shape
    if layer.linear:
        linear = nn.Linear(inputs, outputs, bias=False)
        linear.weight.data.copy_(weights[:, :, 0, 0])
        return linear
    above, left, below, right = layer.padding
    uneven = (above, left) != (below, right)
    same = [spread * (size - 1) for spread, size in zip(layer.dilation, kernel, strict=True)]
    if uneven and (layer.stride != (1, 1) or (above, left) != (same[0] // 2, same[1] // 2)):
        raise ProgramError(f"layer '{layer.path}' has the uneven padding {layer.padding}")
    conv = nn.Conv2d(
        inputs * layer.groups,
        outputs,
        (kernel[0], kernel[1]),
        stride=layer.stride,
        padding="same" if uneven else (above, left),
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
    )
    conv.weight.data.copy_(weights)
    return conv


def _constants(step: Operation) -> list[nn.Parameter]:
    """Return the numbers of an operation that are the same for all images."""
    arrays: list[Reals] = []
    if isinstance(step, LayerNorm):
        arrays = [step.weight, step.bias]
    elif isinstance(step, AddConstant | Prepend):
        arrays = [step.values]
    return [nn.Parameter(_tensor(values)) for values in arrays]


def _constants_path(step: Operation) -> str:
    return f"constants.{step.name.replace('.', '_')}"


def _quantizer(read: Quantize) -> nn.Module:
    plain = UniformQuantizer(bits=read.bits, kind="activation")
    plain.clip.data.fill_(read.clip)
    if not read.offset:
        return plain
    shifted = Shifted(plain)
    shifted.offset.data.fill_(read.offset)
    return shifted


def _place(network: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer at its path."""
    *parents, name = path.split(".")
    holder = network
    try:
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        if name in holder._modules:
            raise KeyError
        holder.add_module(name, layer)
    except KeyError as error:  # a module has an attribute of this name, or a layer is there
        raise ProgramError(f"no layer can have the path '{path}'") from error


def _tensor(values: Reals) -> Tensor:
    return torch.from_numpy(values).float()


# --- cost -----------------------------------------------------------------------------------------------------------


def shape_of(graph: Graph) -> NetworkShape:
    """Return the shapes of the layers that are in a file, from which the cost counter prices it."""
    first, last = graph.layers[0], graph.layers[-1]
    ends: Mapping[str, Position] = {first.path: "first", last.path: "last"}
    shapes: list[LayerShape] = []
    for operation in graph.operations:
        if isinstance(operation, Layer):
            shapes.append(_layer_shape(operation, ends.get(operation.path, "middle")))
        elif isinstance(operation, Product):
            shapes.append(_product_shape(operation))
    return NetworkShape(model=graph.model, dataset=graph.dataset, layers=tuple(shapes))


def _layer_shape(layer: Layer, position: Position) -> LayerShape:
    outputs, inputs, *kernel = layer.codes.shape
    sizes: dict[str, Any] = {"in_size": layer.input_shape[1:], "out_size": layer.shape[1:], "stride": layer.stride}
    if layer.linear:
        tokens = prod(layer.input_shape[:-1])
        sizes = {"in_size": (tokens, 1), "out_size": (tokens, 1)}
    return LayerShape(
        name=layer.path,
        kind="linear" if layer.linear else "conv",
        position=position,
        in_channels=inputs * layer.groups,
        out_channels=outputs,
        kernel=(kernel[0], kernel[1]),
        groups=layer.groups,
        **sizes,
    )


def _product_shape(product: Product) -> LayerShape:
    groups, rows = prod(product.shape[:-2]), product.shape[-2]
    return LayerShape(
        name=product.path,
        kind="matmul",
        position="middle",
        in_channels=groups * product.contraction,
        out_channels=groups * product.shape[-1],
        groups=groups,
        in_size=(rows, 1),
        out_size=(rows, 1),
    )


def policy_of(graph: Graph) -> Policy:
    """Return the bits of all layers; filters that were removed are not known to the file."""
    return Policy(
        model=graph.model,
        dataset=graph.dataset,
        layers={
            **{
                layer.path: LayerPolicy(weight_bits=layer.weight_bits, activation_bits=layer.input_bits)
                for layer in graph.layers
            },
            **{
                product.path: LayerPolicy(weight_bits=product.right.bits, activation_bits=product.left.bits)
                for product in graph.products
            },
        },
    )
