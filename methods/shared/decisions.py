"""Decisions about bits and filters, which repair may change."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from bench.api import Decision

What = Literal["weight_bits", "activation_bits"]
"""Tensor of a layer whose bits are decided."""


def bits_decision(
    layer: str, what: What, bits: tuple[int, ...], scores: Sequence[float], chosen: int | None = None
) -> Decision:
    """Describe bits that were chosen by scores; margins are the differences of neighbouring scores.

    Args:
        layer: Name of the layer.
        what: Tensor of the layer.
        bits: Candidates, rising.
        scores: Preference of the search for each candidate, in its own unit.
        chosen: Index of the choice; that of the highest score when absent.
    """
    margins = tuple(high - low for low, high in pairwise(scores))
    best = max(range(len(scores)), key=scores.__getitem__) if chosen is None else chosen
    return Decision(layer=layer, what=what, options=bits, chosen=best, margins=margins)


def gates_decision(layer: str, what: What, bits: tuple[int, ...], margins: Sequence[float]) -> list[Decision]:
    """Describe bits that nested gates chose: the candidate before the first gate that is shut.

    Args:
        layer: Name of the layer.
        what: Tensor of the layer.
        bits: Candidates, rising.
        margins: Margins of the gates of all candidates but the first; a gate is open at 0 and above.

    Returns:
        One decision, or none where there is only one candidate.
    """
    if len(bits) == 1:
        return []
    shut = [index for index, margin in enumerate(margins) if margin < 0]
    chosen = min(shut, default=len(margins))
    return [Decision(layer=layer, what=what, options=bits, chosen=chosen, margins=tuple(margins))]


def group_decisions(
    layer: str, groups: Sequence[tuple[int, ...]], margins: Sequence[float], strongest: int
) -> list[Decision]:
    """Describe the choice for each group of filters but the strongest, which is kept.

    Args:
        layer: Name of the layer.
        groups: Filters of each group.
        margins: Margins of the groups' gates; a gate is open at 0 and above.
        strongest: Index of the strongest group.
    """
    return [
        Decision(
            layer=layer, what="filters", options=(0, 1), chosen=int(margin >= 0), margins=(margin,), filters=members
        )
        for group, (margin, members) in enumerate(zip(margins, groups, strict=True))
        if group != strongest
    ]
