"""The ablation tables: each option changed alone, with its paired difference to the unchanged study."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.api import Column, Report, StudyResults, Table
from bench.costs.measures import Measure
from bench.results import statistics
from bench.results.groups import difference as paired_difference
from bench.results.groups import outside_by_seed, p_to_correct, top1_by_seed
from bench.results.statistics import MIN_PAIRS, PairedDifference
from bench.results.tables import FAILURES
from reports.shared.formatting import ALL_EQUAL, TOO_FEW, difference, finished, in_budget, number, span, spread
from reports.shared.limits import limited_measures

if TYPE_CHECKING:
    import pandas as pd


_KEY = ("model", "plain", "budget")
"""Columns that a row shares with the default that it is compared with; `plain` is the method without the change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One value of one option, for one method at one budget on one model.

    Attributes:
        option, value, model, method, budget: Identity of the row.
        default: Whether the value is the study's default.
        runs: Runs with this value.
        difference: Difference to the default; `None` when there is nothing to compare.
        p: Corrected p-value of the difference; NaN when there are too few pairs for a test.
    """

    option: str
    value: str
    model: str
    method: str
    budget: str
    default: bool
    runs: "pd.DataFrame"
    difference: PairedDifference | None = None
    p: float = math.nan


class Ablation(Report):
    """The effect of each option that was changed alone."""

    summary = "studies with --ablate: each option changed alone, paired differences to the default"
    title = "Ablation"
    rank = 10

    def build(self, results: StudyResults) -> list[Table]:
        """Make one table for each option that was ablated."""
        rows = _compared(list(_rows(results)))
        options = dict.fromkeys(row.option for row in rows)
        return [_table(option, [row for row in rows if row.option == option], len(rows)) for option in options]


def _rows(results: StudyResults) -> Iterator[_Row]:
    runs = results.runs.assign(plain=results.runs["method"].str.partition("[")[0])
    first, *changed = results.study.get("ablations") or ({"runs": ()},)
    defaults = dict(iter(runs[runs["id"].isin(first["runs"])].groupby(list(_KEY), sort=False)))
    for ablation in changed:
        for key, group in runs[runs["id"].isin(ablation["runs"])].groupby(list(_KEY), sort=False):
            partners = defaults.get(key, runs.iloc[:0])
            model, method, budget = map(str, key)
            row = _Row(
                option=str(ablation["key"]),
                value=str(ablation["value"]),
                model=model,
                method=method,
                budget=budget,
                default=set(group["id"]) == set(partners["id"]),
                runs=group,
            )
            pair = paired_difference(top1_by_seed(group), top1_by_seed(partners))
            yield row if row.default else replace(row, difference=pair)


def _compared(rows: Sequence[_Row]) -> list[_Row]:
    """Add the p-values to the rows, corrected over all options, because one study asks all of these questions."""
    corrected = statistics.holm([p_to_correct(row.difference) for row in rows])
    return [replace(row, p=p) for row, p in zip(rows, corrected, strict=True)]


def _table(option: str, rows: Sequence[_Row], tests: int) -> Table:
    measures = [*dict.fromkeys(measure for row in rows for measure in limited_measures(row.runs))]
    columns = (
        Column(title=option, align="left"),
        Column(title="Model", align="left", drop=5),
        Column(title="Method", align="left"),
        Column(title="Budget", align="left"),
        Column(title="n"),
        Column(title="Top-1 %"),
        Column(title="Δ default"),
        Column(title="Δ 95 % interval", drop=2),
        Column(title="p"),
        *(Column(title=measure.title) for measure in measures),
        Column(title="In budget", drop=3),
        Column(title="Search s"),
        Column(title="Peak MB", drop=4),
    )
    return Table(
        name=f"ablation_{''.join(c if c.isalnum() else '_' for c in option)}",
        title=f"Ablation of {option}",
        columns=columns,
        rows=tuple(_cells(row, measures) for row in rows),
        notes=tuple(_notes(rows, tests)),
    )


def _cells(row: _Row, measures: Sequence[type[Measure]]) -> tuple[str, ...]:
    done = row.runs[row.runs["status"] == "done"]
    failed = int(row.runs["status"].isin(FAILURES).sum())
    top1, *costs = (_mean_and_std(done[name]) for name in ("top1", *(measure.column for measure in measures)))
    return (
        f"{row.value} (default)" if row.default else row.value,
        row.model,
        row.method,
        row.budget,
        finished(len(done), failed),
        spread(*top1),
        *(("default", "", "") if row.default else difference(row.difference, row.p)),
        *(spread(cost / kind.scale, std / kind.scale) for kind, (cost, std) in zip(measures, costs, strict=True)),
        in_budget(done),
        number(done["search_seconds"].mean(), digits=1),
        number(done["peak_memory_mb"].max(), digits=0),
    )


def _mean_and_std(values: "pd.Series[float]") -> tuple[float, float]:
    return statistics.mean(values.dropna()), statistics.std(values.dropna())


def _notes(rows: Sequence[_Row], tests: int) -> Iterator[str]:
    yield "Δ: Top-1 minus that of the default, paired by seed; everything else is the same. ±: ddof = 1"
    outside = {f"{row.value} {row.method} {row.budget}": outside_by_seed(row.runs) for row in rows}
    parts = [f"{name} ({span(costs.values())} %)" for name, costs in outside.items() if costs]
    if parts:
        yield f"Runs outside the window of the budget are part of no difference: {', '.join(parts)}"
    if not any(row.default for row in rows):
        yield "The study's default is not among the values; its runs are in the comparison"
    if any(not math.isnan(row.p) for row in rows):
        yield f"p: two-sided sign-flip test, Holm-corrected over the {tests} rows of all ablations of the study"
    short = [row.difference for row in rows if row.difference is not None and row.difference.n < MIN_PAIRS]
    if short:
        yield f"{TOO_FEW}: too few pairs for a test"
    if any(row.difference is not None and row.difference.all_equal for row in rows):
        yield ALL_EQUAL
    pairs = [(row, row.difference) for row in rows if row.difference is not None]
    known = [(row, pair) for row, pair in pairs if not math.isnan(pair.detectable)]
    parts = [f"{row.value} {row.model} {row.method} {row.budget} {pair.detectable:.2f}" for row, pair in known]
    if parts:
        yield f"Smallest difference found with 80 % power at 5 %: {', '.join(parts)}"
