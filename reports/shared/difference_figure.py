"""The figure of the comparison: for each method its difference to the baseline, with the interval."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.api import Figure
from bench.results.statistics import PairedDifference
from reports.shared.comparison_rows import Row
from reports.shared.drawing import data, method_colour, method_shape, number, unique
from reports.shared.formatting import FLAGGED, difference

if TYPE_CHECKING:
    import altair as alt

_STEP = 26
"""Height of a row, in pixels."""


def difference_figure(rows: Sequence[Row], baseline: str) -> Figure | None:
    """Make the figure; `None` while no method has a difference.

    Args:
        rows: Rows of the comparison, in its order.
        baseline: Name of the method that differences are to.
    """
    compared = [(row, row.difference) for row in rows if row.difference is not None]
    if not compared:
        return None
    budgets, tasks = ({getattr(row, name) for row, _ in compared} for name in ("budget", "task"))
    points = [_point(row, pair, _label(row, len(budgets) > 1, len(tasks) > 1)) for row, pair in compared]
    unknown = any(point["low"] is None for point in points)
    return Figure(
        name="differences",
        title=f"Top-1 minus that of {baseline}, in points",
        draw=lambda: _draw(points, baseline),
        notes=(
            f"Mark: mean over pairs of equal seeds. Line: 95 % interval. Right of 0 is better than {baseline}",
            *(("Without a line: a single pair has no interval",) if unknown else ()),
        ),
    )


def _label(row: Row, several_budgets: bool, several_tasks: bool) -> str:
    parts = (*(row.task if several_tasks else ()), row.budget if several_budgets else "", row.method)
    return " ".join(filter(None, parts))


def _point(row: Row, pair: PairedDifference, label: str) -> dict[str, Any]:
    words = [*difference(pair, math.nan)[:2], FLAGGED if row.flags else ""]
    return {
        "row": label,
        "method": row.method,
        "budget": row.budget,
        "delta": number(pair.mean),
        "low": number(pair.interval.low),
        "high": number(pair.interval.high),
        "words": " ".join(filter(None, words)),
        "pairs": pair.n,
    }


def _draw(points: Sequence[dict[str, Any]], baseline: str) -> "alt.TopLevelMixin":
    import altair as alt

    from bench.reporting.charts import GREY

    methods = unique(point["method"] for point in points)
    colour, shape = method_colour(methods).legend(None), method_shape(methods).legend(None)
    title, scale = f"Top-1 minus that of {baseline} (points)", alt.Scale(padding=14)
    across = alt.X("delta:Q", title=title, scale=scale)
    rows = alt.Y("row:N", sort=unique(point["row"] for point in points), title=None, axis=alt.Axis(labelLimit=220))
    base = alt.Chart(data(points)).encode(y=rows, color=colour)
    ends = base.transform_filter("isValid(datum.low)").encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    tooltip = [
        *(alt.Tooltip(f"{name}:N") for name in ("method", "budget")),
        alt.Tooltip("words:N", title="difference"),
        alt.Tooltip("pairs:Q"),
    ]
    words = alt.Chart(data(points)).mark_text(baseline="bottom", dy=-5, fontSize=10, color="currentColor")
    return alt.layer(
        alt.Chart().mark_rule(color=GREY).encode(x=alt.datum(0)),
        ends.mark_rule(strokeWidth=2),
        base.mark_point(filled=True, size=90, opacity=1).encode(x=across, shape=shape, tooltip=tooltip),
        words.encode(x=across, y=rows, text="words:N"),
    ).properties(height=_STEP * len(points))
