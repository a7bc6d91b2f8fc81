"""Growth of search steps with the number of candidates for bits, and with the depth of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.diagnostics.speed.config import Candidate, SpeedConfig
from bench.diagnostics.speed.measure import Progress, measure
from bench.diagnostics.speed.rows import Row
from bench.errors import BenchError
from bench.method import Method
from bench.planning.methods import make_method
from bench.reporting.charts import save

if TYPE_CHECKING:
    import altair

CHAINS: tuple[tuple[int, ...], ...] = ((8,), (4, 8), (2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16))
"""Candidates for bits, one to five of them."""


@dataclass(kw_only=True)
class Growth:
    """Search steps as one number grows.

    Attributes:
        axis: Number that grows: candidates for bits, or layers of the network.
        rows: Rows of the searches with that number.
        notes: Reasons why a row is missing.
    """

    axis: Literal["bits", "depth"]
    rows: list[tuple[int, Row]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return all points."""
        points = [{self.axis: number, **asdict(row)} for number, row in self.rows]
        return {"growth": self.axis, "rows": points, "notes": self.notes}


def growth_with_bits(config: SpeedConfig, methods: Sequence[str], modes: Sequence[bool], progress: Progress) -> Growth:
    """Measure search steps with one to five candidates for bits, all in one process.

    Raises:
        BenchError: No method can choose bits, or a training failed.
    """
    wanted: list[Candidate] = []
    notes: list[str] = []
    for name in methods:
        for chain in CHAINS:
            detail = ",".join(map(str, chain))
            try:
                method = make_method(name, {"bits": chain})
            except BenchError as error:
                notes.append(f"{name} cannot choose from {detail}: {error}")
                continue
            wanted += _searches(config, name, method, modes, detail)
    if not wanted:
        raise BenchError(f"--growth bits: {notes[0]}")
    speed = measure(config, wanted, progress)
    rows = [(len(row.detail.split(",")), row) for row in speed.rows if row.what == "search"]
    return Growth(axis="bits", rows=rows, notes=notes + speed.notes)


def growth_with_depth(
    configs: Sequence[SpeedConfig], methods: Mapping[str, Method], modes: Sequence[bool], progress: Progress
) -> Growth:
    """Measure search steps on one model after another, each beside a reference of its own.

    Raises:
        BenchError: A training failed.
    """
    rows, notes = [], []
    for config in configs:
        wanted = [
            candidate
            for name, method in methods.items()
            for candidate in _searches(config, name, method, modes, config.model)
        ]
        speed = measure(config, wanted, progress)
        rows += [(speed.layers, row) for row in speed.rows if row.what == "search"]
        notes += speed.notes
    return Growth(axis="depth", rows=rows, notes=notes)


def _searches(config: SpeedConfig, name: str, method: Method, modes: Sequence[bool], detail: str) -> list[Candidate]:
    """List the search of a method, once for each value of `compiled`."""
    return [
        Candidate(name=name, what="search", method=method, compiled=compiled, precision=config.precision, detail=detail)
        for compiled in modes
    ]


def draw(growth: Growth, file: Path) -> None:
    """Draw a chart into a file, whose ending gives the format.

    Args:
        growth: Measurements.
        file: File to write; it is overwritten.
    """
    save(chart(growth), file)


def chart(growth: Growth) -> "altair.TopLevelMixin":
    """Draw the ratios to the plain step, with quartiles as vertical lines."""
    import altair as alt

    points = [
        {
            "number": number,
            "search": f"{row.name}, compiled" if row.compiled else row.name,
            "compiled": row.compiled,
            "ratio": row.ratio.median,
            "low": row.ratio.low,
            "high": row.ratio.high,
        }
        for number, row in sorted(growth.rows, key=lambda point: point[0])
    ]
    numbers = sorted({number for number, _ in growth.rows})
    across = alt.X(
        "number:Q",
        title="candidates for bits" if growth.axis == "bits" else "layers with weights",
        axis=alt.Axis(values=numbers, format="d", grid=False),
    )
    base = alt.Chart(alt.InlineData(values=points)).encode(across, alt.Color("search:N", title=None))
    lines = base.mark_line(point=True).encode(
        alt.Y("ratio:Q", title="search step × plain step", scale=alt.Scale(zero=True)),
        alt.StrokeDash("compiled:N", legend=None),
    )
    quartiles = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return alt.layer(lines, quartiles).properties(width=320, height=220)
