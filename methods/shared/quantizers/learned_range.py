"""Quantization with a learned step, range and exponent, from which the number of bits follows.

DQ (`methods.dq`) and DJPQ (`methods.djpq`) quantize a tensor to

    Q(x) = sign(x) · d · ⌊min(|x|, q)^t / d + 1/2⌋        0 for negative x where a tensor has no sign

with a step d, a range q and, in DJPQ, an exponent t (t = 1 in DQ). That takes q^t/d levels besides 0, and so

    b = log2(q^t/d + 1)        bits, and one more for the sign of a weight.

This module has Q with its gradients, and the base of both quantizers. Each method has its own rules for rounding b, for
the bounds of d, q and t, and for the limits of their gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind
from bench.compression.quantizer import drawn_sample

SMALLEST = 1e-6
"""Lower bound of steps and ranges, whatever an optimizer did."""


@overload
def levels_of(bits: int, signed: bool) -> int: ...
@overload
def levels_of(bits: int | Tensor, signed: Tensor) -> Tensor: ...
def levels_of(bits: int | Tensor, signed: bool | Tensor) -> int | Tensor:
    """Return the largest q^t/d of b bits: 2^(b−1) − 1 with a sign, 2^b − 1 without; of any shape."""
    levels: int | Tensor = 2 ** (bits - 1 * signed) - 1
    return levels


def passed_on(hard: Tensor, soft: Tensor) -> Tensor:
    """Return the value of one tensor, exactly, with the gradient of another (straight-through)."""
    return hard.detach() + (soft - soft.detach())


class _Quantize(torch.autograd.Function):
    """Q, with the gradients of its formula where rounding is the identity (straight-through).

    With u = min(|x|, q)^t,

        dQ/dd = (Q − sign(x)·u)/d, the rounding error
        dQ/dq = sign(x)·t·q^(t−1)           where |x| > q, else 0
        dQ/dt = sign(x)·u·log min(|x|, q)
        dQ/dx = t·|x|^(t−1)                 where |x| ≤ q, else 0

    For t < 1 the last one is infinite at 0. So below (d/2)^(1/t), where Q is 0, it keeps its value at that point.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor | None, signed: bool) -> Tensor:
        size, sign = _size_and_sign(x, signed)
        values = sign * torch.floor(_power(torch.minimum(size, limit), exponent) / step + 0.5) * step
        ctx.save_for_backward(x, values, step, limit, exponent)
        ctx.signed = signed
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        x, values, step, limit, exponent = ctx.saved_tensors
        grad = grads[0].to(values.dtype)
        size, sign = _size_and_sign(x, ctx.signed)
        clipped, beyond = torch.minimum(size, limit), size > limit
        power, along = _power(clipped, exponent), grad * sign
        to_step = (grad * (values - sign * power)).sum() / step
        passed = torch.where(beyond if ctx.signed else beyond | (x < 0), 0, grad)
        to_limit = torch.where(beyond, along, 0).sum()
        if exponent is None:
            return passed.to(x.dtype), to_step, to_limit, None, None
        floor = (step / 2) ** (1 / exponent)
        slope = exponent * torch.maximum(clipped, floor) ** (exponent - 1)
        to_exponent = (along * torch.xlogy(power, clipped)).sum()
        return (passed * slope).to(x.dtype), to_step, to_limit * exponent * limit ** (exponent - 1), to_exponent, None


def _size_and_sign(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Return |x| and sign(x), in single precision at least; without a sign, negative values count as 0."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (x.abs(), x.sign()) if signed else (x.clamp_min(0), (x > 0).to(x.dtype))


def _power(size: Tensor, exponent: Tensor | None) -> Tensor:
    return size if exponent is None else size**exponent


def quantize(x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor | None = None, *, signed: bool) -> Tensor:
    """Compute Q(x).

    Args:
        x: Tensor of any shape.
        step: Step d, a positive scalar.
        limit: Range q, a positive scalar.
        exponent: Exponent t, a positive scalar; 1, without a gradient, when absent.
        signed: Whether the grid has a negative half.
    """
    result: Tensor = _Quantize.apply(x, step, limit, exponent, signed)
    return result


class _Bounded(torch.autograd.Function):
    """The identity, with a gradient that is clipped to ±bound."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(bound)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (bound,) = ctx.saved_tensors
        return torch.clamp(grads[0], -bound, bound), None


def bounded(value: Tensor, bound: Tensor) -> Tensor:
    """Return a parameter unchanged and clip its gradient to ±bound, for training loops without such a rule.

    Args:
        value: Parameter of any shape.
        bound: Positive tensor of the same shape.
    """
    result: Tensor = _Bounded.apply(value, bound.detach())
    return result


def least_error(x: Tensor, candidates: Iterable[tuple[float, float]], *, signed: bool) -> tuple[float, float]:
    """Choose the step and range with the least squared error of Q(x); of a large tensor, a drawn sample is compared."""
    few = drawn_sample(x)

    def error(candidate: tuple[float, float]) -> float:
        step, limit = few.new_tensor(candidate)
        return float((quantize(few, step, limit, signed=signed) - few).square().mean())

    return min(candidates, key=error)


class LearnedQuantizer(nn.Module, ABC):
    """A quantizer with a learned step and range.

    The names of its parameters begin with "clip", so that the harness exempts them from weight decay.

    Args:
        bits: Number of bits at which a search starts; in fine-tuning, the fixed number of bits.
        kind: Weights, which have a sign, or activations, which have none.
        searching: Whether the number of bits is searched, by a training that keeps the parameters in their bounds.

    Attributes:
        clip_step: Step d, a scalar.
        clip_range: Range q, a scalar.
    """

    def __init__(self, *, bits: int, kind: Kind, searching: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.kind: Kind = kind
        self.signed = kind == "weight"
        self.searching = searching
        self.clip_step = nn.Parameter(torch.ones(()))
        self.clip_range = nn.Parameter(torch.ones(()))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""

    @abstractmethod
    def calibrate(self, x: Tensor) -> None:
        """Set the parameters for a tensor of any shape, with all levels of `bits`."""

    def extra_repr(self) -> str:
        """Describe the quantizer in the printed form of a network."""
        return f"bits={self.bits}, kind={self.kind}, searching={self.searching}"
