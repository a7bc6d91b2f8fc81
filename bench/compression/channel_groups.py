"""Groups of layers that share channels, found in a network's graph of operations.

A filter can be pruned if its channel is used in these ways only: by normalisations, activations and pooling; by
depthwise convolutions and gates (squeeze-excite), which lose the same channel; and by layers that mix channels, which
lose an input. It cannot be pruned if its channel is added to that of another layer, concatenated, reshaped into another
dimension, or part of the network's output.

The filters of a linear layer are its hidden units. Its channels are the last dimension of a tensor, those of a
convolution the second.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from bench.compression.geometry import MatMul, has_own_forward
from bench.compression.node_shapes import record_shapes, shape_of

_log = logging.getLogger(__name__)

_NON_NEGATIVE = {"relu", "relu6", "sigmoid", "hardsigmoid"}
_SIGNED = {"hardswish", "silu", "gelu", "tanh", "leaky_relu", "elu", "hardtanh", "mish"}
_COPIES = {"identity", "dropout", "stochastic_depth", "contiguous", "clone", "detach"}
_POOLING = {"dropout2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"}
"""Operations on maps whose second dimension are the channels."""
_PROBABILITIES = {"softmax"}
"""Operations whose result is not negative, and of which every number depends on several channels."""
_REORDERING = {"transpose", "permute"}
_SIGN_KEEPING = _COPIES | _POOLING
_FUNCTION_OF_MODULE = {
    "LeakyReLU": "leaky_relu",
    "MaxPool2d": "max_pool2d",
    "AvgPool2d": "avg_pool2d",
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d",
}
"""Functions of modules whose class name in lower case is not the function's name."""
_ADDITIONS = {"add", "iadd"}
_SUBTRACTIONS = {"sub", "isub", "rsub"}
_DIVISIONS = {"div", "truediv", "itruediv"}
_GATES = {"mul", "imul"}
_RESHAPES = {"flatten", "view", "reshape", "squeeze"}
_REDUCTIONS = {"mean", "sum", "amax"}
_CHANNELWISE = _NON_NEGATIVE | _SIGNED | _SIGN_KEEPING | _RESHAPES | _REDUCTIONS | _DIVISIONS
"""Operations whose result has the channels of their one input, where the channels are the second dimension."""
_POINTWISE = _NON_NEGATIVE | _SIGNED | _COPIES | _DIVISIONS | _ADDITIONS | _SUBTRACTIONS | _GATES
"""Operations whose result has the channels of their inputs in the same dimension, whichever it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """Relations of a layer, or of a product of activations, to the others.

    Attributes:
        producer: Prunable layer whose filters are this layer's inputs.
        leader: Prunable layer that this layer loses filters with: a depthwise convolution, or the last layer of a
            squeeze-excite gate, has one.
        signed_input: Whether the layer's input, or the left operand of a product, can be negative.
        normalized: Whether a batch normalisation, and nothing else, reads the layer's output.
        shortcut: Whether it is the convolution of a residual block's shortcut.
    """

    producer: str | None = None
    leader: str | None = None
    signed_input: bool = True
    normalized: bool = False
    shortcut: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """Structure of a network's layers.

    Attributes:
        roles: Roles by layer or product.
        prunable: Layers that can lose filters, in order of execution.
        norms: Prunable layer by the path of each batch normalisation that loses channels with it.
        obstacles: Reasons why other layers cannot lose filters, by layer.
    """

    roles: Mapping[str, Role]
    prunable: Sequence[str]
    norms: Mapping[str, str]
    obstacles: Mapping[str, str]


def analyse(model: nn.Module, image: Tensor, *, name: str) -> Structure:
    """Find the structure of a network by symbolic tracing.

    Args:
        model: Network in evaluation mode.
        image: Batch of one image, on the model's device.
        name: Name of the model, for the log.

    Returns:
        The structure. If the forward pass depends on its data and cannot be traced symbolically, no layer can lose
        filters, no normalisation is known to follow a layer, and every input counts as signed.
    """
    try:
        graph = traced(model, image)
    except Exception as error:
        # A user's forward function may raise any exception when it gets a proxy instead of a tensor.
        _log.warning(
            "model '%s' cannot be traced symbolically, so its filters cannot be pruned, its weights are not "
            "standardised and all inputs count as signed: %s",
            name,
            error,
        )
        return Structure(roles={}, prunable=(), norms={}, obstacles={})
    return _Reader(graph).structure()


def traced(model: nn.Module, images: Tensor, layers: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Trace a network symbolically, and note the shape of every tensor.

    Args:
        model: Network in evaluation mode.
        images: Batch of images, on the model's device.
        layers: Classes of modules that the graph shows as a whole, besides plain layers.
    """
    graph = fx.GraphModule(model, _Tracer(layers).trace(model))
    record_shapes(graph, images)
    return graph


