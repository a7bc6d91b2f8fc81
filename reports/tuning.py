"""The tuning of methods onto their budgets: strength λ, cost and validation accuracy of every trial."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.api import Column, Figure, Part, Report, StudyResults, Table
from bench.results.tables import section
from reports.shared.drawing import Rows, both, method_colour, method_shape, thinned, unique, whole_ticks
from reports.shared.drawing import number as plotted
from reports.shared.formatting import figure, number, window_position

if TYPE_CHECKING:
    import altair as alt

_STRENGTH = "strength"
_DEFAULT_TOLERANCE = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """A field of a trial that an axis shows."""

    field: str
    title: str
    log: bool = False


_TRIAL = _Axis(field="number", title="trial")
_LAMBDA = _Axis(field=_STRENGTH, title="strength λ", log=True)
_COST = _Axis(field="raw", title="cost before repair (% of the budget)", log=True)
_ACCURACY = _Axis(field="accuracy", title="validation Top-1 (%)")
_CHOSEN = (
    "Chosen: the best validation accuracy inside the window, but a search that met the window by itself goes before a "
    "repaired one that validation cannot tell from it"
)
_CHOSEN_LAMBDA = "Chosen: the search whose cost before repair is in the window, or else nearest to it"
"""Which trial is chosen, in words."""
_FIGURES = (
    ("tuning-trials", "Cost from trial to trial", _TRIAL, _COST),
    ("tuning-cost", "Cost over strength", _LAMBDA, _COST),
    ("tuning-accuracy", "Validation accuracy over strength", _LAMBDA, _ACCURACY),
)


class Tuning(Report):
    """The trials of every tuning."""

    summary = "the trials that brought each method onto each budget: strength, cost, validation accuracy"
    title = "Tuning onto the budget"
    rank = 50
    folded = True

    def build(self, results: StudyResults) -> list[Part]:
        """Make the figures and the table; none when no method was tuned, or before the first trial."""
        several = results.runs["model"].nunique() > 1
        tunings = map(str, results.study.get("tunings") or ())
        rows = [row for identity in tunings for row in _trials(results, identity, several=several)]
        if not rows:
            return []
        tolerance = figure(section(results.spec, "tuning").get("tolerance"))
        low = 100 * (1 - (_DEFAULT_TOLERANCE if math.isnan(tolerance) else tolerance))
        shown, thin = thinned(rows, "trials")
        notes = (
            f"Ring: chosen trial. Dashed lines: budget window, {low:.0f} to 100 % of the budget. Numbers: trials",
            _CHOSEN_LAMBDA if section(results.spec, "tuning").get("match") == "lambda" else _CHOSEN,
            *thin,
        )
        return [*_figures(shown, low, notes), _table(rows)]


def _trials(results: StudyResults, identity: str, *, several: bool) -> Iterator[dict[str, Any]]:
    """Yield one row for each trial of a tuning.

    Args:
        results: Numbers of the study.
        identity: Id of the tuning.
        several: Whether the study has several models, so that the method's name needs the model.
    """
    record = results.record("tuning", identity) or {}
    for trial in results.trials(identity):
        index = trial.get("number")
        unit = {**(record or results.record("trials", f"{identity}-{index}") or {}), **results.planned(identity)}
        budget = figure(unit.get("budget_cost"))
        knobs = section(trial, "knobs")
        method = str(unit.get("method") or "unknown")
        yield {
            "method": f"{unit.get('model')} {method}" if several else method,
            "budget": str(unit.get("budget") or "unknown"),
            "number": index + 1 if isinstance(index, int) else 0,
            _STRENGTH: figure(knobs.get(_STRENGTH)),
            "knobs": ", ".join(f"{key} {figure(value):.3g}" for key, value in knobs.items() if key != _STRENGTH),
            "raw": _share(trial.get("raw_cost"), budget),
            "cost": _share(trial.get("cost"), budget),
            "gates": figure(trial.get("repaired_gates")),
            "accuracy": figure(trial.get("validation_top1")),
            "seconds": figure(trial.get("seconds")),
            "inside": trial.get("within_budget"),
            "chosen": record.get("status") == "done" and record.get("chosen_trial") == index,
        }


def _share(cost: Any, budget: float) -> float:
    """Return a cost in percent of a budget; NaN without a budget."""
    return 100 * figure(cost) / budget if budget > 0 else math.nan


def _figures(rows: Rows, low: float, notes: tuple[str, ...]) -> Iterator[Figure]:
    for name, title, x, y in _FIGURES:
        usable = [_plain(row) for row in rows if all(_fits(row[axis.field], axis) for axis in (x, y))]
        if usable:
            drawn = both(_layers_of(rows, x, y, low), usable, "budget", "Budget")
            yield Figure(name=name, title=title, notes=notes, **drawn)


def _fits(value: float, axis: _Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plotted(value) if isinstance(value, float) else value for key, value in row.items()}


def _layers_of(rows: Rows, x: _Axis, y: _Axis, low: float) -> "Callable[[], list[alt.Chart]]":
    return lambda: _layers(rows, x, y, low)


def _layers(rows: Rows, x: _Axis, y: _Axis, low: float) -> "list[alt.Chart]":
    """Make the layers of a chart, without data."""
    import altair as alt

    from bench.reporting.charts import GREY

    last = max(row[_TRIAL.field] for row in rows)
    methods = unique(row["method"] for row in rows)
    across = alt.X(f"{x.field}:Q", title=x.title, scale=_scale(x), axis=_axis(x, last))
    up = alt.Y(f"{y.field}:Q", title=y.title, scale=_scale(y), axis=_axis(y, last))
    base = alt.Chart().encode(x=across, y=up)
    colour = method_colour(methods)
    joined = [base.mark_line(opacity=0.35).encode(color=colour, order="number:Q", detail="budget:N")]
    numbered = [base.mark_text(dx=9, dy=-7, fontSize=9, color=GREY).encode(text="number:Q")]
    layers = [
        *(joined if x is _TRIAL else numbered),  # over λ, a line in the order of trials would look like a curve
        base.mark_point(filled=True, size=60, opacity=1).encode(
            color=colour, shape=method_shape(methods), tooltip=_hover()
        ),
        base.mark_point(filled=False, size=240, shape="circle", color=GREY, strokeWidth=2).transform_filter(
            "datum.chosen"
        ),
    ]
    if y is _COST:
        rule = alt.Chart().mark_rule(color=GREY, strokeDash=[4, 3])
        layers += [rule.encode(y=alt.datum(edge)) for edge in (low, 100.0)]
    return layers


def _scale(axis: _Axis) -> "alt.Scale":
    import altair as alt

    return alt.Scale(type="log", nice=False, padding=15) if axis.log else alt.Scale(zero=False, padding=15)


def _axis(axis: _Axis, last: int) -> "alt.Axis":
    import altair as alt

    return alt.Axis(values=whole_ticks(last), format="d") if axis is _TRIAL else alt.Axis(tickCount=6, format=".3~g")


def _hover() -> "list[alt.Tooltip]":
    import altair as alt

    figures = {_STRENGTH: "λ", "raw": "cost before repair, %", "cost": "after repair, %", "gates": "gates repaired"}
    figures |= {"accuracy": "validation Top-1 %", "seconds": "seconds"}
    names = {"method": "method", "budget": "budget", "number": "trial", "knobs": "other knobs", "chosen": "chosen"}
    return [alt.Tooltip(f"{key}:N", title=title) for key, title in names.items()] + [
        alt.Tooltip(f"{key}:Q", title=title, format=".4~g") for key, title in figures.items()
    ]


def _table(rows: Rows) -> Table:
    return Table(
        name="tuning",
        title="Trials",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="Trial"),
            Column(title="λ"),
            Column(title="Other knobs", align="left", drop=3),
            Column(title="Cost, % of budget"),
            Column(title="Repaired, % of budget"),
            Column(title="Gates moved", drop=2),
            Column(title="Validation Top-1 %"),
            Column(title="In budget", align="left", drop=1),
            Column(title="Seconds", drop=4),
            Column(title="Chosen", align="left"),
        ),
        rows=tuple(_cells(row) for row in rows),
        notes=(
            "A trial is one search with a short fine-tuning, at a seed that no run uses. Top-1 is on validation data",
        ),
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["method"],
        row["budget"],
        str(row["number"]),
        "" if math.isnan(row[_STRENGTH]) else f"{row[_STRENGTH]:.4g}",
        row["knobs"],
        number(row["raw"], 1),
        number(row["cost"], 1),
        number(row["gates"], 0),
        number(row["accuracy"], 2),
        window_position(row["inside"], row["cost"]),
        number(row["seconds"], 1),
        "yes" if row["chosen"] else "",
    )
