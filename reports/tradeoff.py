"""Accuracy over cost: every run, the mean of every method and budget, the Pareto front of the means (Figs. 4, 5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from bench.api import Column, Figure, Part, Report, StudyResults, Table
from bench.results.statistics import mean, std, t_interval
from reports.shared.drawing import Rows, data, method_colour, method_shape, thinned, unique
from reports.shared.drawing import number as plotted
from reports.shared.formatting import anchor, interval, named_runs, number, spread
from reports.shared.limits import BOPS, Measured, limited, of_kind

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_NO_BUDGET = "none"
_WIDE = 10.0
"""Costs that differ by more than this factor stand on a logarithmic axis."""
_MARGIN = 0.3
"""Above and below the runs, as a share of the range of their accuracies."""


class Tradeoff(Report):
    """Accuracy over what budgets limit."""

    summary = "accuracy over cost, and which methods no other one beats in both"
    title = "Accuracy over cost"
    rank = 10

    def build(self, results: StudyResults) -> list[Part]:
        """Nothing before the first run is done."""
        runs = named_runs(results)
        done = runs[runs["status"] == "done"].dropna(subset=["top1"])
        return [part for kind in limited(done) for part in _parts(of_kind(done, kind), kind)]


def _parts(done: "pd.DataFrame", kind: Measured) -> list[Part]:
    """Figure and table over one kind of cost."""
    if not len(done):
        return []
    means = _means(done, kind)
    front = pareto_front(means)
    points = sorted(_points(done, kind), key=lambda point: (point["method"], point["budget"]))  # some of each are kept
    shown, note = thinned(points, "runs")
    methods = unique(row["method"] for row in means)
    suffix = "" if kind is BOPS else f"_{kind.measure}"
    text = (
        "Small: runs. Large: means with 95 % Student-t intervals, joined over the budgets of a method. "
        "Dashed, and ringed: the Pareto front of the means. Intervals are cut where they leave the figure. "
        "Dotted: the mean of what has no budget, whatever it costs",
        *note,
    )
    return [
        Figure(
            name=f"tradeoff{suffix}",
            title=f"Top-1 accuracy over {kind.title}",
            draw=lambda: _draw(methods, shown, means, front, kind),
            notes=text,
        ),
        _table(means, front, kind, f"pareto{suffix}"),
    ]


def _points(done: "pd.DataFrame", kind: Measured) -> list[dict[str, Any]]:
    return [
        {
            "method": run["line"],
            "budget": run["budget"] or _NO_BUDGET,
            "seed": None if run["seed"] != run["seed"] else int(run["seed"]),
            "top1": plotted(run["top1"]),
            "cost": plotted(run[kind.column] / kind.per_unit),
            "memory": plotted(run["memory_kb"]),
            "run": run["id"],
        }
        for run in done.astype({"seed": float}).to_dict("records")
    ]


def _means(done: "pd.DataFrame", kind: Measured) -> list[dict[str, Any]]:
    """One row for each method and budget, in the study's order."""
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
                "cost": mean(group[kind.column]) / kind.per_unit,
                "memory": mean(group["memory_kb"]),
                "anchor": anchor(first.to_dict()),
            }
        )
    return rows


def pareto_front(means: Rows) -> list[int]:
    """Positions of the means that no other one beats in cost and accuracy, by rising cost.

    One beats another when it is no worse in both and better in one.
    """
    order = sorted(range(len(means)), key=lambda index: (means[index]["cost"], -means[index]["top1"]))
    front: list[int] = []
    for index in order:
        best = means[front[-1]] if front else None
        same = best is not None and all(means[index][key] == best[key] for key in ("cost", "top1"))
        if best is None or means[index]["top1"] > best["top1"] or same:
            front.append(index)
    return front


def _table(means: Rows, front: Sequence[int], kind: Measured, name: str) -> Table:
    return Table(
        name=name,
        title=f"Means by {kind.title}, and the Pareto front",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="n"),
            Column(title=kind.title),
            Column(title="Top-1 %"),
            Column(title="95 % interval", drop=1),
            *(() if kind.measure == "memory" else (Column(title="Memory KB", drop=2),)),
            Column(title="On the front", align="left"),
        ),
        rows=tuple(
            _cells(means[index], kind, on_front=index in set(front))
            for index in sorted(range(len(means)), key=lambda index: float(means[index]["cost"]))
        ),
        notes=("On the front: no other mean costs no more and is at least as accurate, and better in one of both",),
        links=tuple(str(row["anchor"]) for row in sorted(means, key=lambda row: float(row["cost"]))),
    )


