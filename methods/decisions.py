"""Decisions about widths, as repair may move them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from bench.method import Decision

What = Literal["weight_bits", "activation_bits"]
"""Which tensor of a layer a width is for."""


def bits_decision(
    layer: str, what: What, bits: tuple[int, ...], scores: Sequence[float], chosen: int | None = None
) -> Decision:
    """A width that was chosen by scores; margins are their differences between neighbours.

    Args:
        layer: The layer's name.
        what: Its tensor.
        bits: The candidates, rising.
        scores: How much the search prefers each, in its own unit.
        chosen: Position of the choice; that of the highest score when absent.
    """
    margins = tuple(high - low for low, high in pairwise(scores))
    best = max(range(len(scores)), key=scores.__getitem__) if chosen is None else chosen
    return Decision(layer=layer, what=what, options=bits, chosen=best, margins=margins)
