"""The tables of the leaderboard's pages."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.inputs.names import FileName
from bench.leaderboard.boards import Board, Entry
from bench.leaderboard.drawing import Scale
from bench.leaderboard.methods import MethodFacts
from bench.leaderboard.repeating import Repeating
from bench.leaderboard.sources import Source
from bench.reporting import wording
from bench.reporting.pages.page import Glyph, Row, ShownList, ShownTable, cell_of, shown_table
from bench.reporting.report import Column, Table
from bench.results import statistics
from bench.spec.schema import canonical_hash

_UNSAFE = re.compile(r"[^a-z0-9]+")
_LONGEST_SLUG = 60
_SHORT_OPTION = 40

_CHECKED_NOTE = (
    "Checked: networks: ids, costs, data, choices and tables were computed again, and every network evaluated again; "
    "numbers: all of this but the networks; no: the numbers are those that the source states"
)
_REPEATED_NOTE = (
    "Repeated: another source has runs of its own with the same specification and seeds; = same Top-1 to two decimals "
    "for each seed, ≠ the largest difference in points"
)
_DELTA_NOTE = (
    "Δ: Top-1 minus that of the baseline of the row's own study at the same budget, paired by seed, with its 95 % "
    "interval; the line in the middle is no difference, and a mark or line at an edge may lie beyond it"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Addresses of pages, and marks of methods.

    Attributes:
        methods: File of each method's page, by the method's name.
        boards: File of each board's page, by the board's identity.
        glyphs: Mark of each method.
    """

    methods: Mapping[str, FileName]
    boards: Mapping[str, FileName]
    glyphs: Mapping[str, Glyph]


def file_name(kind: str, words: str, identity: str) -> FileName:
    """Return a name for a page: readable, and never one that a foreign text decides.

    Args:
        kind: First word of the name.
        words: Texts of studies; of these only letters and digits stay.
        identity: What distinguishes the page from all others.
    """
    slug = _UNSAFE.sub("-", words.lower()).strip("-")[:_LONGEST_SLUG]
    return FileName(f"{kind}-{slug}-{canonical_hash(identity)[:8]}.html")


def ranking(board: Board, known: Mapping[str, MethodFacts], links: Links, scale: Scale) -> ShownTable:
    """Make the table of a board's rows, the ranked ones first."""
    columns = _ranking_columns(board)
    texts = [_ranking_texts(board, entry, known[entry.method]) for entry in board.entries]
    notes = [f"{board.rank(entry)} {entry.label}: {flag}" for entry in board.entries for flag in _flags(entry)]
    table = Table(
        name="ranking",
        title=_counted(board),
        columns=columns,
        rows=tuple(texts),
        notes=tuple(dict.fromkeys(notes)),
    )
    rows = []
    for number, (entry, row) in enumerate(zip(board.entries, texts, strict=True)):
        cells = dict(zip((column.title for column in columns), map(cell_of, columns, row), strict=True))
        glyph, delta = links.glyphs[entry.method], _delta_title(board)
        cells["#"] = replace(cells["#"], title="; ".join(_flags(entry)))
        cells["Method"] = replace(
            cells["Method"],
            link=links.methods[entry.method],
            title=known[entry.method].summary,
            glyph=glyph,
            copies=f"row-{number}",
        )
        if entry.beside.pair is not None:
            drawn = scale.whisker(entry.beside.pair, glyph, cells[delta].text)
            cells[delta] = replace(cells[delta], whisker=drawn, order=repr(entry.beside.pair.mean))
        cells["Repeated"] = replace(cells["Repeated"], title="; ".join(_repeated(board, entry)))
        values = {"family": known[entry.method].family, "checked": entry.source.check}
        rows.append(Row(cells=tuple(cells.values()), values=values, faint=not entry.is_ranked))
    return shown_table(table, rows, searched=True)


def _ranking_columns(board: Board) -> tuple[Column, ...]:
    repeated = any(board.repetitions.values())
    return (
        Column(title="#", note="#: rank by mean Top-1; † breaks equality, – cannot be ranked"),
        Column(title="Method", align="left"),
        Column(title="Top-1 %", note="Top-1: mean±std over seeds"),
        Column(title=_delta_title(board), align="left", note=_DELTA_NOTE),
        Column(title="95 % interval", drop=8, note="95 % interval: Student-t, cut at 0 and 100 %"),
        Column(title="Seeds", note="Seeds: finished runs, of all that ended"),
        Column(title="Search s", note="Search s: mean of one search; Tuning s: all trials before it"),
        Column(title="Tuning s", drop=5),
        Column(title="% of budget", drop=9),
        Column(title="Family", align="left", drop=3),
        Column(title="Hardware", align="left", drop=4),
        Column(title="Repeated", align="left", drop=0 if repeated else 1, note=_REPEATED_NOTE),
        Column(title="Checked", align="left", note=_CHECKED_NOTE),
        Column(title="Source", align="left", drop=2),
        Column(title="Flags", align="left", drop=10),
    )