def _cells(row: Mapping[str, Any], kind: Measured, *, on_front: bool) -> tuple[str, ...]:
    return (
        row["method"],
        row["budget"],
        str(row["n"]),
        number(row["cost"], 2),
        spread(row["top1"], row["std"]),
        interval(row["interval"]),
        *(() if kind.measure == "memory" else (number(row["memory"], 1),)),
        "yes" if on_front else "no",
    )


def _draw(methods: Sequence[str], runs: Rows, means: Rows, front: Sequence[int], kind: Measured) -> "alt.TopLevelMixin":
    import altair as alt

    from bench.reporting.charts import GREY

    budgeted = [index for index, row in enumerate(means) if row["budget"] != _NO_BUDGET] or range(len(means))
    costs = [means[index]["cost"] for index in budgeted]
    wide = max(costs) > _WIDE * min(costs)
    scale = alt.Scale(type="log", nice=False, padding=20) if wide else alt.Scale(zero=False, padding=12)
    x = alt.X("cost:Q", title=kind.title, scale=scale, axis=alt.Axis(format=",.3~f"))
    title, height = "Top-1 (%)", alt.Scale(domain=_height([row["top1"] for row in (*runs, *means)]), nice=False)
    y = alt.Y("top1:Q", title=title, scale=height)
    colour, shape = method_colour(methods), method_shape(methods)
    plain = [_plain(row) for row in means]
    references = [row for index, row in enumerate(plain) if index not in budgeted]
    centres = alt.Chart(data([plain[index] for index in budgeted]))
    edge = alt.Chart(data([plain[index] for index in front if index in budgeted]))
    points = [run for run in runs if not references or run["budget"] != _NO_BUDGET]
    low, high = alt.Y("low:Q", title=title, scale=height), alt.Y2("high:Q")
    return alt.layer(
        *([_levels(references, y, colour, kind)] if references else []),
        edge.mark_line(color=GREY, strokeDash=[5, 4], interpolate="step-after").encode(x=x, y=y),
        edge.mark_point(color=GREY, filled=False, shape="circle", size=320).encode(x=x, y=y),
        centres.mark_area(opacity=0.12, clip=True).encode(x=x, y=low, y2=high, color=colour),
        centres.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=colour),
        centres.mark_rule(clip=True).encode(x=x, y=low, y2=high, color=colour),
        alt.Chart(data(points))
        .mark_point(filled=True, size=28, opacity=0.5)
        .encode(x=x, y=y, color=colour, shape=shape, tooltip=_hover(kind, ("seed", "run"))),
        centres.mark_point(filled=True, size=110, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=_hover(kind, ("n", "std", "interval"))
        ),
    )


def _levels(references: Rows, y: "alt.Y", colour: "alt.Color", kind: Measured) -> "alt.LayerChart | alt.FacetChart":
    """A named line for each method without a budget, whose cost would stretch the axis."""
    import altair as alt

    lines = alt.Chart(data(references)).encode(y=y, color=colour)
    return alt.layer(
        lines.mark_rule(strokeDash=[1, 3], strokeWidth=1.8).encode(tooltip=_hover(kind, ("n", "std", "interval"))),
        lines.mark_text(align="left", baseline="bottom", dx=4, dy=-2).encode(x=alt.value(0), text="method:N"),
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A mean for the chart; without an interval, both ends are the mean, so that its mark has no extent."""
    figures = {key: plotted(row[key]) for key in ("top1", "std", "cost", "memory")}
    low, high = (figures["top1"] if math.isnan(end) else plotted(end) for end in astuple(row["interval"]))
    return {**row, **figures, "low": low, "high": high, "interval": interval(row["interval"])}


def _height(accuracies: Sequence[float]) -> list[float]:
    """Ends of the accuracies' axis: runs decide, since the intervals of few seeds would leave nothing else to see."""
    low, high = min(accuracies), max(accuracies)
    margin = max(_MARGIN * (high - low), 1.0)
    return [max(low - margin, 0.0), min(high + margin, 100.0)]


def _hover(kind: Measured, more: Sequence[str]) -> "list[alt.Tooltip]":
    import altair as alt

    figures = {"top1": "Top-1 %", "cost": kind.title}
    if kind.measure != "memory":
        figures["memory"] = "memory (KB)"
    names = {"method": "method", "budget": "budget", "seed": "seed", "run": "run", "n": "runs"}
    titles = {**names, **figures, "std": "std", "interval": "95 % interval"}
    chosen = ("method", "budget", *figures, *more)
    return [
        alt.Tooltip(f"{key}:Q", title=titles[key], format=",.2f")
        if key in figures or key == "std"
        else alt.Tooltip(f"{key}:N", title=titles[key])
        for key in chosen
    ]
