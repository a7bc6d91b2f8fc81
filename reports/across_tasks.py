"""Methods over several tasks: how a method does beyond one model on one data set."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.api import Column, Report, StudyResults, Table
from bench.reporting.wording import count, interval, listed, number
from bench.results.fairness import flags
from bench.results.groups import RunGroup, baseline_of, common_seeds, run_groups
from bench.results.statistics import Interval
from bench.results.task_statistics import Estimate, average_ranks, interquartile_mean, probability_of_improvement

MANY_TASKS = 6
"""Number of tasks below which average ranks are only a description."""

Task = tuple[str, str]
_NOTHING = Estimate(math.nan, Interval(math.nan, math.nan))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A method at a budget.

    Attributes:
        method, budget: Identity of the row.
        groups: Runs of the method, by task.
        partners: Runs of the baseline, for the tasks on which both have runs.
        rank: Average rank among the methods at this budget; NaN when it is not defined.
    """

    method: str
    budget: str
    groups: Mapping[Task, RunGroup]
    partners: Mapping[Task, RunGroup]
    rank: float

    @property
    def paired(self) -> list[tuple[RunGroup, RunGroup]]:
        """Runs of the method and of the baseline, for each task on which both have runs."""
        return [(self.groups[task], partner) for task, partner in self.partners.items()]


class AcrossTasks(Report):
    """The table of a study over several models or data sets."""

    summary = "methods over several tasks: interquartile mean, probability of improvement, average rank"
    title = "Across tasks"
    rank = 30

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none when all runs with a result belong to one task."""
        groups = [group for group in run_groups(results, flags=flags(results)) if group.top1]
        tasks = list(dict.fromkeys(group.task for group in groups))
        if len(tasks) < 2:
            return []
        baseline = str(results.spec.get("baseline", ""))
        rows = _rows(groups, baseline)
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


def _rows(groups: Sequence[RunGroup], baseline: str) -> list[_Row]:
    """Make one row for each method and budget, in the study's order."""
    by_method: dict[tuple[str, str], dict[Task, RunGroup]] = {}
    for group in groups:
        by_method.setdefault((group.method, group.budget), {})[group.task] = group
    ranks = _ranks(by_method)
    rows = []
    for (method, budget), members in by_method.items():
        partners = {task: baseline_of(group, groups, baseline) for task, group in members.items()}
        known = {task: partner for task, partner in partners.items() if partner is not None}
        rank = ranks.get((method, budget), math.nan)
        rows.append(_Row(method=method, budget=budget, groups=members, partners=known, rank=rank))
    return rows


def _ranks(by_method: Mapping[tuple[str, str], Mapping[Task, RunGroup]]) -> dict[tuple[str, str], float]:
    """Return average ranks by mean Top-1 among the methods of each budget, over the tasks that all of them have."""
    ranks: dict[tuple[str, str], float] = {}
    for budget in dict.fromkeys(budget for _, budget in by_method):
        rivals = {key: members for key, members in by_method.items() if key[1] == budget}
        tasks = [task for task in next(iter(rivals.values())) if all(task in members for members in rivals.values())]
        if len(rivals) > 1 and len(tasks) > 1:
            scores = [[_mean(members[task]) for members in rivals.values()] for task in tasks]
            ranks |= dict(zip(rivals, map(float, average_ranks(scores)), strict=True))
    return ranks


def _mean(group: RunGroup) -> float:
    return sum(group.top1.values()) / len(group.top1)


def _top1(group: RunGroup) -> list[float]:
    return list(group.top1.values())


def _differences(row: _Row) -> list[list[float]]:
    """Return the differences to the baseline of each task, seed by seed; tasks without a common seed are left out."""
    pairs = [(group, partner, common_seeds(group.top1, partner.top1)) for group, partner in row.paired]
    return [[group.top1[seed] - partner.top1[seed] for seed in seeds] for group, partner, seeds in pairs if seeds]


def _cells(row: _Row, baseline: str) -> tuple[str, ...]:
    level = interquartile_mean([_top1(group) for group in row.groups.values()])
    difference, better = _NOTHING, _NOTHING
    if len(row.partners) > 1:
        difference = interquartile_mean(_differences(row))
        better = probability_of_improvement(*([_top1(pair[side]) for pair in row.paired] for side in (0, 1)))
    return (
        row.method,
        row.budget,
        str(len(row.groups)),
        str(sum(len(group.top1) for group in row.groups.values())),
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
        "Intervals: bootstrap of runs within tasks; they do not extend to other tasks. There is none when a task has "
        "one run, or when all resamples agree"
    )
    yield "Mean rank: 1 is the best at a budget, by mean Top-1, over the tasks that all methods at this budget have"
    if len(tasks) < MANY_TASKS:
        yield f"{count(len(tasks), 'task')}: with so few, ranks are only a description"
    partial = [f"{row.method} {row.budget}".strip() for row in rows if len(row.groups) < len(tasks)]
    if partial:
        yield f"Not on all tasks, hence not comparable with the others: {listed(partial)}"
    flagged = [f"{group.name} on {group.model}" for row in rows for group in row.groups.values() if group.flags]
    if flagged:
        yield f"Not on equal terms with the others (see the comparison): {listed(flagged)}"
    if any(group.outside for row in rows for group in row.groups.values()):
        yield "Runs outside the window of their budget are part of no figure"
    if not any(row.method == baseline for row in rows):
        yield f"No differences: the baseline '{baseline}' has no finished run in this study"