def _counted(board: Board) -> str:
    left = [
        f"{len(rows)} {word}"
        for rows, word in ((board.others, "not ranked"), (board.references, "without a budget"))
        if rows
    ]
    return ", ".join([f"{wording.count(len(board.ranked), 'row')} ranked", *left])


def _ranking_texts(board: Board, entry: Entry, facts: MethodFacts) -> tuple[str, ...]:
    group, values = entry.group, list(entry.top1.values())
    cost = group.costs[group.measure] / entry.limit if group.measure in group.costs else math.nan  # type: ignore[index]
    return (
        board.rank(entry),
        entry.label,
        top1_of(entry),
        delta_of(entry, named=len(_baselines(board)) > 1),
        wording.interval(wording.percent_interval(values)),
        wording.finished(len(group.runs), entry.failed),
        wording.number(group.search_seconds, 1),
        wording.number(group.tuning_seconds, 1),
        wording.number(100 * cost, 1),
        facts.family,
        entry.hardware,
        "; ".join(_repeated(board, entry, named=False)),
        entry.source.check,
        entry.source.name,
        "; ".join(_flags(entry)),
    )


def top1_of(entry: Entry) -> str:
    """Return the Top-1 of a row as mean±std; of a row outside the window nothing, since it is not comparable."""
    values = list(entry.top1.values())
    return wording.spread(statistics.mean(values), statistics.std(values))


def delta_of(entry: Entry, *, named: bool = True) -> str:
    """Return the difference of a row to its study's baseline, with its interval.

    Args:
        entry: The row.
        named: Whether to say what it is to.
    """
    if entry.group.method == entry.baseline:
        return "baseline"
    if entry.beside.pair is None:
        return ""
    delta, ends, _ = wording.difference(entry.beside.pair, math.nan)
    flagged = wording.FLAGGED if entry.beside.flags else ""
    return " ".join(filter(None, (delta, ends, f"to {entry.baseline}" if named else "", flagged)))


def _delta_title(board: Board) -> str:
    baselines = _baselines(board)
    return f"Δ to {baselines.pop()}" if len(baselines) == 1 else "Δ to the baseline"


def _baselines(board: Board) -> set[str]:
    """Return the baselines that the differences on a board are to."""
    return {entry.baseline for entry in board.entries if entry.beside.pair is not None}


def _repeated(board: Board, entry: Entry, *, named: bool = True) -> Iterator[str]:
    """Yield a text for each repetition of a row by somebody else, with the source's name or without it."""
    for repetition in board.repetitions[id(entry)]:
        number = "=" if repetition.is_equal else f"≠ {repetition.largest:.2f},"
        by = f" by {repetition.by}" if named else ""
        yield f"{number} {wording.count(repetition.seeds, 'seed')}{by}"


def _flags(entry: Entry) -> Iterator[str]:
    yield from entry.group.flags
    if entry.group.outside:
        worst = max(entry.group.outside.values(), key=lambda percent: abs(percent - 100))
        yield f"{wording.count(len(entry.group.outside), 'run')} outside the window, {worst:.1f} % of the budget"
    if entry.beside.baseline is not None:
        yield from (f"the baseline: {flag}" for flag in entry.beside.baseline.flags)


def origin(board: Board, repeating: Repeating) -> ShownTable:
    """Make the table of where each row comes from, and of the command that repeats it."""
    columns = (
        Column(title="Method", align="left"),
        Column(title="Source", align="left"),
        Column(title="Study", align="left"),
        Column(title="To repeat", align="left", code=True),
        Column(title="Top-1 by seed", align="left"),
        Column(title="Repeated", align="left"),
        Column(title="Options", align="left"),
        Column(title="Versions", align="left"),
        Column(title="Hardware", align="left"),
        Column(title="Made", align="left"),
    )
    texts = [
        (
            entry.label,
            entry.source.name,
            entry.study,
            repeating.command(entry),
            ", ".join(f"{seed}: {top1:.2f}" for seed, top1 in sorted(entry.top1.items())),
            "; ".join(_repeated(board, entry)),
            options_of(entry),
            entry.versions,
            entry.hardware,
            wording.period(entry.started, entry.finished),
        )
        for entry in board.entries
    ]
    note = "A command is to be typed beside the site's files; numbers agree if versions, hardware and protocol do"
    table = Table(name="origin", title="Origin of the rows", columns=columns, rows=tuple(texts), notes=(note,))
    rows = [Row(cells=tuple(map(cell_of, columns, row)), identity=f"row-{number}") for number, row in enumerate(texts)]
    return shown_table(table, rows)


