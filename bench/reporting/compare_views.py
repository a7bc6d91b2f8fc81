"""A comparison of studies, methods or runs in words, as a table, and as JSON."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from bench.costs.measures import MEASURES, Bops, Measure
from bench.reporting import wording
from bench.reporting.compare import MATCHED, Comparison, Line, either
from bench.reporting.report import Column, Table
from bench.reporting.wording import count, listed, number
from bench.results.groups import RunGroup
from bench.results.selection import Selection
from bench.results.statistics import LEVEL, MIN_PAIRS, Interval, PairedDifference
from bench.results.tables import section

SIGNIFICANT = 1 - LEVEL

_NOT_COMPARED = frozenset({"name", "methods", "seeds", "budgets", "baseline", "options", "method_files"})
"""Fields of a specification in which two studies may differ although their runs are the same."""
_MOST_DIFFERENCES = 6

# --- in words -----------------------------------------------------------------------------------------------------


def verdict(line: Line, first: str, second: str) -> str:
    """State the result of one line in a sentence, with its uncertainty.

    "Better" requires a test: at least six pairs, p ≤ 0.05, and an interval that excludes 0.

    Args:
        line: Line of the comparison.
        first: Name of the first side.
        second: Name of the second side.
    """
    pair = line.difference
    if pair is None:
        return _without_pair(line, first, second)
    if line.flagged:
        sides = ((first, line.first), (second, line.second))
        return f"no verdict: {'; '.join(f'{name}: {flag}' for name, side in sides for flag in side.flags)}"
    if pair.mean == pair.std == 0:
        return f"no difference seen: {first} and {second} have the same Top-1 in all {pair.n} pairs"
    if math.isnan(line.p):
        return f"undecided: {first} minus {second} is {_size(pair)}, {_evidence(line, pair)}"
    if line.p > SIGNIFICANT or pair.interval.low <= 0 <= pair.interval.high:
        return _not_distinguishable(line, pair, first, second)
    better, worse = (first, second) if pair.mean > 0 else (second, first)
    return f"{better} is better than {worse} by {_size(pair, sign='')}, {_evidence(line, pair)}"


def _without_pair(line: Line, first: str, second: str) -> str:
    """Say why two groups of runs have no pair."""
    sides = ((first, line.first), (second, line.second))
    outside = [f"{name} {_outside(side)}" for name, side in sides if side.outside]
    if outside:
        return f"no verdict: {' and '.join(outside)}, so no pair has the same cost"
    seeds = f"{first} has {listed(line.first.top1)}, {second} has {listed(line.second.top1)}"
    return f"not comparable: no seed in common ({seeds})"


def _outside(group: RunGroup) -> str:
    """Describe the runs of a group outside their budget: "is outside the window of 20KB (56.9 % of the budget)"."""
    return f"is outside the window of {group.budget} ({wording.span(group.outside.values())} % of the budget)"


def _size(pair: PairedDifference, sign: str = "+") -> str:
    """State a difference and its interval, if it has one; without a sign, its absolute value."""
    value = pair.mean if sign else abs(pair.mean)
    if pair.n == 1:
        return f"{value:{sign}.2f} points"
    if pair.all_equal:
        return f"{value:{sign}.2f} points in each of {pair.n} pairs, which shows no scatter"
    low, high = pair.interval.low, pair.interval.high
    if not sign and pair.mean < 0:
        low, high = -high, -low
    return f"{value:{sign}.2f} points, 95 % interval {wording.interval(Interval(low, high), sign=sign)}"


def _not_distinguishable(line: Line, pair: PairedDifference, first: str, second: str) -> str:
    missed = (
        ""
        if math.isnan(pair.detectable)
        else f"; a difference below {pair.detectable:.2f} would not have been found reliably with "
        f"{count(pair.n, 'pair')}"
    )
    return f"not distinguishable: {first} minus {second} is {_size(pair)}, {_evidence(line, pair)}{missed}"


def _evidence(line: Line, pair: PairedDifference) -> str:
    """State the number of pairs and the result of the test."""
    if math.isnan(line.p):
        return f"{count(pair.n, 'pair')} (too few for a test, which needs {MIN_PAIRS})"
    p = wording.probability(line.p)
    corrected = f" (Holm over {line.family})" if line.family > 1 else ""
    return f"{count(pair.n, 'pair')}, p {f'< {p[1:]}' if p.startswith('<') else f'= {p}'}{corrected}"


def verdicts(comparison: Comparison) -> list[str]:
    """Return the verdict of every line."""
    names = comparison.first.name, comparison.second.name
    sentences = [(line.label, verdict(line, *names)) for line in comparison.lines]
    return [f"{label}: {sentence}" if label else sentence for label, sentence in sentences] or [
        "not comparable: A and B have no runs with a result on the same task and budget"
    ]


# --- as a table ---------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> Table:
    """Make the table of a comparison's lines, with their costs side by side."""
    measures = _measures(comparison)
    return Table(
        name="compare",
        title=comparison.title,
        columns=_columns(measures),
        rows=tuple(_row(line, measures) for line in comparison.lines),
        notes=tuple(_notes(comparison)),
    )


