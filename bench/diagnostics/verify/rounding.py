"""Rounding as printed tables do."""

from decimal import ROUND_HALF_UP, Decimal


def rounded(value: Decimal, like: str | Decimal) -> Decimal:
    """Round to as many decimals as a printed number has; halves go up."""
    return value.quantize(Decimal(like), rounding=ROUND_HALF_UP)
