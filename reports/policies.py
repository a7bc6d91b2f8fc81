"""The policies that searches found, layer by layer: bits and filters (Figs. 6, 7, II to VI of the SBS paper)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.api import FULL_PRECISION_BITS, Column, Figure, Part, Report, StudyResults, Table
from bench.results.statistics import mean, std
from bench.results.tables import IDENTITY, section
from reports.shared.drawing import both, spread_of, unique
from reports.shared.formatting import named_runs, spread

if TYPE_CHECKING:
    import altair as alt

_MOST_ROWS = 2000
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
        notes = ("Layers in the network's order; bars: means over seeds, lines: ± one standard deviation", *left_out)
        parts: list[Part] = []
        if any(layer.quantized for layer in layers):
            parts.append(_figure_of_bits(layers, notes))
        if any(layer.values["pruned"] for layer in layers):
            parts.append(_figure_of_filters(layers, notes))
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


def decisions(results: StudyResults, run: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the decisions of a run for each layer; entries that are no policy of a layer are left out."""
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
    if plain:
        notes = (*notes, f"At full precision throughout, not drawn: {', '.join(plain)}")
    layers = [layer for layer in layers if layer.line in quantized]
    rows = [
        {"line": layer.line, "layer": layer.layer, "kind": kind, **spread_of(layer.values[key])}
        for layer in layers
        for key, kind in BITS.items()
    ]
    order = unique(layer.layer for layer in layers)
    drawn = both(lambda: _bars(order, "bits", list(BITS.values())), rows, "line", "Method")
    return Figure(name="policy-bits", title="Bits of weights and activations", notes=notes, **drawn)


def _figure_of_filters(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Figure:
    rows = [
        {"line": layer.line, "layer": layer.layer, "kind": "filters", **spread_of(layer.values["pruned"])}
        for layer in layers
        if layer.values["pruned"]
    ]
    order = unique(row["layer"] for row in rows)
    drawn = both(lambda: _bars(order, "filters pruned (%)", ["filters"], top=100), rows, "line", "Method")
    return Figure(name="policy-filters", title="Share of filters pruned", notes=notes, **drawn)


def _bars(order: Sequence[str], title: str, kinds: Sequence[str], top: float | None = None) -> "list[alt.Chart]":
    """Make the layers of a chart, without data: means as bars, ± one standard deviation as lines."""
    import altair as alt

    scale = alt.Undefined if top is None else alt.Scale(domain=[0, top])
    axis = alt.Axis(labelAngle=-60, labelLimit=130, labelOverlap=True)
    base = alt.Chart().encode(x=alt.X("layer:N", sort=list(order), title=None, axis=axis))
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=list(kinds)), legend=_legend(kinds))
    if len(kinds) > 1:
        base = base.encode(xOffset=alt.XOffset("kind:N", sort=list(kinds)))
    tooltip = [
        alt.Tooltip("line:N", title="method"),
        alt.Tooltip("layer:N"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("mean:Q", format=".2f", title=title),
        alt.Tooltip("std:Q", format=".2f"),
        alt.Tooltip("n:Q", title="runs"),
    ]
    return [
        base.mark_bar().encode(y=alt.Y("mean:Q", title=title, scale=scale), color=colour, tooltip=tooltip),
        base.mark_rule(color="currentColor", strokeWidth=1.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
    ]


def _legend(kinds: Sequence[str]) -> Any:
    import altair as alt

    return alt.Legend() if len(kinds) > 1 else None


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
