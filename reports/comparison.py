"""The comparison table: mean±std of every method at every budget, with the paired difference to the baseline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.api import Column, Part, Report, StudyResults, Table
from bench.costs.measures import Measure
from bench.outputs.terminal import Tone
from bench.reporting.verdict import study_verdicts
from bench.results.groups import Flags
from bench.results.tables import section
from reports.shared.comparison_notes import (
    DETECTABLE_NOTE,
    INTERVAL_NOTE,
    REPAIR_NOTE,
    SECONDS_NOTE,
    SPREAD_NOTE,
    comparison_notes,
    difference_note,
    test_note,
)
from reports.shared.comparison_rows import Row, comparison_rows
from reports.shared.difference_figure import difference_figure
from reports.shared.formatting import (
    FLAGGED,
    anchor,
    difference,
    finished,
    interval,
    measured,
    number,
    percent_interval,
    spread,
)
from reports.shared.limits import limited_measures, shown_measures


class Comparison(Report):
    """The table that `bench run` ends with."""

    summary = "mean±std of every method and budget, paired differences to the baseline, search cost"
    title = "Comparison"
    rank = 0

    def build(self, results: StudyResults) -> list[Part]:
        """Make the table of all runs that a study has so far, and the figure of its differences."""
        rows = comparison_rows(results, None)
        figure = difference_figure(rows, str(results.spec.get("baseline", "")))
        return [_table(results, rows), *([] if figure is None else [figure])]


def comparison_table(results: StudyResults, flags: Flags | None = None) -> Table:
    """Make the table of all runs that a study has so far.

    Args:
        results: Numbers of the study.
        flags: Reasons why groups of runs take no part in verdicts; those of the fairness statement when absent.
    """
    return _table(results, comparison_rows(results, flags))


def _table(results: StudyResults, rows: Sequence[Row]) -> Table:
    baseline = str(results.spec.get("baseline", ""))
    measures = shown_measures(results.runs)
    return Table(
        name="table",
        title=_title(results),
        columns=(*_task_columns(rows), *_columns(baseline, rows, measures, len(limited_measures(results.runs)))),
        rows=tuple((*_task_cells(row, rows), *_cells(row, baseline, measures)) for row in rows),
        headline=tuple(study_verdicts([row.beside for row in rows if row.beside is not None])),
        notes=tuple(comparison_notes(rows, results)),
        links=tuple(anchor(row.result) for row in rows),
        tones=tuple(map(_tone, rows)),
    )


def _tone(row: Row) -> Tone:
    """Return whether a difference is good or bad news; none if its interval holds 0 or it takes no part in verdicts."""
    ends = None if row.difference is None or row.flags else row.difference.interval
    if ends is None or not (ends.low > 0 or ends.high < 0):
        return ""
    return "good" if ends.low > 0 else "bad"


def _title(results: StudyResults) -> str:
    task = section(results.spec, "task")
    models = ", ".join([str(task.get("model", "unknown model")), *map(str, results.spec.get("further_models") or ())])
    return f"{results.name}: {models} on {task.get('dataset', 'unknown data')}"


def _task_columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Make a column for the model when there are several."""
    return (Column(title="Model", align="left"),) if len({row.task for row in rows}) > 1 else ()


def _task_cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    return row.task[: len(_task_columns(rows))]


def _columns(baseline: str, rows: Sequence[Row], measures: Sequence[type[Measure]], limited: int) -> tuple[Column, ...]:
    """Make the headings; the first measures, which budgets limit, are shown at any width."""
    delta = difference_note(rows, baseline)
    return (
        Column(title="Method", align="left"),
        Column(title="Budget", align="left", drop=1 if len({row.budget for row in rows if row.budget}) < 2 else 0),
        Column(title="n", drop=1, note="n: finished runs"),
        Column(title="Top-1 %", note=SPREAD_NOTE),
        Column(title="95 % interval", drop=6, note=INTERVAL_NOTE),
        Column(title=f"Δ {baseline}", note=delta, toned=True),
        Column(title="Δ 95 % interval", note=delta, toned=True),
        Column(title="p", drop=3, note=test_note(rows)),
        Column(title="Detectable", drop=10, note=DETECTABLE_NOTE),
        Column(title="Top-5 %", drop=9),
        *(Column(title=measure.title, drop=7 if rank >= limited else 0) for rank, measure in enumerate(measures)),
        Column(title="% of budget", drop=5),
        Column(title="In budget", drop=4),
        Column(title="Repaired", drop=4, note=REPAIR_NOTE),
        Column(title="Search s", note=SECONDS_NOTE),
        Column(title="Tuning s", drop=2, note=SECONDS_NOTE),
        Column(title="Peak MB", drop=8),
    )


def _cells(row: Row, baseline: str, measures: Sequence[type[Measure]]) -> tuple[str, ...]:
    result = row.result
    return (
        row.method,
        row.budget,
        finished(result["n"], result["n_failed"]),
        spread(result["top1_mean"], result["top1_std"]),
        interval(percent_interval(row.top1)),
        *_difference_cells(row, baseline),
        spread(result["top5_mean"], result["top5_std"]),
        *(_cost(result, measure) for measure in measures),
        number(100 * result["cost_mean"] / row.budget_cost, digits=1),
        row.in_budget,
        number(row.repaired, digits=1),
        number(result["search_seconds_mean"], digits=1),
        number(result["tuning_seconds"], digits=1),
        number(result["peak_memory_mb"], digits=0),
    )


def _difference_cells(row: Row, baseline: str) -> tuple[str, str, str, str]:
    """Make the cells of the difference, its interval, p and what is detectable; a flagged row has its mark as p."""
    delta, ends, p = ("baseline", "", "") if row.method == baseline else difference(row.difference, row.p)
    untested = row.beside is not None and row.beside.flags
    detectable = math.nan if row.difference is None else row.difference.detectable
    return delta, ends, FLAGGED if row.flags else "" if untested else p, number(detectable)


def _cost(result: Mapping[str, Any], measure: type[Measure]) -> str:
    """Format the mean of a cost, with the deviation where it is known."""
    mean, deviation = result[f"{measure.column}_mean"], f"{measure.column}_std"
    if deviation not in result:
        return measured(mean, measure)
    return spread(mean / measure.scale, result[deviation] / measure.scale)
