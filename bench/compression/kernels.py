"""The passes over memory from which quantizers are built.

There are three: mean errors on several grids, values on one grid, and gradients. With u = clip(x, low, v), where low is
0 for activations and −v for weights, the position of x on the grid of k bits, which has n = 2^k − 1 steps, is

    activations  t = u·n/v                  Q(x) = (v/n) · ⌈t − 1/2⌉
    weights      t = u·n/(2v) + n/2         Q(x) = (v/n) · (2⌈t − 1/2⌉ − n)

which are Eqs. 1–4 with their factors combined, so that a value is an integer code times one step.

On a CPU a pass goes through the tensor in blocks that stay in the cache from one operation to the next. A compiler
fuses the operations by itself, and a GPU is faster with whole tensors: both get the tensor as one block, and numbers
that depend on v as tensors, so that the program does not wait for the device.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

Kind = Literal["weight", "activation"]
Number = float | Tensor

_BLOCK_PER_THREAD = 2**17
"""Elements of a block for each thread; with its temporaries it fits the second-level cache of a core."""


def steps(bits: int) -> int:
    """Return the number of steps of the k-bit grid on [0, 1], 2^k − 1 = 1/s (Eq. 4)."""
    return int(2**bits - 1)


def mean_errors(x: Tensor, clip: Tensor, bits: Sequence[int], kind: Kind, mask: Tensor | None = None) -> Tensor:
    """Compute the mean of |z − D(z, s)| on the grid of each number of bits (Section 3.2.3).

    Args:
        x: Tensor of any shape.
        clip: Clip value v, a positive scalar.
        bits: Numbers of bits.
        kind: Kind of quantizer.
        mask: 1 for elements that count and 0 for others, broadcastable to `x`; all count by default.

    Returns:
        The mean errors, shape (len(bits),).
    """
    if not bits:
        return clip.new_zeros(0)
    counts = [steps(number) for number in bits]
    v = _number(clip, x)
    grids = [_Grid.with_steps(count, v, kind, clip) for count in counts]
    sums: list[list[Tensor]] = [[] for _ in bits]
    for block, part in blocks(x, None if mask is None else mask.expand(x.shape)):
        u = _clipped(block, v, kind)
        counted = None if part is None else torch.empty_like(u).copy_(part)
        for grid, own_sums in zip(grids, sums, strict=True):
            t = grid.position(u)
            error = t.round().sub_(t)  # the direction of rounding a tie does not change the distance
            if counted is not None:
                error.mul_(counted)
            own_sums.append(error.abs_().sum())
    number = x.numel() if mask is None else mask.sum() * (x.numel() / mask.numel())
    return torch.stack([_total(own) / (count * number) for own, count in zip(sums, counts, strict=True)])


def quantized(x: Tensor, clip: Tensor, count: int | Tensor, kind: Kind) -> Tensor:
    """Compute Q(x) on the grid of `count` steps, in the type and memory order of `x`, at least in single precision.

    Args:
        x: Tensor of any shape.
        clip: Clip value v, a positive scalar.
        count: Number of steps n = 2^k − 1; a scalar tensor if the number of bits is decided on the device.
        kind: Kind of quantizer.
    """
    v, n = _number(clip, x), _number(count, x)
    grid, step = _Grid.with_steps(n, v, kind, clip), v / n
    result = None if in_one(x) else torch.empty_like(x)
    values = x
    for block, out in blocks(x, result):
        code = grid.code(_clipped(block, v, kind))
        if kind == "weight":
            code = code.mul_(2).sub_(n)
        values = torch.mul(code, step, out=out)
    return values.to(x.dtype) if result is None else result


class Gradients(NamedTuple):
    """Results of a quantizer's backward pass, where g is the gradient of the loss with respect to Q(x).

    Attributes:
        to_x: Gradient with respect to x: g inside the clip range, bounds included, and 0 outside (straight-through).
        to_clip: Gradient with respect to v: (⟨g, Q(x)⟩ − ⟨to_x, x⟩)/v.
        value: Inner product ⟨g, Q(x)⟩.
        levels: Inner product ⟨g, D(z, s)⟩ for each requested grid.
    """

    to_x: Tensor
    to_clip: Tensor
    value: Tensor
    levels: Tensor


def gradients(
    grad: Tensor, x: Tensor, values: Tensor, clip: Tensor, kind: Kind, counts: Sequence[int] = ()
) -> Gradients:
    """Compute the results of a quantizer's backward pass.

    Args:
        grad: Gradient of the loss with respect to Q(x), of the shape of `x`.
        x: Tensor that was quantized.
        values: Quantized tensor Q(x).
        clip: Clip value v, a positive scalar.
        kind: Kind of quantizer.
        counts: Numbers of steps n of the grids to compute `levels` for; their values are recomputed from `x`.
    """
    v = _number(clip, x)
    grids = [_Grid.with_steps(n, v, kind, clip) for n in counts]
    to_x = None if in_one(x) else torch.empty_like(x, dtype=clip.dtype)
    bounds = None if in_one(x) else _just_outside(clip, kind)
    passed = grad
    inside: list[Tensor] = []
    products: list[Tensor] = []
    levels: list[list[Tensor]] = [[] for _ in counts]
    for block, upstream, value, out in blocks(x, grad, values, to_x):
        block, upstream, value = _precise(block), _precise(upstream), _precise(value)  # noqa: PLW2901
        u = block if bounds is not None and not grids else _clipped(block, v, kind)
        passed = _passed(upstream, block, u, bounds, out)
        inside.append(inner(passed, block))
        products.append(inner(upstream, value))
        for grid, own_levels in zip(grids, levels, strict=True):
            own_levels.append(inner(upstream, grid.code(u)))
    product = _total(products)
    totals = [_total(own) / n for own, n in zip(levels, counts, strict=True)]
    return Gradients(
        to_x=(passed if to_x is None else to_x).to(x.dtype),
        to_clip=(product - _total(inside)) / v,
        value=product,
        levels=torch.stack(totals) if totals else clip.new_zeros(0),
    )


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Compute ⟨a, b⟩ over all elements, in one pass if both have the same memory layout."""
    if torch.compiler.is_compiling() or a.stride() != b.stride() or a.dtype != b.dtype or not _is_dense(a):
        return (a * b).sum()
    return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


