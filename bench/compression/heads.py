"""Heads of attention: modules that split channels into heads, join heads again, and look up position biases.

They have no parameters. They are modules so that the reader of a network's graph knows them, as it knows `MatMul`: what
a head computes depends on its own rows of the projections only, so whole heads can be removed.
"""

import torch
from torch import Tensor, nn


class SplitHeads(nn.Module):
    """Split what a linear layer projects into heads.

    The layer's rows are in the order part, head, channel. The number of heads follows from that of the rows, so that a
    projection may lose heads.

    Args:
        channels: Channels of a head.
        parts: Number of parts that the layer projects to: 3 for queries, keys and values together, 1 for one of them.
    """

    def __init__(self, channels: int, parts: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.parts = parts

    def forward(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Split (…, tokens, parts · heads · channels) into one tensor (…, heads, tokens, channels) for each part."""
        split = torch.unflatten(projected, -1, (self.parts, -1, self.channels))
        return split.movedim(-3, 0).transpose(-3, -2).unbind(0)


class JoinHeads(nn.Module):
    """Put heads side by side again."""

    def forward(self, x: Tensor) -> Tensor:
        """Make (…, tokens, heads · channels) of (…, heads, tokens, channels)."""
        return x.transpose(-3, -2).flatten(-2)


class PairBias(nn.Module):
    """Look up the numbers that every head adds to the scores of pairs of tokens."""

    def forward(self, table: Tensor, index: Tensor) -> Tensor:
        """Look up the numbers of all pairs of tokens.

        Args:
            table: Numbers by distance, shape (distances, heads).
            index: Distance of each pair, shape (tokens²,).

        Returns:
            Shape (heads, tokens, tokens).
        """
        tokens = round(len(index) ** 0.5)
        return torch.unflatten(table[index], 0, (tokens, tokens)).permute(2, 0, 1)
