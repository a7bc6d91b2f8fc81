"""Operations without weights: how calls in a traced network become operations of the graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from bench.compression.structure.node_shapes import shape_of
from bench.export.graph.operations import (
    Add,
    Clip,
    Gelu,
    Hardsigmoid,
    Hardswish,
    LayerNorm,
    MaxPool,
    Mean,
    Multiply,
    Operation,
    Permute,
    Reshape,
    Select,
    Softmax,
)


def shape_for_one(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a tensor for one image."""
    shape = shape_of(node)
    return () if shape is None else tuple(shape[1:])


class UnhandledError(ValueError):
    """An operation has arguments that the graph cannot express; the message says which."""


class Call:
    """A call in a traced network: its arguments, whether they are a function's or a module's attributes."""

    def __init__(self, node: fx.Node, sources: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> None:
        self._node = node
        self.module = modules[str(node.target)] if node.op == "call_module" else None
        self.operands = [shape_for_one(source) for source in sources]
        self.before, self.after = self.operands[0], shape_for_one(node)

    def get(self, name: str, position: int, default: Any = None) -> Any:
        """Return an argument by its name, or its position in a function's arguments."""
        if self.module is not None:
            return getattr(self.module, name, default)
        given = self._node.args[position] if len(self._node.args) > position else default
        return self._node.kwargs.get(name, given)

    def numbers(self) -> tuple[Any, ...]:
        """Return the numbers that a method gets, one by one or as a sequence."""
        given = self._node.args[1:]
        return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else given


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _added(call: Call, base: dict[str, Any]) -> Operation:
    if call.operands[0] != call.operands[1] or call.get("alpha", 2, 1) != 1:
        raise UnhandledError(f"of tensors of shape {call.operands[0]} and {call.operands[1]}")
    return Add(**base)


def _multiplied(call: Call, base: dict[str, Any]) -> Operation:
    first, second = call.operands
    if len(first) != len(second) or call.after not in (first, second):
        raise UnhandledError(f"of tensors of shape {first} and {second}")
    return Multiply(**base)


def _mean(call: Call, base: dict[str, Any]) -> Operation:
    axes = call.get("dim", 1)
    axes = {axis % 4 for axis in axes} if isinstance(axes, tuple | list) else axes
    if len(call.before) != 3 or axes != {2, 3}:
        raise UnhandledError("over other dimensions than height and width")
    return Mean(count=int(np.prod(call.before[1:])), **base)


def _adaptive_mean(call: Call, base: dict[str, Any]) -> Operation:
    if len(call.before) != 3 or call.after[1:] != (1, 1):
        raise UnhandledError("with more than one position")
    return Mean(count=int(np.prod(call.before[1:])), **base)


def _max_pool(call: Call, base: dict[str, Any]) -> Operation:
    kernel = _pair(call.get("kernel_size", 1))
    stride = call.get("stride", 2)
    vertical, horizontal = _pair(call.get("padding", 3, 0))
    if _pair(call.get("dilation", 4, 1)) != (1, 1) or call.get("ceil_mode", 5, False):
        raise UnhandledError("with dilation or ceil_mode")
    return MaxPool(
        kernel=kernel,
        stride=_pair(stride) if stride else kernel,
        padding=(vertical, horizontal, vertical, horizontal),
        **base,
    )


def _reshaped(call: Call, base: dict[str, Any]) -> Operation:
    if int(np.prod(call.before)) != int(np.prod(call.after)):
        raise UnhandledError("that mixes images")
    return Reshape(**base)


def _axis(call: Call, number: Any) -> int:
    """Return a dimension without that of the images."""
    if type(number) is not int:
        raise UnhandledError("along no dimension")
    axis = number % (len(call.before) + 1) - 1
    if axis < 0:
        raise UnhandledError("along the images")
    return axis


def _softmax(call: Call, base: dict[str, Any]) -> Operation:
    return Softmax(axis=_axis(call, call.get("dim", 1)), **base)


def _gelu(call: Call, base: dict[str, Any]) -> Operation:
    if call.get("approximate", 1, "none") != "none":
        raise UnhandledError("in an approximate form")
    return Gelu(**base)


def _layer_norm(call: Call, base: dict[str, Any]) -> Operation:
    norm = call.module
    if not isinstance(norm, nn.LayerNorm) or tuple(norm.normalized_shape) != call.before[-1:] or len(call.before) < 2:
        raise UnhandledError("over other dimensions than the channels of tokens")
    ones = np.ones(call.before[-1])
    weight, bias = (
        default if values is None else values.detach().numpy().astype(np.float64)
        for values, default in ((norm.weight, ones), (norm.bias, 0 * ones))
    )
    return LayerNorm(epsilon=norm.eps, weight=weight, bias=bias, **base)


def _transposed(call: Call, base: dict[str, Any]) -> Operation:
    first, second = (_axis(call, call.get(name, number)) for number, name in enumerate(("dim0", "dim1"), 1))
    axes = list(range(len(call.before)))
    axes[first], axes[second] = second, first
    return Permute(axes=tuple(axes), **base)


def _permuted(call: Call, base: dict[str, Any]) -> Operation:
    order = call.numbers()
    if len(order) != len(call.before) + 1 or order[0] != 0:
        raise UnhandledError("that moves the images")
    return Permute(axes=tuple(_axis(call, number) for number in order[1:]), **base)


def _selected(call: Call, base: dict[str, Any]) -> Operation:
    index = call.get("index", 1)
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None) or type(index[1]) is not int:
        raise UnhandledError("of other parts than one token")
    return Select(index=index[1] % call.before[0], **base)


OPERATIONS: Mapping[str, Callable[[Call, dict[str, Any]], Operation]] = {
    "relu": lambda _, base: Clip(**base),
    "relu6": lambda _, base: Clip(high=6, **base),
    "hardswish": lambda _, base: Hardswish(**base),
    "hardsigmoid": lambda _, base: Hardsigmoid(**base),
    "add": _added,
    "iadd": _added,
    "mul": _multiplied,
    "imul": _multiplied,
    "softmax": _softmax,
    "gelu": _gelu,
    "layernorm": _layer_norm,
    "transpose": _transposed,
    "permute": _permuted,
    "getitem": _selected,
    "mean": _mean,
    "adaptive_avg_pool2d": _adaptive_mean,
    "max_pool2d": _max_pool,
    "flatten": _reshaped,
    "reshape": _reshaped,
    "view": _reshaped,
    "squeeze": _reshaped,
}
"""Function that makes an operation from a call and the values that all operations have, by the name of the call."""
BINARY = frozenset({"add", "iadd", "mul", "imul"})
REASONS = {
    "conv2d": "a convolution with full precision; only quantized layers are exported",
    "linear": "a linear layer with full precision; only quantized layers are exported",
    "matmul": "a product of two activations with full precision; only quantized ones are exported",
    "batchnorm2d": "a normalisation that does not follow a convolution alone, which is not handled",
}
"""Descriptions of operations that users know by other names."""
