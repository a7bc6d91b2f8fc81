"""What the SBS paper prints of the cost of searches (Tables 1 and 5), beside the measured ratios."""

import statistics
from dataclasses import dataclass

from bench.speed import Row, Speed


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the SBS paper prints of one search: hours and gigabytes on a TITAN Xp."""

    model: str
    method: str
    hours: float
    gigabytes: float | None
    source: str


PUBLISHED = (
    Published(model="resnet20", method="sbs_q", hours=0.8, gigabytes=1.5, source="Table 5"),
    Published(model="resnet20", method="multi_path", hours=2.8, gigabytes=4.4, source="Table 5"),
    Published(model="resnet20", method="dnas", hours=2.8, gigabytes=None, source="Table 1"),
    Published(model="resnet20", method="sbs", hours=1.0, gigabytes=None, source="Table 1"),
    Published(model="resnet56", method="sbs_q", hours=1.3, gigabytes=3.0, source="Table 5"),
    Published(model="resnet56", method="multi_path", hours=8.7, gigabytes=10.9, source="Table 5"),
    Published(model="resnet56", method="dnas", hours=7.6, gigabytes=None, source="Table 1"),
    Published(model="resnet56", method="sbs", hours=1.5, gigabytes=None, source="Table 1"),
)
"""Batches of 128 CIFAR-100 images; sbs_q is "with bit sharing", multi_path "without"."""
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
    printed = {published.method: published for published in PUBLISHED if published.model == speed.setting.model}
    named = {published.method for published in PUBLISHED}
    searches = {(row.name, row.compiled): row for row in speed.rows if row.what == "search" and row.name in named}
    found = []
    for (name, compiled), row in searches.items():
        base = searches.get((SHARED, compiled))
        if base is not None and row is not base:
            found.append(_against(row, base, printed.get(name), printed.get(SHARED)))
    return found


def _against(row: Row, base: Row, printed: Published | None, printed_base: Published | None) -> Sharing:
    hours = memory = None
    if printed is not None and printed_base is not None:
        hours = printed.hours / printed_base.hours
        if printed.gigabytes is not None and printed_base.gigabytes is not None:
            memory = printed.gigabytes / printed_base.gigabytes
    paired = [own / other for own, other in zip(row.seconds, base.seconds, strict=False)]
    return Sharing(
        method=row.name,
        compiled=row.compiled,
        time=statistics.median(paired),
        saved=row.saved_bytes / base.saved_bytes if base.saved_bytes else None,
        peak=row.peak_bytes / base.peak_bytes if row.peak_bytes and base.peak_bytes else None,
        published_time=hours,
        published_memory=memory,
        source=printed.source if printed is not None else "",
    )
