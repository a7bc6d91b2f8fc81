"""Accuracy over cost: every run, the mean of every method and budget, and the Pareto front of the means.

The figures correspond to Figs. 4 and 5 of the SBS paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from bench.api import Column, Figure, Part, Report, StudyResults, Table
from bench.costs.measures import Bops, Measure, Memory
from bench.results.statistics import mean, std, t_interval
from reports.shared.drawing import Rows, data, legend_toggle, method_colour, method_shape, thinned, unique
from reports.shared.drawing import number as plotted
from reports.shared.formatting import anchor, interval, named_runs, number, spread
from reports.shared.limits import limited_measures, runs_limited_by

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_NO_BUDGET = "none"
_FEWEST_BUDGETS = 2
_WIDE = 10.0
"""Factor between costs above which their axis is logarithmic."""
_MARGIN = 0.3
"""Space above and below the runs, as a share of the range of their accuracies."""


class Tradeoff(Report):
    """Accuracy over the cost that the budgets limit."""

    summary = "accuracy over cost, and the Pareto front of the means"
    title = "Accuracy over cost"
    rank = 10

    def build(self, results: StudyResults) -> list[Part]:
        """Make a figure and a table for each limited measure; none before the first run is done."""
        runs = named_runs(results)
        done = runs[runs["status"] == "done"].dropna(subset=["top1"])
        return [part for measure in limited_measures(done) for part in _parts(runs_limited_by(done, measure), measure)]


def _parts(done: "pd.DataFrame", measure: type[Measure]) -> list[Part]:
    """Make the figure and the table over one measure of cost; none at a single budget.

    At one budget all costs lie in its window: who is cheaper there is chance, and the comparison shows the rest.
    """
    targets = done[done["budget"].astype(bool)].groupby(["model", "dataset", "budget"])
    if targets.ngroups < _FEWEST_BUDGETS:
        return []
    means = _means(done, measure)
    front = pareto_front(means)
    # Sorted, so that thinning keeps some runs of each method and budget.
    points = sorted(_points(done, measure), key=lambda point: (point["method"], point["budget"]))
    shown, note = thinned(points, "runs")
    methods = unique(row["method"] for row in means)
    suffix = "" if measure is Bops else f"_{measure.name}"
    text = (
        "Small marks: runs. Large marks: means with 95 % Student-t intervals, joined over the budgets of a method. "
        "Dashed line and rings: the Pareto front of the means. Intervals are cut off where they leave the figure. "
        "Dotted lines: means of methods without a budget, whatever they cost",
        *note,
    )
    return [
        Figure(
            name=f"tradeoff{suffix}",
            title=f"Top-1 accuracy over {measure.title}",
            draw=lambda: _draw(methods, shown, means, front, measure),
            notes=text,
        ),
        _table(means, front, measure, f"pareto{suffix}"),
    ]


def _points(done: "pd.DataFrame", measure: type[Measure]) -> list[dict[str, Any]]:
    return [
        {
            "method": run["line"],
            "budget": run["budget"] or _NO_BUDGET,
            "seed": None if run["seed"] != run["seed"] else int(run["seed"]),
            "top1": plotted(run["top1"]),
            "cost": plotted(run[measure.column] / measure.scale),
            "memory": plotted(run["memory_kb"]),
            "run": run["id"],
        }
        for run in done.astype({"seed": float}).to_dict("records")
    ]


def _means(done: "pd.DataFrame", measure: type[Measure]) -> list[dict[str, Any]]:
    """Make one row for each method and budget, in the study's order."""
    rows = []
    for _, group in done.groupby(["model", "dataset", "method", "budget"], sort=False):
        ends = t_interval(group["top1"])
        first = group.iloc[0]
        rows.append(
            {
                "method": str(first["line"]),
                "budget": str(first["budget"]) or _NO_BUDGET,
                "n": len(group),
                "top1": mean(group["top1"]),
                "std": std(group["top1"]),
                "interval": ends,
                "cost": mean(group[measure.column]) / measure.scale,
                "memory": mean(group["memory_kb"]),
                "anchor": anchor(first.to_dict()),
            }
        )
    return rows


def pareto_front(means: Rows) -> list[int]:
    """Return the indices of the means that no other mean beats, by rising cost.

    A mean beats another when it is at least as good in both cost and accuracy, and better in one.
    """
    order = sorted(range(len(means)), key=lambda index: (means[index]["cost"], -means[index]["top1"]))
    front: list[int] = []
    for index in order:
        best = means[front[-1]] if front else None
        same = best is not None and all(means[index][key] == best[key] for key in ("cost", "top1"))
        if best is None or means[index]["top1"] > best["top1"] or same:
            front.append(index)
    return front


def _table(means: Rows, front: Sequence[int], measure: type[Measure], name: str) -> Table:
    return Table(
        name=name,
        title=f"Means by {measure.title}, and the Pareto front",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="n"),
            Column(title=measure.title),
            Column(title="Top-1 %"),
            Column(title="95 % interval", drop=1),
            *(() if measure is Memory else (Column(title=Memory.title, drop=2),)),
            Column(title="On the front", align="left"),
        ),
        rows=tuple(
            _cells(means[index], measure, on_front=index in set(front))
            for index in sorted(range(len(means)), key=lambda index: float(means[index]["cost"]))
        ),
        notes=(
            "On the front: no other mean is at least as good in both cost and accuracy, and better in one. This "
            "is about the means of these runs; the comparison tests differences",
        ),
        links=tuple(str(row["anchor"]) for row in sorted(means, key=lambda row: float(row["cost"]))),
    )


