"""Forecast of the seeds that a difference needs, from the spread of the paired differences so far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.errors import unknown_name
from bench.outputs.commands import command
from bench.outputs.times import duration
from bench.reporting import wording
from bench.reporting.report import Column, Table
from bench.reporting.wording import count, listed, number
from bench.results.groups import RunGroup, baseline_of, difference, run_groups
from bench.results.selection import methods_of
from bench.results.statistics import MOST_PAIRS, Interval, deviation_interval, pairs_needed
from bench.results.tables import StudyResults, section

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Number of pairs that a difference needs; `None` for more than `MOST_PAIRS`.

    Attributes:
        pairs: Pairs for the standard deviation as estimated.
        low, high: Pairs for the ends of its interval.
    """

    pairs: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Forecast for one comparison with the baseline.

    Attributes:
        group: Runs of the method.
        partner: Runs of the baseline.
        pairs: Number of pairs so far.
        deviation: Standard deviation of the paired differences so far; NaN for fewer than two pairs.
        interval: 95 % chi-square interval of the deviation.
        alone: Pairs for this comparison by itself.
        together: Pairs at the strictest level that Holm's correction over all comparisons can ask for.
        seconds: Seconds of one more pair: a pretraining and both runs.
    """

    group: RunGroup
    partner: RunGroup
    pairs: int
    deviation: float
    interval: Interval
    alone: Need
    together: Need
    seconds: float

    @property
    def has_spread(self) -> bool:
        """Whether the differences so far vary, so that a forecast is possible."""
        return self.deviation > 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Forecast for a study.

    Attributes:
        study: Name of the study.
        baseline: Method that the others are compared with.
        detect: Difference to find, in points of Top-1.
        outlooks: Forecast for each comparison that has a pair.
        level: Strictest significance level that Holm's correction asks for.
        seconds_per_seed: Seconds of one more seed of the whole study: a pretraining and the runs of all methods.
        lacking: Methods, with their budgets, that have no pair.
    """

    study: str
    baseline: str
    detect: float
    outlooks: tuple[Outlook, ...]
    level: float
    seconds_per_seed: float
    lacking: tuple[str, ...]

    @property
    def usable(self) -> list[Outlook]:
        """Comparisons for which a forecast is possible."""
        return [outlook for outlook in self.outlooks if outlook.has_spread]


def forecast(results: StudyResults, detect: float, baseline: str | None = None) -> Forecast:
    """Forecast how many seeds a study needs to find a difference with 80 % power at 5 %, in a paired t-test.

    Args:
        results: Numbers of the study.
        detect: Difference in points of Top-1, above 0.
        baseline: Method to compare with; the study's own baseline when absent.

    Raises:
        BenchError: The study has no such method.
    """
    reference = str(results.spec.get("baseline", "")) if baseline is None else baseline
    if reference not in methods_of(results):
        see = command("report", results.name, store=results.store.root)
        raise unknown_name(f"method of study {results.name}", reference, methods_of(results), see)
    groups = run_groups(results)
    pairs = [(group, partner) for group in groups if (partner := baseline_of(group, groups, reference)) is not None]
    level = LEVEL / max(1, sum(bool(group.top1 and partner.top1) for group, partner in pairs))
    pretraining = _pretraining_seconds(results)
    outlooks = tuple(_outlook(group, partner, detect, level, pretraining) for group, partner in pairs)
    tasks = len({group.task for group in groups})
    return Forecast(
        study=results.name,
        baseline=reference,
        detect=detect,
        outlooks=tuple(outlook for outlook in outlooks if outlook.pairs),
        level=level,
        seconds_per_seed=tasks * pretraining + sum(group.total_seconds for group in groups),
        lacking=_lacking(results, groups, outlooks, reference),
    )


def _outlook(group: RunGroup, partner: RunGroup, detect: float, level: float, pretraining: float) -> Outlook:
    pair = difference(group.top1, partner.top1)
    pairs, deviation = (0, math.nan) if pair is None else (pair.n, pair.std)
    interval = deviation_interval(deviation, pairs)

    def need(level: float) -> Need:
        return Need(
            pairs=pairs_needed(detect, deviation, power=POWER, level=level),
            low=pairs_needed(detect, interval.low, power=POWER, level=level),
            high=pairs_needed(detect, interval.high, power=POWER, level=level),
        )

    return Outlook(
        group=group,
        partner=partner,
        pairs=pairs,
        deviation=deviation,
        interval=interval,
        alone=need(LEVEL),
        together=need(level),
        seconds=pretraining + group.total_seconds + partner.total_seconds,
    )


def _pretraining_seconds(results: StudyResults) -> float:
    """Return the mean time of a pretraining; 0 when nothing was pretrained."""
    records = [results.record("pretrained", str(identity)) or {} for identity in results.study.get("pretrained") or ()]
    times = [section(record, "times").get("total_seconds") for record in records if record.get("status") == "done"]
    known = [float(seconds) for seconds in times if isinstance(seconds, int | float)]
    return sum(known) / len(known) if known else 0.0


def _lacking(
    results: StudyResults, groups: Sequence[RunGroup], outlooks: Sequence[Outlook], baseline: str
) -> tuple[str, ...]:
    """Return the methods without a pair with the baseline; with their budgets when they have run."""
    paired = {id(outlook.group) for outlook in outlooks if outlook.pairs}
    alone = [group.name for group in groups if id(group) not in paired and group.method != baseline]
    ran = {group.method for group in groups}
    return (*alone, *(method for method in methods_of(results) if method not in ran and method != baseline))


