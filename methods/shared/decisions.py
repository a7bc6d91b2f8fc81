"""Decisions about widths, as repair may move them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from bench.api import Decision

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


def gates_decision(layer: str, what: What, bits: tuple[int, ...], margins: Sequence[float]) -> list[Decision]:
    """A width that nested gates chose: the one before the first gate that is shut. None where there is no choice.

    Args:
        layer: The layer's name.
        what: Its tensor.
        bits: The candidates, rising.
        margins: Of the gate of every candidate but the first; at 0 and above it is open.
    """
    if len(bits) == 1:
        return []
    shut = [index for index, margin in enumerate(margins) if margin < 0]
    chosen = min(shut, default=len(margins))
    return [Decision(layer=layer, what=what, options=bits, chosen=chosen, margins=tuple(margins))]


def group_decisions(
    layer: str, groups: Sequence[tuple[int, ...]], margins: Sequence[float], strongest: int
) -> list[Decision]:
    """One decision for each group of filters but the strongest, which stays.

    Args:
        layer: The layer's name.
        groups: The filters of each group.
        margins: Of each group's gate; at 0 and above it is open.
        strongest: Index of that group.
    """
    return [
        Decision(
            layer=layer, what="filters", options=(0, 1), chosen=int(margin >= 0), margins=(margin,), filters=members
        )
        for group, (margin, members) in enumerate(zip(margins, groups, strict=True))
        if group != strongest
    ]
