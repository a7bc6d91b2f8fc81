"""Fairness of a study, from its records: what each method was given, and which rows break equality.

A comparison says something about methods only if they had the same start, the same training and a search that met the
budget by itself. Rows for which that is not so are flagged; verdicts leave them out.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median_low
from typing import TYPE_CHECKING

from bench.results.groups import with_result
from bench.results.tables import IDENTITY, StudyResults, section

if TYPE_CHECKING:
    import pandas as pd

START_MARGIN = 10.0
"""Percentage points that searches may start below the median of the others without a flag."""
UPDATES_MARGIN = 0.02
"""Share by which the updates of a method's networks may differ from those of the others without a flag."""
FEW_REPAIRS = 2
"""Largest number of choices that repair may change if a search counts as landed; seeds differ by more."""

Place = tuple[str, str, str, str]
"""Model, data set, method and budget: what identifies a row of a study's table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What the runs of one method and budget were given: means over the runs, NaN where nothing is recorded.

    Attributes:
        place: Model, data set, method and budget.
        runs: Number of runs with a result.
        start_top1: Validation accuracy at the start of the search, in percent.
        updates: Training updates after pretraining that the final weights have seen.
        finetuning_updates: Those of them that fine-tuning made; the search made the others, at its own learning rate.
        images: Training images that search and fine-tuning drew.
        evaluated_images: Images on which the search measured accuracy or loss.
        trials: Searches that tuning made before the runs, failed ones included.
        knobs: Number of knobs that were tuned.
        repairs: Choices of the search that repair changed, median over the runs.
        repair_share: Share of the compression, from uniform 8 bit on a logarithmic scale, that repair made.
        landed: Share of the runs whose search met the budget by itself.
        in_budget: Whether the cost of every run is in the window of its budget; true without a budget.
    """

    place: Place
    runs: int
    start_top1: float
    updates: float
    finetuning_updates: float
    images: float
    evaluated_images: float
    trials: float
    knobs: int
    repairs: float
    repair_share: float
    landed: float
    in_budget: bool

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        return self.place[:2]

    @property
    def variant(self) -> str:
        """Changed option of an ablation, as in the method's brackets; empty for none."""
        return self.place[2].partition("[")[2]

    @property
    def budget(self) -> str:
        """Budget as the user wrote it; empty for none."""
        return self.place[3]

    @property
    def trials_per_knob(self) -> float:
        """Trials for each knob; NaN where nothing was tuned."""
        return self.trials / self.knobs if self.knobs else math.nan


def conditions(results: StudyResults) -> list[Conditions]:
    """Return the conditions of every row of a study that has a result, in the study's order."""
    groups = with_result(results.runs).groupby(list(IDENTITY), sort=False)
    return [_conditions(results, key, runs) for key, runs in groups if isinstance(key, tuple)]


def _conditions(results: StudyResults, key: Sequence[object], runs: "pd.DataFrame") -> Conditions:
    model, dataset, method, budget = map(str, key)
    tunings = [results.record("tuning", str(name)) or {} for name in sorted(set(runs["tuning"]) - {""})]
    return Conditions(
        place=(model, dataset, method, budget),
        runs=len(runs),
        start_top1=float(runs["start_top1"].mean()),
        updates=float(runs["trained_updates"].mean()),
        finetuning_updates=float(runs["id"].map(partial(_finetuning_updates, results)).astype(float).mean()),
        images=float(runs["training_images"].mean()),
        evaluated_images=float(runs["evaluated_images"].mean()),
        trials=float(sum(tuning.get(key) or 0 for tuning in tunings for key in ("trials_used", "trials_diverged"))),
        knobs=max((_tuned_knobs(tuning) for tuning in tunings), default=0),
        repairs=float(runs["repaired_gates"].median()),
        repair_share=float(runs["repair_share"].mean()),
        landed=float((runs["within_budget"].eq(True) & (runs["repaired_gates"] <= FEW_REPAIRS)).mean()),
        in_budget=not budget or all(runs["within_budget"].eq(True)),
    )