# --- one block ------------------------------------------------------------------------------------------------------


def _clipped(x: Tensor, v: Number, kind: Kind) -> Tensor:
    """Return u = clip(x, low, v), at least in single precision."""
    low = 0 * v if kind == "activation" else -v
    return _precise(x).clamp(low, v)  # type: ignore[arg-type]


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _just_outside(clip: Tensor, kind: Kind) -> tuple[float, float]:
    """Return the floating-point numbers next to the clip range, below and above it."""
    high = torch.nextafter(clip, clip.new_full((), torch.inf)).item()
    low = -high if kind == "weight" else torch.nextafter(clip.new_zeros(()), clip.new_full((), -torch.inf)).item()
    return low, high


def _passed(grad: Tensor, x: Tensor, u: Tensor, bounds: tuple[float, float] | None, out: Tensor | None) -> Tensor:
    """Return the gradient where x is inside the clip range, bounds included, and 0 elsewhere; in `out` if given."""
    if out is None or bounds is None:
        return torch.where(x == u, grad, 0)
    # One pass instead of two; the operation excludes its bounds.
    passed: Tensor = torch.ops.aten.hardtanh_backward.grad_input(grad, x, *bounds, grad_input=out)
    return passed


class _Grid(NamedTuple):
    """The grid of one number of bits: t = factor · u + start, and the code of x is t − 1/2 rounded up.

    Attributes:
        factor: Number of steps per unit of u; a plain number on the CPU.
        start: Position of u = 0, which is 0 for activations.
        start_of_code: Position of u = 0, minus 1/2.
    """

    factor: Number
    start: Tensor
    start_of_code: Tensor

    @classmethod
    def with_steps(cls, count: Number, v: Number, kind: Kind, like: Tensor) -> Self:
        """Make the grid that reaches v in `count` steps.

        Args:
            count: Number of steps n.
            v: Clip value.
            kind: Kind of quantizer.
            like: Tensor with the type and device of the results.
        """
        factor = count / v if kind == "activation" else count / (2 * v)
        start = 0.0 if kind == "activation" else count / 2
        return cls(factor, _tensor(start, like), _tensor(start - 0.5, like))

    def position(self, u: Tensor) -> Tensor:
        """Return the position t."""
        return self._line(u, self.start)

    def code(self, u: Tensor) -> Tensor:
        """Return ⌈t − 1/2⌉, the paper's rounding; rounding half to even would break Theorem 1 on ties."""
        return self._line(u, self.start_of_code).ceil_()

    def _line(self, u: Tensor, start: Tensor) -> Tensor:
        """Compute factor · u + start in one pass."""
        if isinstance(self.factor, Tensor):
            return torch.addcmul(start, u, self.factor)
        return torch.add(start, u, alpha=self.factor)


def _tensor(value: Number, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_full((), value)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum()


# --- blocks of a tensor -----------------------------------------------------------------------------------


def in_one(x: Tensor) -> bool:
    """Whether a tensor is processed as a whole."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


def _number(value: Tensor | float, x: Tensor) -> Number:
    """Return a plain number on the CPU, where it makes operations faster; elsewhere reading it would wait."""
    return value.item() if isinstance(value, Tensor) and not in_one(x) else value


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the same blocks of several tensors of one shape, along the first dimension; `None` gives `None`."""
    first = tensors[0]
    if first is None:
        raise ValueError("the first tensor must not be None")
    size = 0 if in_one(first) else _BLOCK_PER_THREAD * torch.get_num_threads()
    if in_one(first) or first.numel() <= size:
        yield tensors
        return
    rows = max(1, size // first[0].numel())
    parts = [None if tensor is None else torch.split(tensor, rows) for tensor in tensors]
    for index in range(-(-len(first) // rows)):
        yield tuple(None if part is None else part[index] for part in parts)
