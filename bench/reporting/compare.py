"""Compares two studies, two of their methods, or two runs, in pairs of the same seed."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from bench.errors import BenchError
from bench.reporting import wording
from bench.reporting.report import Column, Table
from bench.reporting.wording import MILLION, count, listed, number
from bench.results.groups import RunGroup, cells, common_seeds, difference, p_to_correct
from bench.results.selection import Selection
from bench.results.statistics import LEVEL, MIN_PAIRS, PairedDifference, holm
from bench.results.tables import section

SIGNIFICANT = 1 - LEVEL

_MATCHED = ("method", "model", "dataset", "budget")
_NOT_COMPARED = frozenset({"name", "methods", "seeds", "budgets", "baseline", "options", "method_files"})
"""Of a specification: what two studies may differ in without their runs being different."""
_MOST_DIFFERENCES = 6


@dataclass(frozen=True, kw_only=True)
class Line:
    """Two cells that are compared.

    Attributes:
        label: What tells the line from others; empty for a single one.
        first, second: The cells.
        p: Of the sign-flip test, Holm-corrected over its family; NaN where there are too few pairs for one.
        family: How many tests p was corrected over.
        pooled: Whether it stands for all other lines together.
    """

    label: str
    first: RunGroup
    second: RunGroup
    p: float = math.nan
    family: int = 1
    pooled: bool = False

    @cached_property
    def seeds(self) -> list[int]:
        """Those of the pairs."""
        return common_seeds(self.first.top1, self.second.top1)

    @cached_property
    def difference(self) -> PairedDifference | None:
        """Top-1 of the first minus that of the second; `None` without pairs."""
        return difference(self.first.top1, self.second.top1)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two selections and what of them is compared."""

    first: Selection
    second: Selection
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """Which is which."""
        return f"A = {self.first.name}, B = {self.second.name}"


def compare(first: Selection, second: Selection) -> Comparison:
    """Pair the runs of two selections.

    Methods of two studies are compared where both have the same method and budget; otherwise models, data sets and
    budgets must agree where both sides have several of them.

    Raises:
        BenchError: A whole study is to be compared with something smaller.
    """
    if (first.kind == "study") != (second.kind == "study"):
        study, other = (first, second) if first.kind == "study" else (second, first)
        raise BenchError(
            f"'{study.name}' is a study and '{other.name}' a {other.kind}; name two studies, "
            f"or a method of the study as {study.name}/METHOD"
        )
    strict = ("method", "budget") if first.kind == "study" else ()
    pairs = _partners(cells(first.results, first.runs), cells(second.results, second.runs), strict)
    lines = [Line(label=label, first=a, second=b) for label, (a, b) in zip(_labels(pairs, strict), pairs, strict=True)]
    if len(lines) > 1 and first.kind != "study":
        lines += _overall(lines)
    return Comparison(first=first, second=second, lines=tuple(_tested(lines)))


def _partners(
    first: Sequence[RunGroup], second: Sequence[RunGroup], strict: Sequence[str]
) -> list[tuple[RunGroup, RunGroup]]:
    """The pairs of cells that agree in all that must agree."""

    def several(side: Sequence[RunGroup], key: str) -> bool:
        return len({getattr(cell, key) for cell in side}) > 1

    compared = [key for key in _MATCHED if key in strict or (key != "method" and several(first, key))]
    shared = [key for key in compared if key in strict or several(second, key)]
    return [(a, b) for a, b in product(first, second) if all(getattr(a, key) == getattr(b, key) for key in shared)]


def _labels(pairs: Sequence[tuple[RunGroup, RunGroup]], strict: Sequence[str]) -> list[str]:
    """What tells the pairs apart, in words."""
    texts = {key: [_either(getattr(a, key), getattr(b, key)) for a, b in pairs] for key in _MATCHED}
    told = [key for key in _MATCHED if key in strict or (key != "method" and len(set(texts[key])) > 1)]
    return [" ".join(filter(None, (texts[key][index] for key in told))) for index in range(len(pairs))]


def _either(first: str, second: str) -> str:
    return first if first == second else f"{first or '–'}|{second or '–'}"


