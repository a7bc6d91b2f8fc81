"""The graph of a network's operations: its nodes with the shapes of their results, and what is known of operations."""

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.meta_tracer import MetaProxy, MetaTracer

from bench.compression.geometry import MatMul
from bench.compression.heads import JoinHeads, PairBias, SplitHeads
from bench.compression.structure.node_shapes import record_shapes, shape_of

NON_NEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid"}
SIGNED = {"hardswish", "silu", "gelu", "tanh", "leaky_relu", "elu", "hardtanh", "mish"}
COPIES = {"identity", "dropout", "stochastic_depth", "contiguous", "clone", "detach"}
POOLING = {"dropout2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
"""Operations on maps whose second dimension are the channels."""
PROBABILITIES = {"softmax"}
"""Operations whose result is not negative, and of which every number depends on all those along one dimension."""
REORDERING = {"transpose", "permute"}
SIGN_KEEPING = COPIES | POOLING
ADDITIONS = {"add", "iadd"}
SUBTRACTIONS = {"sub", "isub", "rsub"}
GATES = {"mul", "imul"}
RESHAPES = {"flatten", "view", "reshape", "squeeze"}
REDUCTIONS = {"mean", "sum", "amax"}
_DIVISIONS = {"div", "truediv", "itruediv"}
CHANNELWISE = NON_NEGATIVE | SIGNED | SIGN_KEEPING | RESHAPES | REDUCTIONS | _DIVISIONS
"""Operations whose result has the channels of their one input, where the channels are the second dimension."""
POINTWISE = NON_NEGATIVE | SIGNED | COPIES | _DIVISIONS | ADDITIONS | SUBTRACTIONS | GATES
"""Operations whose result has the channels of their inputs in the same dimension, whichever it is."""
_ALONG_DIMENSIONS = {"transpose", "softmax"}
"""Operations that keep the channels in their dimension unless they exchange it or compute along it."""
_SIZES = {"size", "getattr", "dim", "shape"}
_MADE_OF_SIZES = {
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "zeros_like",
    "ones_like",
    "full_like",
    "shift_bias",
}
"""Operations that read nothing of a tensor but its size, and return a tensor."""

_FUNCTION_OF_MODULE = {
    "LeakyReLU": "leaky_relu",
    "MaxPool2d": "max_pool2d",
    "AvgPool2d": "avg_pool2d",
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d",
}
"""Functions of modules whose class name in lower case is not the function's name."""


class _Tracer(fx.Tracer):
    """A tracer that does not look into layers, also where their class is the user's."""

    def __init__(self, layers: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._layers = (nn.Conv2d, nn.Linear, MatMul, SplitHeads, JoinHeads, PairBias, *layers)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain_norm = isinstance(m, nn.BatchNorm2d) and type(m).forward is nn.BatchNorm2d.forward
        return isinstance(m, self._layers) or plain_norm or super().is_leaf_module(m, module_qualified_name)


class _SizedProxy(MetaProxy):
    """A proxy of a tensor whose size is known."""

    def __len__(self) -> int:
        return len(self._tensor_meta)


class _SizedTracer(MetaTracer, _Tracer):
    """A tracer that knows the sizes of tensors, so that a forward pass may branch on them."""

    def proxy(self, node: fx.Node) -> MetaProxy:
        return _SizedProxy(node, self)


def traced(model: nn.Module, images: Tensor, layers: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Trace a network symbolically, and note the shape of every tensor.

    Args:
        model: Network in evaluation mode.
        images: Batch of images, on the model's device.
        layers: Classes of modules that the graph shows as a whole, besides plain layers.

    Raises:
        Exception: The forward pass depends on its data. A user's forward function may raise any exception when it gets
            a proxy instead of a tensor.
    """
    graph = fx.GraphModule(model, _graph(model, images, layers))
    record_shapes(graph, images)
    return graph


def _graph(model: nn.Module, images: Tensor, layers: tuple[type[nn.Module], ...]) -> fx.Graph:
    """Trace a network, without sizes first, since what tells them is experimental in PyTorch."""
    try:
        return _Tracer(layers).trace(model)
    except Exception:
        name = next(iter(inspect.signature(model.forward).parameters))
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            sized: fx.Graph = _SizedTracer(layers).trace(model, {name: images})
            return sized
        raise


def operation_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of a function, a tensor's method, or a module's function, e.g. "relu" for all forms of it."""
    return operation_of_module(modules[str(node.target)]) if node.op == "call_module" else operation(node)


def operation(node: fx.Node) -> str:
    """Return the name of a function or a tensor's method, without the underscore of in-place forms."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def operation_of_module(module: nn.Module) -> str:
    """Return the name of the function that a module without weights computes."""
    kind = type(module).__name__
    return _FUNCTION_OF_MODULE.get(kind, kind.lower())


def reads_sizes_only(node: fx.Node) -> bool:
    """Whether an operation reads the sizes of tensors, but none of their numbers."""
    if node.op not in ("call_function", "call_method"):
        return False
    return operation(node) in (_SIZES if shape_of(node) is None else _MADE_OF_SIZES)


def kept_dimension(node: fx.Node, name: str, module: nn.Module | None, dimensions: Mapping[fx.Node, int]) -> int | None:
    """Return the dimension of the channels in the result, if its channel i is computed from channel i of all inputs.

    Args:
        node: Operation without weights.
        name: Name of the operation.
        module: Module that computes it; `None` for a function.
        dimensions: Dimension of the channels of the tensors that it reads; tensors without channels are left out.
    """
    shape = shape_of(node)
    if not dimensions or shape is None:
        return None
    if name in POINTWISE:
        return _broadcast_dimension(node, shape, dimensions)
    if len(dimensions) > 1:
        return None
    source, dimension = next(iter(dimensions.items()))
    if name in _ALONG_DIMENSIONS:
        changed = _stated_dimensions(node, module)
        return None if changed is None or dimension in changed else dimension
    alike = dimension == 1 and name in CHANNELWISE and _keeps_second(node, name, shape_of(source), shape)
    return 1 if alike else None


def _broadcast_dimension(node: fx.Node, shape: torch.Size, dimensions: Mapping[fx.Node, int]) -> int | None:
    """Return the dimension of the channels after broadcasting, which aligns the last dimensions of all tensors."""
    aligned = {dimension - len(shape_of(source) or ()) for source, dimension in dimensions.items()}
    place = next(iter(aligned))
    if len(aligned) > 1 or place >= 0:
        return None
    for source in node.all_input_nodes:
        before = shape_of(source)
        size = 1 if before is None or len(before) < -place else before[place]
        if before is not None and size != (shape[place] if source in dimensions else 1):
            return None
    return place + len(shape)


def _keeps_second(node: fx.Node, name: str, before: torch.Size | None, shape: torch.Size) -> bool:
    """Whether an operation on maps keeps the second dimension."""
    if before is None or min(len(before), len(shape)) <= 1 or before[1] != shape[1]:
        return False
    if name in RESHAPES and any(size != 1 for size in (*before[2:], *shape[2:])):
        return name != "squeeze" and before == shape
    stated = _stated_dimensions(node, None) if name in REDUCTIONS else set()
    return stated is not None and 1 not in stated


def _stated_dimensions(node: fx.Node, module: nn.Module | None) -> set[int] | None:
    """Return the dimensions that an operation exchanges or computes along, from 0; `None` if they are not known.

    Args:
        node: A transposition, a softmax or a reduction of one tensor.
        module: Module that computes it; `None` for a function.
    """
    shape = shape_of(node.all_input_nodes[0])
    stated: list[Any] = [getattr(module, "dim", None)] if module is not None else list(node.args[1:])
    stated += [node.kwargs[key] for key in ("dim", "dim0", "dim1") if key in node.kwargs]
    flat = [number for each in stated for number in (each if isinstance(each, tuple | list) else [each])]
    numbers = [number for number in flat if isinstance(number, int) and not isinstance(number, bool)]
    return {number % len(shape) for number in numbers} if shape is not None and numbers else None
