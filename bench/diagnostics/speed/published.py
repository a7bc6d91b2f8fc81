"""The cost of searches that the SBS paper prints (Tables 1 and 5), beside the measured ratios."""

import math
import statistics
from dataclasses import dataclass

from bench.diagnostics.speed.rows import Row, Speed
from bench.results.published import Printed, printed

_TABLES = ("5", "1")
"""Tables with the cost of searches; a row that is in both is taken from the first."""
SHARED = "sbs_q"
"""Published search that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The cost of a search relative to the search with bit sharing, measured and published.

    Attributes:
        method: Method of the search.
        compiled: Whether both are compiled.
        time, saved, peak: Measured ratios of step time (median of rounds), saved activations and peak memory.
        published_time, published_memory: Printed ratios of search time and memory.
        source: Table of the printed ratios.
    """

    method: str
    compiled: bool
    time: float
    saved: float | None
    peak: float | None
    published_time: float | None
    published_memory: float | None
    source: str


def sharing(speed: Speed) -> list[Sharing]:
    """Compare each search that the paper prints a cost of with the one with bit sharing, if that was measured."""
    known = _published()
    costs = {row.row: row for row in known if row.model == speed.config.model}
    names = {row.row for row in known}
    searches = {(row.name, row.compiled): row for row in speed.rows if row.what == "search" and row.name in names}
    comparisons = []
    for (name, compiled), row in searches.items():
        base = searches.get((SHARED, compiled))
        if base is not None and row is not base:
            comparisons.append(_compare(row, base, costs.get(name), costs.get(SHARED)))
    return comparisons


def _published() -> list[Printed]:
    """List the printed costs of searches, each once."""
    rows = [row for table in _TABLES for row in printed(table) if not math.isnan(row.search_hours)]
    return list({(row.model, row.row): row for row in reversed(rows)}.values())


def _compare(row: Row, base: Row, own: Printed | None, other: Printed | None) -> Sharing:
    hours = memory = None
    if own is not None and other is not None:
        hours = own.search_hours / other.search_hours
        memory = None if math.isnan(own.memory_gb) else own.memory_gb / other.memory_gb
    paired = [seconds / against for seconds, against in zip(row.seconds, base.seconds, strict=False)]
    return Sharing(
        method=row.name,
        compiled=row.compiled,
        time=statistics.median(paired),
        saved=row.saved_bytes / base.saved_bytes if base.saved_bytes else None,
        peak=row.peak_bytes / base.peak_bytes if row.peak_bytes and base.peak_bytes else None,
        published_time=hours,
        published_memory=memory,
        source=f"Table {own.table}" if own is not None else "",
    )