def _cells(row: Mapping[str, Any], measure: type[Measure], *, on_front: bool) -> tuple[str, ...]:
    return (
        row["method"],
        row["budget"],
        str(row["n"]),
        number(row["cost"], measure.decimals),
        spread(row["top1"], row["std"]),
        interval(row["interval"]),
        *(() if measure is Memory else (number(row["memory"], Memory.decimals),)),
        "yes" if on_front else "no",
    )


def _draw(
    methods: Sequence[str], runs: Rows, means: Rows, front: Sequence[int], measure: type[Measure]
) -> "alt.TopLevelMixin":
    import altair as alt

    from bench.reporting.charts import GREY

    budgeted = [index for index, row in enumerate(means) if row["budget"] != _NO_BUDGET] or range(len(means))
    costs = [means[index]["cost"] for index in budgeted]
    wide = max(costs) > _WIDE * min(costs)
    scale = alt.Scale(type="log", nice=False, padding=20) if wide else alt.Scale(zero=False, padding=12)
    x = alt.X("cost:Q", title=measure.title, scale=scale, axis=alt.Axis(format=",.3~f"))
    title, height = "Top-1 (%)", alt.Scale(domain=_height([row["top1"] for row in (*runs, *means)]), nice=False)
    y = alt.Y("top1:Q", title=title, scale=height)
    colour, shape = method_colour(methods), method_shape(methods)
    chosen, faded = legend_toggle()
    plain = [_plain(row) for row in means]
    references = [row for index, row in enumerate(plain) if index not in budgeted]
    centres = alt.Chart(data([plain[index] for index in budgeted]))
    edge = alt.Chart(data([plain[index] for index in front if index in budgeted]))
    points = [run for run in runs if not references or run["budget"] != _NO_BUDGET]
    low, high = alt.Y("low:Q", title=title, scale=height), alt.Y2("high:Q")
    return alt.layer(
        *([_levels(references, y, colour, measure)] if references else []),
        edge.mark_line(color=GREY, strokeDash=[5, 4], interpolate="step-after").encode(x=x, y=y),
        edge.mark_point(color=GREY, filled=False, shape="circle", size=320).encode(x=x, y=y),
        centres.mark_area(opacity=0.12, clip=True).encode(x=x, y=low, y2=high, color=colour),
        centres.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=colour, opacity=faded).add_params(chosen),
        centres.mark_rule(clip=True).encode(x=x, y=low, y2=high, color=colour),
        alt.Chart(data(points))
        .mark_point(filled=True, size=28, fillOpacity=0.5)
        .encode(x=x, y=y, color=colour, shape=shape, opacity=faded, tooltip=_hover(measure, ("seed", "run"))),
        centres.mark_point(filled=True, size=110).encode(
            x=x, y=y, color=colour, shape=shape, opacity=faded, tooltip=_hover(measure, ("n", "std", "interval"))
        ),
    )


def _levels(
    references: Rows, y: "alt.Y", colour: "alt.Color", measure: type[Measure]
) -> "alt.LayerChart | alt.FacetChart":
    """Draw a named line for each method without a budget, because its cost would stretch the axis."""
    import altair as alt

    lines = alt.Chart(data(references)).encode(y=y, color=colour)
    return alt.layer(
        lines.mark_rule(strokeDash=[1, 3], strokeWidth=1.8).encode(tooltip=_hover(measure, ("n", "std", "interval"))),
        lines.mark_text(align="left", baseline="bottom", dx=4, dy=-2).encode(x=alt.value(0), text="method:N"),
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mean for the chart; without an interval both ends are the mean, so that the mark has no extent."""
    figures = {key: plotted(row[key]) for key in ("top1", "std", "cost", "memory")}
    low, high = (figures["top1"] if math.isnan(end) else plotted(end) for end in astuple(row["interval"]))
    return {**row, **figures, "low": low, "high": high, "interval": interval(row["interval"])}


def _height(accuracies: Sequence[float]) -> list[float]:
    """Return the ends of the axis of accuracies; wide intervals of few seeds do not stretch it."""
    low, high = min(accuracies), max(accuracies)
    margin = max(_MARGIN * (high - low), 1.0)
    return [max(low - margin, 0.0), min(high + margin, 100.0)]


def _hover(measure: type[Measure], more: Sequence[str]) -> "list[alt.Tooltip]":
    import altair as alt

    figures = {"top1": "Top-1 %", "cost": measure.title}
    if measure is not Memory:
        figures["memory"] = Memory.title
    names = {"method": "method", "budget": "budget", "seed": "seed", "run": "run", "n": "runs"}
    titles = {**names, **figures, "std": "std", "interval": "95 % interval"}
    chosen = ("method", "budget", *figures, *more)
    return [
        alt.Tooltip(f"{key}:Q", title=titles[key], format=",.2f")
        if key in figures or key == "std"
        else alt.Tooltip(f"{key}:N", title=titles[key])
        for key in chosen
    ]
