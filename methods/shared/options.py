"""Candidate bits as an option, and the methods that choose among them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from bench.api import Method, NetworkShape, Policy, uniform


def _rising(bits: Sequence[int]) -> Sequence[int]:
    if any(high <= low for low, high in pairwise(bits)):
        raise ValueError(f"bit candidates {list(bits)} must rise, e.g. [2, 4, 8]")
    return bits


Candidates = Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)]
"""Candidate bits for weights and activations, in any order."""
RISING = AfterValidator(_rising)
"""Rule for candidate bits, to be put into an annotation: each is larger than the one before."""


class ChoosesBits(Method):
    """A method that chooses bits layer by layer, from the candidates of its option `bits`."""

    options: Any

    def cheapest(self, network: NetworkShape) -> Policy:
        """Take the lowest candidate in every layer but the first and the last."""
        return uniform(network, min(self.options.bits))

    def costliest(self, network: NetworkShape) -> Policy:
        """Take the highest candidate in every layer but the first and the last."""
        return uniform(network, max(self.options.bits))
