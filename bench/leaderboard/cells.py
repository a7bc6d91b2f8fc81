"""Figures and facts of rows as texts, and the lines that explain them; the same in all tables of the leaderboard."""

import json
import math
from collections.abc import Iterator

from bench.leaderboard.boards import Board, Entry
from bench.reporting import wording
from bench.results import statistics

_SHORT_OPTION = 40
"""Characters of an option's value that are shown."""

CHECKED_NOTE = (
    "Checked: networks: ids, costs, data, choices and tables were computed again, and every network evaluated again; "
    "numbers: all of this but the networks; no: the numbers are those that the source states"
)
REPEATED_NOTE = (
    "Repeated: another source has runs of its own with the same specification and seeds; same: the Top-1 of each seed "
    "to two decimals; off by: the largest difference of a seed in points"
)
DELTA_NOTE = (
    "Δ: Top-1 minus that of the baseline of the row's own study at the same budget, paired by seed, with its 95 % "
    "interval; the line in the middle is no difference, and a mark or line at an edge may lie beyond it"
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


def delta_title(board: Board) -> str:
    """Return the heading of the differences on a board."""
    names = baselines(board)
    return f"Δ to {names.pop()}" if len(names) == 1 else "Δ to the baseline"


def baselines(board: Board) -> set[str]:
    """Return the baselines that the differences on a board are to."""
    return {entry.baseline for entry in board.entries if entry.beside.pair is not None}


def repeated(board: Board, entry: Entry, *, named: bool = True) -> Iterator[str]:
    """Yield a text for each repetition of a row by somebody else, with the source's name or without it."""
    for repetition in board.repetitions[id(entry)]:
        words = "same" if repetition.is_equal else f"off by {repetition.largest:.2f}"
        by = f" by {repetition.by}" if named else ""
        yield f"{words}, {wording.count(repetition.seeds, 'seed')}{by}"


def flags_of(entry: Entry) -> Iterator[str]:
    """Yield what a row, or the baseline that its difference is to, does not have in common with the others."""
    yield from entry.group.flags
    if entry.group.outside:
        worst = max(entry.group.outside.values(), key=lambda percent: abs(percent - 100))
        yield f"{wording.count(len(entry.group.outside), 'run')} outside the window, {worst:.1f} % of the budget"
    if entry.remark:
        yield entry.remark
    if entry.beside.baseline is not None:
        yield from (f"the baseline: {flag}" for flag in entry.beside.baseline.flags)


def options_of(entry: Entry) -> str:
    """Return the options of a row's method: "bits = [2, 4, 8], group_size = 4"."""
    shown = (f"{name} = {json.dumps(value)}" for name, value in entry.options.items() if value is not None)
    return ", ".join(text if len(text) <= _SHORT_OPTION else f"{text[:_SHORT_OPTION]}…" for text in shown)
