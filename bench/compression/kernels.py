"""The passes over memory that quantizers are made of.

Every figure that a quantizer needs from a tensor x is computed here, in three passes: mean errors of several grids,
values on one grid, and gradients. With u = clip(x, low, v), low = 0 for activations and −v for weights, the
position of x on the grid of k bits, n = 2^k − 1 steps, is

    activations  t = u·n/v                  Q(x) = (v/n) · ⌈t − 1/2⌉
    weights      t = u·n/(2v) + n/2         Q(x) = (v/n) · (2⌈t − 1/2⌉ − n)

which are Eqs. 1–4 with the factors put together, so that a value is an integer code times one step.

On a processor a pass goes through the tensor in blocks that stay in its cache while one operation follows the other.
A compiler fuses them by itself, and a card is better served by whole tensors: both are given the tensor in one block,
and numbers that depend on v as tensors, for which nobody must wait.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

Kind = Literal["weight", "activation"]
Number = float | Tensor

_BLOCK_OF_A_THREAD = 2**17
"""Elements; a block with its temporaries fits the second-level cache of a core."""


def steps(bits: int) -> int:
    """Number of steps of the k-bit grid on [0, 1], 2^k − 1 = 1/s (Eq. 4)."""
    return int(2**bits - 1)


def mean_errors(x: Tensor, clip: Tensor, bits: Sequence[int], kind: Kind, mask: Tensor | None = None) -> Tensor:
    """Mean |z − D(z, s)| on the grid of each width, shape (len(bits),) (Section 3.2.3).

    Args:
        x: Any shape.
        clip: v, a positive scalar.
        bits: Widths.
        kind: Which of the two quantizers.
        mask: 1 for elements that count, 0 for others, broadcastable to `x`; all when absent.
    """
    if not bits:
        return clip.new_zeros(0)
    counts = [steps(width) for width in bits]
    v = _number(clip, x)
    grids = [_Grid.of(count, v, kind, clip) for count in counts]
    sums: list[list[Tensor]] = [[] for _ in bits]
    for block, part in blocks(x, None if mask is None else mask.expand(x.shape)):
        u = _clipped(block, v, kind)
        counted = None if part is None else torch.empty_like(u).copy_(part)
        for grid, found in zip(grids, sums, strict=True):
            t = grid.position(u)
            error = t.round().sub_(t)  # which way a tie goes makes no difference to its distance
            if counted is not None:
                error.mul_(counted)
            found.append(error.abs_().sum())
    number = x.numel() if mask is None else mask.sum() * (x.numel() / mask.numel())
    return torch.stack([_total(found) / (count * number) for found, count in zip(sums, counts, strict=True)])


def quantized(x: Tensor, clip: Tensor, count: int | Tensor, kind: Kind) -> Tensor:
    """Q(x) on the grid of `count` steps, in the type and memory order of `x`, computed in single precision at least.

    Args:
        x: Any shape.
        clip: v, a positive scalar.
        count: n = 2^k − 1, a whole number; a scalar tensor where the width is decided on the device.
        kind: Which of the two quantizers.
    """
    v, n = _number(clip, x), _number(count, x)
    grid, step = _Grid.of(n, v, kind, clip), v / n
    result = None if in_one(x) else torch.empty_like(x)
    values = x
    for block, place in blocks(x, result):
        code = grid.code(_clipped(block, v, kind))
        if kind == "weight":
            code = code.mul_(2).sub_(n)
        values = torch.mul(code, step, out=place)
    return values.to(x.dtype) if result is None else result


class Gradients(NamedTuple):
    """What the backward pass of a quantizer is made of, g being the gradient of the loss for Q.

    Attributes:
        to_x: g inside the clip range, bounds included, and 0 outside (straight-through).
        to_clip: (⟨g, Q(x)⟩ − ⟨to_x, x⟩)/v: the level itself, and the part from inside the range.
        value: ⟨g, Q(x)⟩.
        levels: ⟨g, D(z, s)⟩ for each grid asked for.
    """

    to_x: Tensor
    to_clip: Tensor
    value: Tensor
    levels: Tensor


def gradients(
    grad: Tensor, x: Tensor, values: Tensor, clip: Tensor, kind: Kind, counts: Sequence[int] = ()
) -> Gradients:
    """All inner products of the backward pass.

    Args:
        grad: Gradient of the loss for Q(x), the shape of `x`.
        x: The tensor that was quantized.
        values: Q(x).
        clip: v, a positive scalar.
        kind: Which of the two quantizers.
        counts: n of each grid whose level product is wanted; these are recomputed from x.
    """
    v = _number(clip, x)
    grids = [_Grid.of(n, v, kind, clip) for n in counts]
    to_x = None if in_one(x) else torch.empty_like(x, dtype=clip.dtype)
    bounds = None if in_one(x) else _just_outside(clip, kind)
    passed = grad
    inside: list[Tensor] = []
    products: list[Tensor] = []
    levels: list[list[Tensor]] = [[] for _ in counts]
    for block, upstream, value, place in blocks(x, grad, values, to_x):
        block, upstream, value = _precise(block), _precise(upstream), _precise(value)  # noqa: PLW2901
        u = block if bounds is not None and not grids else _clipped(block, v, kind)
        passed = _passed(upstream, block, u, bounds, place)
        inside.append(inner(passed, block))
        products.append(inner(upstream, value))
        for grid, found in zip(grids, levels, strict=True):
            found.append(inner(upstream, grid.code(u)))
    product = _total(products)
    of_levels = [_total(found) / n for found, n in zip(levels, counts, strict=True)]
    return Gradients(
        to_x=(passed if to_x is None else to_x).to(x.dtype),
        to_clip=(product - _total(inside)) / v,
        value=product,
        levels=torch.stack(of_levels) if of_levels else clip.new_zeros(0),
    )


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ over all elements, in one pass where both lie alike in memory."""
    if torch.compiler.is_compiling() or a.stride() != b.stride() or a.dtype != b.dtype or not _is_dense(a):
        return (a * b).sum()
    return torch.dot(a.as_strided((a.numel(),), (1,)), b.as_strided((b.numel(),), (1,)))


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


