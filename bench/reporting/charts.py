"""The common look of all figures, and their conversion to files.

A method has one colour and one mark in all figures, pages and tools (`method_looks`).

A figure is an Altair chart, which is a Vega-Lite specification. The same one is interactive on a page and still in a
file. vl-convert draws the files, without a browser and without a network.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.outputs.escaping import visible_texts
from bench.reporting.svg_room import with_room
from bench.store.files import write_bytes

if TYPE_CHECKING:
    import altair

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Colours that the colour-blind can distinguish (Okabe and Ito, Color Universal Design, 2008), the darkest first.
Yellow is left out because it is hardly visible on white."""

DARK_COLOURS = ("#4DA6DE", "#F28033", "#1FC495", "#E39BC2", "#F0B840", "#A5DAFA", "#FFFFFF", "#A0A0A0")
"""Lighter variants of these colours for a dark page, in the same order."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""Shapes of points. Their number has no common divisor with that of the colours, so 56 methods all look different."""

_FIRST_METHODS = (
    *("sbs", "dnas", "random", "sbs_q", "multi_path", "hawq", "fixed", "full_precision"),
    *("sbs_extended", "bayesian_bits", "cost_only", "prune_then_quantize", "edmips", "haq", "greedy", "width"),
    *("sbs_p", "dq", "cost_only_q", "quantize_then_prune", "djpq", "hawq_v3", "ip", "limpq", "clado", "evopress"),
    *("fliqs", "joint_mps", "hesso", "geta"),
)
"""Methods in the order in which they get colours and marks: the most common ones first, the baseline black."""

GREY = "#808080"
"""Colour of what is not data, such as lines at a budget and fronts; visible on light and dark."""

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
"""The look of charts on a page. Colours are variables of the page's style sheet, so that a chart follows the page from
light to dark, and to paper, without being drawn again."""

_COMPOSED = frozenset({"facet", "repeat", "concat", "hconcat", "vconcat"})
_PNG_SCALE = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """The colour and the mark of a method.

    Attributes:
        colour: Colour in files, one of `COLOURS`.
        shape: Shape of points, one of `SHAPES`.
    """

    colour: str
    shape: str


def method_looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return the colour and mark of each method, in the order given.

    They depend on the method's name alone, so that they are the same in all studies. Methods that this module does not
    know, such as users' own and the variants of an ablation, get those that follow.
    """
    numbers = {method: number for number, method in enumerate(_FIRST_METHODS)}
    found = {}
    for method in dict.fromkeys(methods):
        number = numbers.setdefault(method, len(numbers))
        found[method] = Look(COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)])
    return found


def specification(chart: "altair.TopLevelMixin") -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart in the look of files."""
    spec: dict[str, Any] = visible_texts(chart.to_dict())
    return {**spec, "config": {**spec.get("config", {}), **_FILE}}


def page_specification(chart: "altair.TopLevelMixin") -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart in the look of a page; a single view fills the width."""
    spec: dict[str, Any] = visible_texts(chart.to_dict())
    fitted = (
        {} if _COMPOSED & set(spec) else {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    )
    whole = {**spec, **fitted, "config": {**spec.get("config", {}), **_PAGE}}
    return _in_page_colours(whole)


def _in_page_colours(spec: dict[str, Any]) -> dict[str, Any]:
    """Replace the colours of files by the variables of the page's style sheet."""
    text = json.dumps(spec)
    for number, colour in enumerate(COLOURS, 1):
        text = text.replace(f'"{colour}"', f'"var(--series-{number})"')
    replaced: dict[str, Any] = json.loads(text)
    return replaced


def vega_lite_version() -> str:
    """Return the version of Vega-Lite of the charts, as vl-convert names it: "6.1"."""
    from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def save(chart: "altair.TopLevelMixin", path: Path) -> Path:
    """Write a figure to an SVG, PDF or PNG file, and return its path.

    Raises:
        ValueError: The path has another ending.
    """
    return save_all(chart, [path])[0]


def save_all(chart: "altair.TopLevelMixin", paths: Iterable[Path]) -> list[Path]:
    """Write a figure to SVG, PDF or PNG files, drawn once for all of them, and return their paths.

    Raises:
        ValueError: A path has another ending.
    """
    import vl_convert

    drawn = with_room(vl_convert.vegalite_to_svg(specification(chart), vl_version=vega_lite_version()))
    written = []
    for path in paths:
        if path.suffix == ".svg":
            content = drawn.encode()
        elif path.suffix == ".pdf":
            content = vl_convert.svg_to_pdf(drawn)
        elif path.suffix == ".png":
            content = vl_convert.svg_to_png(drawn, scale=_PNG_SCALE)
        else:
            raise ValueError(f"figures are SVG, PDF or PNG, not '{path.suffix}'")
        write_bytes(path, content)
        written.append(path)
    return written
