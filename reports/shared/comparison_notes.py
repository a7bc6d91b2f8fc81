"""The lines below the comparison: what its figures mean, what is not compared and why, what matching took."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api import StudyResults
from bench.outputs.commands import join
from bench.reporting.wording import count as counted
from bench.results.fairness import conditions, flags, summary
from bench.results.statistics import EXACT_PAIRS, MIN_PAIRS
from bench.results.tables import (
    BELOW,
    COSTLIEST,
    DAMAGED,
    FAILURES,
    FINISHED,
    IDENTITY,
    OVER,
    STALE,
    UNKNOWN,
    section,
)
from bench.store.outcomes import RETRIABLE
from reports.shared.commands import smaller_gradients
from reports.shared.comparison_rows import PRETRAINED, Row, marked_flags
from reports.shared.formatting import ALL_EQUAL, FLAGGED, TOO_FEW, span
from reports.shared.limits import limited_measures

if TYPE_CHECKING:
    import pandas as pd


SPREAD_NOTE = "±: sample standard deviation over seeds (ddof = 1)"
INTERVAL_NOTE = "95 % interval: Student-t, cut at 0 and 100 %"
DETECTABLE_NOTE = "Detectable: smallest true difference that so many pairs find with 80 % power"
REPAIR_NOTE = "Repaired: choices of a policy that repair changed to meet the budget, mean of a run"
SECONDS_NOTE = "Search s: mean of one search; Tuning s: all trials that brought the method onto the budget"

_Namer = Callable[[Mapping[Any, Any]], str]

_TRIALS_PER_KNOB = 3
"""With fewer trials a method of several knobs may fall behind: with ten trials instead of three for its three knobs,
quantizing before pruning gained nine points (`docs/results`)."""


def comparison_notes(rows: Sequence[Row], results: StudyResults) -> Iterator[str]:
    """Yield the lines below the comparison.

    Args:
        rows: Rows of the table.
        results: Numbers of the study.
    """
    runs, spec, name = results.runs, results.spec, _namer(results)
    yield from _comparison_notes(rows, str(spec.get("baseline", "")))
    yield _protocol(spec)
    yield from _accelerator(runs, spec)
    yield from _terms(results)
    yield from _outside(rows, results, name)
    yield from _flagged(rows, name)
    yield from _efforts(rows, results, name)
    references = sorted({row.method for row in rows if not row.budget} - {PRETRAINED})
    if references:
        yield f"References without a budget: {', '.join(references)}"
    if any(row.method == PRETRAINED for row in rows):
        yield (
            f"{PRETRAINED}: the networks at full precision that all methods start from, not trained any further; "
            "full_precision among --methods is a reference that is trained as long as the others"
        )
    yield from _one_stage(rows, results)
    yield from _unfinished(runs)
    yield from _failures(results, runs, name)
    yield from _matching(results, name)


def _terms(results: StudyResults) -> Iterator[str]:
    """State how equal the terms of the comparison were; the report `fairness` has them row by row."""
    stated = summary(conditions(results), flags(results))
    if stated:
        yield f"Terms: {stated}"


def _outside(rows: Sequence[Row], results: StudyResults, name: _Namer) -> Iterator[str]:
    """Name the rows with runs outside the budget window, which are compared with nothing."""
    for positions, words in (
        ((BELOW, OVER, UNKNOWN), "Outside the window of the budget"),
        ((COSTLIEST,), "Below the window because no network of the method costs more"),
    ):
        outside = results.runs[results.runs["position"].isin(positions)]
        groups = outside.groupby(list(IDENTITY), sort=False)
        parts = [f"{name(group.iloc[0].to_dict())} ({_percents(group)})" for _, group in groups]
        if parts:
            yield f"{words}, so without difference and test, as nothing else has this cost: {', '.join(parts)}"
    alone = [name(row.result) for row in rows if row.difference is None and _lost_baseline(row)]
    if alone:
        yield f"No difference because the baseline is outside the window: {', '.join(alone)}"


def _percents(runs: "pd.DataFrame") -> str:
    """Return the costs of some runs in percent of their budget, and their number."""
    return f"{counted(len(runs), 'run')}, {span(100 * runs['cost'] / runs['budget_cost'])} %"


def _lost_baseline(row: Row) -> bool:
    """Whether a row would have pairs with the baseline if the baseline were inside the window."""
    baseline = None if row.beside is None else row.beside.baseline
    return baseline is not None and bool(row.beside and baseline.outside.keys() & row.beside.group.top1.keys())


def _flagged(rows: Sequence[Row], name: _Namer) -> Iterator[str]:
    """Give the reasons why rows take no part in verdicts."""
    flagged = [(name(row.result), row.flags) for row in rows if row.flags]
    if flagged:
        yield f"{FLAGGED}: not on equal terms with the other rows, so not tested and no part of a verdict"
    yield from (f"{FLAGGED} {row}: {'; '.join(flags)}" for row, flags in flagged)
    baselines = [row.beside.baseline for row in rows if row.beside is not None and row.beside.baseline is not None]
    if any(marked_flags(baseline) for baseline in baselines):
        yield f"No tests where the baseline has the mark {FLAGGED}"


def _efforts(rows: Sequence[Row], results: StudyResults, name: _Namer) -> Iterator[str]:
    """State how long searches searched, for methods whose searches record it."""
    found = [(name(row.result), _effort(row, results)) for row in rows if row.beside is not None]
    parts = [f"{row} {effort}" for row, effort in found if effort]
    if parts:
        yield f"Effort of a search: {'; '.join(parts)}"


def _effort(row: Row, results: StudyResults) -> str:
    """Return what the searches of a row record of their effort; all runs of a row have the same options."""
    run = "" if row.beside is None else row.beside.group.runs[0]
    record = results.file(run, "search.json")
    effort = record.get("effort") if isinstance(record, dict) else None
    return " ".join(effort.split()) if isinstance(effort, str) else ""


def _one_stage(rows: Sequence[Row], results: StudyResults) -> Iterator[str]:
    """Name the methods of the table that are trained in another way than in their papers."""
    known = results.study.get("one_stage") or ()
    methods = dict.fromkeys(row.method for row in rows if row.method.partition("[")[0] in known)
    if methods:
        yield f"Trained once in their papers, here searched and then fine-tuned like all others: {', '.join(methods)}"


def difference_note(rows: Sequence[Row], baseline: str) -> str:
    """Explain the differences; empty for a table without any."""
    compared = _has_runs(rows, baseline)
    return f"Δ: Top-1 minus that of {baseline} at the same budget, paired by seed" if compared else ""


def test_note(rows: Sequence[Row]) -> str:
    """Explain the column of p-values."""
    tests = sum(not math.isnan(row.p) for row in rows)
    family = f"Holm-corrected over the table's {counted(tests, 'test')}"
    test = f"p: two-sided sign-flip test (exact up to {EXACT_PAIRS} pairs), {family}" if tests else ""
    few = any(row.difference is not None and row.difference.n < MIN_PAIRS for row in rows)
    return "; ".join(filter(None, (test, f"{TOO_FEW}: too few pairs for a test" if few else "")))


def _has_runs(rows: Sequence[Row], method: str) -> bool:
    return any(row.method == method and row.top1 for row in rows)


def _comparison_notes(rows: Sequence[Row], baseline: str) -> Iterator[str]:
    if not _has_runs(rows, baseline):
        yield f"No differences: the baseline '{baseline}' has no finished run in this study"
    elif any(row.difference is not None and row.difference.all_equal for row in rows):
        yield ALL_EQUAL


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
        hardware = str(stated.get("hardware"))
        if hardware.endswith(".json"):
            yield (
                f"Latency: of an image, the sum of layers that were measured with {Path(hardware).stem} on the machine "
                "that planned the study; not the time of the networks themselves"
            )
            return
        yield (
            f"Latency and energy: of an image, simulated BitFusion ({hardware}, batch "
            f"{stated.get('batch')}), depthwise convolutions {stated.get('depthwise')}"
        )


def _matching(results: StudyResults, name: _Namer) -> Iterator[str]:
    """Name the methods whose tuning had few trials for its knobs."""
    done = [record for record in results.tunings() if record.get("status") == "done"]
    knobs = [(name(record), len(section(record, "knobs")), int(record["trials_used"])) for record in done]
    few = [f"{row} ({n})" for row, n, trials in knobs if n > 1 and trials < _TRIALS_PER_KNOB * n]
    if few:
        yield f"Few trials for several knobs, more may well change the row: {', '.join(few)}"


def _unfinished(runs: "pd.DataFrame") -> Iterator[str]:
    """Count the runs without a result, by state."""
    open_runs = runs[~runs["status"].isin(FINISHED)]
    if len(open_runs):
        states = ", ".join(f"{count} {status}" for status, count in open_runs["status"].value_counts().items())
        yield f"{len(open_runs)} of {len(runs)} runs without a result yet: {states}"
    for identity in runs[runs["status"] == DAMAGED]["id"]:
        yield f"The record of run {identity} is damaged and was left out"
    for reason, stale in runs[runs["status"] == STALE].groupby("reason", sort=False):
        yield f"{len(stale)} stale runs left out ({reason}); the study's command repeats them"


def _failures(results: StudyResults, runs: "pd.DataFrame", name: _Namer) -> Iterator[str]:
    """Name the runs that ended without a result, by row of the table and reason."""
    failed = runs[runs["status"].isin(FAILURES)]
    for _, group in failed.groupby([*IDENTITY, "status", "reason"], sort=False):
        run = group.to_dict("records")[0]
        seeds = ", ".join(map(str, group["seed"]))
        reason = f": {run['reason']}" if run["reason"] else ""
        yield f"{name(run)}: {len(group)} {run['status']} (seed {seeds}){reason}"
    retried = sorted(set(failed["status"]) & RETRIABLE)
    if retried:
        changes = smaller_gradients(results) if "diverged" in retried else []
        yield f"To try failed runs again: {join(['--retry', ','.join(retried), *changes])}"


def _namer(results: StudyResults) -> _Namer:
    """Return a function that names a run or a row by method and budget, and by its model when there are several."""
    keys = ("method", "budget") if results.runs["model"].nunique() < 2 else ("model", "method", "budget")
    return lambda fields: " ".join(str(fields[key]) for key in keys if fields[key])
