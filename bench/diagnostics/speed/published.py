"""What the SBS paper prints of the cost of searches (Tables 1 and 5), beside the measured ratios."""

import math
import statistics
from dataclasses import dataclass

from bench.diagnostics.speed.measure import Row, Speed
from bench.results.published import Printed, printed

_TABLES = ("5", "1")
"""With costs of searches; what both print is taken from the first."""
SHARED = "sbs_q"
"""The published search that the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """A search against the one with bit sharing, measured and as published.

    Attributes:
        method: The search.
        compiled: Whether both were compiled.
        time, saved, peak: Measured ratios: of steps (median of rounds), saved activations and peak memory.
        published_time, published_memory: Printed ratios of search cost and memory.
        source: Of the printed ones.
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
    """Each search that the paper prints a cost of, against the one with bit sharing; empty without the latter."""
    known = _published()
    costs = {row.row: row for row in known if row.model == speed.setting.model}
    named = {row.row for row in known}
    searches = {(row.name, row.compiled): row for row in speed.rows if row.what == "search" and row.name in named}
    found = []
    for (name, compiled), row in searches.items():
        base = searches.get((SHARED, compiled))
        if base is not None and row is not base:
            found.append(_against(row, base, costs.get(name), costs.get(SHARED)))
    return found


def _published() -> list[Printed]:
    """The printed costs of searches, each once."""
    rows = [row for table in _TABLES for row in printed(table) if not math.isnan(row.search_hours)]
    return list({(row.model, row.row): row for row in reversed(rows)}.values())


def _against(row: Row, base: Row, own: Printed | None, other: Printed | None) -> Sharing:
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