# --- in words -----------------------------------------------------------------------------------------------------


def no_forecast_reason(plan: Forecast) -> str | None:
    """Return one line on why no forecast is possible; `None` when one is."""
    if plan.usable:
        return None
    reasons = [*_without_forecast(plan)] or ["no runs with a result"]
    return (
        f"no forecast for study {plan.study} yet: {'; '.join(reasons)}; "
        "repeat the study's command with more --seeds to get more pairs"
    )


def seeds_needed(plan: Forecast) -> int:
    """Return the seeds that the most demanding comparison within reach needs after Holm; 0 if none is."""
    return max((outlook.together.pairs or 0 for outlook in plan.usable), default=0)


def table(plan: Forecast) -> Table:
    """Make the table of a forecast's comparisons; the notes say what all of them need together."""
    outlooks = plan.usable
    several = len({outlook.group.task for outlook in outlooks}) > 1
    return Table(
        name="plan",
        title=f"{plan.study}: seeds to find {plan.detect:g} points against {plan.baseline}",
        columns=_COLUMNS,
        rows=tuple(_row(outlook, several=several) for outlook in outlooks),
        notes=tuple(_notes(plan, outlooks)),
    )


_COLUMNS = (
    Column(title="Method", align="left"),
    Column(title="Budget", align="left"),
    Column(title="Pairs"),
    Column(title="SD of Δ"),
    Column(title="SD 95 % interval", drop=1),
    Column(title="Seeds"),
    Column(title="Seeds interval"),
    Column(title="More"),
    Column(title="Time"),
    Column(title="Holm: seeds"),
    Column(title="Holm: interval", drop=2),
    Column(title="Holm: more"),
    Column(title="Holm: time", drop=3),
)


def _row(outlook: Outlook, *, several: bool) -> tuple[str, ...]:
    group = outlook.group
    task = f" ({group.model}, {group.dataset})" if several else ""
    return (
        group.method + task,
        group.budget,
        str(outlook.pairs),
        number(outlook.deviation),
        wording.interval(outlook.interval),
        *_need_cells(outlook, outlook.alone),
        *_need_cells(outlook, outlook.together),
    )


def _need_cells(outlook: Outlook, need: Need) -> tuple[str, str, str, str]:
    more = _more(outlook, need)
    time = "" if more is None else _time(more * outlook.seconds)
    return _pairs(need.pairs), f"{_pairs(need.low)} to {_pairs(need.high)}", "" if more is None else str(more), time


def _more(outlook: Outlook, need: Need) -> int | None:
    """Return the number of further pairs; `None` when more than `MOST_PAIRS` are needed."""
    return None if need.pairs is None else max(0, need.pairs - outlook.pairs)


def _pairs(pairs: int | None) -> str:
    return f">{MOST_PAIRS}" if pairs is None else str(pairs)


def _time(seconds: float) -> str:
    return "" if math.isnan(seconds) else duration(seconds)


def _notes(plan: Forecast, outlooks: Sequence[Outlook]) -> Iterator[str]:
    yield _summary(plan, "Each comparison by itself", [(outlook, outlook.alone) for outlook in outlooks])
    if plan.level < LEVEL:
        strictest = f"After Holm (p below {plan.level:.3g} at the strictest)"
        yield _summary(plan, strictest, [(outlook, outlook.together) for outlook in outlooks])
    yield (
        f"Seeds: pairs with which a paired t-test finds a true difference of {plan.detect:g} points in 80 of 100 "
        "studies at 5 %. Their interval follows from the 95 % interval of the standard deviation (chi-square), which "
        "is wide for few pairs"
    )
    least, holm = (math.ceil(math.log2(2 / level)) for level in (LEVEL, plan.level))
    yield f"The sign-flip test of `bench report` needs at least {least} pairs, and {holm} after Holm"
    yield (
        "Time: further runs one after another, each as long as runs took so far; the time of a row includes the "
        "baseline's runs"
    )
    yield from _without_forecast(plan)


def _summary(plan: Forecast, condition: str, needs: Sequence[tuple[Outlook, Need]]) -> str:
    """State how many seeds the most demanding comparison needs."""
    _, most = max(needs, key=lambda entry: entry[1].pairs or math.inf)
    span = f"{_pairs(most.pairs)} seeds (95 % interval {_pairs(most.low)} to {_pairs(most.high)})"
    further = [_more(outlook, need) for outlook, need in needs]
    known = [more for more in further if more is not None]
    if len(known) < len(further):
        return f"{condition}: {span}; not within reach"
    more = max(known)
    if not more:
        return f"{condition}: {span}; there are enough"
    time = _time(more * plan.seconds_per_seed)
    return f"{condition}: {span}, {more} more than there are" + (f"; all methods: about {time}" if time else "")


def _without_forecast(plan: Forecast) -> Iterator[str]:
    """Name the comparisons for which no forecast is possible."""
    for outlook in plan.outlooks:
        if outlook.pairs < 2:
            yield f"{outlook.group.name}: {count(outlook.pairs, 'pair')} with {plan.baseline}; a spread needs two"
        elif not outlook.has_spread:
            yield f"{outlook.group.name}: all {outlook.pairs} differences are equal, so their spread is unknown"
    if plan.lacking:
        yield f"without a pair with {plan.baseline}: {listed(plan.lacking)}"
