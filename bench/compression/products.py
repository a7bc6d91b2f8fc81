"""Products of two activations, such as those of attention.

A network computes them by calling a module of its own for each. So they have names, are counted, and can be quantized.
"""

from torch import Tensor, nn


class MatMul(nn.Module):
    """The matrix product of two activations; it has no parameters."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply (…, rows, contraction) by (…, contraction, columns)."""
        return left @ right
