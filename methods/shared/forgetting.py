"""QASSO's rule by which redundant groups of quantized weights forget (GETA, Qu et al. 2025, arXiv 2502.16638).

`methods.geta` states the rule: x ← x − γ·Q(x) after a step along the direction g, with γ and the quantizer's step d so
that the loss falls.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from methods.shared.quantizers.companded import CompandedQuantizer
from methods.shared.removal import Slices, direction_of

ETA, ZETA, SHRINK = 0.999, 0.9, 0.8
"""η, ζ and the factor by which γ falls where d would be too fine (the code)."""


def forgetting(
    products: tuple[Tensor, Tensor],
    squares: tuple[Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
    *,
    lr: float,
    linear: float,
) -> tuple[Tensor, Tensor]:
    """Choose γ, a scalar, and d of each weight, shape (W,), so that the loss falls.

    Args:
        products: ⟨g, c⟩ of all that is redundant in a layer, a scalar, and ⟨g, r⟩ of each of its weights, shape (W,).
        squares: ‖g‖² of all, a scalar, and of each weight, shape (W,).
        bounds: d(b_u) and d(b_l) of each weight, shape (W,).
        lr: Learning rate.
        linear: γ with which the groups fall linearly to zero.
    """
    (with_clipped, with_errors), (square, own_squares), (finest, coarsest) = products, squares, bounds
    least = torch.finfo(square.dtype).tiny
    falling = (1 - ETA) * lr * square / (-with_clipped).clamp_min(least)
    rate = torch.where(with_clipped < 0, falling, linear).clamp(max=1.0)
    along = with_errors < 0
    wanted = ZETA * ETA * lr * own_squares / (rate * -with_errors).clamp_min(least)
    lacking = torch.where(along, finest / wanted.clamp_min(least), 0).max().clamp_min(1)
    shrunk = SHRINK ** torch.ceil(torch.log(lacking) / -math.log(SHRINK))
    return rate * shrunk, torch.where(along, torch.clamp(wanted / shrunk, finest, coarsest), coarsest)


def clipped_and_error(x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Compute c = sign(x) min(|x|, q)^t and r = (Q(x) − c)/d, for weights of any shape."""
    size = x.abs().minimum(limit) ** exponent
    return x.sign() * size, x.sign() * (torch.floor(size / step + 0.5) - size / step)


@torch.no_grad()
def forget(
    rows: Slices,
    quantizers: Mapping[nn.Parameter, CompandedQuantizer],
    bounds: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    linear: float,
) -> None:
    """Shrink the redundant groups of a layer, and set d of its weights.

    Args:
        rows: Parameters with the indices that are redundant; one of them is quantized at least.
        quantizers: Quantizers of the parameters that are quantized, with an exponent.
        bounds: d(b_u) and d(b_l) of those in `rows`, in their order, shape (W,).
        optimizer: Optimizer that has just updated the parameters.
        linear: γ with which the groups fall linearly to zero.
    """
    with_clipped, square, with_errors, own_squares = [], [], [], []
    for parameter, index in rows:
        x, g = parameter[index], direction_of(optimizer, parameter)[index]
        square.append(g.square().sum())
        if parameter in quantizers:
            grid = quantizers[parameter]
            x, error = clipped_and_error(x, grid.clip_step, grid.clip_range, grid.clip_exponent)
            with_errors.append((g * error).sum())
            own_squares.append(square[-1])
        with_clipped.append((g * x).sum())
    rate, steps = forgetting(
        (torch.stack(with_clipped).sum(), torch.stack(with_errors)),
        (torch.stack(square).sum(), torch.stack(own_squares)),
        bounds,
        lr=optimizer.param_groups[0]["lr"],
        linear=linear,
    )
    fresh = iter(steps)
    for parameter, index in rows:
        x = parameter[index]
        if parameter in quantizers:
            quantizers[parameter].clip_step.copy_(next(fresh))
            x = quantizers[parameter](x)
        parameter[index] -= rate * x
