"""Rows of the leaderboard, and the boards on which they are ranked.

A board has the rows of one task, schedule and budget. Rows are ranked by their mean Top-1. Those that break equality,
or whose networks miss the window of the budget, are shown without a rank, and so are references without a budget.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.costs.measures import MEASURES
from bench.leaderboard.sources import CHECKED, Source
from bench.leaderboard.terms import Terms, terms_of
from bench.plugins.entry_points import available
from bench.plugins.registry import source_hash
from bench.reporting.about import hardware_in_words, versions_in_words
from bench.results.differences import BaselineDifference, baseline_differences
from bench.results.groups import RunGroup, common_seeds
from bench.results.published_study import PublishedStudy
from bench.results.statistics import mean
from bench.results.tables import FAILURES, IDENTITY, StudyResults, section
from bench.spec.schema import canonical_hash

if TYPE_CHECKING:
    import pandas as pd

_ON_ACCELERATOR = frozenset(name for name, kind in MEASURES.items() if kind.on_accelerator)
_EQUAL_POINTS = 0.005
"""Largest difference in points of Top-1 of two numbers that are equal as they are printed."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row: one method at one budget in one study of one source.

    Attributes:
        source: Source of the row.
        study: Name of the study.
        terms: Conditions that rows must share to be ranked together.
        beside: Runs of the row, with their difference to the study's baseline.
        baseline: Name of the study's baseline.
        failed: Number of runs that ended without a network.
        limit: Limit of the budget, in the unit of its measure; NaN without a budget.
        executions: Id and starting time of each run, by which copies of one run are recognised.
        options: Options of the method.
        mixed: Whether the runs were made by several versions of method, model, data or harness.
        remark: Warning about the code that made the runs; empty if there is none.
        hardware, versions: Processors and versions of the runs, in words.
        started, finished: Times of the first start and the last end, in ISO format; empty when unknown.
    """

    source: Source
    study: str
    terms: Terms
    beside: BaselineDifference
    baseline: str
    failed: int
    limit: float
    executions: frozenset[tuple[str, str]]
    options: Mapping[str, Any]
    mixed: bool
    remark: str
    hardware: str
    versions: str
    started: str
    finished: str

    @property
    def group(self) -> RunGroup:
        """Runs of the row."""
        return self.beside.group

    @property
    def method(self) -> str:
        """Name of the method without the change of an ablation; one from a file of the study's author says so."""
        name = self.group.method.partition("[")[0]
        return f"{name} (own file)" if name in section(self.terms.specification, "method_files") else name

    @property
    def label(self) -> str:
        """Name of the method with the change of an ablation."""
        return self.method + "".join(self.group.method.partition("[")[1:])

    @property
    def top1(self) -> Mapping[int, float]:
        """Top-1 in percent by seed, of the runs whose cost is in the window of the budget."""
        return self.group.top1

    @property
    def mean_top1(self) -> float:
        """Mean Top-1; NaN without runs in the window."""
        return mean(list(self.top1.values()))

    @property
    def is_ranked(self) -> bool:
        """Whether the row takes part in the ranking."""
        return bool(self.group.budget) and bool(self.top1) and not self.group.flags and not self.mixed

    @cached_property
    def board(self) -> str:
        """Hash of what rows of one board have in common; references have that of the budget "none"."""
        measure, spec = self.group.measure, self.terms.specification
        priced_on = spec.get("accelerator") if measure in _ON_ACCELERATOR else None
        tolerance = section(spec, "tuning").get("tolerance")
        limit = None if math.isnan(self.limit) else self.limit
        return canonical_hash([self.terms.identity, measure, limit, tolerance if measure else None, priced_on])


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """A row of somebody else with the same specification.

    Attributes:
        by: Name of the source.
        seeds: Number of seeds that both have.
        largest: Largest difference in points of Top-1 of two runs of one seed.
    """

    by: str
    seeds: int
    largest: float

    @property
    def is_equal(self) -> bool:
        """Whether all numbers are the same as they are printed."""
        return self.largest < _EQUAL_POINTS


@dataclass(frozen=True, kw_only=True)
class Board:
    """The rows of one task, schedule and budget.

    Attributes:
        identity: Hash of what the rows have in common.
        terms: Conditions of all rows.
        ranked: Rows with a rank, the first first.
        others: Rows that break equality or miss the window, the most accurate first.
        references: Rows without a budget.
        repetitions: Repetitions of each row by somebody else, by the identity of the object.
    """

    identity: str
    terms: Terms
    ranked: tuple[Entry, ...]
    others: tuple[Entry, ...]
    references: tuple[Entry, ...]
    repetitions: Mapping[int, Sequence[Repetition]]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All rows in the order in which they are shown."""
        return (*self.ranked, *self.others, *self.references)

    @property
    def budget(self) -> str:
        """Budget as the first row's study wrote it."""
        return next(entry.group.budget for entry in (*self.ranked, *self.others))

    @property
    def limit_in_words(self) -> str:
        """Limit of the budget with its unit."""
        first = next(iter((*self.ranked, *self.others)))
        measure = next((kind for name, kind in MEASURES.items() if name == first.group.measure), None)
        return "" if measure is None or math.isnan(first.limit) else measure.in_words(first.limit)

    def rank(self, entry: Entry) -> str:
        """Return the rank of a row: the same for equal means, "†" for one that breaks equality, "–" for references."""
        if entry.is_ranked:
            return str(1 + sum(other.mean_top1 > entry.mean_top1 for other in self.ranked))
        return "†" if entry.top1 and entry.group.flags else "–"


