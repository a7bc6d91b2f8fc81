"""The runs of a study in cells, one for each method and budget on each task, and the pairs of two cells."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.results import IDENTITY, StudyResults
from bench.statistics import PairedDifference, compare_pairs

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
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


def with_result(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Those of the runs that can be compared: done, up to date, with a seed and a Top-1."""
    return runs[runs["status"] == "done"].dropna(subset=["seed", "top1"])


def cells(results: StudyResults, runs: "pd.DataFrame | None" = None) -> list[Cell]:
    """The cells of a study that have a run with a result, in the study's order.

    Args:
        results: The study's numbers.
        runs: Lines of `results.runs` to which to confine oneself; all when absent.
    """
    lines = results.lines.to_dict("records")
    tuning = {tuple(line[key] for key in IDENTITY): float(line["tuning_seconds"]) for line in lines}
    groups = with_result(results.runs if runs is None else runs).groupby(list(IDENTITY), sort=False)
    return [_cell(key, group, tuning[key]) for key, group in groups if isinstance(key, tuple)]


def _cell(key: tuple[Hashable, ...], runs: "pd.DataFrame", tuning_seconds: float) -> Cell:
    model, dataset, method, budget = map(str, key)
    return Cell(
        model=model,
        dataset=dataset,
        method=method,
        budget=budget,
        runs=tuple(runs["id"]),
        top1={int(seed): float(top1) for seed, top1 in zip(runs["seed"], runs["top1"], strict=True)},
        bops=float(runs["bops"].mean()),
        search_seconds=float(runs["search_seconds"].mean()),
        tuning_seconds=tuning_seconds,
        total_seconds=float(runs["total_seconds"].mean()),
    )


def baseline_of(cell: Cell, others: Sequence[Cell], baseline: str) -> Cell | None:
    """The baseline's cell on the same task at the same budget, or the one without a budget; `None` for its own."""
    if cell.method == baseline:
        return None
    partners = (o for o in others if o.method == baseline and o.task == cell.task and o.budget in (cell.budget, ""))
    return next(partners, None)


def common_seeds(first: Cell, second: Cell) -> list[int]:
    """The seeds that both have, in rising order."""
    return sorted(first.top1.keys() & second.top1.keys())


def difference(first: Cell, second: Cell) -> PairedDifference | None:
    """Top-1 of the first minus that of the second over common seeds; `None` without any."""
    seeds = common_seeds(first, second)
    if not seeds:
        return None
    return compare_pairs([first.top1[seed] for seed in seeds], [second.top1[seed] for seed in seeds])
