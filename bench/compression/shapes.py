"""Shapes of a network: what every cost is computed from."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from bench.compression.channel_groups import Role, Structure, analyse
from bench.errors import BenchError

Position = Literal["first", "middle", "last"]

DEFAULT_GROUP_SIZE = 4
"""Filters of a pruning group (paper, Section 4.2: ResNet-20 and ResNet-56)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """The shape of one convolution or linear layer for a batch of one.

    A linear layer is a 1×1 convolution on a 1×1 map.

    Attributes:
        producer: The prunable layer whose surviving filters are this layer's inputs; `None` when they never shrink.
        leader: The prunable layer with whose filters this layer's own outputs go: of a depthwise convolution, or of
            the last layer of a squeeze-excite gate.
        prunable: Whether it may lose filters by its own decision.
        signed_input: Whether its input can be negative.
        normalized: Whether a batch normalisation follows, so that the scale of its weights does not matter.
        shortcut: Whether it is the convolution of a residual block's shortcut.
    """

    name: str
    kind: Literal["conv", "linear"]
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
    prunable: bool = False
    signed_input: bool = False
    normalized: bool = True
    shortcut: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself, so that its groups are its channels."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkShape:
    """All weighted layers of a model on a data set, in the order in which they are executed.

    Attributes:
        norms: Normalisations that shrink with a prunable layer: path and layer.
        group_size: Filters that pruning takes together unless a method is told otherwise (the paper's B).
    """

    model: str
    dataset: str
    layers: tuple[LayerShape, ...]
    norms: tuple[tuple[str, str], ...] = ()
    group_size: int = DEFAULT_GROUP_SIZE

    def __getitem__(self, name: str) -> LayerShape:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def middle(self) -> tuple[LayerShape, ...]:
        """The layers that are searched: all but the first and the last."""
        return tuple(layer for layer in self.layers if layer.position == "middle")


def trace(model: nn.Module, input_shape: tuple[int, int, int], *, name: str, dataset: str) -> NetworkShape:
    """Record shapes and structure of all convolutions and linear layers in one forward pass of a zero image.

    A model may state in `prunable` the names of the layers that may lose filters (all that can when absent), and in
    `group_size` how many go together. The first and the last layer, which no search touches, keep all their channels.

    Args:
        model: The network; left as it was, in evaluation mode during the pass.
        input_shape: Channels, height and width of one image.
        name: The model's name.
        dataset: The data set's name.

    Raises:
        BenchError: The model has fewer than two weighted layers, runs one of them more than once, has a layer whose
            cost is not known, or states that a layer may lose filters that cannot.
    """
    _check_layers(model, name)
    parameter = next(model.parameters())
    image = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    try:
        model.eval()
        seen = _executed(model, image)
        structure = analyse(model, image, name=name)
    finally:
        model.train(was_training)
    _check_executions(name, [path for path, *_ in seen])
    last = len(seen) - 1
    allowed = _allowed(model, name, structure, _edge_obstacles(seen[0][0], seen[last][0], structure))
    layers = []
    for index, (path, module, inputs, outputs) in enumerate(seen):
        position: Position = "first" if index == 0 else "last" if index == last else "middle"
        layers.append(_layer_shape(path, module, inputs, outputs, position, structure, allowed))
    return NetworkShape(
        model=name,
        dataset=dataset,
        layers=tuple(layers),
        norms=tuple((norm, layer) for norm, layer in structure.norms.items() if layer in allowed),
        group_size=getattr(model, "group_size", DEFAULT_GROUP_SIZE),
    )


_Execution = tuple[str, nn.Module, torch.Size, torch.Size]


def _executed(model: nn.Module, image: Tensor) -> list[_Execution]:
    """Weighted layers with the shapes of their input and output, as they come."""
    seen: list[_Execution] = []
    names = {module: path for path, module in model.named_modules()}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((names[module], module, inputs[0].shape, output.shape))

    hooks = [
        module.register_forward_hook(record) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _check_layers(model: nn.Module, name: str) -> None:
    """Refuse layers with weights that no cost would count."""
    for path, module in model.named_modules():
        matrices = [key for key, value in module.named_parameters(recurse=False) if value.ndim > 1]
        if matrices and not isinstance(module, nn.Conv2d | nn.Linear):
            raise BenchError(
                f"layer '{path}' of model '{name}' is a {type(module).__name__}, whose cost is not known; "
                "allowed with weights: Conv2d, Linear and normalisations"
            )


def _check_executions(name: str, paths: Sequence[str]) -> None:
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise BenchError(f"model '{name}' runs layer '{twice[0]}' more than once; each may run once")
    if len(paths) < 2:
        raise BenchError(f"model '{name}' must run at least two convolution or linear layers; it runs {len(paths)}")


def _edge_obstacles(first: str, last: str, structure: Structure) -> dict[str, str]:
    """What may not lose filters because the first and the last layer, which are not searched, stay as they are."""
    obstacles = {first: "it is the first layer", last: "it is the last layer"}
    role = structure.roles.get(last)
    if role is not None and role.producer is not None:
        obstacles.setdefault(role.producer, f"the last layer, '{last}', reads them")
    return obstacles


def _allowed(model: nn.Module, name: str, structure: Structure, edges: Mapping[str, str]) -> set[str]:
    """The layers that may lose filters: those that the model states, or all that can.

    Raises:
        BenchError: One that it states cannot.
    """
    can = [path for path in structure.prunable if path not in edges]
    stated: Collection[str] | None = getattr(model, "prunable", None)
    if stated is None:
        return set(can)
    obstacles = {**edges, **structure.obstacles}
    for path in stated:
        if path not in can:
            reason = obstacles.get(path, "it is no convolution that decides about its own filters")
            raise BenchError(f"model '{name}' states that '{path}' may lose filters, but {reason}")
    return set(stated)


def _layer_shape(
    path: str,
    module: nn.Module,
    inputs: torch.Size,
    outputs: torch.Size,
    position: Position,
    structure: Structure,
    allowed: Collection[str],
) -> LayerShape:
    role = structure.roles.get(path, Role(normalized=isinstance(module, nn.Conv2d)))
    plain = LayerShape(
        name=path,
        kind="linear",
        position=position,
        in_channels=inputs[1],
        out_channels=outputs[1],
        producer=role.producer if role.producer in allowed else None,
        leader=role.leader if role.leader in allowed else None,
        prunable=path in allowed,
        signed_input=role.signed_input,
        normalized=role.normalized,
        shortcut=role.shortcut,
    )
    if isinstance(module, nn.Conv2d):
        return replace(
            plain,
            kind="conv",
            kernel=(module.kernel_size[0], module.kernel_size[1]),
            groups=module.groups,
            in_size=(inputs[2], inputs[3]),
            out_size=(outputs[2], outputs[3]),
            stride=(module.stride[0], module.stride[1]),
        )
    if len(inputs) == 2:
        return plain
    raise BenchError(f"layer '{path}' reads a tensor of shape {tuple(inputs)}; linear layers must read one vector")
