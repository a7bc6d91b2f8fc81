"""Comparison of two studies, two of their methods, or two runs, in pairs of runs with the same seed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from bench.costs.measures import Bops
from bench.errors import BenchError
from bench.reporting import wording
from bench.reporting.report import Column, Table
from bench.reporting.wording import count, listed, number
from bench.results.groups import RunGroup, common_seeds, difference, p_to_correct, run_groups
from bench.results.selection import Selection
from bench.results.statistics import LEVEL, MIN_PAIRS, PairedDifference, holm
from bench.results.tables import section

SIGNIFICANT = 1 - LEVEL

_MATCHED = ("method", "model", "dataset", "budget")
_NOT_COMPARED = frozenset({"name", "methods", "seeds", "budgets", "baseline", "options", "method_files"})
"""Fields of a specification in which two studies may differ although their runs are the same."""
_MOST_DIFFERENCES = 6


@dataclass(frozen=True, kw_only=True)
class Line:
    """Two groups of runs that are compared.

    Attributes:
        label: Text that distinguishes the line from others; empty for a single one.
        first, second: Groups of runs.
        p: p-value of the sign-flip test, Holm-corrected over its family; NaN when there are too few pairs for a test.
        family: Number of tests that p was corrected over.
        pooled: Whether the line stands for all other lines together.
    """

    label: str
    first: RunGroup
    second: RunGroup
    p: float = math.nan
    family: int = 1
    pooled: bool = False

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds of the pairs."""
        return common_seeds(self.first.top1, self.second.top1)

    @cached_property
    def difference(self) -> PairedDifference | None:
        """Top-1 of the first minus that of the second; `None` without pairs."""
        return difference(self.first.top1, self.second.top1)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two selections and the lines that compare them."""

    first: Selection
    second: Selection
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """Names of A and B."""
        return f"A = {self.first.name}, B = {self.second.name}"


def compare(first: Selection, second: Selection) -> Comparison:
    """Pair the runs of two selections.

    For two studies, a line compares the groups with the same method and budget. Otherwise the model, data set or budget
    of the two groups must agree only if both selections have several of them.

    Raises:
        BenchError: One selection is a whole study and the other is not.
    """
    if (first.kind == "study") != (second.kind == "study"):
        study, other = (first, second) if first.kind == "study" else (second, first)
        raise BenchError(
            f"'{study.name}' is a study and '{other.name}' a {other.kind}; name two studies, "
            f"or a method of the study as {study.name}/METHOD"
        )
    strict = ("method", "budget") if first.kind == "study" else ()
    pairs = _partners(run_groups(first.results, first.runs), run_groups(second.results, second.runs), strict)
    lines = [Line(label=label, first=a, second=b) for label, (a, b) in zip(_labels(pairs, strict), pairs, strict=True)]
    if len(lines) > 1 and first.kind != "study":
        lines += _pooled(lines)
    return Comparison(first=first, second=second, lines=tuple(_tested(lines)))


def _partners(
    first: Sequence[RunGroup], second: Sequence[RunGroup], strict: Sequence[str]
) -> list[tuple[RunGroup, RunGroup]]:
    """Return the pairs of groups that agree in every field that must agree."""

    def several(side: Sequence[RunGroup], key: str) -> bool:
        return len({getattr(group, key) for group in side}) > 1

    compared = [key for key in _MATCHED if key in strict or (key != "method" and several(first, key))]
    shared = [key for key in compared if key in strict or several(second, key)]
    return [(a, b) for a, b in product(first, second) if all(getattr(a, key) == getattr(b, key) for key in shared)]


def _labels(pairs: Sequence[tuple[RunGroup, RunGroup]], strict: Sequence[str]) -> list[str]:
    """Return one text for each pair, of the fields in which the pairs differ."""
    texts = {key: [_either(getattr(a, key), getattr(b, key)) for a, b in pairs] for key in _MATCHED}
    shown = [key for key in _MATCHED if key in strict or (key != "method" and len(set(texts[key])) > 1)]
    return [" ".join(filter(None, (texts[key][index] for key in shown))) for index in range(len(pairs))]


def _either(first: str, second: str) -> str:
    return first if first == second else f"{first or '–'}|{second or '–'}"


def _pooled(lines: Sequence[Line]) -> list[Line]:
    """Return one line for all others, in which each common seed counts once, with its mean over the lines."""
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines)))
    if not seeds:
        return []
    first, second = ([getattr(line, side) for line in lines] for side in ("first", "second"))
    return [Line(label="mean of these", first=_averaged(first, seeds), second=_averaged(second, seeds), pooled=True)]


def _averaged(groups: Sequence[RunGroup], seeds: Sequence[int]) -> RunGroup:
    """Return a group whose figures are the means of others'."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(groups)

    return RunGroup(
        model=_common(group.model for group in groups),
        dataset=_common(group.dataset for group in groups),
        method=_common(group.method for group in groups),
        budget=_common(group.budget for group in groups),
        runs=tuple(dict.fromkeys(run for group in groups for run in group.runs)),
        top1={seed: mean(group.top1[seed] for group in groups) for seed in seeds},
        bops=mean(group.bops for group in groups),
        search_seconds=mean(group.search_seconds for group in groups),
        tuning_seconds=mean(group.tuning_seconds for group in groups),
        total_seconds=mean(group.total_seconds for group in groups),
    )