def _finetuning_updates(results: StudyResults, run: str) -> object:
    """Return the number of batches that the fine-tuning of a run drew; `None` where nothing is recorded."""
    use = section(results.record("runs", run) or {}, "data_use")
    return section(use, "finetune").get("training_batches")


def _tuned_knobs(tuning: Mapping[str, object]) -> int:
    """Count the knobs that a tuning tried; mode "lambda" tunes the strength alone."""
    knobs = section(tuning, "knobs")
    return min(1, len(knobs)) if tuning.get("match") == "lambda" else len(knobs)


def flags(results: StudyResults) -> dict[Place, tuple[str, ...]]:
    """Return the breaches of equality of every row that has one, as sentences without a subject's name."""
    rows = conditions(results)
    found = {row.place: tuple(_breaches(row, [other for other in rows if other is not row])) for row in rows}
    return {place: breaches for place, breaches in found.items() if breaches}


def breaches_between(row: Conditions, other: Conditions) -> tuple[str, ...]:
    """Return the breaches of one row where its only partner is a row of another study."""
    return (*_of_start(row, [other]), *_of_updates(row, [other]))


def _breaches(row: Conditions, others: Sequence[Conditions]) -> list[str]:
    """List the breaches of one row.

    Args:
        row: The row.
        others: All other rows of the study.
    """
    peers = [other for other in others if other.task == row.task and other.variant == row.variant]
    return [*_of_start(row, peers), *_of_updates(row, peers), *_of_repair(row), *_of_budget(row)]


def _of_start(row: Conditions, peers: Sequence[Conditions]) -> list[str]:
    starts = [peer.start_top1 for peer in peers if peer.budget == row.budget and not math.isnan(peer.start_top1)]
    below = median_low(starts) - row.start_top1 if starts else 0.0
    if not below > START_MARGIN:  # also when the row's start is unknown
        return []
    return [f"its searches start at {row.start_top1:.1f} %, {below:.0f} points below the others"]


def _of_updates(row: Conditions, peers: Sequence[Conditions]) -> list[str]:
    counts = Counter(peer.updates for peer in peers if not math.isnan(peer.updates))
    usual = max(counts, key=lambda updates: (counts[updates], updates), default=row.updates)
    if not abs(row.updates - usual) > UPDATES_MARGIN * usual:
        return []
    return [f"its networks saw {row.updates:,.0f} updates after pretraining, the others {usual:,.0f}"]


def _of_repair(row: Conditions) -> list[str]:
    return [f"repair made {row.repairs:g} choices of its policy"] if row.repairs > FEW_REPAIRS else []


def _of_budget(row: Conditions) -> list[str]:
    return [] if row.in_budget else ["its networks are outside the window of the budget"]


def summary(rows: Sequence[Conditions], found: Mapping[Place, Sequence[str]]) -> str:
    """State in one sentence how equal the conditions were.

    Args:
        rows: Conditions of all rows.
        found: Flags of the rows that have some.
    """
    updates = _span([row.updates for row in rows], "{:,.0f}")
    starts = _span([row.start_top1 for row in rows], "{:.1f}")
    limited = [row for row in rows if row.budget]
    finetuning = _span([row.finetuning_updates for row in rows], "{:,.0f}")
    parts = f", {finetuning} of them in fine-tuning" if " " in finetuning else ""
    stated = [f"{updates} updates of every network after pretraining{parts}"] if updates else []
    stated += [f"searches start at {starts} %"] if starts else []
    if limited:
        share = 100 * sum(row.landed * row.runs for row in limited) / sum(row.runs for row in limited)
        stated += [f"{share:.0f} % of the runs met the budget with at most {FEW_REPAIRS} choices repaired"]
    stated += [f"{len(found)} of {len(rows)} rows break equality"] if found else []
    return "; ".join(stated)


def _span(values: Sequence[float], form: str) -> str:
    """Write the range of the known values; empty for none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"
