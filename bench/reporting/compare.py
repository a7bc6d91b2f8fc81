"""Comparison of two studies, two of their methods, or two runs, in pairs of runs with the same seed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from bench.costs.measures import MEASURES
from bench.errors import BenchError
from bench.results.fairness import Conditions, breaches_between, conditions
from bench.results.fairness import flags as fairness_flags
from bench.results.groups import Flags, RunGroup, common_seeds, difference, p_to_correct, run_groups
from bench.results.selection import Selection
from bench.results.statistics import PairedDifference, holm
from bench.results.tables import StudyResults, section
from bench.store.files import read_stored_specification

MATCHED = ("method", "model", "dataset", "budget")
"""Fields of a group of runs that may have to agree on both sides of a line."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Two groups of runs that are compared.

    Attributes:
        label: Text that distinguishes the line from others; empty for a single one.
        first, second: Groups of runs.
        p: p-value of the sign-flip test, Holm-corrected over its family; NaN when there are too few pairs for a test,
            and when a side is flagged.
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

    @property
    def flagged(self) -> bool:
        """Whether one of the groups takes no part in verdicts."""
        return bool(self.first.flags or self.second.flags)


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


def compare(
    first: Selection, second: Selection, flags: Flags | None = None, second_flags: Flags | None = None
) -> Comparison:
    """Pair the runs of two selections.

    For two studies, a line compares the groups with the same method and budget. Otherwise the model, data set or budget
    of the two groups must agree only if both selections have several of them.

    Args:
        first: Runs of A.
        second: Runs of B.
        flags: Reasons why groups of A's study take no part in verdicts; those of the fairness statement when absent.
        second_flags: The same for B's study.

    Raises:
        BenchError: One selection is a whole study and the other is not, or their budgets are times or energies of
            different hardware.
    """
    if (first.kind == "study") != (second.kind == "study"):
        study, other = (first, second) if first.kind == "study" else (second, first)
        raise BenchError(
            f"'{study.name}' is a study and '{other.name}' a {other.kind}; name two studies, "
            f"or a method of the study as {study.name}/METHOD"
        )
    strict = ("method", "budget") if first.kind == "study" else ()
    ours, theirs = (
        run_groups(side.results, side.runs, fairness_flags(side.results) if given is None else given)
        for side, given in ((first, flags), (second, second_flags))
    )
    pairs = _partners(ours, theirs, strict)
    if _origin(first.results) != _origin(second.results):
        _require_same_hardware(first.results, second.results, pairs)
        pairs = _with_terms(first.results, second.results, pairs)
    lines = [Line(label=label, first=a, second=b) for label, (a, b) in zip(_labels(pairs, strict), pairs, strict=True)]
    if first.kind != "study":
        lines += _pooled([line for line in lines if line.seeds and not line.flagged])
    return Comparison(first=first, second=second, lines=tuple(_tested(lines)))


def _origin(results: StudyResults) -> tuple[object, str]:
    """Return what identifies a study: its store and its name."""
    return results.store.root, results.name


def _require_same_hardware(
    first: StudyResults, second: StudyResults, pairs: Sequence[tuple[RunGroup, RunGroup]]
) -> None:
    """Refuse pairs whose budgets limit times or energies of different hardware: the same number is another budget.

    Raises:
        BenchError: There is such a pair.
    """
    timed = {str(name) for name, measure in MEASURES.items() if measure.on_accelerator}
    for a, b in pairs:
        if {a.measure, b.measure} <= timed:
            ours, theirs = _hardware(first, a), _hardware(second, b)
            if ours != theirs:
                raise BenchError(
                    f"the budgets of '{first.name}' and '{second.name}' are not the same: {a.budget} is a time or "
                    f"energy {_on(ours)} in one and {b.budget} {_on(theirs)} in the other; run both with the same "
                    "accelerator.hardware, or compare at another budget: STUDY/METHOD/BUDGET"
                )


def _hardware(results: StudyResults, group: RunGroup) -> Mapping[str, Any]:
    """Return what times and energies of a group depend on, as its first run states it, or else the study."""
    stored = read_stored_specification(results.store.unit("runs", group.runs[0])) if group.runs else None
    return section(section(stored or {}, "depends_on"), "accelerator") or section(results.spec, "accelerator")


def _on(hardware: Mapping[str, Any]) -> str:
    """Name hardware: by its configuration, or by the beginning of the checksum of its measured times."""
    if "measured" in hardware:
        return f"by the measured times {str(hardware['measured'])[:8]}"
    settings = ", ".join(f"{key} {value}" for key, value in hardware.items() if key != "hardware")
    return f"on {hardware.get('hardware', 'unknown hardware')}{f' ({settings})' if settings else ''}"


def _with_terms(
    first: StudyResults, second: StudyResults, pairs: Sequence[tuple[RunGroup, RunGroup]]
) -> list[tuple[RunGroup, RunGroup]]:
    """Add flags to the groups of two studies whose start or training differs from that of their partner."""
    ours, theirs = ({row.place: row for row in conditions(results)} for results in (first, second))

    def flagged(group: RunGroup, row: Conditions | None, other: Conditions | None) -> RunGroup:
        found = () if row is None or other is None else breaches_between(row, other)
        return replace(group, flags=tuple(dict.fromkeys((*group.flags, *found))))

    terms = [(a, b, ours.get(a.key), theirs.get(b.key)) for a, b in pairs]
    return [(flagged(a, of_a, of_b), flagged(b, of_b, of_a)) for a, b, of_a, of_b in terms]


def _partners(
    first: Sequence[RunGroup], second: Sequence[RunGroup], strict: Sequence[str]
) -> list[tuple[RunGroup, RunGroup]]:
    """Return the pairs of groups that agree in every field that must agree."""

    def several(side: Sequence[RunGroup], key: str) -> bool:
        return len({getattr(group, key) for group in side}) > 1

    compared = [key for key in MATCHED if key in strict or (key != "method" and several(first, key))]
    shared = [key for key in compared if key in strict or several(second, key)]
    return [(a, b) for a, b in product(first, second) if all(getattr(a, key) == getattr(b, key) for key in shared)]


def _labels(pairs: Sequence[tuple[RunGroup, RunGroup]], strict: Sequence[str]) -> list[str]:
    """Return one text for each pair, of the fields in which the pairs differ."""
    texts = {key: [either(getattr(a, key), getattr(b, key)) for a, b in pairs] for key in MATCHED}
    shown = [key for key in MATCHED if key in strict or (key != "method" and len(set(texts[key])) > 1)]
    return [" ".join(filter(None, (texts[key][index] for key in shown))) for index in range(len(pairs))]


def either(first: str, second: str) -> str:
    """Return the text that both sides share, or both texts."""
    return first if first == second else f"{first or '–'}|{second or '–'}"


def _pooled(lines: Sequence[Line]) -> list[Line]:
    """Return one line for several others, in which each common seed counts once, with its mean over the lines."""
    seeds = sorted(set.intersection(*(set(line.seeds) for line in lines))) if len(lines) > 1 else []
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
        measure=_common(group.measure for group in groups),
        costs={name: mean(group.costs[name] for group in groups) for name in MEASURES},
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
    raw = [math.nan if line.flagged else p_to_correct(line.difference) for line in lines]
    family = [math.nan if line.pooled else p for line, p in zip(lines, raw, strict=True)]
    tests = sum(not math.isnan(p) for p in family)
    for line, p, corrected in zip(lines, raw, holm(family), strict=True):
        yield replace(line, p=p if line.pooled else corrected, family=1 if line.pooled else tests)
