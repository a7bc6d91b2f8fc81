"""Marks of methods as outlines, for tables: those that the charts have."""

from bench.reporting.charts import COLOURS, Look
from bench.reporting.pages.page import Glyph

_PATHS = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "square": "M-3.6 -3.6h7.2v7.2h-7.2z",
    "triangle-up": "M0 -4.4L4.4 3.4H-4.4z",
    "diamond": "M0 -5L4 0L0 5L-4 0z",
    "cross": "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "triangle-down": "M0 4.4L4.4 -3.4H-4.4z",
    "triangle-right": "M4.4 0L-3.4 4.4V-4.4z",
}


def glyph_of(look: Look) -> Glyph:
    """Return the mark of a method for tables, from that for charts."""
    return Glyph(colour=COLOURS.index(look.colour) + 1, path=_PATHS[look.shape])
