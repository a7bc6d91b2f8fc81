"""Rounding like that of printed tables."""

from decimal import ROUND_HALF_UP, Decimal


def rounded(value: Decimal, like: str | Decimal) -> Decimal:
    """Round to as many decimals as a printed number has, and halves up."""
    return value.quantize(Decimal(like), rounding=ROUND_HALF_UP)
