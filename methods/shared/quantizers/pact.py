"""PACT: activations clipped at a learned level (Choi et al. 2018, arXiv 1805.06085, Eqs. 1–3)."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.compression.kernels import blocks, in_one, steps
from bench.compression.quantizer import best_clip, positive


class _Pact(torch.autograd.Function):
    """Eqs. 1–3: the gradient passes where 0 < x < a, and a gets its sum where x ≥ a. Only x is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(x, clip)
        result = None if in_one(x) else torch.empty_like(x)
        values = x
        for block, out in blocks(x, result):
            code = torch.minimum(block.clamp_min(0), clip).mul_(count / clip).round_()
            values = torch.mul(code, clip / count, out=out)
        return values.to(x.dtype) if result is None else result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        x, clip = ctx.saved_tensors
        result = None if in_one(x) else torch.empty_like(x)
        inside, beyond = x, clip.new_zeros(())
        for block, upstream, out in blocks(x, grads[0], result):
            clipped = torch.where(block >= clip, upstream, 0)
            inside = torch.where(block > 0, upstream - clipped, 0)
            if out is not None:
                out.copy_(inside)
            beyond = beyond + clipped.sum()
        return inside if result is None else result, beyond, None


class PactActivation(nn.Module):
    """x ↦ a · round_k(clip(x, 0, a)/a); the clipping level a learns only from the inputs that it clips."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.clip = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a non-negative tensor of any shape."""
        result: Tensor = _Pact.apply(x, positive(self.clip), steps(self.bits))
        return result

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the clipping level to that of the least squared error on a tensor of any shape.

        PACT's levels are those of the common quantizer for activations, so the search for the best one is the same.
        """
        self.clip.fill_(best_clip(x, self.bits, "activation"))
