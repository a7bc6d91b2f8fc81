"""Groups of layers that share channels, found in a network's graph of operations.

A filter can be pruned if its channel is used in these ways only: by normalisations, activations and pooling; by
depthwise convolutions and gates (squeeze-excite), which lose the same channel; and by layers that mix channels, which
lose an input. It cannot be pruned if its channel is added to that of another layer, concatenated, reshaped into another
dimension, or part of the network's output.

The filters of a linear layer are its hidden units. Its channels are the last dimension of a tensor, those of a
convolution the second.

Where a projection is split into heads of attention, its filters are heads: a head has some rows of the projection, a
share of both products, and some inputs of the layer that reads the heads when they have been joined.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from bench.compression.geometry import MatMul, has_own_forward
from bench.compression.heads import JoinHeads, PairBias, SplitHeads
from bench.compression.structure.channel_marks import Channels, Mark
from bench.compression.structure.graph import (
    ADDITIONS,
    GATES,
    NON_NEGATIVE,
    PROBABILITIES,
    REDUCTIONS,
    REORDERING,
    RESHAPES,
    SIGN_KEEPING,
    SUBTRACTIONS,
    kept_dimension,
    operation,
    operation_of_module,
    reads_sizes_only,
    traced,
)
from bench.compression.structure.node_shapes import shape_of

_log = logging.getLogger(__name__)


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
        heads: Number of heads that the layer projects to; 0 if its filters are single ones.
        parts: Number of parts that it projects to, each with all heads: 3 for queries, keys and values together.
    """

    producer: str | None = None
    leader: str | None = None
    signed_input: bool = True
    normalized: bool = False
    shortcut: bool = False
    heads: int = 0
    parts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Structure:
    """Structure of a network's layers.

    Attributes:
        roles: Roles by layer or product.
        prunable: Layers that can lose filters, in order of execution.
        norms: Prunable layer by the path of each batch normalisation that loses channels with it.
        tables: Prunable layer by the path of each parameter whose last dimension are its heads.
        obstacles: Reasons why other layers cannot lose filters, by layer.
    """

    roles: Mapping[str, Role]
    prunable: Sequence[str]
    norms: Mapping[str, str]
    tables: Mapping[str, str]
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
        return Structure(roles={}, prunable=(), norms={}, tables={}, obstacles={})
    return _Reader(graph).structure()