def _overall(lines: Sequence[Line]) -> list[Line]:
    """One line for all others, in which a seed counts once: its mean over the lines."""
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines)))
    if not seeds:
        return []
    first, second = ([getattr(line, side) for line in lines] for side in ("first", "second"))
    return [Line(label="mean of these", first=_averaged(first, seeds), second=_averaged(second, seeds), pooled=True)]


def _averaged(cells: Sequence[RunGroup], seeds: Sequence[int]) -> RunGroup:
    """A cell whose figures are the means of others'."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(cells)

    return RunGroup(
        model=_common(cell.model for cell in cells),
        dataset=_common(cell.dataset for cell in cells),
        method=_common(cell.method for cell in cells),
        budget=_common(cell.budget for cell in cells),
        runs=tuple(dict.fromkeys(run for cell in cells for run in cell.runs)),
        top1={seed: mean(cell.top1[seed] for cell in cells) for seed in seeds},
        bops=mean(cell.bops for cell in cells),
        search_seconds=mean(cell.search_seconds for cell in cells),
        tuning_seconds=mean(cell.tuning_seconds for cell in cells),
        total_seconds=mean(cell.total_seconds for cell in cells),
    )


def _common(values: Iterable[str]) -> str:
    """The value that all share; empty when they do not."""
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def _tested(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines with their p: Holm-corrected over all but the one that stands for the others, a test of its own."""
    raw = [p_to_correct(line.difference) for line in lines]
    family = [math.nan if line.pooled else p for line, p in zip(lines, raw, strict=True)]
    tests = sum(not math.isnan(p) for p in family)
    for line, p, corrected in zip(lines, raw, holm(family), strict=True):
        yield replace(line, p=p if line.pooled else corrected, family=1 if line.pooled else tests)


# --- in words -----------------------------------------------------------------------------------------------------


def verdict(line: Line, first: str, second: str) -> str:
    """What a line says of two things, with its uncertainty, in a sentence.

    "Better" needs both an interval without 0 and p ≤ 0.05.

    Args:
        line: The comparison.
        first: Name of the first.
        second: Name of the second.
    """
    found = line.difference
    if found is None:
        seeds = f"{first} has {listed(line.first.top1)}, {second} has {listed(line.second.top1)}"
        return f"cannot tell: no seed in common ({seeds})"
    if found.n == 1:
        return f"cannot tell: {first} minus {second} is {found.mean:+.2f} points in the only pair"
    if found.mean == found.std == 0:
        return f"no difference: {first} and {second} have the same Top-1 in all {found.n} pairs"
    if found.interval.low <= 0 <= found.interval.high or line.p > SIGNIFICANT:
        return _undecided(line, found, first, second)
    better, worse, sign = (first, second, 1) if found.mean > 0 else (second, first, -1)
    low, high = sorted((sign * found.interval.low, sign * found.interval.high))
    verb = "seems" if math.isnan(line.p) else "is"
    return (
        f"{better} {verb} better than {worse} by {abs(found.mean):.2f} points, "
        f"95 % interval [{low:.2f}, {high:.2f}], {_evidence(line, found)}"
    )


def _undecided(line: Line, found: PairedDifference, first: str, second: str) -> str:
    return (
        f"cannot tell: {first} minus {second} is {found.mean:+.2f} points, 95 % interval "
        f"{wording.interval(found.interval, sign='+')}, {_evidence(line, found)}; a difference below "
        f"{found.detectable:.2f} would not have been found reliably with {count(found.n, 'pair')}"
    )


def _evidence(line: Line, found: PairedDifference) -> str:
    """The pairs and what the test says of them."""
    if math.isnan(line.p):
        return f"{count(found.n, 'pair')} (too few for a test, which needs {MIN_PAIRS})"
    p = wording.probability(line.p)
    corrected = f" (Holm over {line.family})" if line.family > 1 else ""
    return f"{count(found.n, 'pair')}, p {f'< {p[1:]}' if p.startswith('<') else f'= {p}'}{corrected}"


def verdicts(comparison: Comparison) -> list[str]:
    """The verdict of every line."""
    names = comparison.first.name, comparison.second.name
    sentences = [(line.label, verdict(line, *names)) for line in comparison.lines]
    return [f"{label}: {sentence}" if label else sentence for label, sentence in sentences] or [
        "cannot tell: A and B have no runs with a result that could be compared"
    ]


