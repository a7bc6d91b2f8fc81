"""Exported networks: the size of their files, their agreement with the harness, and measured times beside counted ones.

It shows what `bench export` wrote into the store; measured times come from `bench export --measure`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.api import Column, Figure, Part, Report, StudyResults, Table
from bench.costs.measures import Bops
from bench.reporting.wording import count
from bench.store.exports import StoredExport, StoredTime, read_export
from reports.shared.drawing import Rows, data, method_colour, method_shape, unique
from reports.shared.formatting import named_runs, number

if TYPE_CHECKING:
    import altair as alt

_FLOATS = ("float", "reduced float")
_KB = 1000
_TICKS = [0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
_POWERS = [0.0001, 0.001, 0.01, 0.1, 1]
_VIEW = {"width": 190, "height": 190}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Exports of the runs of one method and budget."""

    method: str
    budget: str
    exports: tuple[StoredExport, ...]

    @property
    def bops_ratio(self) -> float:
        """Median of counted bit operations, as a share of those at full precision."""
        return median(export.counted.bops / export.counted.full_precision_bops for export in self.exports)


class Deployment(Report):
    """Size, agreement and measured time of exported networks."""

    summary = "exported networks: size of files, equal predictions, measured times (after bench export)"
    title = "Deployment"
    rank = 45

    def build(self, results: StudyResults) -> list[Part]:
        """Make tables of sizes and times, and the figure of both ratios; none before the first export."""
        groups = _groups(results)
        if not groups:
            return []
        times = measured_rows(results)
        parts: list[Part] = [_sizes(groups)]
        if times:
            parts += [_times_table(times), _figure(times)]
        return parts


