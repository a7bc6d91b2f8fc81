"""The comparison table: mean±std of every method at every budget, with the paired difference to the baseline."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.api import Column, Report, StudyResults, Table
from bench.costs.measures import Bops, Measure, Memory
from bench.results import statistics
from bench.results.groups import baseline_of, p_to_correct, top1_by_seed
from bench.results.groups import difference as paired_difference
from bench.results.statistics import EXACT_PAIRS, MIN_PAIRS, PairedDifference
from bench.results.tables import DAMAGED, FAILURES, FINISHED, IDENTITY, STALE, section
from bench.store.outcomes import RETRIABLE
from reports.shared.formatting import TOO_FEW, anchor, count, difference, in_budget, interval, measured, number, spread
from reports.shared.limits import limited_measures

if TYPE_CHECKING:
    import pandas as pd


_Namer = Callable[[Mapping[Any, Any]], str]

_TRIALS_PER_KNOB = 3
"""With fewer trials a method of several knobs may fall behind: with ten trials instead of three for its three knobs,
quantizing before pruning gained nine points (`docs/results`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One row of the table before it is text.

    Attributes:
        result: Row of `StudyResults.lines`.
        budget_cost: Limit of the budget, in the unit of its measure; NaN without a budget.
        in_budget: Position of the finished runs relative to the budget window, in words.
        top1: Top-1 by seed, of the runs that are done.
        difference: Difference to the baseline; `None` when there is nothing to compare.
        p: Corrected p-value of the difference; NaN when there are too few pairs for a test.
    """

    result: Mapping[str, Any]
    budget_cost: float
    in_budget: str
    top1: Mapping[int, float]
    difference: PairedDifference | None = None
    p: float = math.nan

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.result["method"])

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        return str(self.result["model"]), str(self.result["dataset"])

    @property
    def budget(self) -> str:
        """Budget as the user wrote it; empty for none."""
        return str(self.result["budget"])


class Comparison(Report):
    """The table that `bench run` ends with."""

    summary = "mean±std of every method and budget, paired differences to the baseline, search cost"
    title = "Comparison"
    rank = 0

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table of all runs that a study has so far."""
        baseline = str(results.spec.get("baseline", ""))
        rows = _compared(_rows(results.runs, results.lines), baseline)
        more = [measure for measure in limited_measures(results.runs) if measure.on_accelerator]
        table = Table(
            name="table",
            title=_title(results),
            columns=(*_task_columns(rows), *_columns(baseline, more)),
            rows=tuple((*_task_cells(row, rows), *_cells(row, baseline, more)) for row in rows),
            notes=(*_notes(rows, results), *_matching_notes(results)),
            links=tuple(anchor(row.result) for row in rows),
        )
        return [table]


def _title(results: StudyResults) -> str:
    task = section(results.spec, "task")
    models = ", ".join([str(task.get("model", "unknown model")), *map(str, results.spec.get("further_models") or ())])
    return f"{results.name}: {models} on {task.get('dataset', 'unknown data')}"


def _task_columns(rows: Sequence[_Row]) -> tuple[Column, ...]:
    """Make a column for the model when there are several."""
    return (Column(title="Model", align="left"),) if len({row.task for row in rows}) > 1 else ()


def _task_cells(row: _Row, rows: Sequence[_Row]) -> tuple[str, ...]:
    return row.task[: len(_task_columns(rows))]


def _columns(baseline: str, more: Sequence[type[Measure]]) -> tuple[Column, ...]:
    return (
        Column(title="Method", align="left"),
        Column(title="Budget", align="left"),
        Column(title="n"),
        Column(title="Top-1 %"),
        Column(title="95 % interval", drop=6),
        Column(title=f"Δ {baseline}"),
        Column(title="Δ 95 % interval", drop=3),
        Column(title="p"),
        Column(title="Top-5 %", drop=9),
        Column(title=Bops.title),
        *(Column(title=measure.title) for measure in more),
        Column(title="% of budget", drop=5),
        Column(title="In budget", drop=1),
        Column(title=Memory.title, drop=7),
        Column(title="Search s", drop=2),
        Column(title="Tuning s", drop=4),
        Column(title="Peak MB", drop=8),
    )


def _rows(runs: "pd.DataFrame", lines: "pd.DataFrame") -> list[_Row]:
    """Make the rows of the table in the study's order, each with its runs' Top-1."""
    groups = dict(iter(runs.groupby(list(IDENTITY), sort=False)))
    rows = []
    for line in lines.to_dict("records"):
        group = groups[tuple(line[key] for key in IDENTITY)]
        rows.append(
            _Row(
                result={str(key): value for key, value in line.items()},
                budget_cost=group["budget_cost"].max(),
                in_budget=in_budget(group[group["status"] == "done"]),
                top1=top1_by_seed(group),
            )
        )
    return rows


def _compared(rows: Sequence[_Row], baseline: str) -> list[_Row]:
    """Add the differences to the baseline to the rows, with p corrected over the table."""
    partners = [baseline_of(row, rows, baseline) for row in rows]
    both = zip(rows, partners, strict=True)
    pairs = [None if partner is None else paired_difference(row.top1, partner.top1) for row, partner in both]
    corrected = statistics.holm([p_to_correct(pair) for pair in pairs])
    return [replace(row, difference=pair, p=p) for row, pair, p in zip(rows, pairs, corrected, strict=True)]


def _cells(row: _Row, baseline: str, more: Sequence[type[Measure]]) -> tuple[str, ...]:
    result = row.result
    return (
        row.method,
        row.budget,
        count(result["n"], result["n_failed"]),
        spread(result["top1_mean"], result["top1_std"]),
        interval(statistics.t_interval(list(row.top1.values()))),
        *(("baseline", "", "") if row.method == baseline else difference(row.difference, row.p)),
        spread(result["top5_mean"], result["top5_std"]),
        spread(result["bops_mean"] / Bops.scale, result["bops_std"] / Bops.scale),
        *(measured(result[f"{measure.column}_mean"], measure) for measure in more),
        number(100 * result["cost_mean"] / row.budget_cost, digits=1),
        row.in_budget,
        measured(result["memory_kb_mean"], Memory),
        number(result["search_seconds_mean"], digits=1),
        number(result["tuning_seconds"], digits=1),
        number(result["peak_memory_mb"], digits=0),
    )


def _notes(rows: Sequence[_Row], results: StudyResults) -> Iterator[str]:
    runs, spec, name = results.runs, results.spec, _namer(results)
    yield "±: sample standard deviation over seeds (ddof = 1). Intervals: 95 % Student-t. n: finished runs"
    yield from _comparison_notes(rows, str(spec.get("baseline", "")), name)
    yield _protocol(spec)
    yield from _accelerator(runs, spec)
    yield "Search s: mean of one search; Tuning s: all trials that brought the method onto the budget"
    outside = [name(row.result) for row in rows if row.result["within_budget"] is False]
    if outside:
        yield f"Not all runs within the budget window: {', '.join(outside)}"
    references = sorted({row.method for row in rows if not row.budget})
    if references:
        yield f"References without a budget: {', '.join(references)}"
    yield from _one_stage(rows, results)
    yield from _unfinished(runs)
    yield from _failures(runs, name)


def _one_stage(rows: Sequence[_Row], results: StudyResults) -> Iterator[str]:
    """Name the methods of the table that are trained in another way than in their papers."""
    known = results.study.get("one_stage") or ()
    methods = dict.fromkeys(row.method for row in rows if row.method.partition("[")[0] in known)
    if methods:
        yield f"Trained once in their papers, here searched and then fine-tuned like all others: {', '.join(methods)}"


def _comparison_notes(rows: Sequence[_Row], baseline: str, name: _Namer) -> Iterator[str]:
    if not any(row.method == baseline and row.top1 for row in rows):
        yield f"No differences: the baseline '{baseline}' has no finished run in this study"
        return
    yield f"Δ: Top-1 minus that of {baseline} at the same budget, paired by seed"
    tests = sum(not math.isnan(row.p) for row in rows)
    if tests:
        yield (
            f"p: two-sided sign-flip test (exact up to {EXACT_PAIRS} pairs), "
            f"Holm-corrected over the table's {tests} tests"
        )
    if any(row.difference is not None and row.difference.n < MIN_PAIRS for row in rows):
        yield f"{TOO_FEW}: too few pairs for a test"
    yield from _detectable(rows, name)


def _detectable(rows: Sequence[_Row], name: _Namer) -> Iterator[str]:
    """State what each comparison could have found, so that a reader does not take "no difference" for "equal"."""
    known = [(row, row.difference) for row in rows if row.difference is not None and row.difference.n > 1]
    parts = [f"{name(row.result)} {pair.detectable:.2f} (n = {pair.n})" for row, pair in known]
    if parts:
        yield f"Smallest difference found with 80 % power at 5 %: {', '.join(parts)}"


def _protocol(spec: Mapping[str, Any]) -> str:
    tuning = section(spec, "tuning")
    tolerance = float(tuning.get("tolerance", math.nan))
    seeds = ", ".join(str(seed) for seed in spec.get("seeds", ()))
    return (
        f"Matching: {tuning.get('match')}, cost within [{1 - tolerance:.2f}, 1.00] of the budget. "
        f"Recipe: {spec.get('recipe')}. Seeds: {seeds}"
    )


def _accelerator(runs: "pd.DataFrame", spec: Mapping[str, Any]) -> Iterator[str]:
    """Describe the accelerator when a budget limits latency or energy."""
    if any(measure.on_accelerator for measure in limited_measures(runs)):
        stated = section(spec, "accelerator")
        yield (
            f"Latency and energy: of an image, simulated BitFusion ({stated.get('hardware')}, batch "
            f"{stated.get('batch')}), depthwise convolutions {stated.get('depthwise')}"
        )


def _matching_notes(results: StudyResults) -> Iterator[str]:
    """State how methods were brought onto their budgets: trials, knobs, and gates that repair moved."""
    name = _namer(results)
    done = [record for record in results.tunings() if record.get("status") == "done"]
    if done:
        yield f"Tuning: {'; '.join(_tuned(record, name) for record in done)}"
    knobs = [(name(record), len(section(record, "knobs")), int(record["trials_used"])) for record in done]
    few = [f"{row} ({n})" for row, n, trials in knobs if n > 1 and trials < _TRIALS_PER_KNOB * n]
    if few:
        yield f"Few trials for several knobs, more may well change the row: {', '.join(few)}"
    yield from _repairs(results.runs, name)


def _tuned(record: Mapping[str, Any], name: _Namer) -> str:
    knobs = (f"{knob} {value:.3g}" for knob, value in section(record, "knobs").items())
    return f"{name(record)} {record['trials_used']} trials, chosen {', '.join(knobs)}"


def _repairs(runs: "pd.DataFrame", name: _Namer) -> Iterator[str]:
    repaired = runs[(runs["status"] == "done") & (runs["repaired_gates"] > 0) & (runs["budget_cost"] > 0)]
    if len(repaired):
        shares = repaired.assign(share=repaired["raw_cost"] / repaired["budget_cost"])
        groups = shares.groupby(list(IDENTITY), sort=False, as_index=False)[["repaired_gates", "share"]].mean()
        parts = [
            f"{name(group)} {group['repaired_gates']:.1f} gates a run, from {group['share']:.2f} of the budget"
            for group in groups.to_dict("records")
        ]
        yield f"Repair moved: {'; '.join(parts)}"


def _unfinished(runs: "pd.DataFrame") -> Iterator[str]:
    """Count the runs without a result, by state."""
    open_runs = runs[~runs["status"].isin(FINISHED)]
    if len(open_runs):
        states = ", ".join(f"{count} {status}" for status, count in open_runs["status"].value_counts().items())
        yield f"{len(open_runs)} of {len(runs)} runs without a result yet: {states}"
    for identity in runs[runs["status"] == DAMAGED]["id"]:
        yield f"The record of run {identity} is damaged and was left out"
    for reason, stale in runs[runs["status"] == STALE].groupby("reason", sort=False):
        yield f"{len(stale)} stale runs left out ({reason}); the same `bench run` repeats them"


def _failures(runs: "pd.DataFrame", name: _Namer) -> Iterator[str]:
    """Name the runs that ended without a result, by row of the table and reason."""
    failed = runs[runs["status"].isin(FAILURES)]
    for _, group in failed.groupby([*IDENTITY, "status", "reason"], sort=False):
        run = group.to_dict("records")[0]
        seeds = ", ".join(map(str, group["seed"]))
        reason = f": {run['reason']}" if run["reason"] else ""
        yield f"{name(run)}: {len(group)} {run['status']} (seed {seeds}){reason}"
    retried = sorted(set(failed["status"]) & RETRIABLE)
    if retried:
        yield f"To try failed runs again: --retry {','.join(retried)}"


def _namer(results: StudyResults) -> _Namer:
    """Return a function that names a run or a row by method and budget, and by its model when there are several."""
    keys = ("method", "budget") if results.runs["model"].nunique() < 2 else ("model", "method", "budget")
    return lambda fields: " ".join(str(fields[key]) for key in keys if fields[key])