# --- as a table ---------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> Table:
    """The lines of a comparison with their costs side by side."""
    return Table(
        name="compare",
        title=comparison.title,
        columns=_COLUMNS,
        rows=tuple(_cells(line) for line in comparison.lines),
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
    Column(title="BOPs (M) A", drop=2),
    Column(title="BOPs (M) B", drop=2),
    Column(title="Search s A", drop=3),
    Column(title="Search s B", drop=3),
)


def _cells(line: Line) -> tuple[str, ...]:
    found = line.difference
    sides = (line.first, line.second)
    return (
        line.label or _either(line.first.budget, line.second.budget),
        str(len(line.seeds)),
        *(number(_top1(side, line.seeds)) for side in sides),
        *wording.difference(found, line.p),
        "" if found is None else number(found.detectable),
        *(number(side.bops / MILLION) for side in sides),
        *(number(side.search_seconds + side.tuning_seconds, digits=1) for side in sides),
    )


def _top1(cell: RunGroup, seeds: Sequence[int]) -> float:
    """Mean Top-1 over the pairs' seeds, over all where there are no pairs."""
    values = [cell.top1[seed] for seed in seeds] or list(cell.top1.values())
    return sum(values) / len(values)


def _notes(comparison: Comparison) -> Iterator[str]:
    yield from verdicts(comparison)
    yield "Pairs: runs of the same seed; Top-1 % is their mean. Interval: 95 % Student-t"
    tested = [line for line in comparison.lines if not math.isnan(line.p)]
    if tested:
        family = max(line.family for line in tested)
        corrected = f", Holm-corrected over {family} tests" if family > 1 else ""
        alone = "; the mean of the lines is a test of its own" if any(line.pooled for line in tested) else ""
        yield f"p: two-sided sign-flip test{corrected}{alone}"
    if any(line.difference and line.difference.n < MIN_PAIRS for line in comparison.lines):
        yield f"{wording.TOO_FEW}: too few pairs for a test"
    yield "Detectable: smallest true difference that so many pairs show with 80 % power"
    yield "Search s: the mean search and all trials of tuning"
    yield from _left_out(comparison)
    yield from _differing(comparison)


def _left_out(comparison: Comparison) -> Iterator[str]:
    """Runs that were not compared: those without a result, and those without a partner."""
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
    """What besides the method tells the runs of two studies apart."""
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


def _leaves(table: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables with the paths to them."""
    for key in table:
        where = f"{path}{key}"
        if where not in _NOT_COMPARED:
            inner = section(table, key)
            yield from _leaves(inner, f"{where}.") if inner else [(where, table[key])]


# --- as JSON ------------------------------------------------------------------------------------------------------


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All figures of a comparison; what is not known is `null`."""
    sides = (("first", comparison.first), ("second", comparison.second))
    return {
        **{
            side: {
                "name": found.name,
                "kind": found.kind,
                "study": found.results.name,
                "runs": [str(run) for run in found.runs["id"]],
                "left_out": found.left_out,
            }
            for side, found in sides
        },
        "lines": [_line_json(line) for line in comparison.lines],
        "verdicts": verdicts(comparison),
    }


def _line_json(line: Line) -> dict[str, Any]:
    found = line.difference
    return {
        "label": line.label,
        "seeds": line.seeds,
        "difference": None if found is None else known(found.mean),
        "std": None if found is None else known(found.std),
        "interval": None if found is None else [known(found.interval.low), known(found.interval.high)],
        "p": known(line.p),
        "detectable": None if found is None else known(found.detectable),
        "first": _cell_json(line.first),
        "second": _cell_json(line.second),
    }


def _cell_json(cell: RunGroup) -> dict[str, Any]:
    return {
        **{key: getattr(cell, key) for key in _MATCHED},
        "runs": list(cell.runs),
        "top1": {str(seed): value for seed, value in cell.top1.items()},
        **{key: known(getattr(cell, key)) for key in ("bops", "search_seconds", "tuning_seconds")},
    }


def known(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else value