def entries_of(sources: Sequence[Source]) -> list[Entry]:
    """Return the rows of all sources; of rows that share runs, one stays.

    It is one with a difference to a baseline if there is any, then the one with the most runs, of the source that was
    checked best, and the latest.
    """
    entries = [entry for source in sources for results in source.studies for entry in _of_study(source, results)]
    by_start = sorted(entries, key=lambda entry: entry.started, reverse=True)
    order = sorted(by_start, key=lambda entry: (entry.beside.pair is None, -len(entry.executions), _check(entry)))
    kept: dict[tuple[str, str], list[Entry]] = {}
    for entry in order:
        alike = kept.setdefault((entry.label, entry.board), [])
        if not any(_share_runs(entry, other) for other in alike):
            alike.append(entry)
    shown = {id(entry) for alike in kept.values() for entry in alike}
    return [entry for entry in entries if id(entry) in shown]


def _check(entry: Entry) -> int:
    return CHECKED.index(entry.source.check)


def _share_runs(entry: Entry, other: Entry) -> bool:
    """Return whether two rows are of the same runs, or in one source of runs of the same specification."""
    if entry.source is other.source:
        return bool({run for run, _ in entry.executions} & {run for run, _ in other.executions})
    return bool(entry.executions & other.executions)


def boards_of(entries: Sequence[Entry]) -> list[Board]:
    """Return the boards, by data set, model and budget."""
    limited = [entry for entry in entries if entry.group.budget]
    boards = [_board(identity, entries) for identity in dict.fromkeys(entry.board for entry in limited)]
    return sorted(boards, key=_place)


def _place(board: Board) -> tuple[str, str, str, float, int]:
    """Return the place of a board in the index: by task and budget, the latest protocol first."""
    first, protocol = next(iter((*board.ranked, *board.others))), board.terms.values.get("protocol")
    latest = -protocol if isinstance(protocol, int) else 1
    return board.terms.dataset, board.terms.model, first.group.measure, first.limit, latest


def _board(identity: str, entries: Sequence[Entry]) -> Board:
    members = [entry for entry in entries if entry.board == identity]
    terms = members[0].terms
    by_accuracy = sorted(members, key=lambda entry: -entry.mean_top1 if entry.top1 else math.inf)
    references = [entry for entry in entries if not entry.group.budget and entry.terms.identity == terms.identity]
    shown = (*members, *references)
    return Board(
        identity=identity,
        terms=terms,
        ranked=tuple(entry for entry in by_accuracy if entry.is_ranked),
        others=tuple(entry for entry in by_accuracy if not entry.is_ranked),
        references=tuple(references),
        repetitions={id(entry): list(_repetitions(entry, shown)) for entry in shown},
    )


def _repetitions(entry: Entry, others: Sequence[Entry]) -> Iterator[Repetition]:
    """Yield the repetitions of a row: by another source, of the same method and options, in runs of their own."""
    for other in others:
        same = (other.label, other.board, other.options) == (entry.label, entry.board, entry.options)
        seeds = common_seeds(entry.top1, other.top1)
        if other.source is entry.source or not same or not seeds or entry.executions & other.executions:
            continue
        largest = max(abs(entry.top1[seed] - other.top1[seed]) for seed in seeds)
        yield Repetition(by=other.source.name, seeds=len(seeds), largest=largest)


def _of_study(source: Source, results: StudyResults) -> Iterator[Entry]:
    """Yield the rows of a study that have a run with a result."""
    groups = dict(iter(results.runs.groupby(list(IDENTITY), sort=False)))
    for beside in baseline_differences(results):
        yield _entry(source, results, beside, groups[beside.group.key])


def _entry(source: Source, results: StudyResults, beside: BaselineDifference, runs: "pd.DataFrame") -> Entry:
    group = beside.group
    done = runs[runs["id"].isin(group.runs)]
    made_with = results.versions if isinstance(results, PublishedStudy) else results.record("runs", group.runs[0]) or {}
    records = [results.record("runs", run) or {} for run in group.runs]
    mixed = len({canonical_hash(section(record, "fingerprint")) for record in records}) > 1
    return Entry(
        source=source,
        study=results.name,
        terms=terms_of(results, group.runs[0], group.method),
        beside=beside,
        baseline=str(results.spec.get("baseline", "")),
        failed=int(runs["status"].isin(FAILURES).sum()),
        limit=float(done["budget_cost"].max()) if group.budget else math.nan,
        executions=frozenset(zip(done["id"], done["started"], strict=True)),
        options=_options(done["options"].iloc[0]),
        mixed=mixed,
        remark=_MIXED if mixed else "" if isinstance(results, PublishedStudy) else _remark(made_with),
        hardware=hardware_in_words(made_with),
        versions=versions_in_words(made_with),
        started=min(filter(None, done["started"]), default=""),
        finished=max(filter(None, done["finished"]), default=""),
    )


def _options(text: object) -> dict[str, Any]:
    try:
        options = json.loads(str(text))
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


_MIXED = "its runs were made by several versions of the method or the harness"


def _remark(record: Mapping[str, Any]) -> str:
    """Say whether the method that made a run is another version than the registered one of its name."""
    method = str(record.get("method"))
    made_by = section(record, "fingerprint").get("method_source")
    if method not in available("methods") or made_by in (None, source_hash("methods", method)):
        return ""
    return "made by another version of the method than the one described here"
