"""The policies that searches found, layer by layer: bits and filters (Figs. 6, 7, II to VI of the SBS paper)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bench.api import FULL_PRECISION_BITS, Column, Figure, Part, Report, StudyResults, Table
from bench.results.statistics import mean, std
from bench.results.tables import IDENTITY, section
from reports.shared.drawing import data, spread_of, unique
from reports.shared.formatting import named_runs, spread

if TYPE_CHECKING:
    import altair as alt

_MOST_ROWS = 2000
_CELL = (34, 22)
"""Width and height of a cell, in pixels."""
_DARK = 0.6
"""Share of the largest value above which a cell is so dark that its number is white."""
_SHORT = "format(datum.mean, datum.mean == round(datum.mean) ? 'd' : '.1f')"
BITS = {"weight_bits": "weights", "activation_bits": "activations"}
"""Fields of a policy that hold bits, and the tensors that have them."""
_KINDS = (*BITS, "pruned")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """The decisions of all runs of a method and budget for one layer.

    Attributes:
        method, budget: Identity of the runs.
        layer: Name of the layer.
        values: Values of all runs for each kind of decision; `pruned` is a percentage, empty for an unpruned layer.
    """

    method: str
    budget: str
    layer: str
    values: Mapping[str, Sequence[float]]

    @property
    def line(self) -> str:
        """Method and budget."""
        return f"{self.method} {self.budget}".strip()

    @property
    def quantized(self) -> bool:
        """Whether some run has the layer below full precision."""
        return any(bits < FULL_PRECISION_BITS for key in BITS for bits in self.values[key])


class Policies(Report):
    """The bits and filters of every layer."""

    summary = "bits and pruned filters of every layer, for each method and budget"
    title = "Policies, layer by layer"
    rank = 30

    def build(self, results: StudyResults) -> list[Part]:
        """Make the figures and the table; none before the first run has a policy."""
        lines = [line for line in _lines(results) if line]
        if not lines:
            return []
        kept, left_out = _within(lines)
        layers = [layer for line in kept for layer in line]
        parts: list[Part] = []
        if any(layer.quantized for layer in layers):
            parts.append(_figure_of_bits(layers, left_out))
        if any(layer.values["pruned"] for layer in layers):
            parts.append(_figure_of_filters(layers, left_out))
        return [*parts, _table(layers, left_out)]


def _within(lines: Sequence[Sequence[_Layer]]) -> tuple[Sequence[Sequence[_Layer]], tuple[str, ...]]:
    """Keep as many methods and budgets as the table can hold; the note names what was left out."""
    most = max(1, _MOST_ROWS // max(map(len, lines)))
    if len(lines) <= most:
        return lines, ()
    return lines[:most], (f"The first {most} of {len(lines)} methods and budgets; the others' are in the run folders",)


def _lines(results: StudyResults) -> Iterator[list[_Layer]]:
    """Yield the layers of each method and budget, in the study's order."""
    runs = named_runs(results)
    for _, group in runs[runs["status"] == "done"].groupby(list(IDENTITY), sort=False):
        method, budget = str(group["line"].iloc[0]), str(group["budget"].iloc[0])
        values: dict[str, dict[str, list[float]]] = {}
        for run in group["id"]:
            for layer, decision in decisions(results, str(run)):
                kinds = values.setdefault(layer, {key: [] for key in _KINDS})
                for key, value in decision.items():
                    kinds[key].append(value)
        yield [_Layer(method=method, budget=budget, layer=layer, values=kinds) for layer, kinds in values.items()]


_Decisions = Sequence[tuple[str, Mapping[str, float]]]
"""Decisions of a run for each layer, with the layer's name."""
_known: WeakKeyDictionary[StudyResults, dict[str, _Decisions]] = WeakKeyDictionary()
"""Decisions of the runs of a study by run, since several reports ask for them."""


def decisions(results: StudyResults, run: str) -> _Decisions:
    """Return the decisions of a run for each layer; entries that are no policy of a layer are left out."""
    known = _known.setdefault(results, {})
    if run not in known:
        known[run] = list(_decisions(results, run))
    return known[run]


def _decisions(results: StudyResults, run: str) -> Iterator[tuple[str, dict[str, float]]]:
    policy = results.file(run, "policy.json")
    filters = section(results.record("runs", run) or {}, "filters")
    for layer, entry in section(policy, "layers").items() if isinstance(policy, dict) else ():
        if isinstance(entry, dict) and all(isinstance(entry.get(key), int) for key in BITS):
            yield layer, {**{key: float(entry[key]) for key in BITS}, **_pruned(entry, filters.get(layer))}


def _pruned(entry: Mapping[str, Any], filters: Any) -> dict[str, float]:
    """Return the percentage of a layer's filters that were pruned; nothing when it is not recorded."""
    kept = entry.get("kept_filters")
    if not isinstance(kept, list) or not isinstance(filters, int) or filters < 1:
        return {}
    return {"pruned": 100 * (1 - len(kept) / filters)}


