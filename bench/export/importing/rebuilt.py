"""A network of PyTorch that is rebuilt from the graph of an exported file, and the shapes from which it is priced."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer
from bench.compression.policy import LayerPolicy, Policy
from bench.compression.quantizer import Shifted, UniformQuantizer
from bench.compression.shapes import LayerShape, NetworkShape, Position
from bench.export.graph.operations import (
    IMAGE,
    Add,
    Clip,
    Graph,
    Hardsigmoid,
    Hardswish,
    Layer,
    MaxPool,
    Mean,
    Multiply,
    Operation,
    Quantize,
    Reals,
    Reshape,
)
from bench.export.graph.program import ProgramError


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

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, classes)."""
        known = {IMAGE: images}
        for step in self._steps:
            operands = [known[name] for name in step.inputs]
            if isinstance(step, Layer):
                known[step.name] = self.get_submodule(step.path)(*operands)
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
    last = len(graph.layers) - 1
    return NetworkShape(
        model=graph.model,
        dataset=graph.dataset,
        layers=tuple(
            _layer_shape(layer, "first" if number == 0 else "last" if number == last else "middle")
            for number, layer in enumerate(graph.layers)
        ),
    )


def _layer_shape(layer: Layer, position: Position) -> LayerShape:
    outputs, inputs, *kernel = layer.codes.shape
    sizes: dict[str, Any] = {}
    if not layer.linear:
        sizes = {"in_size": layer.input_shape[1:], "out_size": layer.shape[1:], "stride": layer.stride}
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


def policy_of(graph: Graph) -> Policy:
    """Return the bits of all layers; filters that were removed are not known to the file."""
    return Policy(
        model=graph.model,
        dataset=graph.dataset,
        layers={
            layer.path: LayerPolicy(weight_bits=layer.weight_bits, activation_bits=layer.input_bits)
            for layer in graph.layers
        },
    )
