"""First values of quantizers in a search: one rule for all methods, and the option that replaces it by the paper's.

Each method's quantizers start at the least squared error on one training batch. A quantizer with a number of bits of
its own is calibrated for that number. One that all candidates share is calibrated for the candidate nearest to 4 bits.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from methods.shared.quantizers.learned_range import SMALLEST, least_error, levels_of

ClipInit = Literal["calibrated", "paper"]
"""First values of a search's quantizers: of the least squared error on one training batch, or as the paper states."""

_CALIBRATION_BITS = 4
"""Bits for which a quantizer that several candidates share is calibrated."""
_RANGES = 80
"""Number of ranges up to the largest value that are compared."""


def calibration_bits(candidates: Sequence[int]) -> int:
    """Choose the candidate nearest to 4 bits; of two equally near ones, the first."""
    return min(candidates, key=lambda candidate: abs(candidate - _CALIBRATION_BITS))


def best_grid(x: Tensor, bits: int, *, signed: bool) -> tuple[float, float]:
    """Find the step and range of the even grid through 0 with the least squared error, by a scan over the range.

    Args:
        x: Tensor of any shape; a large one is represented by a drawn sample.
        bits: Number of bits; all levels are used.
        signed: Whether the grid has a negative half.
    """
    levels, largest = levels_of(bits, signed), max(float(x.abs().max()), SMALLEST)
    ranges = [largest * (number + 1) / _RANGES for number in range(_RANGES)]
    return least_error(x, [(limit / levels, limit) for limit in ranges], signed=signed)