def measured_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Return measured times of a study's exported networks.

    Returns:
        One row for each method, budget, form, engine and number of images: "milliseconds", "ratio" to the float network
        with its quartiles "low" and "high", and "bops", the share of the float network's bit operations.
    """
    return [row for group in _groups(results) for row in _times(group)]


def _groups(results: StudyResults) -> list[_Group]:
    groups = []
    for (method, budget), runs in named_runs(results).groupby(["line", "budget"], sort=False):
        found = [read_export(results.store, str(run)) for run in runs["id"]]
        exports = tuple(export for export in found if export is not None)
        if exports:
            groups.append(_Group(method=str(method), budget=str(budget), exports=exports))
    return groups


def _sizes(groups: Sequence[_Group]) -> Table:
    return Table(
        name="deployment",
        title="Exported networks",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="Form", align="left"),
            Column(title="n"),
            Column(title="File KB", note="File KB: median size of the network's file, with scales and program"),
            Column(title="Float ×", note="Float ×: size of the float parameters of the full network over it"),
            Column(title="Equal", note="Equal: images with the harness's prediction, in the engine with the fewest"),
            Column(title="Near ties", drop=1, note="Near ties: others, traced to rounding half-way between two codes"),
            Column(title=Bops.title),
            Column(title="BOPs ×", drop=2, note="BOPs ×: bit operations at full precision over those of the network"),
            Column(title="Simulated ms", drop=3),
        ),
        rows=tuple(_size_cells(group, form) for group in groups for form in _forms(group)),
        notes=("docs/deploy.md explains forms, and when predictions count as equal",),
    )


def _forms(group: _Group) -> list[str]:
    return list(dict.fromkeys(form for export in group.exports for form in export.forms))


def _size_cells(group: _Group, form: str) -> tuple[str, ...]:
    exports = [export for export in group.exports if form in export.forms]
    sizes = [next(iter(export.forms[form].files.values())) for export in exports]
    worst = [min(export.forms[form].agreements, key=lambda agreement: agreement.equal) for export in exports]
    size = median(sizes)
    full = median(export.counted.float_parameter_bytes for export in exports)
    latencies = [ms for export in exports if (ms := export.counted.simulated_latency_ms) is not None]
    return (
        group.method,
        group.budget,
        form,
        str(len(exports)),
        number(size / _KB, 1),
        number(full / size, 1),
        f"{sum(entry.equal for entry in worst):,}/{sum(entry.images for entry in worst):,}",
        str(sum(entry.traced for entry in worst)),
        number(median(export.counted.bops for export in exports) / Bops.scale, Bops.decimals),
        number(1 / group.bops_ratio, 1),
        number(median(latencies), 4) if latencies else "",
    )


# --- measured times ------------------------------------------------------------------------------------------------


def _times(group: _Group) -> list[dict[str, Any]]:
    """Make one row for each form, engine and number of images, with medians over the runs."""
    entries: dict[tuple[str, str, int], list[StoredTime]] = {}
    for export in group.exports:
        for entry in export.measured:
            engine = f"{entry.engine.partition(',')[0]} {entry.version}"
            entries.setdefault((entry.form, engine, entry.batch), []).append(entry)
    return [
        {
            "method": group.method,
            "budget": group.budget,
            "form": form,
            "engine": engine,
            "batch": batch,
            "n": len(found),
            "milliseconds": median(entry.milliseconds for entry in found),
            "ratio": median(entry.ratio[1] for entry in found),
            "low": median(entry.ratio[0] for entry in found),
            "high": median(entry.ratio[2] for entry in found),
            "bops": group.bops_ratio,
        }
        for (form, engine, batch), found in entries.items()
    ]


def _times_table(rows: Rows) -> Table:
    titles = ("Method", "Budget", "Form", "Engine")
    return Table(
        name="deployment_times",
        title="Measured times on one thread",
        columns=(
            *(Column(title=title, align="left") for title in titles),
            Column(title="Images", note="Images: computed together"),
            Column(title="n", drop=1),
            Column(title="ms"),
            Column(title="Time ×", note="Time ×: measured time over that of the float network, in the same engine"),
            Column(title="Quartiles", drop=2),
            Column(title="BOPs ×", note="BOPs ×: counted bit operations over those at full precision"),
        ),
        rows=tuple(
            (
                *(str(row[key]) for key in ("method", "budget", "form", "engine", "batch", "n")),
                number(row["milliseconds"], 3),
                number(row["ratio"], 2),
                f"{row['low']:.2f}–{row['high']:.2f}",
                number(row["bops"], 4),
            )
            for row in rows
        ),
        headline=tuple(_messages(rows)),
        notes=("Measured times belong to the machine that exported; they are no part of a budget",),
    )


def _messages(rows: Rows) -> Iterator[str]:
    """Say what counted operations promise, and what the fastest form of each network takes."""
    fastest: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["form"] not in _FLOATS:
            key = row["method"], row["budget"]
            fastest[key] = min(row["ratio"], fastest.get(key, math.inf))
    if not fastest:
        return
    fewer = sorted(1 / row["bops"] for row in rows)
    least, most = min(fastest.values()), max(fastest.values())
    yield (
        f"These networks count {fewer[0]:.0f} to {fewer[-1]:.0f} times fewer bit operations than the float network; "
        f"the fastest form of each takes {least:.2f} to {most:.2f} times as long in the same engine."
    )


def _figure(rows: Rows) -> Figure:
    single = min(row["batch"] for row in rows)
    shown = [row for row in rows if row["form"] != _FLOATS[0] and row["batch"] == single]
    return Figure(
        name="deployment_ratios",
        title="Measured time over counted bit operations",
        draw=lambda: _draw(shown),
        notes=(
            f"Both as shares of the float network at full precision, {count(single, 'image')} at a time. On the dashed "
            "line they would be equal: counted operations would say how long a network takes on this machine. On the "
            "upper line it takes as long as the float network",
        ),
    )


def _draw(rows: Rows) -> "alt.TopLevelMixin":
    """Draw one view for each engine and form; the dashed line is the same in all."""
    import altair as alt

    from bench.reporting.charts import GREY

    methods = unique(row["method"] for row in rows)
    least = min(row["bops"] for row in rows)
    x = alt.X(
        "bops:Q", title="Counted bit operations ×", scale=alt.Scale(type="log", nice=False, domain=[least / 2, 1])
    )
    height = alt.Scale(type="log", nice=False)
    y = alt.Y("ratio:Q", title="Measured time ×", scale=height, axis=alt.Axis(values=_TICKS, format="~g"))
    hover = [alt.Tooltip(f"{key}:N") for key in ("method", "budget", "form", "engine", "batch", "ratio", "bops")]
    marks = alt.Chart().encode(x=x, color=method_colour(methods), tooltip=hover)
    line = alt.Chart().mark_rule(color=GREY)
    layers = [
        line.encode(y=alt.datum(1)),
        alt.Chart()
        .mark_rule(color=GREY, strokeDash=[5, 4])
        .encode(x=alt.datum(least), x2=alt.datum(1), y=alt.datum(least), y2=alt.datum(1)),
        marks.mark_rule().encode(y=alt.Y("low:Q", scale=height), y2="high:Q"),
        marks.mark_point(filled=True, size=45).encode(y=y, shape=method_shape(methods)),
    ]
    views = alt.layer(*layers, data=data(rows)).properties(**_VIEW)
    by_form = alt.Column("form:N", title=None, sort=unique(row["form"] for row in rows))
    return views.facet(row=alt.Row("engine:N", title=None), column=by_form)