class _Reader:
    """A walk over a graph that collects groups of channels."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._modules = dict(graph.named_modules())
        self._marks: dict[fx.Node, Mark] = {}
        self._layers: dict[str, fx.Node] = {}
        self._products: dict[str, Mark] = {}
        self._owners: dict[str, Channels] = {}
        self._parts: dict[str, int] = {}
        self._splits: dict[fx.Node, Channels] = {}
        self._nodes = list(graph.graph.nodes)

    def structure(self) -> Structure:
        """Walk over the graph, then describe the relations of every layer."""
        for node in self._nodes:
            self._visit(node)
        prunable, norms, tables, obstacles = [], {}, {}, {}
        for path, node in self._layers.items():
            channels = self._outputs(node)
            first = self._first_producer(channels) or path
            reason = self._obstacle(channels)
            if reason is not None:
                obstacles[path] = reason
            elif first == path:
                prunable.append(path)
                norms.update(dict.fromkeys(channels.norms, path))
                tables.update(dict.fromkeys(channels.tables, path))
        roles = {path: self._role(path, node, prunable) for path, node in self._layers.items()}
        roles |= {path: self._role_of_product(mark, prunable) for path, mark in self._products.items()}
        return Structure(roles=roles, prunable=tuple(prunable), norms=norms, tables=tables, obstacles=obstacles)

    def _obstacle(self, channels: Channels) -> str | None:
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
            heads=outputs.heads,
            parts=self._parts.get(path, 1),
        )

    def _role_of_product(self, mark: Mark, prunable: Sequence[str]) -> Role:
        """Describe a product by its left operand; if it computes a matrix for each filter, it loses them too."""
        producer = self._first_producer(mark.channels.root())
        led = producer if producer in prunable else None
        return Role(producer=led, leader=led, signed_input=mark.signed)

    def _is_shortcut(self, path: str, source: fx.Node, result: fx.Node) -> bool:
        """Whether it is a 1×1 convolution that shares its input with another layer and whose output is added."""
        module = self._modules[path]
        shared = sum(user in self._layers.values() for user in source.users) > 1
        added = any(operation(user) in ADDITIONS | SUBTRACTIONS for user in result.users)
        return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and shared and added

    def _first_producer(self, channels: Channels) -> str | None:
        """Return the first layer, in order of execution, that produces the channels."""
        return next((path for path in self._layers if path in channels.producers), None)

    def _outputs(self, node: fx.Node) -> Channels:
        return self._marks[node].channels.root()

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _is_norm(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), nn.BatchNorm2d)

    def _visit(self, node: fx.Node) -> None:
        inputs = [self._marks[source] for source in node.all_input_nodes if source in self._marks]
        module = self._module(node)
        if node.op == "output":
            for mark in inputs:
                mark.channels.block("they are the network's output")
        elif isinstance(module, SplitHeads):
            self._split(node, module, inputs)
        elif reads_sizes_only(node):
            return
        elif shape_of(node) is None:
            self._obstruct(node, inputs)
        elif node.op == "placeholder":
            self._marks[node] = Mark(channels=Channels(obstacle="they are the image's"), signed=True)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            self._layer(node, str(node.target), inputs[0] if inputs else Mark(channels=Channels(), signed=True))
        elif self._is_norm(node):
            self._norm(node, str(node.target), inputs[0])
        else:
            self._marks[node] = self._of_heads(node, module) or self._operate(node, inputs)

    def _layer(self, node: fx.Node, path: str, source: Mark) -> None:
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
            outputs = Channels(producers=[path])
        elif source.repeat == 1 and groups == module.in_channels == module.out_channels:
            source.channels.root().followers.append(path)
            outputs = source.channels
        else:
            outputs = self._blocked(path, source, f"a convolution in {groups} groups")
        self._marks[node] = Mark(channels=outputs, signed=True, dimension=dimension)

    def _blocked(self, path: str, source: Mark, kind: str) -> Channels:
        """Block what a layer reads, and return its channels, which are blocked too."""
        reason = f"'{path}' is {kind}"
        source.channels.block(reason)
        return Channels(producers=[path], obstacle=reason)

    def _norm(self, node: fx.Node, path: str, source: Mark) -> None:
        channels = source.channels
        if source.dimension != 1 or source.repeat > 1:
            channels.block(f"the normalisation '{path}' reads another dimension")
        self._owned(path, channels, f"the normalisation '{path}'").norms.append(path)
        self._marks[node] = Mark(channels=channels, signed=True)

    def _owned(self, path: str, channels: Channels, what: str) -> Channels:
        """Return the group of channels, which is blocked if another one has the same normalisation or table."""
        first = self._owners.setdefault(path, channels)
        if first.root() is not channels.root():
            for shared in (first, channels):
                shared.block(f"{what} also reads other channels")
        return channels.root()

    # --- heads of attention -------------------------------------------------------------------------------------------

    def _split(self, node: fx.Node, module: SplitHeads, inputs: Sequence[Mark]) -> None:
        """Make heads of a projection's channels, if nothing else reads these."""
        source = node.args[0]
        rows = shape_of(source)
        plain = isinstance(source, fx.Node) and source in self._layers.values() and len(source.users) == 1
        if not plain or rows is None or rows[-1] % (module.parts * module.channels):
            self._obstruct(node, inputs)
            return
        channels = inputs[0].channels.root()
        channels.heads = rows[-1] // (module.parts * module.channels)
        self._parts[str(source.target)] = module.parts  # type: ignore[union-attr]
        self._splits[node] = channels

    def _of_heads(self, node: fx.Node, module: nn.Module | None) -> Mark | None:
        """Mark the result of an operation on heads, whose dimension is the third from the end; else return `None`."""
        shape = shape_of(node)
        source = self._marks.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if shape is None:
            return None
        if source is None and (split := next((s for s in node.all_input_nodes if s in self._splits), None)):
            return Mark(channels=self._splits[split], signed=True, dimension=len(shape) - 3)
        if isinstance(module, JoinHeads) and source is not None and source.dimension == len(shape) - 2:
            width = shape_of(node.args[0])
            return Mark(
                channels=source.channels,
                signed=source.signed,
                dimension=len(shape) - 1,
                repeat=1 if width is None else width[-1],
            )
        if isinstance(module, PairBias) and isinstance(node.args[0], fx.Node) and node.args[0].op == "get_attr":
            path = str(node.args[0].target)
            table = Channels(heads=shape[0])
            self._owned(path, table, f"the table '{path}'").tables.append(path)
            return Mark(channels=table, signed=True, dimension=0)
        return self._product(node, str(node.target)) if isinstance(module, MatMul) else None

    def _product(self, node: fx.Node, path: str) -> Mark | None:
        """Mark a product; it keeps channels that are the dimension before those of both matrices."""
        operands = [
            self._marks[source] for source in node.args if isinstance(source, fx.Node) and source in self._marks
        ]
        shape = shape_of(node)
        if not operands or shape is None:
            return None
        left, right = operands[0], operands[-1]
        self._products[path] = Mark(channels=Channels(), signed=left.signed)
        if len(operands) < 2 or {left.dimension, right.dimension} != {len(shape) - 3}:
            return None
        left.channels.unite(right.channels)
        self._products[path] = left
        return Mark(channels=left.channels, signed=True, dimension=left.dimension)

    # --- operations without weights -----------------------------------------------------------------------------------

    def _operate(self, node: fx.Node, inputs: list[Mark]) -> Mark:
        """Propagate channels through an operation without weights."""
        name = self._name(node)
        dimension = kept_dimension(node, name, self._module(node), self._dimensions(node))
        if len({mark.repeat for mark in inputs}) > 1:
            dimension = None
        channels = None if dimension is None else self._kept_channels(name, inputs)
        if channels is None or dimension is None:
            channels, dimension = self._obstruct(node, inputs), 1
        if name in NON_NEGATIVE | PROBABILITIES:
            signed = False
        elif name in SIGN_KEEPING | RESHAPES | REDUCTIONS | REORDERING:
            signed = any(mark.signed for mark in inputs)
        else:  # unknown for one tensor and a number, and for a sum with a negative factor
            two = name in ADDITIONS | GATES and len(inputs) > 1 and "alpha" not in node.kwargs
            signed = not two or any(mark.signed for mark in inputs)
        repeat = inputs[0].repeat if inputs else 1
        return Mark(channels=channels, signed=signed, dimension=dimension, repeat=repeat)

    def _dimensions(self, node: fx.Node) -> dict[fx.Node, int]:
        """Return the dimension of the channels of every tensor that an operation reads."""
        return {source: self._marks[source].dimension for source in node.all_input_nodes if source in self._marks}

    def _kept_channels(self, name: str, inputs: list[Mark]) -> Channels | None:
        """Return the channels of the result, those of the inputs; `None` for unknown operations on several."""
        first, *others = (mark.channels for mark in inputs)
        if name in GATES:
            for other in others:
                first.unite(other)
        elif name in ADDITIONS | SUBTRACTIONS:
            different = [other for other in others if other.root() is not first.root()]
            layers = [each for each in (first, *different) if not each.root().only_tables]
            for other in different:
                first.unite(other)
            if len(layers) > 1:
                first.block("they are added to those of another layer")
        elif others:
            return None
        return first

    def _obstruct(self, node: fx.Node, inputs: Sequence[Mark]) -> Channels:
        """Block the channels before and after an unknown operation."""
        name = self._name(node)
        for mark in inputs:
            mark.channels.block(f"the operation '{name}' reads them")
        return Channels(obstacle=f"they come from the operation '{name}'")

    def _name(self, node: fx.Node) -> str:
        module = self._module(node)
        return operation(node) if module is None else operation_of_module(module)
