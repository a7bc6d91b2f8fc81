"""The tables that the SBS paper prints, row by row, in the units of this harness.

`published.csv` holds the figures of Tables 1 to 12 and I of "Single-path Bit Sharing for Automatic Loss-aware Model
Compression" (Liu et al., IEEE TPAMI 2023). A row has the name that the same run has here; an option that the paper
varies stands in brackets unless it has our default. BOPs are counts; the paper prints them in millions or billions.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, kw_only=True, slots=True)
class Printed:
    """One row of a printed table; figures that are not printed are NaN.

    Attributes:
        table: Number of the table, "1" to "12" or "I".
        dataset, model: Task of the row.
        row: Method, with the option that was varied in brackets.
        top1, top1_std, top5, top5_std: Accuracies in percent, and their standard deviations.
        bops: Bit operations.
        memory_kb: Memory footprint in KB.
        search_hours, memory_gb: Hours and memory of the search on a TITAN Xp.
        latency_ms, energy_mj: Latency and energy of one image on BitFusion.
        note: Remark that a reader of the row needs; empty for none.
    """

    table: str
    dataset: str
    model: str
    row: str
    top1: float
    top1_std: float
    top5: float
    top5_std: float
    bops: float
    memory_kb: float
    search_hours: float
    memory_gb: float
    latency_ms: float
    energy_mj: float
    note: str


_TEXTS = frozenset({"table", "dataset", "model", "row", "note"})


@cache
def printed(table: str) -> tuple[Printed, ...]:
    """Return the rows of one printed table, in its order; none for an unknown number."""
    return tuple(row for row in _rows() if row.table == table)


def _rows() -> Iterator[Printed]:
    with resources.files("bench.results").joinpath("published.csv").open() as file:
        for line in csv.DictReader(file):
            numbers = {key: float(text) if text else math.nan for key, text in line.items() if key not in _TEXTS}
            yield Printed(**{key: line[key] for key in _TEXTS}, **numbers)  # type: ignore[arg-type]
