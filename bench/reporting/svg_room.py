"""Room for the texts of SVG files: a reader's font may be wider than the one that texts were measured with.

The file names no more than `sans-serif`. A text that reaches the edge of the picture would lose letters in a browser
whose font is wider, so the picture is widened to hold every text in the widest of the common fonts.
"""

import math
import re
from collections.abc import Iterator
from xml.etree import ElementTree

_NARROW, _WIDE = frozenset("ijltfrI .,:;'|!()[]-"), frozenset("mwMW%@")
_EMS = {"narrow": 0.4, "usual": 0.64, "wide": 0.98}
"""Widths of letters in a wide font (DejaVu Sans), as shares of the font size."""
_EDGE = 2.0
"""Pixels that stay free beside a text."""
_NUMBER = r"(-?[\d.]+)"
_TRANSLATE = re.compile(rf"translate\({_NUMBER},\s*{_NUMBER}\)")
_ROTATE = re.compile(rf"rotate\({_NUMBER}")
_FRAME = re.compile(
    rf'width="{_NUMBER}" height="{_NUMBER}" viewBox="0 0 \1 \2">(<rect) (width="\1" height="\2" fill="[^"]*"/>)'
)
_STARTS = {"start": 0.0, "middle": 0.5, "end": 1.0}
"""Share of a text's width that lies left of its position."""


def with_room(svg: str) -> str:
    """Widen a picture of vl-convert so that no text is cut off; one whose texts have room stays as it is."""
    frame = _FRAME.search(svg)
    if frame is None:
        return svg
    width, spans = float(frame[1]), list(_spans(ElementTree.fromstring(svg), 0.0))  # noqa: S314  (drawn here)
    left = math.ceil(max([0.0, *(_EDGE - low for low, _ in spans if low < 0)]))
    right = math.ceil(max([0.0, *(high - width + _EDGE for _, high in spans if high > width)]))
    if not left and not right:
        return svg
    whole = f"{width + left + right:g}"
    ground = frame[4].replace(f'width="{frame[1]}"', f'width="{whole}"', 1)
    wider = (
        f'width="{whole}" height="{frame[2]}" viewBox="{-left} 0 {whole} {frame[2]}">{frame[3]} x="{-left}" {ground}'
    )
    return svg[: frame.start()] + wider + svg[frame.end() :]


def _spans(element: ElementTree.Element, x: float) -> Iterator[tuple[float, float]]:
    """Yield the left and right end of every text below an element, in pixels.

    Args:
        element: Element of the picture.
        x: Horizontal position of the element's origin.
    """
    transform = element.get("transform", "")
    moved = _TRANSLATE.search(transform)
    x += float(moved[1]) if moved else 0.0
    if element.tag.endswith("}text"):
        turned = _ROTATE.search(transform)
        across = math.cos(math.radians(float(turned[1]))) if turned else 1.0
        size = float(element.get("font-size", "10px").removesuffix("px"))
        width = across * size * sum(map(_ems, "".join(element.itertext())))
        before = _STARTS[element.get("text-anchor", "start")] * width
        yield x - before, x + width - before
    for inner in element:
        yield from _spans(inner, x)


def _ems(letter: str) -> float:
    return _EMS["narrow" if letter in _NARROW else "wide" if letter in _WIDE else "usual"]
