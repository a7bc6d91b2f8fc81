"""What all figures have in common: how they look, and how they become files.

A figure is an Altair chart, which is a Vega-Lite specification: the same one is interactive on a page and still in a
file. Files are drawn by vl-convert, without a browser and without network.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.store import write_bytes

if TYPE_CHECKING:
    import altair

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Told apart by the colour-blind (Okabe and Ito, Color Universal Design, 2008), the darkest first; yellow is left out,
which does not stand out from white."""

_LOOK: Mapping[str, Any] = {
    "background": "white",
    "font": "sans-serif",
    "axis": {"grid": True, "gridColor": "#e5e5e5", "domainColor": "#888888", "tickColor": "#888888"},
    "range": {"category": list(COLOURS)},
    "view": {"stroke": "transparent"},
}
_PNG_SCALE = 2.0


def specification(chart: "altair.TopLevelMixin") -> dict[str, Any]:
    """The Vega-Lite specification of a chart in the common look."""
    found: dict[str, Any] = chart.to_dict()
    return {**found, "config": {**found.get("config", {}), **_LOOK}}


def save(chart: "altair.TopLevelMixin", path: Path) -> Path:
    """Write a figure in the format that its ending names, SVG, PDF or PNG; returns the path.

    Raises:
        ValueError: The ending is another one.
    """
    import vl_convert
    from altair import SCHEMA_VERSION

    spec, version = specification(chart), ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
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
