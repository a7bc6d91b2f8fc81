"""One pass of a network: which layers it calls on what, what it multiplies, and how its layers share channels.

With large images the pass is on PyTorch's meta device, where nothing is computed. With small ones it is carried out,
because PyTorch loads its compiler for the meta device, which takes longer. So is a forward function that reads values,
or makes tensors on another device.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.compression.failures import told_in_one_line
from bench.compression.geometry import MatMul
from bench.compression.operations import Counts, Operation, count_multiplications
from bench.compression.requirements import check_logits
from bench.compression.structure.channel_groups import Structure, analyse
from bench.errors import BenchError

_LARGE = 128 * 128
"""Pixels from which the meta device is faster."""

IMAGES = 2
"""Number of images in the pass; with a single one, what squeezes a tensor would lose the dimension of the batch."""


class Call(NamedTuple):
    """One call of a layer or product, with the shapes of its operands and of its result."""

    path: str
    module: nn.Module
    inputs: tuple[torch.Size, ...]
    outputs: torch.Size


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What is seen in a pass.

    Attributes:
        calls: Calls of layers and products, in their order.
        counts: Multiplications for one image.
        constant: Multiplications of layers that read no image.
        structure: Relations of the layers.
    """

    calls: Sequence[Call]
    counts: Counts
    constant: tuple[Operation, ...]
    structure: Structure


def execute(model: nn.Module, input_shape: tuple[int, int, int], *, name: str, classes: int | None) -> Execution:
    """Run a network on images of zeros, in evaluation mode.

    Args:
        model: Network; it is not changed.
        input_shape: Channels, height and width of one image.
        name: Name of the model.
        classes: Number of logits that the model must return; any by default.

    Raises:
        BenchError: The model cannot compute such images, calls a layer in an unusual way, or returns no logits.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    images = torch.zeros(IMAGES, *input_shape, device=parameter.device, dtype=parameter.dtype)
    if input_shape[1] * input_shape[2] >= _LARGE:
        try:
            return _execution(_without_values(model).eval(), images.to("meta"), name, classes)
        except BenchError:
            raise
        except Exception:  # noqa: S110
            # A user's forward function may read a value, or make a tensor on another device. Whatever else is wrong is
            # found again, and described, when it is carried out.
            pass
    computed = copy.deepcopy(model).eval()
    with told_in_one_line(computed, name, input_shape):
        return _execution(computed, images, name, classes)


def _without_values(model: nn.Module) -> nn.Module:
    """Copy a network to the meta device, without copying the values of its parameters and buffers."""
    shapes: dict[int, Tensor] = {}
    for parameter in model.parameters():
        shapes[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        shapes[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, shapes)


def _execution(model: nn.Module, images: Tensor, name: str, classes: int | None) -> Execution:
    counts = count_multiplications(model, images[:1])
    calls, constant = _executed(model.requires_grad_(False), images, name, classes)
    structure = analyse(model, images, name=name)
    return Execution(
        calls=calls,
        counts={path: own for path, own in counts.items() if path not in constant},
        constant=tuple(
            Operation(path=path, name=operation, macs=macs)
            for path in constant
            for operation, macs in counts.get(path, {}).items()
        ),
        structure=structure,
    )


def _executed(model: nn.Module, images: Tensor, name: str, classes: int | None) -> tuple[list[Call], list[str]]:
    """List layers and products in the order of execution.

    Returns:
        The calls, and the paths of layers that read no image.

    Raises:
        BenchError: A layer is called in an unusual way, or the result is no tensor of logits.
    """
    seen: list[Call] = []
    constant: list[str] = []
    names = {module: path for path, module in model.named_modules()}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, object], output: Tensor) -> None:
        wanted = 2 if isinstance(module, MatMul) else 1
        if len(inputs) != wanted or keywords:
            raise BenchError(
                f"layer '{names[module]}' of model '{name}' is called with keywords or several arguments; "
                f"call it with its {'two operands' if wanted == 2 else 'input'} only"
            )
        shapes = tuple(given.shape for given in inputs)
        if not output.requires_grad and all(shape[:1] != (IMAGES,) for shape in shapes):
            constant.append(names[module])
        else:
            seen.append(Call(names[module], module, shapes, output.shape))

    hooks = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | MatMul)
    ]
    try:
        # A result has a gradient if it depends on the images: parameters have none here.
        with torch.enable_grad():
            outputs = model(images.clone().requires_grad_().clone())
    finally:
        for hook in hooks:
            hook.remove()
    check_logits(outputs, len(images), classes, name)
    return seen, constant