def options_of(entry: Entry) -> str:
    """Return the options of a row's method: "bits = [2, 4, 8], group_size = 4"."""
    shown = (f"{name} = {json.dumps(value)}" for name, value in entry.options.items() if value is not None)
    return ", ".join(text if len(text) <= _SHORT_OPTION else f"{text[:_SHORT_OPTION]}…" for text in shown)


def terms(board: Board) -> ShownTable:
    """Make the table of the conditions that all rows of a board share."""
    columns = (Column(title="Key", align="left", code=True), Column(title="Value", align="left"))
    table = Table(
        name="terms", title="Rows with other values are on other pages", columns=columns, rows=tuple(board.terms.rows())
    )
    return shown_table(table, [Row(cells=tuple(map(cell_of, columns, row))) for row in table.rows])


def definition(facts: MethodFacts) -> ShownList:
    """List what a method is."""
    terms = [("Source", facts.source or "not stated"), ("Family", facts.family)]
    terms += [("Abilities", ", ".join(facts.abilities))] if facts.abilities else []
    terms += [("Deviations", text) for text in facts.deviations]
    return ShownList(identity="part-definition", terms=tuple(terms))


def results_of_method(rows: Sequence[tuple[Board, Entry]], links: Links) -> ShownTable:
    """Make the table of all rows of one method; options are those in which the rows differ."""
    varied = any("[" in entry.label for _, entry in rows)
    columns = (
        Column(title="Data set", align="left", drop=1),
        Column(title="Model", align="left", drop=1),
        Column(title="Budget", align="left"),
        Column(title="Variant", align="left", drop=0 if varied else 3),
        Column(title="Rank", note="Rank: among the rows of the same task, schedule and budget"),
        Column(title="Seeds"),
        Column(title="Top-1 %"),
        Column(title="Δ to the baseline", align="left", note=_DELTA_NOTE),
        Column(title="Search s", drop=4),
        Column(title="Schedule", align="left"),
        Column(title="Checked", align="left", drop=1, note=_CHECKED_NOTE),
        Column(title="Source", align="left", drop=2),
        Column(title="Differing options", align="left", drop=5),
    )
    differing = _differing_options([entry for _, entry in rows])
    texts = [
        (
            board.terms.dataset,
            board.terms.model,
            board.budget if entry.group.budget else f"none ({board.budget})",
            entry.group.method.partition("[")[2].removesuffix("]"),
            f"{board.rank(entry)} of {len(board.ranked)}" if entry.is_ranked else board.rank(entry),
            wording.finished(len(entry.group.runs), entry.failed),
            top1_of(entry),
            delta_of(entry),
            wording.number(entry.group.search_seconds, 1),
            board.terms.in_words,
            entry.source.check,
            entry.source.name,
            ", ".join(f"{name} = {json.dumps(entry.options.get(name))}" for name in differing),
        )
        for board, entry in rows
    ]
    table = Table(name="results", title=wording.count(len(rows), "row"), columns=columns, rows=tuple(texts))
    shown = []
    for (board, entry), row in zip(rows, texts, strict=True):
        cells = [cell_of(column, text) for column, text in zip(columns, row, strict=True)]
        cells[2] = replace(cells[2], link=links.boards[board.identity], title="The ranking at this budget")
        values = {"data": board.terms.dataset, "model": board.terms.model, "budget": board.budget}
        shown.append(Row(cells=tuple(cells), values=values, faint=not entry.is_ranked))
    return shown_table(table, shown, searched=True)


def _differing_options(entries: Sequence[Entry]) -> list[str]:
    """Return the names of options that do not have the same value in all rows."""
    names = dict.fromkeys(name for entry in entries for name in entry.options)
    return [name for name in names if len({json.dumps(entry.options.get(name)) for entry in entries}) > 1]