def _measures(comparison: Comparison) -> list[type[Measure]]:
    """Return the measures whose costs are shown: those that the budgets limit, then bit operations."""
    limited = {side.measure for line in comparison.lines for side in (line.first, line.second)}
    return [*(kind for name, kind in MEASURES.items() if name in limited and kind is not Bops), Bops]


def _columns(measures: Sequence[type[Measure]]) -> tuple[Column, ...]:
    costs = [
        Column(title=f"{kind.title} {side}", drop=0 if kind is measures[0] else 4) for kind in measures for side in "AB"
    ]
    return (
        Column(title="At", align="left"),
        Column(title="Pairs"),
        Column(title="Top-1 % A"),
        Column(title="Top-1 % B"),
        Column(title="A − B"),
        Column(title="95 % interval"),
        Column(title="p"),
        Column(title="Detectable", drop=1),
        *costs,
        Column(title="Search s A", drop=3),
        Column(title="Search s B", drop=3),
    )


def _row(line: Line, measures: Sequence[type[Measure]]) -> tuple[str, ...]:
    pair = line.difference
    sides = (line.first, line.second)
    at = line.label or either(line.first.budget, line.second.budget)
    difference, interval, p = wording.difference(pair, line.p)
    return (
        at,
        str(len(line.seeds)),
        *(number(_top1(side, line.seeds)) for side in sides),
        *(difference, interval, wording.FLAGGED if line.seeds and line.flagged else p),
        "" if pair is None else number(pair.detectable),
        *(number(side.costs[kind.name] / kind.scale, kind.decimals) for kind in measures for side in sides),
        *(number(side.search_seconds + side.tuning_seconds, digits=1) for side in sides),
    )


def _top1(group: RunGroup, seeds: Sequence[int]) -> float:
    """Return the mean Top-1 over the seeds of the pairs; over all seeds when there are no pairs; NaN without any."""
    values = [group.top1[seed] for seed in seeds] or list(group.top1.values())
    return sum(values) / len(values) if values else math.nan


def _notes(comparison: Comparison) -> Iterator[str]:
    yield from verdicts(comparison)
    yield "Pairs: runs with the same seed; Top-1 % is the mean over pairs. Interval: 95 % Student-t"
    tested = [line for line in comparison.lines if not math.isnan(line.p)]
    if tested:
        family = max(line.family for line in tested)
        corrected = f", Holm-corrected over {family} tests" if family > 1 else ""
        alone = "; the mean of the lines is a test of its own" if any(line.pooled for line in tested) else ""
        yield f"p: two-sided sign-flip test{corrected}{alone}"
    if any(line.difference and line.difference.n < MIN_PAIRS and not line.flagged for line in comparison.lines):
        yield f"{wording.TOO_FEW}: too few pairs for a test"
    if any(line.seeds and line.flagged for line in comparison.lines):
        yield f"{wording.FLAGGED}: takes no part in tests, nor in the mean of the lines; the verdict says why"
    in_mean = [line.label for line in comparison.lines if line.seeds and not line.flagged and not line.pooled]
    if any(line.pooled for line in comparison.lines) and len(in_mean) < len(comparison.lines) - 1:
        yield f"In the mean: {listed(in_mean)}"
    if any(line.difference and line.difference.all_equal for line in comparison.lines):
        yield wording.ALL_EQUAL
    if any(line.difference and not math.isnan(line.difference.detectable) for line in comparison.lines):
        yield "Detectable: smallest true difference that so many pairs find with 80 % power"
    yield "Search s: mean time of one search, plus all tuning trials"
    yield from _left_out(comparison)
    yield from _differing(comparison)


