"""Curves of searches and fine-tunings: loss, accuracy and cost after every epoch, mean over seeds."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.api import Column, Figure, Part, Report, StudyResults, Table
from bench.results.statistics import mean, std
from reports.shared.drawing import MOST_POINTS, Rows, both, curves, spread_of, unique
from reports.shared.formatting import figure, named_runs, spread

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    """A figure that a phase reports after every epoch.

    Attributes:
        phase: Phase of a run: search or finetune.
        key: Key of the figure in `curves.json`.
        title: Name of the phase and the figure.
        axis: Title of the axis, with the unit.
        share: Height of a horizontal line; no line when absent.
    """

    phase: str
    key: str
    title: str
    axis: str
    share: float | None = None


_CURVES = (
    _Curve(phase="search", key="loss", title="Search: loss", axis="training loss"),
    _Curve(phase="search", key="accuracy", title="Search: accuracy", axis="training accuracy (%)"),
    _Curve(phase="search", key="cost", title="Search: cost", axis="share of the budget (%)", share=100.0),
    _Curve(phase="finetune", key="loss", title="Fine-tuning: loss", axis="training loss"),
    _Curve(phase="finetune", key="accuracy", title="Fine-tuning: accuracy", axis="training accuracy (%)"),
)
_Line = tuple[str, str]
_Values = dict[tuple[_Line, str, str], dict[int, list[float]]]
"""Values of all runs by epoch, for each method and budget, phase and figure."""


class Convergence(Report):
    """Loss, accuracy and cost by epoch."""

    summary = "loss, accuracy and cost after every epoch of search and fine-tuning"
    title = "Convergence"
    rank = 40
    folded = True

    def build(self, results: StudyResults) -> list[Part]:
        """Make the figures and the table; none before the first run has its curves."""
        values = _gathered(results)
        if not values:
            return []
        lines = list(dict.fromkeys(line for line, _, _ in values))
        methods = unique(method for method, _ in lines)
        figures = (_figure(curve, methods, lines, values) for curve in _CURVES)
        return [*filter(None, figures), _table(lines, values)]


def _gathered(results: StudyResults) -> _Values:
    runs = named_runs(results)
    done = runs[runs["status"] == "done"]
    values: _Values = defaultdict(lambda: defaultdict(list))
    for run in done[["id", "line", "budget", "budget_cost"]].to_dict("records"):
        line = (str(run["line"]), str(run["budget"]) or "none")
        entries = results.file(run["id"], "curves.json")
        for phase, key, epoch, value in _figures(entries, run["budget_cost"]):
            values[line, phase, key][epoch].append(value)
    return values


def _figures(entries: Any, budget: float) -> Iterator[tuple[str, str, int, float]]:
    """Yield the phase, name, epoch and value of each figure of a run.

    Epochs are numbered through all stages of a search. Cost is a percentage of the run's budget, if it has one.
    """
    keys = ("loss", "accuracy", *(("cost",) if budget > 0 else ()))
    counts: dict[str, int] = defaultdict(int)
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        phase = str(entry.get("phase"))
        counts[phase] += 1
        for key in keys:
            value = 100 * figure(entry.get(key)) / budget if key == "cost" else figure(entry.get(key))
            if math.isfinite(value):
                yield phase, key, counts[phase], value


def _figure(curve: _Curve, methods: Sequence[str], lines: Sequence[_Line], values: _Values) -> Figure | None:
    rows, note = _rows(curve, lines, values)
    if not rows:
        return None
    drawn = both(_layers(curve, methods, rows), rows, "budget", "Budget")
    notes = ("Lines: means over seeds; bands: ± one standard deviation", *note)
    return Figure(name=f"{curve.phase}-{curve.key}", title=curve.title, notes=notes, **drawn)


def _layers(curve: _Curve, methods: Sequence[str], rows: Rows) -> "Callable[[], Sequence[alt.Chart]]":
    return lambda: curves(methods, rows, "epoch", curve.axis, curve.share)


def _rows(curve: _Curve, lines: Sequence[_Line], values: _Values) -> tuple[Rows, tuple[str, ...]]:
    """Make one row for each method, budget and epoch; of too many epochs, evenly spaced ones and the last."""
    known = [line for line in lines if (line, curve.phase, curve.key) in values]
    points = sum(len(values[line, curve.phase, curve.key]) for line in known)
    step = math.ceil(points / MOST_POINTS)
    rows = [
        {"method": line[0], "budget": line[1], "epoch": epoch, **spread_of(figures)}
        for line in known
        for epoch, figures in _spaced(values[line, curve.phase, curve.key], step)
    ]
    return rows, () if step < 2 else (f"The figure shows every {step}th epoch and the last",)


def _spaced(epochs: Mapping[int, list[float]], step: int) -> list[tuple[int, list[float]]]:
    last = max(epochs)
    return [(epoch, epochs[epoch]) for epoch in sorted(epochs) if step < 2 or epoch % step == 1 or epoch == last]


def _table(lines: Sequence[_Line], values: _Values) -> Table:
    return Table(
        name="convergence",
        title="After the last epoch: mean±std over seeds",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="Search epochs", drop=2),
            Column(title="Search loss"),
            Column(title="Search accuracy %"),
            Column(title="Search cost, % of budget"),
            Column(title="Fine-tuning epochs", drop=1),
            Column(title="Fine-tuning loss"),
            Column(title="Fine-tuning accuracy %"),
        ),
        rows=tuple(_cells(line, values) for line in lines),
        notes=(
            "Training loss and accuracy. Cost is that of the search itself, before repair. "
            "Methods without a search have no figures of one",
        ),
    )


def _cells(line: _Line, values: _Values) -> tuple[str, ...]:
    def last(phase: str, key: str) -> str:
        epochs = values.get((line, phase, key))
        return "" if not epochs else spread(mean(epochs[max(epochs)]), std(epochs[max(epochs)]))

    def count(phase: str) -> str:
        epochs = values.get((line, phase, "loss"))
        return str(max(epochs)) if epochs else ""

    search = (last("search", key) for key in ("loss", "accuracy", "cost"))
    finetuning = (last("finetune", key) for key in ("loss", "accuracy"))
    return (*line, count("search"), *search, count("finetune"), *finetuning)
