"""What all figures have in common: how they look, and how they become files.

A figure is an Altair chart, which is a Vega-Lite specification: the same one is interactive on a page and still in a
file. Files are drawn by vl-convert, without a browser and without network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store.files import write_bytes

if TYPE_CHECKING:
    import altair

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Told apart by the colour-blind (Okabe and Ito, Color Universal Design, 2008), the darkest first; yellow is left out,
which does not stand out from white."""

DARK_COLOURS = ("#4DA6DE", "#F28033", "#1FC495", "#E39BC2", "#F0B840", "#A5DAFA", "#FFFFFF", "#A0A0A0")
"""The same for a dark page: each lighter, in the same order."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""Of points; with a number that has no common divisor with that of the colours, no two of 56 methods look the same."""

GREY = "#808080"
"""Of what is no data: lines at a budget, fronts; stands out from light and dark."""

_FILE: Mapping[str, Any] = {
    "background": "white",
    "font": "sans-serif",
    "axis": {"grid": True, "gridColor": "#e5e5e5", "domainColor": "#888888", "tickColor": "#888888"},
    "legend": {"orient": "top", "columns": 5, "symbolOpacity": 1},
    "range": {"category": list(COLOURS), "symbol": list(SHAPES)},
    "view": {"stroke": "transparent", "continuousWidth": 520, "continuousHeight": 280, "discreteWidth": {"step": 16}},
}

_SIZES = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor"}
_PAGE: Mapping[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {"grid": True, "gridColor": "var(--line)", "domainColor": GREY, "tickColor": GREY, **_TEXT, **_SIZES},
    "legend": {**_FILE["legend"], "columns": {"expr": "windowSize()[0] < 700 ? 2 : 5"}, **_TEXT, **_SIZES},
    "header": {**_TEXT, **_SIZES},
    "range": {
        "category": [f"var(--series-{number})" for number, _ in enumerate(COLOURS, 1)],
        "symbol": list(SHAPES),
    },
    "view": {"stroke": "transparent", "continuousHeight": 320, "discreteHeight": 320},
}
"""Colours are the page's own, by the names that its style sheet gives them: a chart changes with the page from light to
dark, and to paper, without being drawn anew."""

_COMPOSED = frozenset({"facet", "repeat", "concat", "hconcat", "vconcat"})
_PNG_SCALE = 2.0


def specification(chart: "altair.TopLevelMixin") -> dict[str, Any]:
    """The Vega-Lite specification of a chart in the common look of files."""
    found: dict[str, Any] = chart.to_dict()
    return {**found, "config": {**found.get("config", {}), **_FILE}}


def page_specification(chart: "altair.TopLevelMixin") -> dict[str, Any]:
    """The Vega-Lite specification of a chart in the look of a page; a single view is as wide as its place there."""
    found: dict[str, Any] = chart.to_dict()
    fitted = (
        {} if _COMPOSED & set(found) else {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    )
    return {**found, **fitted, "config": {**found.get("config", {}), **_PAGE}}


def vega_lite_version() -> str:
    """The version of Vega-Lite that charts are written in, as vl-convert names it: "6.1"."""
    from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def save(chart: "altair.TopLevelMixin", path: Path) -> Path:
    """Write a figure in the format that its ending names, SVG, PDF or PNG; returns the path.

    Raises:
        ValueError: The ending is another one.
    """
    import vl_convert

    spec, version = specification(chart), vega_lite_version()
    if path.suffix == ".svg":
        content = vl_convert.vegalite_to_svg(spec, vl_version=version).encode()
    elif path.suffix == ".pdf":
        content = vl_convert.vegalite_to_pdf(spec, vl_version=version)
    elif path.suffix == ".png":
        content = vl_convert.vegalite_to_png(spec, vl_version=version, scale=_PNG_SCALE)
    else:
        raise ValueError(f"figures are SVG, PDF or PNG, not '{path.suffix}'")
    write_bytes(path, content)
    return path
