"""Every multiplication of a network, counted from outside: by PyTorch's own counter, below all modules.

The counter sees convolutions and products of matrices wherever they are computed: in layers, in functions such as
`F.conv2d`, and between two activations. Element by element products are not counted.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]
Counts = Mapping[str, Mapping[str, int]]
"""Multiplications for one image, by the path of the module in whose own forward pass they are, then by operation.
Modules are in the order of execution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """Multiplications that no policy reaches, because they are not those of a layer. They have full precision.

    Attributes:
        path: Path of the module in whose forward pass they are; empty for the network itself.
        name: Name of the operation in PyTorch.
        macs: Number of multiplications for one image.
    """

    path: str
    name: str
    macs: int

    @property
    def label(self) -> str:
        """Path and operation in one name; no layer's path has a colon."""
        return f"{self.path}:{self.name}"


def _of_vector(matrix: Shape, _: Shape, **__: Any) -> int:
    """Count the operations of a matrix times a vector, or of one vector times another; two for a multiplication."""
    return 2 * prod(matrix)


def _of_added_vector(_: Shape, matrix: Shape, __: Shape, **___: Any) -> int:
    return 2 * prod(matrix)


def _of_added_batch(_: Shape, left: Shape, right: Shape, **__: Any) -> int:
    return 2 * prod(left) * right[-1]


_MISSING_FORMULAS = {
    torch.ops.aten.mv: _of_vector,
    torch.ops.aten.dot: _of_vector,
    torch.ops.aten.vdot: _of_vector,
    torch.ops.aten.addmv: _of_added_vector,
    torch.ops.aten.addbmm: _of_added_batch,
}
"""Products that PyTorch's counter does not know."""


def count_multiplications(model: nn.Module, image: Tensor) -> Counts:
    """Count the multiplications of a forward pass in evaluation mode, module by module.

    Nothing is computed, unless the forward pass depends on values.

    Args:
        model: Network; it is not changed.
        image: Batch of one image.
    """
    # Without gradients, attention would be computed by a fused operation that the counter does not know.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            return _counted(copy.deepcopy(model).to("meta").eval(), image.to("meta"))
        except Exception:
            # A user's forward function may read a value, or make a tensor on another device.
            return _counted(copy.deepcopy(model).eval(), image)


def _counted(model: nn.Module, image: Tensor) -> Counts:
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING_FORMULAS)
    with counter, _attributed(model, counter) as counts:
        model(image)
    return counts


@contextmanager
def _attributed(model: nn.Module, counter: FlopCounterMode) -> Iterator[dict[str, dict[str, int]]]:
    """Attribute what a counter counts to the innermost module that is being executed."""
    counts: dict[str, dict[str, int]] = {}
    running: list[str] = []
    total: dict[Any, int] = {}

    def settle() -> None:
        for operation, flops in counter.flop_counts["Global"].items():
            if flops > total.get(operation, 0):
                own = counts.setdefault(running[-1], {})
                name = str(operation).removeprefix("aten.").strip("_")
                own[name] = own.get(name, 0) + (flops - total.get(operation, 0)) // 2
                total[operation] = flops

    def entered(path: str) -> None:
        settle()
        running.append(path)

    def left() -> None:
        settle()
        running.pop()

    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, path=path: entered(path), prepend=True))
        hooks.append(module.register_forward_hook(lambda *_: left()))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
