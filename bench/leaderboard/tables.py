"""The tables of a board's page, and the list of what a method is."""

import math
from collections.abc import Mapping
from dataclasses import replace

from bench.leaderboard.boards import Board, Entry
from bench.leaderboard.cells import (
    CHECKED_NOTE,
    DELTA_NOTE,
    REPEATED_NOTE,
    baselines,
    delta_of,
    delta_title,
    flags_of,
    options_of,
    repeated,
    top1_of,
)
from bench.leaderboard.drawing import Scale
from bench.leaderboard.links import Links
from bench.leaderboard.methods import MethodFacts
from bench.leaderboard.repeating import Repeating
from bench.reporting import wording
from bench.reporting.pages.page import Row, ShownList, ShownTable, cell_of, shown_table
from bench.reporting.report import Column, Table


def ranking(board: Board, known: Mapping[str, MethodFacts], links: Links, scale: Scale) -> ShownTable:
    """Make the table of a board's rows, the ranked ones first."""
    columns = _ranking_columns(board)
    texts = [_ranking_texts(board, entry, known[entry.method]) for entry in board.entries]
    notes = [f"{board.rank(entry)} {entry.label}: {flag}" for entry in board.entries for flag in flags_of(entry)]
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
        glyph, delta = links.glyphs[entry.method], delta_title(board)
        cells["#"] = replace(cells["#"], title="; ".join(flags_of(entry)))
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
        cells["Repeated"] = replace(cells["Repeated"], title="; ".join(repeated(board, entry)))
        values = {"family": known[entry.method].family, "checked": entry.source.check}
        rows.append(Row(cells=tuple(cells.values()), values=values, faint=not entry.is_ranked))
    return shown_table(table, rows, searched=True)


def _ranking_columns(board: Board) -> tuple[Column, ...]:
    has_repetitions = any(board.repetitions.values())
    return (
        Column(title="#", note="#: rank by mean Top-1; † breaks equality, – cannot be ranked"),
        Column(title="Method", align="left"),
        Column(title="Top-1 %", note="Top-1: mean±std over seeds"),
        Column(title=delta_title(board), align="left", note=DELTA_NOTE),
        Column(title="95 % interval", drop=8, note="95 % interval: Student-t, cut at 0 and 100 %"),
        Column(title="Seeds", note="Seeds: finished runs, of all that ended"),
        Column(title="Search s", note="Search s: mean of one search; Tuning s: all trials before it"),
        Column(title="Tuning s", drop=5),
        Column(title="% of budget", drop=9),
        Column(title="Family", align="left", drop=3),
        Column(title="Hardware", align="left", drop=4),
        Column(title="Repeated", align="left", drop=0 if has_repetitions else 1, note=REPEATED_NOTE),
        Column(title="Checked", align="left", note=CHECKED_NOTE),
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
    cost = group.costs[group.measure] / entry.limit if group.measure in group.costs else math.nan
    return (
        board.rank(entry),
        entry.label,
        top1_of(entry),
        delta_of(entry, named=len(baselines(board)) > 1),
        wording.interval(wording.percent_interval(values)),
        wording.finished(len(group.runs), entry.failed),
        wording.number(group.search_seconds, 1),
        wording.number(group.tuning_seconds, 1),
        wording.number(100 * cost, 1),
        facts.family,
        entry.hardware,
        "; ".join(repeated(board, entry, named=False)),
        entry.source.check,
        entry.source.name,
        "; ".join(flags_of(entry)),
    )


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
            "; ".join(repeated(board, entry)),
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
