"""The rows of a study's comparison: each group of runs with its difference to the baseline, and `results.csv`.

Every table, file and view of a study takes its differences from here, so that all state the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.outputs.escaping import in_csv
from bench.results.fairness import flags as fairness_flags
from bench.results.groups import Flags, RunGroup, baseline_of, difference, p_to_correct, run_groups
from bench.results.statistics import PairedDifference, holm
from bench.results.tables import IDENTITY, StudyResults
from bench.store.files import write_text

if TYPE_CHECKING:
    import pandas as pd

DIFFERENCE_COLUMNS = ("pairs", "delta", "delta_low", "delta_high", "p", "detectable", "flags")
"""Columns of `results.csv` after those of `StudyResults.lines`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineDifference:
    """A group of runs beside the baseline.

    Attributes:
        group: Runs of the method.
        baseline: Runs of the baseline at the same budget; `None` when there are none, or for the baseline itself.
        pair: Difference over the common seeds of both; `None` without a pair.
        p: p-value of the sign-flip test, Holm-corrected over the study; NaN with too few pairs, and when either side is
            flagged.
    """

    group: RunGroup
    baseline: RunGroup | None
    pair: PairedDifference | None
    p: float = math.nan

    @property
    def flags(self) -> tuple[str, ...]:
        """Reasons why the difference takes no part in verdicts."""
        return self.group.flags + (() if self.baseline is None else self.baseline.flags)


def baseline_differences(results: StudyResults, flags: Flags | None = None) -> list[BaselineDifference]:
    """Return every group of runs with its difference to the study's baseline, in the study's order.

    Args:
        results: Numbers of the study.
        flags: Reasons why groups take no part in verdicts, and are not tested; those of the fairness statement when
            absent.
    """
    groups = run_groups(results, flags=fairness_flags(results) if flags is None else flags)
    rows = [_beside_baseline(group, groups, str(results.spec.get("baseline", ""))) for group in groups]
    corrected = holm([math.nan if row.flags else p_to_correct(row.pair) for row in rows])
    return [replace(row, p=p) for row, p in zip(rows, corrected, strict=True)]


def _beside_baseline(group: RunGroup, groups: Sequence[RunGroup], baseline: str) -> BaselineDifference:
    partner = baseline_of(group, groups, baseline)
    pair = None if partner is None else difference(group.top1, partner.top1)
    return BaselineDifference(group=group, baseline=partner, pair=pair)


def result_lines(results: StudyResults, flags: Flags | None = None) -> "pd.DataFrame":
    """Return `results.lines` with the differences to the baseline, as `results.csv` has them.

    Args:
        results: Numbers of the study.
        flags: Reasons why groups take no part in verdicts; those of the fairness statement when absent.
    """
    rows = {row.group.key: _figures(row) for row in baseline_differences(results, flags)}
    keys = results.lines[list(IDENTITY)].itertuples(index=False, name=None)
    figures = [rows.get(key, dict.fromkeys(DIFFERENCE_COLUMNS)) for key in keys]
    columns = {name: [row[name] for row in figures] for name in DIFFERENCE_COLUMNS}
    return results.lines.assign(**columns).astype({"pairs": "Int64"})


def _figures(row: BaselineDifference) -> dict[str, float | int | str | None]:
    pair, flags = row.pair, "; ".join(_stated(row))
    if pair is None:
        return {**dict.fromkeys(DIFFERENCE_COLUMNS), "flags": flags}
    return {
        "pairs": pair.n,
        "delta": pair.mean,
        "delta_low": pair.interval.low,
        "delta_high": pair.interval.high,
        "p": row.p,
        "detectable": pair.detectable,
        "flags": flags,
    }


def _stated(row: BaselineDifference) -> Iterator[str]:
    """Yield the reasons against a verdict; those of the baseline say so."""
    yield from row.group.flags
    if row.baseline is not None:
        yield from (f"the baseline: {flag}" for flag in row.baseline.flags)


def write_numbers(results: StudyResults) -> None:
    """Write `runs.csv` and `results.csv` into a study's folder."""
    folder = results.store.study(results.name)
    write_text(folder / "runs.csv", _csv(results.runs))
    write_text(folder / "results.csv", _csv(result_lines(results)))


def _csv(table: "pd.DataFrame") -> str:
    """Write a table as CSV, in which no text is a formula; names of knobs are titles of columns."""
    safe = table.map(lambda value: in_csv(value) if isinstance(value, str) else value)
    return safe.rename(columns=lambda title: in_csv(str(title))).to_csv(index=False)