def all_boards(boards: Sequence[Board], links: Links) -> ShownTable:
    """Make the table of all boards."""
    columns = (
        Column(title="Data set", align="left"),
        Column(title="Model", align="left"),
        Column(title="Budget", align="left"),
        Column(title="Rows ranked"),
        Column(title="First", align="left"),
        Column(title="Top-1 %"),
        Column(title="Δ to the baseline", align="left", note=_DELTA_NOTE),
        Column(title="Schedule", align="left"),
    )
    texts, rows = [], []
    for board in boards:
        first = next(iter(board.ranked), None)
        texts.append(
            (
                board.terms.dataset,
                board.terms.model,
                board.budget,
                str(len(board.ranked)),
                "" if first is None else first.label,
                "" if first is None else top1_of(first),
                "" if first is None else delta_of(first),
                board.terms.in_words,
            )
        )
        cells = [cell_of(column, text) for column, text in zip(columns, texts[-1], strict=True)]
        cells[2] = replace(cells[2], link=links.boards[board.identity], title="The ranking")
        if first is not None:
            cells[4] = replace(cells[4], glyph=links.glyphs[first.method])
        values = {"data": board.terms.dataset, "model": board.terms.model, "budget": board.budget}
        rows.append(Row(cells=tuple(cells), values=values))
    title = f"{wording.count(len(boards), 'ranking')}: rows of unequal schedules are never ranked together"
    return shown_table(Table(name="tasks", title=title, columns=columns, rows=tuple(texts)), rows, searched=True)


def all_methods(known: Mapping[str, MethodFacts], entries: Sequence[Entry], links: Links) -> ShownTable:
    """Make the table of all methods."""
    columns = (
        Column(title="Method", align="left"),
        Column(title="Family", align="left"),
        Column(title="Rows"),
        Column(title="What it is", align="left"),
    )
    texts, rows = [], []
    for facts in sorted(known.values(), key=lambda facts: (facts.family, facts.name)):
        number = sum(entry.method == facts.name for entry in entries)
        texts.append((facts.name, facts.family, str(number), facts.summary))
        cells = [cell_of(column, text) for column, text in zip(columns, texts[-1], strict=True)]
        cells[0] = replace(cells[0], link=links.methods[facts.name], glyph=links.glyphs[facts.name])
        rows.append(Row(cells=tuple(cells)))
    title = wording.count(len(known), "method")
    return shown_table(Table(name="methods", title=title, columns=columns, rows=tuple(texts)), rows)


def all_sources(sources: Sequence[Source]) -> ShownTable:
    """Make the table of all sources, with the reasons why some are refused."""
    columns = (
        Column(title="Source", align="left"),
        Column(title="Kind", align="left"),
        Column(title="Studies", align="left"),
        Column(title="Checked", align="left", note=_CHECKED_NOTE),
        Column(title="Remarks", align="left"),
    )
    texts = [
        (
            source.name,
            source.kind,
            ", ".join(results.name for results in source.studies),
            "refused" if source.refused else source.check,
            source.refused or "; ".join(source.remarks),
        )
        for source in sources
    ]
    table = Table(name="sources", title="Where the rows come from", columns=columns, rows=tuple(texts))
    rows = [
        Row(cells=tuple(map(cell_of, columns, row)), faint=bool(source.refused))
        for source, row in zip(sources, texts, strict=True)
    ]
    return shown_table(table, rows)


def all_rows(name: str, boards: Sequence[Board], known: Mapping[str, MethodFacts]) -> Table:
    """Make a plain table of all rows, for a file."""
    titles = (
        *("dataset", "model", "board", "budget", "rank", "method", "family", "seeds", "top1_mean", "top1_std"),
        *("delta", "delta_low", "delta_high", "search_seconds", "tuning_seconds", "hardware", "schedule", "flags"),
        *("repeated", "checked", "source", "study"),
    )
    rows = tuple(_plain(board, entry, known[entry.method]) for board in boards for entry in board.entries)
    return Table(name=name, title="", columns=tuple(Column(title=title) for title in titles), rows=rows)


def _plain(board: Board, entry: Entry, facts: MethodFacts) -> tuple[str, ...]:
    values, pair = list(entry.top1.values()), entry.beside.pair
    numbers = (statistics.mean(values), statistics.std(values))
    differences = (math.nan,) * 3 if pair is None else (pair.mean, pair.interval.low, pair.interval.high)
    seconds = (entry.group.search_seconds, entry.group.tuning_seconds)
    return (
        *(board.terms.dataset, board.terms.model, board.identity, entry.group.budget, board.rank(entry), entry.label),
        *(facts.family, str(len(values)), *map(_figure, (*numbers, *differences, *seconds))),
        *(entry.hardware, board.terms.in_words, "; ".join(_flags(entry)), "; ".join(_repeated(board, entry))),
        *(entry.source.check, entry.source.name, entry.study),
    )


def _figure(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
