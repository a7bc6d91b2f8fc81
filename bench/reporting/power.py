"""How many seeds it takes to find a difference, judged by how much paired differences have varied so far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.errors import unknown_name
from bench.reporting import wording
from bench.reporting.report import Column, Table
from bench.reporting.wording import count, duration, listed, number
from bench.results.groups import RunGroup, baseline_of, cells, difference
from bench.results.selection import methods_of
from bench.results.statistics import MOST_PAIRS, Interval, deviation_interval, pairs_needed
from bench.results.tables import StudyResults, section

LEVEL, POWER = 0.05, 0.8
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Pairs that a difference needs.

    Attributes:
        pairs: For the deviation as estimated; `None` for more than can be planned.
        low, high: For the ends of its interval.
    """

    pairs: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What one comparison with the baseline needs.

    Attributes:
        cell: The method at a budget on a task.
        partner: The baseline's cell.
        pairs: So far.
        deviation: Of the paired differences so far; NaN for fewer than two pairs.
        interval: 95 % chi-square interval of the deviation.
        alone: Pairs needed for this comparison by itself.
        together: Pairs needed at the strictest level that Holm's correction over all comparisons can ask for.
        seconds: Of one more pair: pretraining and both runs.
    """

    cell: RunGroup
    partner: RunGroup
    pairs: int
    deviation: float
    interval: Interval
    alone: Need
    together: Need
    seconds: float

    @property
    def judged(self) -> bool:
        """Whether differences have varied, so that something can be said."""
        return self.deviation > 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study needs to find a difference.

    Attributes:
        study: Its name.
        baseline: With which methods are compared.
        detect: The difference in points.
        outlooks: One for each comparison that has a pair.
        level: That Holm's correction asks for at the strictest.
        seconds_per_seed: One seed of everything in the study: pretraining and the runs of all methods.
        lacking: Methods and budgets without a pair.
    """

    study: str
    baseline: str
    detect: float
    outlooks: tuple[Outlook, ...]
    level: float
    seconds_per_seed: float
    lacking: tuple[str, ...]


def forecast(results: StudyResults, detect: float, baseline: str | None = None) -> Forecast:
    """Tell how many seeds a study needs to find a difference with 80 % power at 5 %, in a paired t-test.

    Args:
        results: The study's numbers.
        detect: The difference in points of Top-1, above 0.
        baseline: The method to compare with; the study's own when absent.

    Raises:
        BenchError: The study has no such method.
    """
    reference = str(results.spec.get("baseline", "")) if baseline is None else baseline
    if reference not in methods_of(results):
        raise unknown_name(f"method of study {results.name}", reference, methods_of(results), "bench plan --baseline")
    found = cells(results)
    pairs = [(cell, partner) for cell in found if (partner := baseline_of(cell, found, reference)) is not None]
    level = LEVEL / max(1, len(pairs))
    pretraining = _pretraining_seconds(results)
    outlooks = tuple(_outlook(cell, partner, detect, level, pretraining) for cell, partner in pairs)
    tasks = len({cell.task for cell in found})
    return Forecast(
        study=results.name,
        baseline=reference,
        detect=detect,
        outlooks=tuple(outlook for outlook in outlooks if outlook.pairs),
        level=level,
        seconds_per_seed=tasks * pretraining + sum(cell.total_seconds for cell in found),
        lacking=_lacking(results, found, outlooks, reference),
    )


def _outlook(cell: RunGroup, partner: RunGroup, detect: float, level: float, pretraining: float) -> Outlook:
    found = difference(cell.top1, partner.top1)
    pairs, deviation = (0, math.nan) if found is None else (found.n, found.std)
    interval = deviation_interval(deviation, pairs)

    def need(level: float) -> Need:
        numbers = (pairs_needed(detect, each, power=POWER, level=level) for each in (deviation, *_ends(interval)))
        return Need(**dict(zip(("pairs", "low", "high"), numbers, strict=True)))

    return Outlook(
        cell=cell,
        partner=partner,
        pairs=pairs,
        deviation=deviation,
        interval=interval,
        alone=need(LEVEL),
        together=need(level),
        seconds=pretraining + cell.total_seconds + partner.total_seconds,
    )


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _pretraining_seconds(results: StudyResults) -> float:
    """Mean time of a pretraining; 0 where nothing was pretrained."""
    records = [results.record("pretrained", str(identity)) or {} for identity in results.study.get("pretrained") or ()]
    found = [section(record, "times").get("total_seconds") for record in records if record.get("status") == "done"]
    known = [float(seconds) for seconds in found if isinstance(seconds, int | float)]
    return sum(known) / len(known) if known else 0.0


