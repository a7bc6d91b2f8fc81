"""Drawing of differences with their intervals in a column, on one scale for all rows of a board."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from bench.leaderboard.boards import Board
from bench.reporting.pages.page import Glyph, Whisker
from bench.results.statistics import PairedDifference

_MIDDLE = 50.0
_LEAST_POINTS = 0.5
_MOST_MEDIANS = 5.0
"""Extent of the scale in medians of all differences: one row far off would press all others onto the line at zero."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a column.

    Attributes:
        extent: Difference in points at the right end; the left end is its negative.
    """

    extent: float

    @classmethod
    def of(cls, board: Board) -> "Scale":
        """Return the scale of a board's differences."""
        pairs = [entry.beside.pair for entry in board.entries if entry.beside.pair is not None]
        reaches = [max(map(abs, _ends(pair))) for pair in pairs]
        middle = median(abs(pair.mean) for pair in pairs) if pairs else 0.0
        return cls(max(_LEAST_POINTS, min(max(reaches, default=0.0), _MOST_MEDIANS * middle)))

    def whisker(self, pair: PairedDifference, glyph: Glyph, words: str) -> Whisker:
        """Return the drawing of a difference; what lies beyond the scale ends at its edge."""
        low, high = _ends(pair)
        return Whisker(
            at=self._at(pair.mean), low=self._at(low), high=self._at(high), zero=_MIDDLE, glyph=glyph, words=words
        )

    def _at(self, points: float) -> float:
        share = max(-1.0, min(1.0, points / self.extent))
        return round(_MIDDLE * (1 + share), 1)


def _ends(pair: PairedDifference) -> Iterable[float]:
    """Return the ends of an interval; without one, both are the mean."""
    known = not math.isnan(pair.interval.low)
    return (pair.interval.low, pair.interval.high) if known else (pair.mean, pair.mean)
