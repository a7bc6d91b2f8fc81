"""Methods over several tasks: what can be said of a method beyond one model on one data set."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.api import Column, Report, StudyResults, Table
from bench.reporting.wording import count, interval, listed, number
from bench.results.groups import RunGroup, baseline_of, cells, common_seeds
from bench.results.statistics import Interval
from bench.results.task_statistics import Estimate, average_ranks, interquartile_mean, probability_of_improvement

MANY_TASKS = 6
"""With fewer tasks ranks tell little."""

Task = tuple[str, str]
_NOTHING = Estimate(math.nan, Interval(math.nan, math.nan))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A method at a budget.

    Attributes:
        cells: Its runs by task.
        partners: Those of the baseline, for the tasks where both have runs.
        rank: Average rank among the methods at this budget; NaN where it has none.
    """

    method: str
    budget: str
    cells: Mapping[Task, RunGroup]
    partners: Mapping[Task, RunGroup]
    rank: float

    @property
    def paired(self) -> list[tuple[RunGroup, RunGroup]]:
        """The cells of the tasks where the baseline has runs too, with the baseline's."""
        return [(self.cells[task], partner) for task, partner in self.partners.items()]


class AcrossTasks(Report):
    """The table of a study over several models or data sets."""

    summary = "methods over several tasks: interquartile mean, probability of improvement, average rank"
    title = "Across tasks"
    rank = 30

    def build(self, results: StudyResults) -> list[Table]:
        """The table; nothing where all runs with a result belong to one task."""
        found = cells(results)
        tasks = list(dict.fromkeys(cell.task for cell in found))
        if len(tasks) < 2:
            return []
        baseline = str(results.spec.get("baseline", ""))
        rows = _rows(found, baseline)
        return [
            Table(
                name="across_tasks",
                title=f"{results.name}: {len(tasks)} tasks ({', '.join(' on '.join(task) for task in tasks)})",
                columns=_columns(baseline),
                rows=tuple(_cells(row, baseline) for row in rows),
                notes=tuple(_notes(rows, tasks, baseline)),
            )
        ]


def _columns(baseline: str) -> tuple[Column, ...]:
    return (
        Column(title="Method", align="left"),
        Column(title="Budget", align="left"),
        Column(title="Tasks"),
        Column(title="Runs"),
        Column(title="IQM Top-1 %"),
        Column(title="IQM 95 % interval", drop=3),
        Column(title=f"IQM Δ {baseline}"),
        Column(title="Δ 95 % interval", drop=2),
        Column(title=f"P > {baseline}"),
        Column(title="P 95 % interval", drop=1),
        Column(title="Mean rank"),
    )


def _rows(found: Sequence[RunGroup], baseline: str) -> list[_Row]:
    """One row for each method and budget, in the study's order."""
    groups: dict[tuple[str, str], dict[Task, RunGroup]] = {}
    for cell in found:
        groups.setdefault((cell.method, cell.budget), {})[cell.task] = cell
    ranks = _ranks(groups)
    rows = []
    for (method, budget), members in groups.items():
        partners = {task: baseline_of(cell, found, baseline) for task, cell in members.items()}
        known = {task: partner for task, partner in partners.items() if partner is not None}
        rank = ranks.get((method, budget), math.nan)
        rows.append(_Row(method=method, budget=budget, cells=members, partners=known, rank=rank))
    return rows


def _ranks(groups: Mapping[tuple[str, str], Mapping[Task, RunGroup]]) -> dict[tuple[str, str], float]:
    """Average ranks by mean Top-1 among the methods of each budget, over the tasks that all of them have."""
    found: dict[tuple[str, str], float] = {}
    for budget in dict.fromkeys(budget for _, budget in groups):
        rivals = {key: members for key, members in groups.items() if key[1] == budget}
        tasks = [task for task in next(iter(rivals.values())) if all(task in members for members in rivals.values())]
        if len(rivals) > 1 and len(tasks) > 1:
            scores = [[_mean(members[task]) for members in rivals.values()] for task in tasks]
            found |= dict(zip(rivals, map(float, average_ranks(scores)), strict=True))
    return found


def _mean(cell: RunGroup) -> float:
    return sum(cell.top1.values()) / len(cell.top1)


def _top1(cell: RunGroup) -> list[float]:
    return list(cell.top1.values())


def _differences(row: _Row) -> list[list[float]]:
    """For each task the differences to the baseline, seed by seed; tasks without a common seed are left out."""
    pairs = [(cell, partner, common_seeds(cell.top1, partner.top1)) for cell, partner in row.paired]
    return [[cell.top1[seed] - partner.top1[seed] for seed in seeds] for cell, partner, seeds in pairs if seeds]


def _cells(row: _Row, baseline: str) -> tuple[str, ...]:
    level = interquartile_mean([_top1(cell) for cell in row.cells.values()])
    difference, better = _NOTHING, _NOTHING
    if len(row.partners) > 1:
        difference = interquartile_mean(_differences(row))
        better = probability_of_improvement(*([_top1(pair[side]) for pair in row.paired] for side in (0, 1)))
    return (
        row.method,
        row.budget,
        str(len(row.cells)),
        str(sum(len(cell.runs) for cell in row.cells.values())),
        number(level.value),
        interval(level.interval),
        "baseline" if row.method == baseline else number(difference.value, sign="+"),
        interval(difference.interval, sign="+"),
        number(better.value),
        interval(better.interval),
        number(row.rank),
    )


def _notes(rows: Sequence[_Row], tasks: Sequence[Task], baseline: str) -> Iterator[str]:
    yield "IQM: interquartile mean, the mean of the middle half of all runs of all tasks (Agarwal et al. 2021)"
    yield f"Δ: Top-1 minus that of {baseline}, paired by seed. P: probability that a run is above one of {baseline}"
    yield (
        "Intervals: bootstrap of runs within tasks; they say nothing of other tasks. None where a task has one run, "
        "or where all resamples agree"
    )
    yield "Mean rank: 1 is the best at a budget, by mean Top-1, over the tasks that all methods there have"
    if len(tasks) < MANY_TASKS:
        yield f"{count(len(tasks), 'task')}: too few to take ranks for more than a description"
    partial = [f"{row.method} {row.budget}".strip() for row in rows if len(row.cells) < len(tasks)]
    if partial:
        yield f"Not on all tasks, hence not comparable with the others: {listed(partial)}"
    if not any(row.method == baseline for row in rows):
        yield f"No differences: the baseline '{baseline}' has no finished run in this study"
