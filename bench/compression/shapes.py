"""Shapes of a network's layers, from which every cost is computed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import torch
from torch import nn

from bench.compression.geometry import MatMul, has_own_forward
from bench.compression.operations import Operation
from bench.compression.requirements import check_executions, check_modules
from bench.compression.structure.channel_groups import Role, Structure
from bench.compression.structure.executions import IMAGES, Call, Execution, execute
from bench.errors import BenchError

Position = Literal["first", "middle", "last"]

DEFAULT_GROUP_SIZE = 4
"""Default number of filters that are pruned together (paper, Section 4.2: ResNet-20 and ResNet-56)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """Shape of one convolution, linear layer or product of two activations for one image.

    A linear layer is a 1×1 convolution on a map of as many rows as there are tokens; a vector is one token. So is a
    product. It multiplies several pairs of matrices, which are its groups: the rows of the left ones are its tokens,
    and the right operand takes the place of the weight.

    Filters are what can be removed: single ones, or heads of attention, which several rows of a projection make.

    Attributes:
        name: Module path of the layer.
        kind: Kind of layer; "matmul" is a product of two activations.
        position: Position of the layer in the network; only middle layers are searched.
        in_channels, out_channels: Numbers of channels; of a product, the columns of all left and of all right matrices.
        kernel: Height and width of the kernel.
        groups: Number of groups of the convolution; of a product, the number of pairs of matrices.
        in_size, out_size: Height and width of the input and of the output.
        stride: Vertical and horizontal stride.
        producer: Prunable layer whose filters are this layer's inputs; `None` if the number of inputs is fixed.
        leader: Prunable layer that this layer loses filters with: a depthwise convolution, the last layer of a
            squeeze-excite gate, or a product of heads has one.
        inputs_per_filter: Number of inputs that the layer loses with one filter of its producer.
        outputs_per_filter: Number of outputs that are removed together as one filter: the rows of a head, else 1.
        parts: Number of equal parts in which the outputs of a filter lie, e.g. 3 for queries, keys and values.
        prunable: Whether filters can be pruned for this layer itself.
        signed_input: Whether the layer's input, or the left operand of a product, can be negative.
        normalized: Whether a batch normalisation follows, so that the scale of the weights has no effect.
        shortcut: Whether it is the convolution of a residual block's shortcut.
    """

    name: str
    kind: Literal["conv", "linear", "matmul"]
    position: Position
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    producer: str | None = None
    leader: str | None = None
    inputs_per_filter: int = 1
    outputs_per_filter: int = 1
    parts: int = 1
    prunable: bool = False
    signed_input: bool = False
    normalized: bool = True
    shortcut: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself: there are as many groups as channels."""
        return self.kind == "conv" and self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def filters(self) -> int:
        """Number of filters: of heads in a projection to heads, else of outputs."""
        return self.out_channels // self.outputs_per_filter

    def group_size(self, usual: int) -> int:
        """Return how many filters are removed together: single heads, else the usual number."""
        return 1 if self.outputs_per_filter > 1 else usual

    def rows(self, filters: Sequence[int]) -> list[int]:
        """List the outputs that some filters make, part by part."""
        own, part = self.outputs_per_filter // self.parts, self.out_channels // self.parts
        return [part * p + own * filter_ + i for p in range(self.parts) for filter_ in filters for i in range(own)]

    def columns(self, filters: Sequence[int]) -> list[int]:
        """List the inputs that some filters of the producer make."""
        own = self.inputs_per_filter
        return [own * filter_ + i for filter_ in filters for i in range(own)]

    def right_elements(self, in_channels: int, out_channels: int) -> int:
        """Count the weights of the layer with so many channels, without biases, or a product's right operand.

        Layers of several groups lose groups with their channels, so that the inputs of one output stay.
        """
        inputs = self.in_channels if self.groups > 1 else in_channels
        return inputs * out_channels * self.kernel[0] * self.kernel[1] // self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the full layer for one image."""
        return self.right_elements(self.in_channels, self.out_channels) * self.out_size[0] * self.out_size[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkShape:
    """Shapes of all layers of a model on a data set, in the order of execution.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        layers: Convolutions, linear layers and products of activations.
        norms: Batch normalisations that lose channels with a prunable layer, as pairs of path and layer.
        tables: Parameters that lose entries of their last dimension with a prunable layer, as pairs of path and layer.
        unquantized: Multiplications outside of the layers, in order of execution; they have full precision.
        constant: Multiplications whose result is the same for all images, e.g. of position biases. They are computed
            once, and not priced.
        group_size: Default number of filters that are pruned together (the paper's B).
        obstacles: Reasons why layers lose filters neither by themselves nor with another one, by layer; "it" in them is
            the layer, "they" are its filters.
    """

    model: str
    dataset: str
    layers: tuple[LayerShape, ...]
    norms: tuple[tuple[str, str], ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    unquantized: tuple[Operation, ...] = ()
    constant: tuple[Operation, ...] = ()
    group_size: int = DEFAULT_GROUP_SIZE
    obstacles: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    def __getitem__(self, name: str) -> LayerShape:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def middle(self) -> tuple[LayerShape, ...]:
        """Layers that are searched: all but the first, the last and products of activations."""
        return tuple(layer for layer in self.layers if layer.position == "middle")


def trace(
    model: nn.Module, input_shape: tuple[int, int, int], *, name: str, dataset: str, classes: int | None = None
) -> NetworkShape:
    """Record shapes and structure of all convolutions, linear layers and products in one forward pass of zero images.

    A model may list in an attribute `prunable` the layers that may lose filters (by default all that can), and in
    `group_size` the number of filters that are pruned together. The first and the last layer, which are not searched,
    keep all their channels. What is multiplied outside of these layers is recorded too.

    Args:
        model: Network; it is not changed.
        input_shape: Channels, height and width of one image.
        name: Name of the model.
        dataset: Name of the data set.
        classes: Number of logits that the model must return; any by default.

    Raises:
        BenchError: The model cannot compute such images, has fewer than two weighted layers, runs one of them more
            than once, has a layer that cannot be quantized or counted, returns something else than logits, or lists a
            layer in `prunable` that cannot lose filters.
    """
    check_modules(model, name)
    execution = execute(model, input_shape, name=name, classes=classes)
    seen, structure = execution.calls, execution.structure
    check_executions(name, [call.path for call in seen], len(_weighted(seen)))
    first, last = _weighted(seen)[0], _weighted(seen)[-1]
    ends: Mapping[str, Position] = {first: "first", last: "last"}
    edges = _edge_obstacles(first, last, structure)
    called = {call.path for call in seen}
    allowed = _allowed(model, name, [path for path in structure.prunable if path in called], structure, edges)
    layers = _with_filters(
        [_layer_shape(call, ends.get(call.path, "middle"), structure, allowed) for call in seen],
        structure,
    )
    return NetworkShape(
        model=name,
        dataset=dataset,
        layers=tuple(layers),
        norms=tuple((norm, layer) for norm, layer in structure.norms.items() if layer in allowed),
        tables=tuple((table, layer) for table, layer in structure.tables.items() if layer in allowed),
        unquantized=_unquantized(model, layers, execution),
        constant=execution.constant,
        group_size=getattr(model, "group_size", DEFAULT_GROUP_SIZE),
        obstacles=_obstacles(layers, structure, edges),
    )


def _weighted(seen: Sequence[Call]) -> list[str]:
    """Return the paths of layers, without those of products."""
    return [call.path for call in seen if not isinstance(call.module, MatMul)]


def _unquantized(model: nn.Module, layers: Sequence[LayerShape], execution: Execution) -> tuple[Operation, ...]:
    """Return all multiplications but those of the layers.

    Raises:
        BenchError: The layers multiply more often or less often than counted, or the image is multiplied before the
            first layer reads it.
    """
    priced, counts = {layer.name: layer for layer in layers}, execution.counts
    rest: list[Operation] = []
    for path, own in counts.items():
        left = priced[path].macs if path in priced else 0
        for name, macs in own.items():
            taken = min(left, macs)
            left -= taken
            if macs > taken:
                rest.append(Operation(path=path, name=name, macs=macs - taken))
        _check_count(path, left, rest, model.get_submodule(path))
    missing = next((name for name in priced if name not in counts), None)
    if missing is not None:
        raise BenchError(f"layer '{missing}' multiplies nothing in PyTorch's count, so its cost is not known")
    early, first = next(iter(counts)), next(layer.name for layer in layers if layer.position == "first")
    if early != first:
        raise BenchError(
            f"'{next(iter(counts[early]))}' in '{early}' multiplies before the first layer, '{first}', whose input "
            "must be the image; make it a Conv2d or a Linear layer"
        )
    return tuple(rest)


def _check_count(path: str, left: int, rest: Sequence[Operation], module: nn.Module) -> None:
    """Check the count of one module's own operations; only a layer with a forward of its own may have further ones."""
    plain = isinstance(module, MatMul) or (isinstance(module, nn.Conv2d | nn.Linear) and not has_own_forward(module))
    further = rest[-1].macs if rest and rest[-1].path == path else 0
    if left or (plain and further):
        raise BenchError(
            f"layer '{path}' multiplies {'more' if further else 'less'} often than its shape says: the difference is "
            f"{left or further:,} for one image"
        )


def _edge_obstacles(first: str, last: str, structure: Structure) -> dict[str, str]:
    """Return why layers at the ends may not lose filters: the first and the last layer keep all their channels."""
    obstacles = {first: "it is the first layer", last: "it is the last layer"}
    role = structure.roles.get(last)
    if role is not None and role.producer is not None:
        obstacles.setdefault(role.producer, f"the last layer, '{last}', reads them")
    return obstacles


def _obstacles(layers: Sequence[LayerShape], structure: Structure, edges: Mapping[str, str]) -> dict[str, str]:
    """Return why layers lose filters neither by themselves nor with another layer."""
    products = {layer.name: "it multiplies two activations" for layer in layers if layer.kind == "matmul"}
    known = {**structure.obstacles, **edges, **products}
    other = "the model does not list it in `prunable`" if structure.roles else "the forward pass cannot be read"
    blocked = [layer.name for layer in layers if not layer.prunable and layer.leader is None]
    leaders = {path: structure.roles.get(path, Role()).leader or path for path in blocked}
    return {path: known.get(path) or known.get(leader) or other for path, leader in leaders.items()}


def _allowed(
    model: nn.Module, name: str, able: Sequence[str], structure: Structure, edges: Mapping[str, str]
) -> set[str]:
    """Return the layers that may lose filters: those that the model lists, or all that can.

    Raises:
        BenchError: A layer that the model lists cannot.
    """
    prunable = {path for path in able if path not in edges}
    stated: Collection[str] | None = getattr(model, "prunable", None)
    if stated is None:
        return prunable
    obstacles = {**structure.obstacles, **edges}
    for path in stated:
        if path not in prunable:
            reason = obstacles.get(path, "it is no layer with filters of its own")
            raise BenchError(f"model '{name}' lists '{path}' in `prunable`, but {reason}")
    return set(stated)


def _layer_shape(call: Call, position: Position, structure: Structure, allowed: Collection[str]) -> LayerShape:
    path, module, inputs, outputs = call
    role = structure.roles.get(path, Role())
    if any(shape[:1] != (IMAGES,) for shape in inputs) or (isinstance(module, nn.Conv2d) and len(inputs[0]) != 4):
        raise BenchError(
            f"layer '{path}' reads a tensor of shape {_in_words(inputs)} for {IMAGES} images; its first dimension "
            "must be the images"
        )
    if isinstance(module, MatMul):
        return _product_shape(path, inputs[0], inputs[1], role, allowed)
    plain = LayerShape(
        name=path,
        kind="linear",
        position=position,
        in_channels=inputs[0][-1],
        out_channels=outputs[-1],
        in_size=(prod(inputs[0][1:-1]), 1),
        out_size=(prod(outputs[1:-1]), 1),
        producer=role.producer if role.producer in allowed else None,
        leader=role.leader if role.leader in allowed else None,
        parts=role.parts,
        prunable=path in allowed,
        signed_input=role.signed_input,
        normalized=role.normalized,
        shortcut=role.shortcut,
    )
    if not isinstance(module, nn.Conv2d):
        return plain
    return replace(
        plain,
        kind="conv",
        in_channels=inputs[0][1],
        out_channels=outputs[1],
        kernel=(module.kernel_size[0], module.kernel_size[1]),
        groups=module.groups,
        in_size=(inputs[0][2], inputs[0][3]),
        out_size=(outputs[2], outputs[3]),
        stride=(module.stride[0], module.stride[1]),
    )


def _with_filters(layers: Sequence[LayerShape], structure: Structure) -> list[LayerShape]:
    """State how many channels a filter makes: several where the filters of a layer are heads."""
    filters = {layer.name: structure.roles.get(layer.name, Role()).heads or layer.out_channels for layer in layers}

    def per_filter(name: str | None, channels: int) -> int:
        return 1 if name is None else channels // filters[name]

    return [
        replace(
            layer,
            inputs_per_filter=per_filter(layer.producer, layer.in_channels),
            outputs_per_filter=per_filter(layer.leader or (layer.name if layer.prunable else None), layer.out_channels),
        )
        for layer in layers
    ]


def _product_shape(path: str, left: torch.Size, right: torch.Size, role: Role, allowed: Collection[str]) -> LayerShape:
    """Return the shape of the product of (images, …, rows, contraction) and (images, …, contraction, columns)."""
    if len(left) < 3 or left[:-2] != right[:-2]:
        raise BenchError(
            f"product '{path}' multiplies tensors of shape {_in_words((left, right))} for {IMAGES} images; both must "
            "hold equally many matrices for each image"
        )
    pairs = prod(left[1:-2])
    return LayerShape(
        name=path,
        kind="matmul",
        position="middle",
        in_channels=pairs * left[-1],
        out_channels=pairs * right[-1],
        groups=pairs,
        in_size=(left[-2], 1),
        out_size=(left[-2], 1),
        producer=role.producer if role.producer in allowed else None,
        leader=role.leader if role.leader in allowed else None,
        signed_input=role.signed_input,
        normalized=False,
    )


def _in_words(shapes: Sequence[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)
