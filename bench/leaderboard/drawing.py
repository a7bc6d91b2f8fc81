"""Drawing of differences with their intervals in a column, on one scale for all rows of a board."""

import math
from dataclasses import dataclass
from statistics import median

from bench.leaderboard.boards import Board
from bench.reporting.pages.page import Glyph, Whisker
from bench.results.statistics import PairedDifference

_LEAST_POINTS = 0.5
_MOST_MEDIANS = 8.0
"""Reach of the scale in medians of all differences: one row far off would press all others onto the line at zero."""
_MARGIN = 1.05


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a column, in points of Top-1; zero is on it.

    Attributes:
        low, high: Differences at its left and right end.
    """

    low: float
    high: float

    @classmethod
    def of(cls, board: Board) -> "Scale":
        """Return the scale of a board's differences."""
        pairs = [entry.beside.pair for entry in board.entries if entry.beside.pair is not None]
        most = max(_LEAST_POINTS, _MOST_MEDIANS * median(abs(pair.mean) for pair in pairs) if pairs else 0.0)
        ends = [min(most, max(-most, end)) for pair in pairs for end in _ends(pair)]
        low, high = min(ends, default=0.0), max(ends, default=0.0)
        return cls(_MARGIN * min(low, -_LEAST_POINTS), _MARGIN * max(high, _LEAST_POINTS))

    def whisker(self, pair: PairedDifference, glyph: Glyph, words: str) -> Whisker:
        """Return the drawing of a difference; what lies beyond the scale ends at its edge."""
        low, high = _ends(pair)
        return Whisker(
            at=self._at(pair.mean), low=self._at(low), high=self._at(high), zero=self._at(0.0), glyph=glyph, words=words
        )

    def _at(self, points: float) -> float:
        share = (points - self.low) / (self.high - self.low)
        return round(100 * max(0.0, min(1.0, share)), 1)


def _ends(pair: PairedDifference) -> tuple[float, float]:
    """Return the ends of an interval; without one, both are the mean."""
    known = not math.isnan(pair.interval.low)
    return (pair.interval.low, pair.interval.high) if known else (pair.mean, pair.mean)
