"""The mean of one tensor on several grids, Σ_j p_j Q_j(x), with the common quantizer on each grid."""

from typing import Any

import torch
from torch import Tensor

from bench.compression.kernels import blocks, gradients, in_one, quantized, steps


class _Mixture(torch.autograd.Function):
    """Σ_j p_j Q_j(x), computed in one pass over x, and differentiated in another; only x is kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clips: Tensor, probabilities: Tensor, bits: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, clips, probabilities)
        ctx.bits = bits
        result = None if in_one(x) else torch.empty_like(x)
        mixed = x
        for block, out in blocks(x, result):
            mixed = torch.zeros_like(block) if out is None else out.zero_()
            for clip, probability, path_bits in zip(clips, probabilities, bits, strict=True):
                mixed += probability * quantized(block, clip, steps(path_bits), "activation")
        return mixed if result is None else result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, clips, probabilities = ctx.saved_tensors
        result = None if in_one(x) else torch.empty_like(x)
        to_x, sums = x, torch.zeros(2, len(clips), dtype=clips.dtype, device=x.device)
        for block, upstream, out in blocks(x, grads[0], result):
            to_x = torch.zeros_like(block) if out is None else out.zero_()
            to_paths = []
            for clip, probability, path_bits in zip(clips, probabilities, ctx.bits, strict=True):
                values = quantized(block, clip, steps(path_bits), "activation")
                path = gradients(upstream, block, values, clip, "activation")
                to_x += probability * path.to_x
                to_paths.append(torch.stack([probability * path.to_clip, path.value]))
            sums += torch.stack(to_paths, dim=1)
        return to_x if result is None else result, sums[0], sums[1], None


def mixture(x: Tensor, clips: Tensor, probabilities: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Compute Σ_j p_j Q_j(x), the input that all paths of activations have together.

    Args:
        x: Input of any shape.
        clips: Clip value v of each path, positive, shape (K,).
        probabilities: Probability p of each path, shape (K,).
        bits: Bits of each path.
    """
    result: Tensor = _Mixture.apply(x, clips, probabilities, bits)
    return result
