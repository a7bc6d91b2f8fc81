"""Results of `bench speed`: one row for each training."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.diagnostics.speed.config import SpeedConfig, What, head
from bench.spec.schema import Precision


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, quartiles and mean of some numbers."""

    median: float
    low: float
    high: float
    mean: float

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Spread":
        """Compute the spread of one or more numbers."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], mean=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, mean=statistics.fmean(values))


@dataclass(kw_only=True)
class Row:
    """Measurements of one candidate.

    Attributes:
        name, what, detail, compiled, precision: Attributes of the candidate.
        steps: Number of timed steps.
        milliseconds: Time of a step.
        ratio: Time of a step relative to the reference's step in the same round. The mean is the time of all steps
            relative to that of all steps of the reference.
        images_per_second: Images per second at the median step.
        saved_bytes, saved_ratio: Memory that autograd keeps in a step for its backward pass, and its ratio to that of
            the reference.
        peak_bytes, peak_ratio: Peak memory in a step, and its ratio to that of the reference; `None` if it was not
            measured.
        compile_seconds: Time of compilation; `None` if the network is not compiled.
        seconds: Time of every step.
    """

    name: str
    what: What
    detail: str
    compiled: bool
    precision: Precision
    steps: int
    milliseconds: Spread
    ratio: Spread
    images_per_second: float
    seconds: list[float]
    saved_bytes: int
    saved_ratio: float | None = None
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    compile_seconds: float | None = None


@dataclass(kw_only=True)
class Speed:
    """All rows of one measurement.

    Attributes:
        config: Settings of the measurement.
        rows: Rows; the first one is the reference.
        notes: Reasons why a row is missing or has fewer steps.
        layers: Number of convolutions and linear layers of the model.
    """

    config: SpeedConfig
    rows: list[Row]
    notes: list[str]
    layers: int

    def to_json(self) -> dict[str, Any]:
        """Return all results, with the settings and the hardware."""
        rows = [asdict(row) for row in self.rows]
        return {**head(self.config), "layers": self.layers, "rows": rows, "notes": self.notes}


def add_ratios(rows: Sequence[Row]) -> None:
    """Fill in the ratios of memory to that of the first row, the reference."""
    reference = rows[0]
    for row in rows:
        row.saved_ratio = row.saved_bytes / reference.saved_bytes if reference.saved_bytes else None
        if row.peak_bytes is not None and reference.peak_bytes:
            row.peak_ratio = row.peak_bytes / reference.peak_bytes