class _Tracer(fx.Tracer):
    """A tracer that does not look into layers, also where their class is the user's."""

    def __init__(self, layers: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._layers = (nn.Conv2d, nn.Linear, MatMul, *layers)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain_norm = isinstance(m, nn.BatchNorm2d) and type(m).forward is nn.BatchNorm2d.forward
        return isinstance(m, self._layers) or plain_norm or super().is_leaf_module(m, module_qualified_name)


@dataclass(eq=False)
class _Channels:
    """Channels that are pruned together."""

    producers: list[str] = field(default_factory=list)
    followers: list[str] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    obstacle: str | None = None
    merged_into: "_Channels | None" = None

    def root(self) -> "_Channels":
        """Return the group that this one was merged into, or itself."""
        return self if self.merged_into is None else self.merged_into.root()

    def block(self, reason: str) -> None:
        """Record why no channel can be pruned; the first reason is kept."""
        root = self.root()
        root.obstacle = root.obstacle or reason

    def unite(self, other: "_Channels") -> None:
        """Make one group of two."""
        mine, others = self.root(), other.root()
        if mine is others:
            return
        mine.producers += others.producers
        mine.followers += others.followers
        mine.readers += others.readers
        mine.norms += others.norms
        mine.obstacle = mine.obstacle or others.obstacle
        others.merged_into = mine


@dataclass(frozen=True)
class _Mark:
    """A tensor's channels, whether it can be negative, and the dimension of the channels."""

    channels: _Channels
    signed: bool
    dimension: int = 1


class _Reader:
    """A walk over a graph that collects groups of channels."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._modules = dict(graph.named_modules())
        self._marks: dict[fx.Node, _Mark] = {}
        self._layers: dict[str, fx.Node] = {}
        self._products: dict[str, Role] = {}
        self._norms: dict[str, _Channels] = {}
        self._nodes = list(graph.graph.nodes)

    def structure(self) -> Structure:
        """Walk over the graph, then describe the relations of every layer."""
        for node in self._nodes:
            self._visit(node)
        prunable, norms, obstacles = [], {}, {}
        for path, node in self._layers.items():
            channels = self._outputs(node)
            first = self._first_producer(channels) or path
            reason = self._obstacle(first, channels)
            if reason is not None:
                obstacles[path] = reason
            elif first == path:
                prunable.append(path)
                norms.update(dict.fromkeys(channels.norms, path))
        roles = {path: self._role(path, node, prunable) for path, node in self._layers.items()}
        return Structure(roles=roles | self._products, prunable=tuple(prunable), norms=norms, obstacles=obstacles)

    def _obstacle(self, path: str, channels: _Channels) -> str | None:
        if channels.obstacle is None and not channels.readers:
            return "no layer reads them"
        return channels.obstacle

    def _role(self, path: str, node: fx.Node, prunable: Sequence[str]) -> Role:
        source = node.all_input_nodes[0]
        inputs, outputs = self._marks[source].channels.root(), self._outputs(node)
        producer, leader = self._first_producer(inputs), self._first_producer(outputs)
        users = list(node.users)
        norm = users[0] if len(users) == 1 and self._is_norm(users[0]) else None
        return Role(
            producer=producer if producer in prunable else None,
            leader=leader if leader in prunable and leader != path else None,
            signed_input=self._marks[source].signed,
            normalized=norm is not None and not has_own_forward(self._modules[path]),
            shortcut=self._is_shortcut(path, source, norm or node),
        )

    def _is_shortcut(self, path: str, source: fx.Node, result: fx.Node) -> bool:
        """Whether it is a 1×1 convolution that shares its input with another layer and whose output is added."""
        module = self._modules[path]
        shared = sum(user in self._layers.values() for user in source.users) > 1
        added = any(_operation(user) in _ADDITIONS | _SUBTRACTIONS for user in result.users)
        return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and shared and added

    def _first_producer(self, channels: _Channels) -> str | None:
        """Return the first layer, in order of execution, that produces the channels."""
        return next((path for path in self._layers if path in channels.producers), None)

    def _outputs(self, node: fx.Node) -> _Channels:
        return self._marks[node].channels.root()

    def _is_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._modules[str(node.target)], nn.BatchNorm2d)

    def _visit(self, node: fx.Node) -> None:
        inputs = [self._marks[source] for source in node.all_input_nodes if source in self._marks]
        if node.op == "output":
            for mark in inputs:
                mark.channels.block("they are the network's output")
        elif shape_of(node) is None:
            self._obstruct(node, inputs)
        elif node.op == "placeholder":
            self._marks[node] = _Mark(_Channels(obstacle="they are the image's"), signed=True)
        elif node.op == "call_module" and isinstance(self._modules[str(node.target)], nn.Conv2d | nn.Linear):
            self._layer(node, str(node.target), inputs[0])
        elif self._is_norm(node):
            self._norm(node, str(node.target), inputs[0])
        else:
            self._operate(node, inputs)

    def _layer(self, node: fx.Node, path: str, source: _Mark) -> None:
        self._layers[path] = node
        module, shape = self._modules[path], shape_of(node)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        dimension = 1 if isinstance(module, nn.Conv2d) or shape is None else len(shape) - 1
        if source.dimension != dimension:
            source.channels.block(f"'{path}' reads another dimension")
        if has_own_forward(module):
            outputs = self._blocked(path, source, f"a {type(module).__name__}, which has a forward of its own")
        elif groups == 1:
            source.channels.root().readers.append(path)
            outputs = _Channels(producers=[path])
        elif isinstance(module, nn.Conv2d) and groups == module.in_channels == module.out_channels:
            source.channels.root().followers.append(path)
            outputs = source.channels
        else:
            outputs = self._blocked(path, source, f"a convolution in {groups} groups")
        self._marks[node] = _Mark(outputs, signed=True, dimension=dimension)

    def _blocked(self, path: str, source: _Mark, kind: str) -> _Channels:
        """Block what a layer reads, and return its channels, which are blocked too."""
        reason = f"'{path}' is {kind}"
        source.channels.block(reason)
        return _Channels(producers=[path], obstacle=reason)

    def _norm(self, node: fx.Node, path: str, source: _Mark) -> None:
        channels = source.channels
        if source.dimension != 1:
            channels.block(f"the normalisation '{path}' reads another dimension")
        first = self._norms.setdefault(path, channels)
        if first.root() is not channels.root():
            for shared in (first, channels):
                shared.block(f"the normalisation '{path}' also reads other channels")
        channels.root().norms.append(path)
        self._marks[node] = _Mark(channels, signed=True)

    def _operate(self, node: fx.Node, inputs: list[_Mark]) -> None:
        """Propagate channels through an operation without weights."""
        name = self._name(node)
        channels = self._kept_channels(node, name, inputs)
        dimension = inputs[0].dimension if channels is not None else 1
        if channels is None:
            channels = self._obstruct(node, inputs)
        if node.op == "call_module" and isinstance(self._modules[str(node.target)], MatMul):
            self._products[str(node.target)] = Role(signed_input=inputs[0].signed)
        if name in _NON_NEGATIVE | _PROBABILITIES:
            signed = False
        elif name in _SIGN_KEEPING | _RESHAPES | _REDUCTIONS | _REORDERING:
            signed = any(mark.signed for mark in inputs)
        else:  # unknown for one tensor and a number, and for a sum with a negative factor
            two = name in _ADDITIONS | _GATES and len(inputs) > 1 and "alpha" not in node.kwargs
            signed = not two or any(mark.signed for mark in inputs)
        self._marks[node] = _Mark(channels, signed, dimension)

    def _kept_channels(self, node: fx.Node, name: str, inputs: list[_Mark]) -> _Channels | None:
        """Return the channels of the result if they are those of the inputs; otherwise `None`."""
        if len({mark.dimension for mark in inputs}) != 1 or not self._same_channels(node, name, inputs[0].dimension):
            return None
        first, *others = (mark.channels for mark in inputs)
        if name in _GATES:
            for other in others:
                first.unite(other)
        elif name in _ADDITIONS | _SUBTRACTIONS:
            different = [other for other in others if other.root() is not first.root()]
            for other in different:
                first.unite(other)
            if different:
                first.block("they are added to those of another layer")
        elif others or name not in _CHANNELWISE:
            return None
        return first

    def _same_channels(self, node: fx.Node, name: str, dimension: int) -> bool:
        """Whether channel i of the result, in the same dimension, is computed from channel i of every input."""
        shape = shape_of(node)
        if dimension != 1 and name not in _POINTWISE:
            return False
        for source in node.all_input_nodes:
            before = shape_of(source)
            if before is None or source not in self._marks:
                continue
            if shape is None or min(len(before), len(shape)) <= dimension or before[dimension] != shape[dimension]:
                return False
            if name in _RESHAPES and any(size != 1 for size in (*before[2:], *shape[2:])):
                return name != "squeeze" and before == shape
            if name in _ADDITIONS | _SUBTRACTIONS | _GATES and len(before) != len(shape):
                return False  # broadcasting aligns the last dimensions, so the second ones differ
        return name not in _REDUCTIONS or _keeps_channels(node)

    def _obstruct(self, node: fx.Node, inputs: list[_Mark]) -> _Channels:
        """Block the channels before and after an unknown operation; reading sizes blocks nothing."""
        name = self._name(node)
        if shape_of(node) is not None or name not in {"size", "getattr", "dim", "shape"}:
            for mark in inputs:
                mark.channels.block(f"the operation '{name}' reads them")
        return _Channels(obstacle=f"they come from the operation '{name}'")

    def _name(self, node: fx.Node) -> str:
        return operation_name(node, self._modules)


def operation_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """Return the name of a function, a tensor's method, or a module's function, e.g. "relu" for all forms of it."""
    if node.op == "call_module":
        kind = type(modules[str(node.target)]).__name__
        return _FUNCTION_OF_MODULE.get(kind, kind.lower())
    return _operation(node)


def _operation(node: fx.Node) -> str:
    """Return the name of a function or a tensor's method, without the underscore of in-place forms."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a reduction keeps the second dimension."""
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    shape = shape_of(node.all_input_nodes[0])
    if given is None or shape is None:
        return False
    dimensions = given if isinstance(given, tuple | list) else (given,)
    return all(isinstance(dim, int) and dim % len(shape) != 1 for dim in dimensions)
