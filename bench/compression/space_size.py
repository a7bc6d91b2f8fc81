"""How many policies a search chooses among: Eq. (K) of the paper's Appendix E."""

import math
from collections.abc import Iterable, Sequence

from bench.compression.shapes import LayerShape, NetworkShape

CANDIDATES = (2, 4, 8)
"""Candidate widths of weights and activations unless a method is told otherwise (paper, Section 4.2)."""


def count(groups: Iterable[int], candidates: int) -> int:
    """Eq. (K): |Ω| = Π_l K² · G_l, exact.

    Args:
        groups: G of each layer: how many of its groups of filters may be left, from 1 to G.
        candidates: K, the number of widths for weights, and as many for activations.
    """
    return math.prod(candidates**2 * group for group in groups)


def policies(network: NetworkShape, candidates: Sequence[int] = CANDIDATES, group_size: int | None = None) -> int:
    """How many policies a search of a network chooses among, exact.

    Searched are the layers between the first and the last. One that may not lose filters has one group.

    Args:
        network: The shapes.
        candidates: Widths of weights and of activations.
        group_size: Filters that go together (B); as the model states when absent.
    """
    size = group_size or network.group_size
    return count((_groups(layer, size) for layer in network.middle), len(candidates))


def _groups(layer: LayerShape, size: int) -> int:
    return math.ceil(layer.out_channels / size) if layer.prunable else 1


def in_words(number: int) -> str:
    """A large whole number, rounded to two digits: "1.2 × 10^34"; up to 10,000 as it is."""
    if number <= 10_000:
        return f"{number:,}"
    mantissa, exponent = f"{_leading(number):.1e}".split("e")
    return f"{mantissa} × 10^{int(exponent) + max(0, len(str(number)) - _DIGITS)}"


_DIGITS = 15
"""As many leading digits as a float holds; numbers of more than 308 digits are too large for one."""


def _leading(number: int) -> float:
    return float(str(number)[:_DIGITS])
