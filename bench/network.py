"""Shapes of a network: what every cost is computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.errors import BenchError


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """The shape of one convolution or linear layer for a batch of one.

    A linear layer is a 1×1 convolution on a 1×1 map. `producer` names the prunable layer whose surviving
    filters are this layer's inputs; `None` when its inputs never shrink.
    """

    name: str
    kind: Literal["conv", "linear"]
    position: Literal["first", "middle", "last"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    groups: int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    producer: str | None = None
    prunable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prunable:
    """A layer that may lose filters, with what shrinks along with it.

    Attributes:
        norm: The normalisation layer after it.
        consumer: The layer that reads its output.
    """

    norm: str
    consumer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkShape:
    """All weighted layers of a model on a data set, in the order in which they are executed."""

    model: str
    dataset: str
    layers: tuple[LayerShape, ...]

    def __getitem__(self, name: str) -> LayerShape:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def middle(self) -> tuple[LayerShape, ...]:
        """The layers that are searched: all but the first and the last."""
        return tuple(layer for layer in self.layers if layer.position == "middle")


def prunables(model: nn.Module) -> Mapping[str, Prunable]:
    """The layers of a model that may lose filters, as the model itself states (attribute `prunable`)."""
    stated: Mapping[str, Prunable] = getattr(model, "prunable", {})
    return stated


def trace(model: nn.Module, input_shape: tuple[int, int, int], *, name: str, dataset: str) -> NetworkShape:
    """Record the shapes of all convolutions and linear layers in one forward pass of a zero image.

    Args:
        model: The network; left as it was, in evaluation mode during the pass.
        input_shape: Channels, height and width of one image.
        name: The model's name.
        dataset: The data set's name.

    Raises:
        BenchError: The model has fewer than two weighted layers, or runs one of them more than once.
    """
    seen: list[tuple[str, nn.Module, torch.Size, torch.Size]] = []
    names = {module: path for path, module in model.named_modules()}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((names[module], module, inputs[0].shape, output.shape))

    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [module.register_forward_hook(record) for module in weighted]
    parameter = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if len(seen) < 2 or len({path for path, *_ in seen}) != len(seen):
        raise BenchError(f"model '{name}' must run at least two convolution or linear layers, each exactly once")
    pruned = prunables(model)
    producers = {prunable.consumer: path for path, prunable in pruned.items()}
    layers = []
    for index, (path, module, input_size, output_size) in enumerate(seen):
        position: Literal["first", "middle", "last"] = "middle"
        if index == 0:
            position = "first"
        elif index == len(seen) - 1:
            position = "last"
        layers.append(
            _layer_shape(path, module, input_size, output_size, position, producers.get(path), path in pruned)
        )
    _check_pruning(name, layers, pruned)
    return NetworkShape(model=name, dataset=dataset, layers=tuple(layers))


def _check_pruning(model: str, layers: Sequence[LayerShape], pruned: Mapping[str, Prunable]) -> None:
    """Refuse what would be priced as one thing and built as another: groups, linear layers, wrong names."""
    able = {layer.name for layer in layers if layer.kind == "conv" and layer.groups == 1}
    for path, prunable in pruned.items():
        for name in (path, prunable.consumer):
            if name not in able:
                raise BenchError(
                    f"model '{model}' states that pruning '{path}' changes layer '{name}'; "
                    "allowed: convolutions without groups that the model runs"
                )


def _layer_shape(
    path: str,
    module: nn.Module,
    input_size: torch.Size,
    output_size: torch.Size,
    position: Literal["first", "middle", "last"],
    producer: str | None,
    prunable: bool,
) -> LayerShape:
    if isinstance(module, nn.Conv2d):
        return LayerShape(
            name=path,
            kind="conv",
            position=position,
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel=(module.kernel_size[0], module.kernel_size[1]),
            groups=module.groups,
            in_size=(input_size[2], input_size[3]),
            out_size=(output_size[2], output_size[3]),
            producer=producer,
            prunable=prunable,
        )
    if isinstance(module, nn.Linear):
        return LayerShape(
            name=path,
            kind="linear",
            position=position,
            in_channels=module.in_features,
            out_channels=module.out_features,
            producer=producer,
            prunable=prunable,
        )
    raise BenchError(f"layer '{path}' of type {type(module).__name__} has no cost; only Conv2d and Linear have")
