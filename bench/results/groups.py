"""The runs of a study in cells, one for each method and budget on each task, and the pairs of two cells."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.results.statistics import MIN_PAIRS, PairedDifference, compare_pairs
from bench.results.tables import IDENTITY, StudyResults

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """The runs with a result of one method and budget on one task.

    Attributes:
        model, dataset, method, budget: What they have in common; the budget is empty for none.
        runs: Their ids.
        top1: Top-1 in percent by seed.
        bops: Mean over the runs.
        search_seconds: Mean of one search.
        tuning_seconds: Of all trials that brought the method onto the budget, 0 when there were none.
        total_seconds: Mean of a whole run.
    """

    model: str
    dataset: str
    method: str
    budget: str
    runs: tuple[str, ...]
    top1: dict[int, float]
    bops: float
    search_seconds: float
    tuning_seconds: float
    total_seconds: float

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        return self.model, self.dataset

    @property
    def name(self) -> str:
        """Method and budget in words."""
        return " ".join(filter(None, (self.method, self.budget)))


class Grouped(Protocol):
    """Whatever stands for one method and budget on one task."""

    @property
    def method(self) -> str:
        """Of its runs."""
        ...

    @property
    def budget(self) -> str:
        """Of its runs; empty for none."""
        ...

    @property
    def task(self) -> tuple[str, str]:
        """Model and data set."""
        ...


P = TypeVar("P", bound=Grouped)


def with_result(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Those of the runs that can be compared: done, up to date, with a seed and a Top-1."""
    return runs[runs["status"] == "done"].dropna(subset=["seed", "top1"])


def top1_by_seed(runs: "pd.DataFrame") -> dict[int, float]:
    """Top-1 in percent of the runs that can be compared."""
    compared = with_result(runs)
    return {int(seed): float(top1) for seed, top1 in zip(compared["seed"], compared["top1"], strict=True)}


def cells(results: StudyResults, runs: "pd.DataFrame | None" = None) -> list[RunGroup]:
    """The cells of a study that have a run with a result, in the study's order.

    Args:
        results: The study's numbers.
        runs: Lines of `results.runs` to which to confine oneself; all when absent.
    """
    lines = results.lines.to_dict("records")
    tuning = {tuple(line[key] for key in IDENTITY): float(line["tuning_seconds"]) for line in lines}
    groups = with_result(results.runs if runs is None else runs).groupby(list(IDENTITY), sort=False)
    return [_cell(key, group, tuning[key]) for key, group in groups if isinstance(key, tuple)]


def _cell(key: tuple[Hashable, ...], runs: "pd.DataFrame", tuning_seconds: float) -> RunGroup:
    model, dataset, method, budget = map(str, key)
    return RunGroup(
        model=model,
        dataset=dataset,
        method=method,
        budget=budget,
        runs=tuple(runs["id"]),
        top1=top1_by_seed(runs),
        bops=float(runs["bops"].mean()),
        search_seconds=float(runs["search_seconds"].mean()),
        tuning_seconds=tuning_seconds,
        total_seconds=float(runs["total_seconds"].mean()),
    )


def baseline_of(cell: P, others: Sequence[P], baseline: str) -> P | None:
    """The baseline's cell on the same task at the same budget, or the one without a budget; `None` for its own."""
    if cell.method == baseline:
        return None
    partners = (o for o in others if o.method == baseline and o.task == cell.task and o.budget in (cell.budget, ""))
    return next(partners, None)


def common_seeds(first: Mapping[int, float], second: Mapping[int, float]) -> list[int]:
    """The seeds that both have, in rising order."""
    return sorted(first.keys() & second.keys())


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference | None:
    """Top-1 of the first minus that of the second over common seeds; `None` without any.

    Args:
        first: Top-1 by seed.
        second: The same of the other.
    """
    seeds = common_seeds(first, second)
    return compare_pairs([first[seed] for seed in seeds], [second[seed] for seed in seeds]) if seeds else None


def p_to_correct(pair: PairedDifference | None) -> float:
    """The p of a difference, to be corrected; NaN where too few pairs allow no test."""
    return pair.p if pair is not None and pair.n >= MIN_PAIRS else math.nan