def _common(values: Iterable[str]) -> str:
    """Return the value that all share; an empty text when they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""


def _tested(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines with their p-values, Holm-corrected over all lines except the pooled one, a test of its own."""
    raw = [p_to_correct(line.difference) for line in lines]
    family = [math.nan if line.pooled else p for line, p in zip(lines, raw, strict=True)]
    tests = sum(not math.isnan(p) for p in family)
    for line, p, corrected in zip(lines, raw, holm(family), strict=True):
        yield replace(line, p=p if line.pooled else corrected, family=1 if line.pooled else tests)


# --- in words -----------------------------------------------------------------------------------------------------


def verdict(line: Line, first: str, second: str) -> str:
    """State the result of one line in a sentence, with its uncertainty.

    "Better" requires that the interval excludes 0 and that p ≤ 0.05.

    Args:
        line: Line of the comparison.
        first: Name of the first side.
        second: Name of the second side.
    """
    pair = line.difference
    if pair is None:
        seeds = f"{first} has {listed(line.first.top1)}, {second} has {listed(line.second.top1)}"
        return f"not comparable: no seed in common ({seeds})"
    if pair.n == 1:
        return f"not distinguishable: {first} minus {second} is {pair.mean:+.2f} points in the only pair"
    if pair.mean == pair.std == 0:
        return f"no difference: {first} and {second} have the same Top-1 in all {pair.n} pairs"
    if pair.interval.low <= 0 <= pair.interval.high or line.p > SIGNIFICANT:
        return _not_distinguishable(line, pair, first, second)
    better, worse, sign = (first, second, 1) if pair.mean > 0 else (second, first, -1)
    low, high = sorted((sign * pair.interval.low, sign * pair.interval.high))
    verb = "seems" if math.isnan(line.p) else "is"
    return (
        f"{better} {verb} better than {worse} by {abs(pair.mean):.2f} points, "
        f"95 % interval [{low:.2f}, {high:.2f}], {_evidence(line, pair)}"
    )


def _not_distinguishable(line: Line, pair: PairedDifference, first: str, second: str) -> str:
    return (
        f"not distinguishable: {first} minus {second} is {pair.mean:+.2f} points, 95 % interval "
        f"{wording.interval(pair.interval, sign='+')}, {_evidence(line, pair)}; a difference below "
        f"{pair.detectable:.2f} would not have been found reliably with {count(pair.n, 'pair')}"
    )


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
    return Table(
        name="compare",
        title=comparison.title,
        columns=_COLUMNS,
        rows=tuple(_row(line) for line in comparison.lines),
        notes=tuple(_notes(comparison)),
    )


_COLUMNS = (
    Column(title="At", align="left"),
    Column(title="Pairs"),
    Column(title="Top-1 % A"),
    Column(title="Top-1 % B"),
    Column(title="A − B"),
    Column(title="95 % interval"),
    Column(title="p"),
    Column(title="Detectable", drop=1),
    Column(title=f"{Bops.title} A", drop=2),
    Column(title=f"{Bops.title} B", drop=2),
    Column(title="Search s A", drop=3),
    Column(title="Search s B", drop=3),
)


def _row(line: Line) -> tuple[str, ...]:
    pair = line.difference
    sides = (line.first, line.second)
    return (
        line.label or _either(line.first.budget, line.second.budget),
        str(len(line.seeds)),
        *(number(_top1(side, line.seeds)) for side in sides),
        *wording.difference(pair, line.p),
        "" if pair is None else number(pair.detectable),
        *(number(side.bops / Bops.scale, Bops.decimals) for side in sides),
        *(number(side.search_seconds + side.tuning_seconds, digits=1) for side in sides),
    )


def _top1(group: RunGroup, seeds: Sequence[int]) -> float:
    """Return the mean Top-1 over the seeds of the pairs; over all seeds when there are no pairs."""
    values = [group.top1[seed] for seed in seeds] or list(group.top1.values())
    return sum(values) / len(values)


def _notes(comparison: Comparison) -> Iterator[str]:
    yield from verdicts(comparison)
    yield "Pairs: runs with the same seed; Top-1 % is the mean over pairs. Interval: 95 % Student-t"
    tested = [line for line in comparison.lines if not math.isnan(line.p)]
    if tested:
        family = max(line.family for line in tested)
        corrected = f", Holm-corrected over {family} tests" if family > 1 else ""
        alone = "; the mean of the lines is a test of its own" if any(line.pooled for line in tested) else ""
        yield f"p: two-sided sign-flip test{corrected}{alone}"
    if any(line.difference and line.difference.n < MIN_PAIRS for line in comparison.lines):
        yield f"{wording.TOO_FEW}: too few pairs for a test"
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
        "first": _group_json(line.first),
        "second": _group_json(line.second),
    }


def _group_json(group: RunGroup) -> dict[str, Any]:
    return {
        **{key: getattr(group, key) for key in _MATCHED},
        "runs": list(group.runs),
        "top1": {str(seed): value for seed, value in group.top1.items()},
        **{key: known(getattr(group, key)) for key in ("bops", "search_seconds", "tuning_seconds")},
    }


def known(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if math.isnan(value) else value
