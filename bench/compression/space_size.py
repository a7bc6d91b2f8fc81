"""Size of the search space: Eq. (K) of the paper's Appendix E."""

import math
from collections.abc import Iterable, Sequence

from bench.compression.shapes import LayerShape, NetworkShape

CANDIDATES = (2, 4, 8)
"""Default candidates for the bits of weights and activations (paper, Section 4.2)."""


def count(groups: Iterable[int], candidates: int) -> int:
    """Eq. (K): |Ω| = Π_l K² · G_l, exact.

    Args:
        groups: G of each layer, its number of filter groups; from 1 to G of them are kept.
        candidates: K, the number of candidates for weight bits, and also for activation bits.
    """
    return math.prod(candidates**2 * group for group in groups)


def policies(network: NetworkShape, candidates: Sequence[int] = CANDIDATES, group_size: int | None = None) -> int:
    """Count the policies that a search of a network chooses among, exactly.

    All layers between the first and the last are searched. A layer that cannot be pruned has one group.

    Args:
        network: Shapes of the network.
        candidates: Candidates for the bits of weights and of activations.
        group_size: Number of filters that are pruned together (B); the model's own by default.
    """
    size = group_size or network.group_size
    return count((_groups(layer, size) for layer in network.middle), len(candidates))


def _groups(layer: LayerShape, size: int) -> int:
    return math.ceil(layer.filters / layer.group_size(size)) if layer.prunable else 1


def in_words(number: int) -> str:
    """Write a whole number: up to 10,000 as it is, above rounded to two digits, e.g. "1.2 × 10^34"."""
    if number <= 10_000:
        return f"{number:,}"
    mantissa, exponent = f"{_leading(number):.1e}".split("e")
    return f"{mantissa} × 10^{int(exponent) + max(0, len(str(number)) - _DIGITS)}"


_DIGITS = 15
"""Number of leading digits to convert to a float, which overflows for numbers of more than 308 digits."""


def _leading(number: int) -> float:
    return float(str(number)[:_DIGITS])
