"""The tables over several boards: rows of a method, all boards, methods and sources, and a file with all rows."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.leaderboard.boards import Board, Entry
from bench.leaderboard.cells import CHECKED_NOTE, DELTA_NOTE, delta_of, flags_of, repeated, top1_of
from bench.leaderboard.links import Links
from bench.leaderboard.methods import MethodFacts
from bench.leaderboard.sources import Source
from bench.reporting import wording
from bench.reporting.pages.page import Row, ShownTable, cell_of, shown_table
from bench.reporting.report import Column, Table
from bench.results import statistics


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
        Column(title="Δ to the baseline", align="left", note=DELTA_NOTE),
        Column(title="Search s", drop=4),
        Column(title="Schedule", align="left"),
        Column(title="Checked", align="left", drop=1, note=CHECKED_NOTE),
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
        Column(title="Ranked", note="Ranked: rows with a rank"),
        Column(title="First", align="left"),
        Column(title="Top-1 %"),
        Column(title="Δ to the baseline", align="left", note=DELTA_NOTE),
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
        Column(title="Checked", align="left", note=CHECKED_NOTE),
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
        *(entry.hardware, board.terms.in_words, "; ".join(flags_of(entry)), "; ".join(repeated(board, entry))),
        *(entry.source.check, entry.source.name, entry.study),
    )


def _figure(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
