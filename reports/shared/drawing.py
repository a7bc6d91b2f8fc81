"""What figures are put together from: marks over rows of plain values, and a choice among several of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.results.statistics import mean, std

if TYPE_CHECKING:
    import altair as alt

Rows = Sequence[Mapping[str, Any]]

MOST_POINTS = 2000
"""In one figure; more would take a reader's browser longer to draw than they tell."""

_CHOSEN = "chosen"
_FEW_EPOCHS = 30
_FACET = {"width": 260, "height": 180}
_BAND = 0.15


def thinned(rows: Rows, what: str, most: int = MOST_POINTS) -> tuple[Rows, tuple[str, ...]]:
    """Evenly spaced ones of too many rows, and a note that says so.

    Args:
        rows: All.
        what: What a row stands for, in the plural.
        most: How many may stay.
    """
    step = math.ceil(len(rows) / most)
    if step < 2:
        return rows, ()
    kept = rows[::step]
    return kept, (f"The figure shows {len(kept)} of {len(rows)} {what}, evenly spaced; means are over all",)


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, and one of it to either side, for a mark that shows both.

    Without a deviation, which is `None` then, both sides are the mean, so that the mark has no extent.
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
    """A number for a chart: JSON has no infinity and no NaN; seven digits are more than a screen shows."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def data(rows: Rows) -> "alt.InlineData":
    """Rows as a chart's data."""
    import altair as alt

    return alt.InlineData([dict(row) for row in rows])


def unique(values: Iterable[Any]) -> list[str]:
    """Different values in the order of their first appearance."""
    return list(dict.fromkeys(map(str, values)))


def whole_ticks(most: int) -> list[int]:
    """Where an axis that counts up to a number has its ticks: ten or so."""
    return list(range(0, most + 1, max(1, round(most / 10))))


def method_colour(methods: Sequence[str]) -> "alt.Color":
    """The colour of a method, the same in all figures of a study."""
    import altair as alt

    return alt.Color("method:N", title=None, scale=alt.Scale(domain=list(methods)))


def method_shape(methods: Sequence[str]) -> "alt.Shape":
    """The shape of a method's points, for those who cannot tell colours apart."""
    import altair as alt

    return alt.Shape("method:N", title=None, scale=alt.Scale(domain=list(methods)))


def curves(methods: Sequence[str], rows: Rows, x: str, y: str, share: float | None = None) -> "list[alt.Chart]":
    """Layers without data: for each method the mean over `epoch`, in a band from `low` to `high`.

    Args:
        methods: All of the study.
        rows: What will be drawn.
        x: Title of the epochs' axis.
        y: Title of the other one.
        share: Where a line across is drawn.
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
    height = alt.Scale(zero=False)
    layers = [
        base.mark_area(opacity=_BAND).encode(y=alt.Y("low:Q", title=y, scale=height), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=1.8).encode(y=alt.Y("mean:Q", title=y, scale=height), color=colour),
        base.mark_point(filled=True, size=40, opacity=1.0 if dots else 0.0).encode(
            y=alt.Y("mean:Q", title=y, scale=height), color=colour, shape=method_shape(methods), tooltip=tooltip
        ),
    ]
    if share is not None:
        layers.append(alt.Chart().mark_rule(color=GREY, strokeDash=[4, 3]).encode(y=alt.datum(share)))
    return layers


def choosing(layers: "Sequence[alt.Chart]", rows: Rows, field: str, title: str) -> "alt.TopLevelMixin":
    """Layers over the rows of one value of a field, which the reader chooses where there are several."""
    import altair as alt

    options = unique(row[field] for row in rows)
    chart = alt.layer(*layers, data=data(rows))
    if len(options) < 2:
        return chart
    menu = alt.param(name=_CHOSEN, value=options[0], bind=alt.binding_select(options=options, name=f"{title}: "))
    return chart.add_params(menu).transform_filter(f"datum[{field!r}] == {_CHOSEN}")


def side_by_side(layers: "Sequence[alt.Chart]", rows: Rows, field: str, columns: int = 2) -> "alt.TopLevelMixin":
    """The same for files: one view for each value of the field."""
    import altair as alt

    options = unique(row[field] for row in rows)
    chart = alt.layer(*layers, data=data(rows))
    if len(options) < 2:
        return chart
    facet = alt.Facet(f"{field}:N", title=None, sort=options)
    return chart.properties(**_FACET).facet(facet, columns=columns)


Draw = Callable[[], "alt.TopLevelMixin"]


def both(layers: "Callable[[], Sequence[alt.Chart]]", rows: Rows, field: str, title: str) -> dict[str, Draw]:
    """`draw` and `still` of a figure whose rows are chosen by a field; layers are made when they are drawn."""
    return {
        "draw": lambda: choosing(layers(), rows, field, title),
        "still": lambda: side_by_side(layers(), rows, field),
    }
