"""The ablation table: each option changed alone, with its paired difference to the study as it stands."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.api import Column, Report, StudyResults, Table
from bench.results import groups as pairs
from bench.results import statistics
from bench.results.statistics import MIN_PAIRS, PairedDifference
from bench.results.tables import FAILURES
from reports.shared.formatting import MILLION, TOO_FEW, count, difference, number, spread

if TYPE_CHECKING:
    import pandas as pd


_PLACE = ("model", "plain", "budget")
"""What a row has in common with the default that it is compared with; `plain` is the method without the change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One value of one option, for one method at one budget on one model.

    Attributes:
        option, value, model, method, budget: What it is.
        default: Whether the value is the one that the study has anyway.
        runs: The runs.
        difference: To the default; `None` where there is nothing to compare.
        p: Of the difference, corrected; NaN where too few pairs allow no test.
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
    """What each option is worth."""

    summary = "studies with --ablate: each option changed alone, paired differences to the default"
    title = "Ablation"
    rank = 10

    def build(self, results: StudyResults) -> list[Table]:
        """One table for each option that was ablated."""
        rows = _compared(list(_rows(results)))
        options = dict.fromkeys(row.option for row in rows)
        return [_table(option, [row for row in rows if row.option == option], len(rows)) for option in options]


def _rows(results: StudyResults) -> Iterator[_Row]:
    runs = results.runs.assign(plain=results.runs["method"].str.partition("[")[0])
    first, *changed = results.study.get("ablations") or ({"runs": ()},)
    groups = dict(iter(runs[runs["id"].isin(first["runs"])].groupby(list(_PLACE), sort=False)))
    for ablation in changed:
        for place, group in runs[runs["id"].isin(ablation["runs"])].groupby(list(_PLACE), sort=False):
            partners = groups.get(place, runs.iloc[:0])
            model, method, budget = map(str, place)
            row = _Row(
                option=str(ablation["key"]),
                value=str(ablation["value"]),
                model=model,
                method=method,
                budget=budget,
                default=set(group["id"]) == set(partners["id"]),
                runs=group,
            )
            own, other = (pairs.top1_by_seed(frame) for frame in (group, partners))
            yield row if row.default else replace(row, difference=pairs.difference(own, other))


def _compared(rows: Sequence[_Row]) -> list[_Row]:
    """The rows with p corrected over all options: one study asks all of these questions."""
    corrected = statistics.holm([pairs.p_to_correct(row.difference) for row in rows])
    return [replace(row, p=p) for row, p in zip(rows, corrected, strict=True)]


def _table(option: str, rows: Sequence[_Row], tests: int) -> Table:
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
        Column(title="BOPs (M)", drop=1),
        Column(title="In budget", drop=3),
        Column(title="Search s"),
        Column(title="Peak MB", drop=4),
    )
    return Table(
        name=f"ablation_{''.join(c if c.isalnum() else '_' for c in option)}",
        title=f"Ablation of {option}",
        columns=columns,
        rows=tuple(_cells(row) for row in rows),
        notes=tuple(_notes(rows, tests)),
    )


def _cells(row: _Row) -> tuple[str, ...]:
    done = row.runs[row.runs["status"] == "done"]
    failed = int(row.runs["status"].isin(FAILURES).sum())
    found: dict[str, Any] = {name: statistics.summarize(done[name].dropna()) for name in ("top1", "bops")}
    within = ("yes" if done["within_budget"].eq(True).all() else "no") if len(done) and row.budget else ""
    return (
        f"{row.value} (default)" if row.default else row.value,
        row.model,
        row.method,
        row.budget,
        count(len(done), failed),
        spread(found["top1"].mean, found["top1"].std),
        *(("default", "", "") if row.default else difference(row.difference, row.p)),
        spread(found["bops"].mean / MILLION, found["bops"].std / MILLION),
        within,
        number(done["search_seconds"].mean(), digits=1),
        number(done["peak_memory_mb"].max(), digits=0),
    )


def _notes(rows: Sequence[_Row], tests: int) -> Iterator[str]:
    yield "Δ: Top-1 minus that of the default, paired by seed; everything else is the same. ±: ddof = 1"
    if not any(row.default for row in rows):
        yield "The study's default is not among the values; its runs are in the comparison"
    if any(not math.isnan(row.p) for row in rows):
        yield f"p: two-sided sign-flip test, Holm-corrected over the {tests} rows of all ablations of the study"
    short = [row.difference for row in rows if row.difference is not None and row.difference.n < MIN_PAIRS]
    if short:
        yield f"{TOO_FEW}: too few pairs for a test"
    known = [row for row in rows if row.difference is not None and row.difference.n > 1]
    parts = [
        f"{row.value} {row.model} {row.method} {row.budget} {row.difference.detectable:.2f}"
        for row in known
        if row.difference
    ]
    if parts:
        yield f"Smallest difference found with 80 % power at 5 %: {', '.join(parts)}"
