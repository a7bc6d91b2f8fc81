"""The comparison table: mean±std of every method at every budget, with what the differences are worth."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.api import Column, Report, StudyResults, Table
from bench.results import groups as pairs
from bench.results import statistics
from bench.results.statistics import EXACT_PAIRS, MIN_PAIRS, PairedDifference
from bench.results.tables import DAMAGED, FAILURES, FINISHED, IDENTITY, STALE, section
from bench.store.outcomes import RETRIABLE
from reports.shared.formatting import MILLION, TOO_FEW, anchor, count, difference, interval, number, spread, yes_no
from reports.shared.limits import Measured, limited

if TYPE_CHECKING:
    import pandas as pd


_Namer = Callable[[Mapping[Any, Any]], str]

_TRIALS_A_KNOB = 3
"""Fewer may leave a method of several knobs behind its place: with ten trials instead of three for its three knobs,
quantizing before pruning gained nine points (`docs/results`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One line of the table before it is text.

    Attributes:
        result: The line of `StudyResults.lines`.
        budget_cost: What the budget allows, in the unit of what it limits; NaN without one.
        top1: Top-1 by seed, of the runs that are done.
        difference: To the baseline; `None` where there is nothing to compare.
        p: Of the difference, corrected; NaN where too few pairs allow no test.
    """

    result: Mapping[str, Any]
    budget_cost: float
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
        """The budget as the user wrote it; empty for none."""
        return str(self.result["budget"])


class Comparison(Report):
    """The table that ends `bench run`."""

    summary = "mean±std of every method and budget, paired differences to the baseline, search cost"
    title = "Comparison"
    rank = 0

    def build(self, results: StudyResults) -> list[Table]:
        """The table of all runs that a study has so far."""
        baseline = str(results.spec.get("baseline", ""))
        rows = _compared(_rows(results.runs, results.lines), baseline)
        more = [kind for kind in limited(results.runs) if kind.measure in ("latency", "energy")]
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
    """A column for the model, where there are several."""
    return (Column(title="Model", align="left"),) if len({row.task for row in rows}) > 1 else ()


def _task_cells(row: _Row, rows: Sequence[_Row]) -> tuple[str, ...]:
    return row.task[: len(_task_columns(rows))]


def _columns(baseline: str, more: Sequence[Measured]) -> tuple[Column, ...]:
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
        Column(title="BOPs (M)"),
        *(Column(title=kind.title) for kind in more),
        Column(title="% of budget", drop=5),
        Column(title="In budget", drop=1),
        Column(title="Memory KB", drop=7),
        Column(title="Search s", drop=2),
        Column(title="Tuning s", drop=4),
        Column(title="Peak MB", drop=8),
    )


def _rows(runs: "pd.DataFrame", results: "pd.DataFrame") -> list[_Row]:
    """The lines of the table in the study's order, each with its runs' Top-1."""
    members = dict(iter(runs.groupby(list(IDENTITY), sort=False)))
    rows = []
    for result in results.to_dict("records"):
        group = members[tuple(result[key] for key in IDENTITY)]
        fields = {str(key): value for key, value in result.items()}
        rows.append(_Row(result=fields, budget_cost=group["budget_cost"].max(), top1=pairs.top1_by_seed(group)))
    return rows


def _compared(rows: Sequence[_Row], baseline: str) -> list[_Row]:
    """The rows with their differences to the baseline, p corrected over the table."""
    partners = [pairs.baseline_of(row, rows, baseline) for row in rows]
    both = zip(rows, partners, strict=True)
    found = [None if partner is None else pairs.difference(row.top1, partner.top1) for row, partner in both]
    corrected = statistics.holm([pairs.p_to_correct(pair) for pair in found])
    return [replace(row, difference=pair, p=p) for row, pair, p in zip(rows, found, corrected, strict=True)]


def _cells(row: _Row, baseline: str, more: Sequence[Measured]) -> tuple[str, ...]:
    result = row.result
    return (
        row.method,
        row.budget,
        count(result["n"], result["n_failed"]),
        spread(result["top1_mean"], result["top1_std"]),
        interval(statistics.t_interval(list(row.top1.values()))),
        *(("baseline", "", "") if row.method == baseline else difference(row.difference, row.p)),
        spread(result["top5_mean"], result["top5_std"]),
        spread(result["bops_mean"] / MILLION, result["bops_std"] / MILLION),
        *(number(result[f"{kind.column}_mean"], digits=3) for kind in more),
        number(100 * result["cost_mean"] / row.budget_cost, digits=1),
        yes_no(result["within_budget"]),
        number(result["memory_kb_mean"], digits=1),
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
        yield f"Not all runs within the budget: {', '.join(outside)}"
    references = sorted({row.method for row in rows if not row.budget})
    if references:
        yield f"References without a budget: {', '.join(references)}"
    yield from _one_stage(rows, results)
    yield from _unfinished(runs)
    yield from _failures(runs, name)


def _one_stage(rows: Sequence[_Row], results: StudyResults) -> Iterator[str]:
    """Which methods of the table are not trained here as their papers do."""
    known = results.study.get("one_stage") or ()
    found = dict.fromkeys(row.method for row in rows if row.method.partition("[")[0] in known)
    if found:
        yield f"Trained once in their papers, here searched and then fine-tuned like all others: {', '.join(found)}"


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
    """What each comparison could have found, so that "no difference" is not read as "equal"."""
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
    """Where latency and energy come from, when a budget limits them."""
    if set(runs["budget_measure"]) & {"latency", "energy"}:
        stated = section(spec, "accelerator")
        yield (
            f"Latency and energy: of an image, simulated BitFusion ({stated.get('hardware')}, batch "
            f"{stated.get('batch')}), depthwise convolutions {stated.get('depthwise')}"
        )


def _matching_notes(results: StudyResults) -> Iterator[str]:
    """What it took to bring methods onto their budgets: trials, and gates that repair moved."""
    runs, name = results.runs, _namer(results)
    done = [record for record in results.tunings() if record.get("status") == "done"]
    if done:
        parts = [
            f"{name(record)} {record['trials_used']} trials, chosen "
            + ", ".join(f"{knob} {value:.3g}" for knob, value in section(record, "knobs").items())
            for record in done
        ]
        yield f"Tuning: {'; '.join(parts)}"
    knobs = [(name(record), len(section(record, "knobs")), int(record["trials_used"])) for record in done]
    if few := [f"{who} ({count})" for who, count, trials in knobs if count > 1 and trials < _TRIALS_A_KNOB * count]:
        yield f"Few trials for several knobs, more may well change the row: {', '.join(few)}"
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
    """How many runs are still to come, and in which state they are."""
    open_runs = runs[~runs["status"].isin(FINISHED)]
    if len(open_runs):
        states = ", ".join(f"{count} {status}" for status, count in open_runs["status"].value_counts().items())
        yield f"{len(open_runs)} of {len(runs)} runs without a result yet: {states}"
    for identity in runs[runs["status"] == DAMAGED]["id"]:
        yield f"The record of run {identity} is damaged and was left out"
    for reason, stale in runs[runs["status"] == STALE].groupby("reason", sort=False):
        yield f"{len(stale)} stale runs left out ({reason}); the same `bench run` makes them anew"


def _failures(runs: "pd.DataFrame", name: _Namer) -> Iterator[str]:
    """Runs that ended without a result, by cell of the table and reason."""
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
    """Names a run or a line of the table by method and budget, and by its model where there are several."""
    keys = ("method", "budget") if results.runs["model"].nunique() < 2 else ("model", "method", "budget")
    return lambda fields: " ".join(str(fields[key]) for key in keys if fields[key])
