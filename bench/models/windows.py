"""Windows of a map, between which attention does not look (Liu et al. 2021, Section 3.2).

A map whose sides are not multiples of the window is filled up with zeros. A shifted division rolls the map first, so
that windows at the edge hold regions that are not neighbours. `shift_bias` keeps these apart. A side that fits into one
window is not shifted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_APART = -100.0
"""Bias between tokens of different regions; their probability after the softmax is almost 0."""

Pair = tuple[int, int]
"""Numbers for the vertical and the horizontal direction."""


def cut(x: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Cut a map into windows.

    Args:
        x: Map, shape (N, height, width, channels).
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.

    Returns:
        Tokens of each window, shape (N, windows, tokens, channels).
    """
    _, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
    down, right = _used_shift((height, width), window, shift)
    return _windows(torch.roll(padded, (-down, -right), dims=(1, 2)), window)


def uncut(tokens: Tensor, like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Put windows together: the inverse of `cut` for the same arguments.

    Args:
        tokens: Tokens of each window, shape (N, windows, tokens, channels).
        like: Map that was cut; only its size is used.
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.
    """
    _, height, width, _ = like.shape
    counts = (-(-height // window[0]), -(-width // window[1]))
    grid = torch.unflatten(torch.unflatten(tokens, 2, window), 1, counts)
    x = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = torch.roll(x, _used_shift((height, width), window, shift), dims=(1, 2))
    return x[:, :height, :width]


def shift_bias(like: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Return the bias that keeps the regions of a shifted window apart, shape (windows, 1, tokens, tokens).

    Args:
        like: Map that is cut, shape (N, height, width, channels).
        window: Height and width of a window.
        shift: Number of rows and columns by which the windows are shifted.
    """
    sizes = (like.shape[1], like.shape[2])
    used = _used_shift(sizes, window, shift)
    rows, columns = (
        _regions(-(-size // own) * own, own, moved, like) for size, own, moved in zip(sizes, window, used, strict=True)
    )
    regions = _windows((3 * rows.unsqueeze(1) + columns)[None, :, :, None], window).squeeze((0, 3))
    different = regions.unsqueeze(1) != regions.unsqueeze(2)
    return (different * like.new_tensor(_APART)).unsqueeze(1)


def _used_shift(size: Pair, window: Pair, shift: Pair) -> Pair:
    down, right = (0 if side <= own else moved for side, own, moved in zip(size, window, shift, strict=True))
    return down, right


def _windows(x: Tensor, window: Pair) -> Tensor:
    """Cut a map whose sides are multiples of the window."""
    grid = torch.unflatten(torch.unflatten(x, 2, (-1, window[1])), 1, (-1, window[0]))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _regions(side: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Number the regions of one side of a rolled map: the last window has two, all others are region 0."""
    position = torch.arange(side, device=like.device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= side - window).long() + (position >= side - shift).long()
