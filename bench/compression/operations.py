"""Every multiplication of a network, counted from outside: by PyTorch's own counter, below all modules.

The counter sees convolutions and products of matrices wherever they are computed: in layers, in functions such as
`F.conv2d`, and between two activations. Element by element products are not counted.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
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
    """Count the multiplications of a forward pass, module by module.

    Args:
        model: Network in evaluation mode; it is not changed.
        image: Batch of one image, on the network's device.
    """
    # Without gradients, attention would be computed by a fused operation that the formulas do not know.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        counter = _Counter()
        with counter, counter.attributing(model):
            model(image)
        return counter.counts


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiplications with the formulas of PyTorch's own counter, for the innermost module that is executed.

    PyTorch's `FlopCounterMode` would load the compiler of PyTorch, which takes as long as PyTorch itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, dict[str, int]] = {}
        self._running: list[str] = []
        self._formulas = FlopCounterMode(display=False, custom_mapping=_MISSING_FORMULAS).flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether the compiler is loaded so that it can leave this class out; nothing is compiled here."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out an operation, or the operations that it consists of, and count."""
        keywords = kwargs or {}
        formula = self._formulas.get(func.overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **keywords)
            if result is not NotImplemented:
                return result
        result = func(*args, **keywords)
        if formula is not None:
            own = self.counts.setdefault(self._running[-1], {})
            name = str(func.overloadpacket).removeprefix("aten.").strip("_")
            own[name] = own.get(name, 0) + formula(*args, **keywords, out_val=result) // 2
        return result

    @contextmanager
    def attributing(self, model: nn.Module) -> Iterator[None]:
        """Note which module of a network is being executed, during a `with` block."""
        running, hooks = self._running, []

        def left(*_: Any) -> None:
            running.pop()

        for path, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, path=path: running.append(path), prepend=True))
            hooks.append(module.register_forward_hook(left))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