# --- figures and table ----------------------------------------------------------------------------------------


def _figure_of_bits(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Figure:
    """Draw the bits, without methods at full precision, whose 32 bits would hide all other differences."""
    quantized = {layer.line for layer in layers if layer.quantized}
    plain = unique(layer.line for layer in layers if layer.line not in quantized)
    notes = ("Number in a cell: mean bits over seeds. Layers from left to right in the network's order", *notes)
    if plain:
        notes = (*notes, f"At full precision throughout, not drawn: {', '.join(plain)}")
    drawn = [layer for layer in layers if layer.line in quantized]
    maps = {title: [_square(layer, layer.values[key]) for layer in drawn] for key, title in BITS.items()}
    return Figure(
        name="policy-bits",
        title="Bits of weights and activations",
        notes=notes,
        draw=lambda: _heat_maps(maps, "bits", "blues"),
    )


def _figure_of_filters(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Figure:
    order = {name: number for number, name in enumerate(unique(layer.layer for layer in layers))}
    pruned = sorted((layer for layer in layers if layer.values["pruned"]), key=lambda layer: order[layer.layer])
    squares = [_square(layer, layer.values["pruned"]) for layer in pruned]
    return Figure(
        name="policy-filters",
        title="Share of filters pruned",
        notes=("Number in a cell: percentage of a layer's filters, mean over seeds", *notes),
        draw=lambda: _heat_maps({"filters pruned": squares}, "%", "oranges", top=100.0),
    )


def _square(layer: _Layer, values: Sequence[float]) -> dict[str, Any]:
    return {"method": layer.method, "budget": layer.budget, "line": layer.line, "layer": layer.layer} | {
        key: value for key, value in spread_of(values).items() if key in ("mean", "std", "n")
    }


def _heat_maps(
    maps: Mapping[str, Sequence[Mapping[str, Any]]], unit: str, scheme: str, top: float | None = None
) -> "alt.TopLevelMixin":
    """Draw a heat map for each kind of decision, one below the other: methods in rows, layers in columns."""
    import altair as alt

    most = max((float(row["mean"]) for rows in maps.values() for row in rows), default=1.0) if top is None else top
    scale = alt.Scale(scheme=scheme, domain=[0, most])  # type: ignore[arg-type]
    views = [_heat_map(title, rows, unit, scale, most) for title, rows in maps.items()]
    return views[0] if len(views) == 1 else alt.vconcat(*views, spacing=12).resolve_scale(color="shared")


def _heat_map(
    title: str, rows: Sequence[Mapping[str, Any]], unit: str, scale: "alt.Scale", most: float
) -> "alt.LayerChart | alt.FacetChart":
    import altair as alt

    lines, layers = unique(row["line"] for row in rows), unique(row["layer"] for row in rows)
    base = alt.Chart(data(rows)).encode(
        x=alt.X("layer:N", sort=layers, title=None, axis=alt.Axis(labelAngle=-60, labelLimit=150, labelOverlap=False)),
        y=alt.Y("line:N", sort=lines, title=title, axis=alt.Axis(labelLimit=190)),
    )
    tooltip = [
        alt.Tooltip("line:N", title="method"),
        alt.Tooltip("layer:N"),
        alt.Tooltip("mean:Q", format=".2f", title=f"{title}, {unit}"),
        alt.Tooltip("std:Q", format=".2f"),
        alt.Tooltip("n:Q", title="runs"),
    ]
    colour = alt.Color("mean:Q", title=unit, scale=scale, legend=None)
    ink = alt.when(f"datum.mean > {_DARK * most}").then(alt.value("white")).otherwise(alt.value("#1c2024"))
    number = base.mark_text(fontSize=10).transform_calculate(shown=_SHORT).encode(text="shown:N", color=ink)
    squares = base.mark_rect(stroke="white", strokeWidth=1).encode(color=colour, tooltip=tooltip)
    return alt.layer(squares, number).properties(width=_CELL[0] * len(layers), height=_CELL[1] * len(lines))


def _table(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Table:
    return Table(
        name="policies",
        title="Policies: mean±std over seeds",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="Layer", align="left"),
            Column(title="n", drop=1),
            Column(title="Weight bits"),
            Column(title="Activation bits"),
            Column(title="Filters pruned %"),
        ),
        rows=tuple(_cells(layer) for layer in layers),
        folded=True,
        notes=("Filters pruned is empty when no run could prune the layer", *notes),
    )


def _cells(layer: _Layer) -> tuple[str, ...]:
    pruned = layer.values["pruned"]
    return (
        layer.method,
        layer.budget,
        layer.layer,
        str(len(layer.values["weight_bits"])),
        *(spread(mean(layer.values[key]), std(layer.values[key])) for key in BITS),
        spread(mean(pruned), std(pruned)) if pruned else "",
    )
