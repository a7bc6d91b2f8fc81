"""Budgets: what a user writes, and the window of costs that counts as matched."""

import re
from dataclasses import dataclass

from bench.costs import price
from bench.errors import BenchError
from bench.network import NetworkShape
from bench.policy import FULL_PRECISION_BITS, uniform

_ABSOLUTE = re.compile(r"(\d+(?:\.\d+)?)([kMGT]?)")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FORMS = "allowed: '4bit' (what uniform 4 bit costs), '630.6M' (BOPs), '0.016x' (of full precision)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget for a network.

    Attributes:
        text: As the user wrote it.
        bops: The most a policy may cost.
        tolerance: Width of the window below it, relative.
    """

    text: str
    bops: float
    tolerance: float

    @property
    def low(self) -> float:
        """The least cost that counts as matched."""
        return (1 - self.tolerance) * self.bops

    def matches(self, bops: float) -> bool:
        """Whether a cost lies inside the window."""
        return self.low <= bops <= self.bops


def parse_budget(text: str, network: NetworkShape, tolerance: float) -> Budget:
    """Read a budget.

    Raises:
        BenchError: The text has none of the forms, or asks for more than full precision costs.
    """
    full = price(network, uniform(network, FULL_PRECISION_BITS)).bops
    if bits := re.fullmatch(r"(\d+)bit", text):
        width = int(bits[1])
        if not 1 <= width <= FULL_PRECISION_BITS:
            raise BenchError(f"budget '{text}': bits go from 1 to {FULL_PRECISION_BITS}")
        bops = float(price(network, uniform(network, width)).bops)
    elif share := re.fullmatch(r"(\d+(?:\.\d+)?)x", text):
        bops = float(share[1]) * full
    elif absolute := _ABSOLUTE.fullmatch(text):
        bops = float(absolute[1]) * _UNITS[absolute[2]]
    else:
        raise BenchError(f"budget '{text}' is not understood; {_FORMS}")
    if not 0 < bops <= full:
        raise BenchError(
            f"budget '{text}' is {bops:,.0f} BOPs; it must be above 0 and at most full precision's {full:,.0f}"
        )
    return Budget(text=text, bops=bops, tolerance=tolerance)