# --- one block ------------------------------------------------------------------------------------------------------


def _clipped(x: Tensor, v: Number, kind: Kind) -> Tensor:
    """u, in single precision at least."""
    low = 0 * v if kind == "activation" else -v
    return _precise(x).clamp(low, v)  # type: ignore[arg-type]


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _just_outside(clip: Tensor, kind: Kind) -> tuple[float, float]:
    """The numbers next to the clip range."""
    high = torch.nextafter(clip, clip.new_full((), torch.inf)).item()
    low = -high if kind == "weight" else torch.nextafter(clip.new_zeros(()), clip.new_full((), -torch.inf)).item()
    return low, high


def _passed(grad: Tensor, x: Tensor, u: Tensor, bounds: tuple[float, float] | None, place: Tensor | None) -> Tensor:
    """The gradient where x lies inside the clip range, bounds included, and 0 elsewhere; into `place` if given."""
    if place is None or bounds is None:
        return torch.where(x == u, grad, 0)
    # One pass instead of two; the operation leaves out the bounds that it is given.
    passed: Tensor = torch.ops.aten.hardtanh_backward.grad_input(grad, x, *bounds, grad_input=place)
    return passed


class _Grid(NamedTuple):
    """The grid of one width: t = factor · u + start, and what is rounded up is factor · u + start − 1/2.

    Attributes:
        factor: A plain number on the processor.
        start: 0 for activations.
        start_of_code: That less 1/2.
    """

    factor: Number
    start: Tensor
    start_of_code: Tensor

    @classmethod
    def of(cls, count: Number, v: Number, kind: Kind, like: Tensor) -> Self:
        """The grid of so many steps up to v.

        Args:
            count: n.
            v: The clip value.
            kind: Which of the two quantizers.
            like: A tensor of the type and on the device of those to come.
        """
        factor = count / v if kind == "activation" else count / (2 * v)
        start = 0.0 if kind == "activation" else count / 2
        return cls(factor, _tensor(start, like), _tensor(start - 0.5, like))

    def position(self, u: Tensor) -> Tensor:
        """T."""
        return self._line(u, self.start)

    def code(self, u: Tensor) -> Tensor:
        """⌈t − 1/2⌉, the paper's rounding; round-half-to-even would break Theorem 1 on ties."""
        return self._line(u, self.start_of_code).ceil_()

    def _line(self, u: Tensor, start: Tensor) -> Tensor:
        """The sum factor · u + start, in one pass."""
        if isinstance(self.factor, Tensor):
            return torch.addcmul(start, u, self.factor)
        return torch.add(start, u, alpha=self.factor)


def _tensor(value: Number, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_full((), value)


def _total(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum()


# --- how a tensor is gone through -----------------------------------------------------------------------------------


def in_one(x: Tensor) -> bool:
    """Whether a tensor is worked on as a whole."""
    return torch.compiler.is_compiling() or x.device.type != "cpu"


def _number(value: Tensor | float, x: Tensor) -> Number:
    """A plain number on the processor, where operations with one are faster; elsewhere it would be waited for."""
    return value.item() if isinstance(value, Tensor) and not in_one(x) else value


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The same parts of tensors of one shape, or of the absent, one after the other along the first dimension."""
    first = tensors[0]
    if first is None:
        raise ValueError("the first tensor cannot be absent")
    size = 0 if in_one(first) else _BLOCK_OF_A_THREAD * torch.get_num_threads()
    if in_one(first) or first.numel() <= size:
        yield tensors
        return
    rows = max(1, size // first[0].numel())
    parts = [None if tensor is None else torch.split(tensor, rows) for tensor in tensors]
    for index in range(-(-len(first) // rows)):
        yield tuple(None if part is None else part[index] for part in parts)