def _lacking(
    results: StudyResults, found: Sequence[RunGroup], outlooks: Sequence[Outlook], baseline: str
) -> tuple[str, ...]:
    """Methods, with their budgets where they have run, that have no pair with the baseline."""
    paired = {id(outlook.cell) for outlook in outlooks if outlook.pairs}
    alone = [cell.name for cell in found if id(cell) not in paired and cell.method != baseline]
    ran = {cell.method for cell in found}
    return (*alone, *(method for method in methods_of(results) if method not in ran and method != baseline))


# --- in words -----------------------------------------------------------------------------------------------------


def nothing_to_say(found: Forecast) -> str | None:
    """Why nothing can be said, in a line; `None` where something can."""
    if any(outlook.judged for outlook in found.outlooks):
        return None
    reasons = [*_unjudged(found)] or ["no runs with a result"]
    return (
        f"nothing can be said of study {found.study} yet: {'; '.join(reasons)}; "
        "the same `bench run` with more --seeds gives more pairs"
    )


def table(found: Forecast) -> Table:
    """The comparisons of a forecast, with what all of them need together below."""
    judged = [outlook for outlook in found.outlooks if outlook.judged]
    return Table(
        name="plan",
        title=f"{found.study}: seeds to find {found.detect:g} points against {found.baseline}",
        columns=_COLUMNS,
        rows=tuple(_cells(outlook, several=len({each.cell.task for each in judged}) > 1) for outlook in judged),
        notes=tuple(_notes(found, judged)),
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


def _cells(outlook: Outlook, *, several: bool) -> tuple[str, ...]:
    task = f" ({outlook.cell.model}, {outlook.cell.dataset})" if several else ""
    return (
        outlook.cell.method + task,
        outlook.cell.budget,
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
    """Pairs that are lacking; `None` where too many are needed."""
    return None if need.pairs is None else max(0, need.pairs - outlook.pairs)


def _pairs(number_of: int | None) -> str:
    return f">{MOST_PAIRS}" if number_of is None else str(number_of)


def _time(seconds: float) -> str:
    return "" if math.isnan(seconds) else duration(seconds)


def _notes(found: Forecast, judged: Sequence[Outlook]) -> Iterator[str]:
    strictest = f"p below {found.level:.3g}"
    yield _altogether(found, "Each comparison by itself", [(outlook, outlook.alone) for outlook in judged])
    if found.level < LEVEL:
        yield _altogether(found, f"After Holm ({strictest} at the strictest)", [(o, o.together) for o in judged])
    yield (
        f"Seeds: pairs with which a paired t-test finds a true difference of {found.detect:g} points in 80 of 100 "
        "studies at 5 %; the 95 % is that of the standard deviation (chi-square), which few pairs tell badly"
    )
    least, holm = (math.ceil(math.log2(2 / level)) for level in (LEVEL, found.level))
    yield f"The sign-flip test of `bench report` needs {least} pairs at least, {holm} after Holm"
    yield "Time: of the lacking runs one at a time, as long as runs so far took; a row's with the baseline's runs"
    yield from _unjudged(found)


def _altogether(found: Forecast, what: str, needs: Sequence[tuple[Outlook, Need]]) -> str:
    """What it takes until the most demanding comparison has enough."""
    _, most = max(needs, key=lambda entry: entry[1].pairs or math.inf)
    span = f"{_pairs(most.pairs)} seeds (95 % interval {_pairs(most.low)} to {_pairs(most.high)})"
    lacking = [_more(outlook, need) for outlook, need in needs]
    known = [more for more in lacking if more is not None]
    if len(known) < len(lacking):
        return f"{what}: {span}; not within reach"
    more = max(known)
    if not more:
        return f"{what}: {span}; there are enough"
    time = _time(more * found.seconds_per_seed)
    return f"{what}: {span}, {more} more than there are" + (f"; all methods: about {time}" if time else "")


def _unjudged(found: Forecast) -> Iterator[str]:
    """Comparisons of which nothing can be said."""
    for outlook in found.outlooks:
        if outlook.pairs < 2:
            yield f"{outlook.cell.name}: {count(outlook.pairs, 'pair')} with {found.baseline}, a spread takes two"
        elif not outlook.judged:
            yield f"{outlook.cell.name}: all {outlook.pairs} differences are equal, which tells no spread"
    if found.lacking:
        yield f"without a pair with {found.baseline}: {listed(found.lacking)}"