def _left_out(comparison: Comparison) -> Iterator[str]:
    """Name the runs that were not compared: those without a result, and those without a partner."""
    for side, name in (("first", "A"), ("second", "B")):
        states = getattr(comparison, side).left_out
        if states:
            yield f"Left out of {name}: {listed(f'{n} {status}' for status, n in states.items())}"
        for group in {group.key: group for line in comparison.lines if (group := getattr(line, side)).outside}.values():
            seeds, percents = listed(sorted(group.outside)), wording.span(group.outside.values())
            yield f"Outside the window of {group.budget}, in no pair: seeds {seeds} of {name} ({percents} % of it)"
        for line in comparison.lines:
            alone = sorted(getattr(line, side).top1.keys() - set(line.seeds))
            if alone and line.seeds and not line.pooled:
                where = f" at {line.label}" if line.label else ""
                yield f"Seeds of {name}{where} without a partner: {listed(alone)}"


def _differing(comparison: Comparison) -> Iterator[str]:
    """Name the fields of the specification, besides the method, in which two studies differ."""
    first, second = comparison.first.results, comparison.second.results
    if first.name == second.name:
        return
    ours, theirs = (dict(_leaves(results.spec)) for results in (first, second))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    if keys:
        shown = [f"{key} ({ours.get(key)} | {theirs.get(key)})" for key in keys[:_MOST_DIFFERENCES]]
        more = len(keys) - len(shown)
        yield f"The studies differ in {', '.join(shown)}{f' and {more} more' if more else ''}"
    if first.study.get("data_checksum") != second.study.get("data_checksum"):
        yield "The studies' data or splits differ: pairs share a seed, not the images"


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables with the paths to them."""
    for key in values:
        where = f"{path}{key}"
        if where not in _NOT_COMPARED:
            inner = section(values, key)
            yield from _leaves(inner, f"{where}.") if inner else [(where, values[key])]


# --- as JSON ------------------------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return all figures of a comparison; an unknown figure is `null`."""
    return {
        "first": _selection_json(comparison.first),
        "second": _selection_json(comparison.second),
        "lines": [_line_json(line) for line in comparison.lines],
        "verdicts": verdicts(comparison),
    }


def _selection_json(selection: Selection) -> dict[str, Any]:
    return {
        "name": selection.name,
        "kind": selection.kind,
        "study": selection.results.name,
        "runs": [str(run) for run in selection.runs["id"]],
        "left_out": selection.left_out,
    }


def _line_json(line: Line) -> dict[str, Any]:
    pair = line.difference
    return {
        "label": line.label,
        "seeds": line.seeds,
        "difference": None if pair is None else known(pair.mean),
        "std": None if pair is None else known(pair.std),
        "interval": None if pair is None else [known(pair.interval.low), known(pair.interval.high)],
        "p": known(line.p),
        "detectable": None if pair is None else known(pair.detectable),
        "flagged": line.flagged,
        "first": _group_json(line.first),
        "second": _group_json(line.second),
    }


def _group_json(group: RunGroup) -> dict[str, Any]:
    return {
        **{key: getattr(group, key) for key in MATCHED},
        "runs": list(group.runs),
        "top1": {str(seed): value for seed, value in group.top1.items()},
        "outside": {str(seed): known(percent) for seed, percent in group.outside.items()},
        "flags": list(group.flags),
        **{kind.column: known(group.costs[name]) for name, kind in MEASURES.items()},
        **{key: known(getattr(group, key)) for key in ("search_seconds", "tuning_seconds")},
    }


def known(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if math.isnan(value) else value
