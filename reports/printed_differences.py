"""Which of the differences that the SBS paper prints are more than chance."""

import math

from bench.api import Column, Report, StudyResults, Table
from bench.results.printed_differences import PRINTED_RUNS, PrintedDifference, printed_differences

_COLUMNS = (
    Column(title="Model", align="left"),
    Column(title="A", align="left"),
    Column(title="B", align="left"),
    Column(title="A, printed", drop=1),
    Column(title="B, printed", drop=1),
    Column(title="A − B"),
    Column(title="95 % interval"),
    Column(title="p"),
    Column(title="p (Holm)"),
    Column(title="p within rounding", drop=2),
    Column(title="Told apart", align="left"),
    Column(title="Runs needed"),
)
_NOTES = (
    f"Computed from printed figures, which are rounded to one decimal: mean±std of {PRINTED_RUNS} runs, Welch's test",
    "p within rounding: for the means and deviations within rounding that make the difference clearest and least clear",
    "Told apart: at the 5 % level without correction, whatever the digits that were rounded away",
    "Runs needed: of each method, to find the difference with 80 % power if the printed figures were the true ones",
)


class PrintedDifferences(Report):
    """The comparisons of the paper's table that the study repeats, tested from the printed figures."""

    summary = "which differences in the paper's own table are more than chance (`published` in the specification)"
    title = "What the paper's own figures tell apart"
    rank = 21

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none when the study repeats no table of the paper that prints deviations."""
        number = str(results.spec.get("published"))
        return [printed_table(number)] if printed_differences(number) else []


def printed_table(number: str) -> Table:
    """Make the table of the differences in a printed table.

    Args:
        number: Number of the printed table, "1" to "12" or "I".
    """
    return Table(
        name="printed-differences",
        title=f"Differences in Table {number} of the SBS paper, from its printed figures",
        columns=_COLUMNS,
        rows=tuple(_cells(difference) for difference in printed_differences(number)),
        notes=_NOTES,
    )


def _cells(difference: PrintedDifference) -> tuple[str, ...]:
    first, second = difference.first, difference.second
    low, high = difference.interval.low, difference.interval.high
    return (
        first.model,
        first.row,
        second.row,
        f"{first.top1:.1f}±{first.top1_std:.1f}",
        f"{second.top1:.1f}±{second.top1_std:.1f}",
        f"{difference.points:+.1f}",
        "" if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]",
        _p(difference.p),
        _p(difference.corrected),
        f"{_p(difference.p_clearest)} to {_p(difference.p_unclearest)}",
        difference.told_apart,
        "" if difference.runs_needed is None else str(difference.runs_needed),
    )


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
