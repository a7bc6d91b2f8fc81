"""Building blocks of figures: marks over rows of plain values, and a menu to choose among several groups of rows."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.results.statistics import mean, std

if TYPE_CHECKING:
    import altair as alt

Rows = Sequence[Mapping[str, Any]]

MOST_POINTS = 2000
"""Largest number of points in one figure; a browser would take too long to draw more."""

_CHOSEN = "chosen"
_FEW_EPOCHS = 30
_FACET = {"width": 260, "height": 180}
_BAND = 0.15
_STEEP = 10.0
"""Multiple of a line above which the axis of a chart is logarithmic."""
_FADED = 0.08


def thinned(rows: Rows, what: str, most: int = MOST_POINTS) -> tuple[Rows, tuple[str, ...]]:
    """Keep evenly spaced rows when there are too many.

    Args:
        rows: All rows.
        what: Noun for the rows, in the plural.
        most: Largest number of rows to keep.

    Returns:
        The rows, and a note when some were left out.
    """
    step = math.ceil(len(rows) / most)
    if step < 2:
        return rows, ()
    kept = rows[::step]
    return kept, (f"The figure shows {len(kept)} of {len(rows)} {what}, evenly spaced; means are over all",)


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean, the standard deviation, and the mean minus and plus it, for a mark that shows both.

    Without a deviation, `std` is `None` and both ends are the mean, so that the mark has no extent.
    """
    middle, width = mean(values), std(values)
    extent = 0.0 if math.isnan(width) else width
    return {
        "mean": number(middle),
        "std": number(width),
        "low": number(middle - extent),
        "high": number(middle + extent),
        "n": len(values),
    }


def number(value: float) -> float | None:
    """Return a number for a chart with seven digits; `None` for infinity and NaN, which JSON does not have."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def data(rows: Rows) -> "alt.InlineData":
    """Return rows as the data of a chart."""
    import altair as alt

    return alt.InlineData([dict(row) for row in rows])


def unique(values: Iterable[Any]) -> list[str]:
    """Return the distinct values in the order of their first appearance."""
    return list(dict.fromkeys(map(str, values)))


def whole_ticks(most: int) -> list[int]:
    """Return about ten ticks of an axis that counts up to a number."""
    return list(range(0, most + 1, max(1, round(most / 10))))


def method_colour(methods: Sequence[str]) -> "alt.Color":
    """Return the colour encoding of methods; a method has the same colour everywhere."""
    import altair as alt

    from bench.reporting.charts import method_looks

    looks = method_looks(methods)
    scale = alt.Scale(domain=list(looks), range=[look.colour for look in looks.values()])
    return alt.Color("method:N", title=None, scale=scale)


def method_shape(methods: Sequence[str]) -> "alt.Shape":
    """Return the shape encoding of methods, for readers who cannot distinguish the colours."""
    import altair as alt

    from bench.reporting.charts import method_looks

    looks = method_looks(methods)
    scale = alt.Scale(domain=list(looks), range=[look.shape for look in looks.values()])
    return alt.Shape("method:N", title=None, scale=scale)


def legend_toggle() -> "tuple[alt.Parameter, Any]":
    """Return a selection of methods by a click on the legend, and an opacity that fades the others."""
    import altair as alt

    chosen = alt.selection_point(fields=["method"], bind="legend")
    return chosen, alt.when(chosen).then(alt.value(1.0)).otherwise(alt.value(_FADED))


def curves(methods: Sequence[str], rows: Rows, x: str, y: str, share: float | None = None) -> "list[alt.Chart]":
    """Make the layers of a chart, without data: for each method the mean by `epoch`, in a band from `low` to `high`.

    The axis of shares is logarithmic if some share is many times as high as the line, which would hide all others.

    Args:
        methods: All methods of the study.
        rows: Rows that will be drawn.
        x: Title of the axis of epochs.
        y: Title of the other axis.
        share: Height of a horizontal line; no line when absent.
    """
    import altair as alt

    from bench.reporting.charts import GREY

    colour = method_colour(methods)
    tooltip = [alt.Tooltip(f"{name}:N") for name in ("method", "budget")] + [
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("mean:Q", format=".4g", title=y),
        alt.Tooltip("std:Q", format=".3g"),
        alt.Tooltip("n:Q", title="runs"),
    ]
    last = max((row["epoch"] for row in rows), default=1)
    across = alt.Scale(domain=[1, last] if last > 1 else [0, 2], padding=10)
    axis = alt.Axis(values=whole_ticks(last), format="d")
    base = alt.Chart().encode(x=alt.X("epoch:Q", title=x, axis=axis, scale=across))
    base = base.encode(detail=["method:N", "budget:N"])
    dots = last <= _FEW_EPOCHS
    is_steep = share is not None and max((row["mean"] or 0 for row in rows), default=0) > _STEEP * share
    height = alt.Scale(type="log", nice=False, padding=10) if is_steep else alt.Scale(zero=False)
    chosen, faded = legend_toggle()
    layers = [
        (base.transform_filter("datum.low > 0") if is_steep else base)
        .mark_area(opacity=_BAND)
        .encode(y=alt.Y("low:Q", title=y, scale=height), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=1.8)
        .encode(y=alt.Y("mean:Q", title=y, scale=height), color=colour, opacity=faded)
        .add_params(chosen),
        base.mark_point(filled=True, size=40, opacity=1.0 if dots else 0.0).encode(
            y=alt.Y("mean:Q", title=y, scale=height), color=colour, shape=method_shape(methods), tooltip=tooltip
        ),
    ]
    if share is not None:
        layers.append(alt.Chart().mark_rule(color=GREY, strokeDash=[4, 3]).encode(y=alt.datum(share)))
    return layers


def choosing(layers: "Sequence[alt.Chart]", rows: Rows, field: str, title: str) -> "alt.TopLevelMixin":
    """Draw layers over the rows with one value of a field; a menu chooses the value when there are several."""
    import altair as alt

    options = unique(row[field] for row in rows)
    chart = alt.layer(*layers, data=data(rows))
    if len(options) < 2:
        return chart
    menu = alt.param(name=_CHOSEN, value=options[0], bind=alt.binding_select(options=options, name=f"{title}: "))
    return chart.add_params(menu).transform_filter(f"datum[{field!r}] == {_CHOSEN}")


def side_by_side(layers: "Sequence[alt.Chart]", rows: Rows, field: str, columns: int = 2) -> "alt.TopLevelMixin":
    """Draw layers for a file: one view for each value of the field."""
    import altair as alt

    options = unique(row[field] for row in rows)
    chart = alt.layer(*layers, data=data(rows))
    if len(options) < 2:
        return chart
    facet = alt.Facet(f"{field}:N", title=None, sort=options)
    return chart.properties(**_FACET).facet(facet, columns=columns)


Draw = Callable[[], "alt.TopLevelMixin"]


def both(layers: "Callable[[], Sequence[alt.Chart]]", rows: Rows, field: str, title: str) -> dict[str, Draw]:
    """Return `draw` and `still` of a figure whose rows a field chooses; layers are made only when they are drawn."""
    return {
        "draw": lambda: choosing(layers(), rows, field, title),
        "still": lambda: side_by_side(layers(), rows, field),
    }
