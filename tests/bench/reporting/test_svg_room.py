"""SVG files hold their texts in wide fonts too."""

import re
from pathlib import Path

import altair as alt
import pytest

from bench.reporting.charts import save
from bench.reporting.svg_room import with_room
from tests.docs.test_pages import ROOT

DEJAVU = 76.0
"""Pixels that "3bit multi_path" takes in DejaVu Sans at 10 pixels; it was measured as 65."""
TEXT = '<g transform="translate({x},0)"><text text-anchor="{anchor}" font-size="10px">{text}</text></g>'


def picture(x: float, anchor: str, text: str, width: int = 200, turn: str = "") -> str:
    label = TEXT.format(x=x, anchor=anchor, text=text).replace("font-size", f'transform="{turn}" font-size')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="50" viewBox="0 0 {width} 50">'
        f'<rect width="{width}" height="50" fill="white"/>{label}</svg>'
    )


def frame(svg: str) -> list[float]:
    found = re.search(r'viewBox="([^"]*)"', svg)
    assert found is not None
    return [float(part) for part in found[1].split()]


def test_a_label_that_a_wide_font_would_cut_gets_room() -> None:
    left, _, width, _ = frame(with_room(picture(71, "end", "3bit multi_path")))
    assert 71 - DEJAVU > left > 71 - DEJAVU - 15 and width == 200 - left
    assert f'<rect x="{left:g}" width="{width:g}"' in with_room(picture(71, "end", "3bit multi_path"))
    left, _, width, _ = frame(with_room(picture(150, "start", "3bit multi_path")))
    assert left == 0 and 150 + DEJAVU < width < 150 + DEJAVU + 15


@pytest.mark.parametrize(
    "svg",
    [
        picture(100, "end", "3bit multi_path"),
        picture(5, "middle", "a long title of an axis", turn="rotate(-90)"),
        "<svg/>",
    ],
    ids=["fits", "upright", "of others"],
)
def test_a_picture_whose_texts_have_room_stays_as_it_is(svg: str) -> None:
    assert with_room(svg) == svg


def test_saved_figures_have_room(tmp_path: Path) -> None:
    values = alt.Data(values=[{"row": "3bit multi_path", "x": 1}])
    chart = alt.Chart(values).mark_point().encode(x="x:Q", y=alt.Y("row:N", title=None))
    written = save(chart, tmp_path / "a.svg").read_text()
    assert frame(written)[0] < 0 and with_room(written) == written


def test_published_figures_have_room() -> None:
    cut = [path for path in (ROOT / "docs").rglob("*.svg") if with_room(path.read_text()) != path.read_text()]
    assert cut == []
