"""How the search steps of methods grow with the number of candidate widths, and with the depth of the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.diagnostics.speed.measure import Candidate, Row, SpeedConfig, measure
from bench.errors import BenchError
from bench.method import Method
from bench.planning.plan import make_method
from bench.reporting.charts import save

if TYPE_CHECKING:
    import altair

CHAINS: tuple[tuple[int, ...], ...] = ((8,), (4, 8), (2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16))
"""Candidate widths, one to five of them."""


@dataclass(kw_only=True)
class Growth:
    """How steps grow with one number.

    Attributes:
        of: What grows: candidate widths, or layers of the network.
        rows: By that number, those of the searches.
        notes: What was left out, and why.
    """

    of: Literal["bits", "depth"]
    rows: list[tuple[int, Row]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """All points."""
        points = [{self.of: number, **asdict(row)} for number, row in self.rows]
        return {"growth": self.of, "rows": points, "notes": self.notes}


def growth_with_bits(
    setting: SpeedConfig, methods: Sequence[str], modes: Sequence[bool], tell: Callable[[str], None]
) -> Growth:
    """Search steps with more and more candidate widths, all in one process."""
    wanted, notes = [], []
    for name in methods:
        for chain in CHAINS:
            widths = ",".join(map(str, chain))
            try:
                method = make_method(name, {"bits": chain})
            except BenchError as error:
                notes.append(f"{name} cannot choose from {widths}: {error}")
                continue
            wanted += [
                Candidate(
                    name=name, what="search", method=method, compiled=compiled, precision=setting.precision,
                    detail=widths,
                )
                for compiled in modes
            ]  # fmt: skip
    if not wanted:
        raise BenchError(f"--growth bits: {notes[0]}")
    speed = measure(setting, wanted, tell)
    rows = [(len(row.detail.split(",")), row) for row in speed.rows if row.what == "search"]
    return Growth(of="bits", rows=rows, notes=notes + speed.notes)


def growth_with_depth(
    settings: Sequence[SpeedConfig], methods: Mapping[str, Method], modes: Sequence[bool], tell: Callable[[str], None]
) -> Growth:
    """Search steps on one model after another, each beside its own reference."""
    rows, notes = [], []
    for setting in settings:
        wanted = [
            Candidate(
                name=name, what="search", method=method, compiled=compiled, precision=setting.precision,
                detail=setting.model,
            )
            for name, method in methods.items()
            for compiled in modes
        ]  # fmt: skip
        speed = measure(setting, wanted, tell)
        rows += [(speed.layers, row) for row in speed.rows if row.what == "search"]
        notes += speed.notes
    return Growth(of="depth", rows=rows, notes=notes)


def draw(growth: Growth, file: Path) -> None:
    """Draw the ratios to the plain step, with quartiles as bars, into a file whose ending says which kind.

    Args:
        growth: What was measured.
        file: Overwritten.
    """
    save(chart(growth), file)


def chart(growth: Growth) -> "altair.TopLevelMixin":
    """Ratios to the plain step, with quartiles as rules."""
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
        title="candidate widths" if growth.of == "bits" else "layers with weights",
        axis=alt.Axis(values=numbers, format="d", grid=False),
    )
    base = alt.Chart(alt.InlineData(values=points)).encode(across, alt.Color("search:N", title=None))
    lines = base.mark_line(point=True).encode(
        alt.Y("ratio:Q", title="search step × plain step", scale=alt.Scale(zero=True)),
        alt.StrokeDash("compiled:N", legend=None),
    )
    spreads = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    return alt.layer(lines, spreads).properties(width=320, height=220)
