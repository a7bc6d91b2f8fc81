"""Groups of runs, one for each method and budget on each task, and the pairs of two groups.

Two runs of different groups are a pair when they have the same seed: both start from the same pretrained network and
see the same order of data. A run outside the window of its budget is part of no pair: a difference between networks of
unequal cost says nothing about their methods.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.costs.measures import MEASURES
from bench.results.statistics import MIN_PAIRS, PairedDifference, compare_pairs
from bench.results.tables import IDENTITY, INSIDE, StudyResults

if TYPE_CHECKING:
    import pandas as pd


GroupKey = tuple[str, str, str, str]
"""Model, data set, method and budget of a group of runs; the budget is empty for none."""

Flags = Mapping[GroupKey, Sequence[str]]
"""Reasons why groups of runs take no part in verdicts: short sentences, e.g. "repair made 24 of its choices"."""

NO_FLAGS: Flags = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """The runs of one method and budget on one task that have a result.

    Attributes:
        model, dataset, method, budget: Fields that the runs have in common; the budget is empty for none.
        runs: Ids of the runs.
        top1: Top-1 in percent by seed, of the runs that can be compared.
        outside: Cost in percent of the budget by seed, of the runs that cannot, being outside the budget's window.
        flags: Reasons why the group takes no part in verdicts.
        measure: Name of the measure that the budget limits; empty without a budget.
        costs: Costs by name of the measure, mean over the runs; NaN for those that are not known.
        search_seconds: Seconds of one search, mean over the runs.
        tuning_seconds: Seconds of all tuning trials together; 0 when nothing was tuned.
        total_seconds: Seconds of a whole run, mean over the runs.
    """

    model: str
    dataset: str
    method: str
    budget: str
    runs: tuple[str, ...]
    top1: dict[int, float]
    outside: Mapping[int, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    measure: str
    costs: Mapping[str, float]
    search_seconds: float
    tuning_seconds: float
    total_seconds: float

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        return self.model, self.dataset

    @property
    def key(self) -> GroupKey:
        """Model, data set, method and budget."""
        return self.model, self.dataset, self.method, self.budget

    @property
    def name(self) -> str:
        """Method and budget, for a sentence."""
        return " ".join(filter(None, (self.method, self.budget)))


class Grouped(Protocol):
    """Anything that belongs to one method and budget on one task."""

    @property
    def method(self) -> str:
        """Name of the method."""
        ...

    @property
    def budget(self) -> str:
        """Budget as the user wrote it; empty for none."""
        ...

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        ...


AnyGroup = TypeVar("AnyGroup", bound=Grouped)


def with_result(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Return the runs that have a result: done, up to date, with a seed and a Top-1."""
    return runs[runs["status"] == "done"].dropna(subset=["seed", "top1"])


def comparable(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Return the runs that have a result, and whose cost is inside the window of their budget, if they have one."""
    finished = with_result(runs)
    return finished[finished["position"].isin((INSIDE, ""))]


def top1_by_seed(runs: "pd.DataFrame") -> dict[int, float]:
    """Return the Top-1 in percent, by seed, of the runs that can be compared."""
    return _by_seed(comparable(runs), "top1")


def _by_seed(runs: "pd.DataFrame", column: str) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in zip(runs["seed"], runs[column], strict=True)}


def outside_by_seed(runs: "pd.DataFrame") -> dict[int, float]:
    """Return the cost in percent of the budget, by seed, of the runs with a result outside their budget's window."""
    finished = with_result(runs)
    outside = finished.drop(comparable(runs).index)
    return _by_seed(outside.assign(percent=100 * outside["cost"] / outside["budget_cost"]), "percent")


def run_groups(results: StudyResults, runs: "pd.DataFrame | None" = None, flags: Flags = NO_FLAGS) -> list[RunGroup]:
    """Return the groups of a study that have a run with a result, in the study's order.

    Args:
        results: Numbers of the study.
        runs: Rows of `results.runs` to group; all of them when absent.
        flags: Reasons why groups take no part in verdicts.
    """
    lines = results.lines.to_dict("records")
    tuning = {tuple(line[key] for key in IDENTITY): float(line["tuning_seconds"]) for line in lines}
    groups = with_result(results.runs if runs is None else runs).groupby(list(IDENTITY), sort=False)
    return [_run_group(key, members, tuning[key], flags) for key, members in groups if isinstance(key, tuple)]


def _run_group(key: tuple[Hashable, ...], runs: "pd.DataFrame", tuning_seconds: float, flags: Flags) -> RunGroup:
    model, dataset, method, budget = map(str, key)
    return RunGroup(
        model=model,
        dataset=dataset,
        method=method,
        budget=budget,
        runs=tuple(runs["id"]),
        top1=top1_by_seed(runs),
        outside=outside_by_seed(runs),
        flags=tuple(flags.get((model, dataset, method, budget), ())),
        measure=str(runs["budget_measure"].iloc[0]),
        costs={name: float(runs[kind.column].mean()) for name, kind in MEASURES.items()},
        search_seconds=float(runs["search_seconds"].mean()),
        tuning_seconds=tuning_seconds,
        total_seconds=float(runs["total_seconds"].mean()),
    )


def baseline_of(group: AnyGroup, others: Sequence[AnyGroup], baseline: str) -> AnyGroup | None:
    """Find the baseline's group on the same task, at the same budget or without one.

    Args:
        group: Group to compare.
        others: All groups of the study.
        baseline: Name of the baseline.

    Returns:
        The first such group; `None` when there is none, or when the group is the baseline itself.
    """
    if group.method == baseline:
        return None
    partners = (
        other
        for other in others
        if other.method == baseline and other.task == group.task and other.budget in (group.budget, "")
    )
    return next(partners, None)


def common_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> list[int]:
    """Return the seeds that both have, in rising order."""
    return sorted(first.keys() & second.keys())


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference | None:
    """Compare two methods over their common seeds, first minus second; `None` without any.

    Args:
        first: Top-1 by seed of the first method.
        second: Top-1 by seed of the second method.
    """
    seeds = common_seeds(first, second)
    return compare_pairs([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None


def p_to_correct(pair: PairedDifference | None) -> float:
    """Return the p-value of a difference for the correction; NaN when there are too few pairs for a test."""
    return pair.p if pair is not None and pair.n >= MIN_PAIRS else math.nan
