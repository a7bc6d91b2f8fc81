"""What searches decided, layer by layer: bits of weights and activations, and filters (Figs. 6, 7, II to VI)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report import Column, Figure, Part, Report, Table
from bench.results import IDENTITY, StudyResults, section
from bench.statistics import mean, std
from reports.cells import name, number, spread
from reports.drawing import both, spread_of, unique

if TYPE_CHECKING:
    import altair as alt

_MOST_ROWS = 2000
_BITS = {"weight_bits": "weights", "activation_bits": "activations"}
_SUM = ("weight_bits", "activation_bits", "pruned")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """What all runs of a method and budget decided for one layer.

    Attributes:
        method, budget: Of the runs.
        layer: Its name.
        values: For each kind of decision, a value for each run; `pruned` is a percentage, empty where none can be.
    """

    method: str
    budget: str
    layer: str
    values: Mapping[str, Sequence[float]]

    @property
    def line(self) -> str:
        """Method and budget."""
        return name({"method": self.method, "budget": self.budget})


class Policies(Report):
    """Bits and filters of every layer."""

    summary = "bits and pruned filters of every layer, for each method and budget"
    title = "Policies, layer by layer"
    rank = 30

    def build(self, results: StudyResults) -> list[Part]:
        """Nothing before the first run has left a policy."""
        lines = [line for line in _lines(results) if line]
        if not lines:
            return []
        kept, left_out = _within(lines)
        layers = [layer for line in kept for layer in line]
        notes = ("Layers in the network's order; bars: means over seeds, lines: ± one standard deviation", *left_out)
        parts: list[Part] = [_figure_of_bits(layers, notes)]
        if any(layer.values["pruned"] for layer in layers):
            parts.append(_figure_of_filters(layers, (*notes, *_reference_note(results))))
        return [*parts, _table(layers, left_out)]


def _within(lines: Sequence[Sequence[_Layer]]) -> tuple[Sequence[Sequence[_Layer]], tuple[str, ...]]:
    """So many lines as a reader can still look through, and what was left out."""
    most = max(1, _MOST_ROWS // max(map(len, lines)))
    if len(lines) <= most:
        return lines, ()
    return lines[:most], (f"The first {most} of {len(lines)} methods and budgets; the others' are in the run folders",)


def _lines(results: StudyResults) -> Iterator[list[_Layer]]:
    """The layers of each method and budget, in the study's order."""
    done = results.runs[results.runs["status"] == "done"]
    groups = [(group["method"].iloc[0], group["budget"].iloc[0], list(group["id"])) for _, group in _grouped(done)]
    policies = {run: dict(_layers_of(results, run)) for _, _, runs in groups for run in runs}
    filters = _filters(results, policies)
    for method, budget, runs in groups:
        found = [policies[run] for run in runs if policies[run]]
        layers = dict.fromkeys(layer for policy in found for layer in policy)
        yield [
            _Layer(
                method=str(method),
                budget=str(budget),
                layer=layer,
                values=_values([policy[layer] for policy in found if layer in policy], filters.get(layer)),
            )
            for layer in layers
        ]


def _grouped(done: Any) -> Any:
    return done.groupby(list(IDENTITY), sort=False)


def _layers_of(results: StudyResults, run: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The layers in a run's policy; those that are no policy of a layer are left out."""
    policy = results.file(run, "policy.json")
    layers = section(policy, "layers") if isinstance(policy, dict) else {}
    for layer, entry in layers.items():
        if isinstance(entry, dict) and all(isinstance(entry.get(key), int) for key in _BITS):
            yield layer, entry


def _filters(results: StudyResults, policies: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, int]:
    """How many filters each layer has that can lose some: as the study says, else as policies let one see."""
    stated = {layer: count for layer, count in section(results.study, "filters").items() if isinstance(count, int)}
    if stated:
        return stated
    found: dict[str, int] = {}
    for policy in policies.values():
        for layer, entry in policy.items():
            if kept := entry.get("kept_filters"):
                found[layer] = max(found.get(layer, 0), int(kept[-1]) + 1)
    return found


def _reference_note(results: StudyResults) -> tuple[str, ...]:
    if section(results.study, "filters"):
        return ()
    return ("The study does not say how many filters layers have; the last one that any run kept stands for all",)


def _values(entries: Sequence[Mapping[str, Any]], filters: int | None) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {key: [float(entry[key]) for entry in entries] for key in _BITS}
    values["pruned"] = [] if not filters else [_pruned(entry.get("kept_filters"), filters) for entry in entries]
    return values


def _pruned(kept: Sequence[int] | None, filters: int) -> float:
    """Percentage of filters that are gone."""
    return 0.0 if kept is None else 100 * (1 - len(kept) / filters)


# --- shown ----------------------------------------------------------------------------------------------------


def _figure_of_bits(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Figure:
    rows = [
        {"line": layer.line, "layer": layer.layer, "what": what, **spread_of(layer.values[key])}
        for layer in layers
        for key, what in _BITS.items()
    ]
    order = unique(layer.layer for layer in layers)
    drawn = both(lambda: _bars(order, "bits", list(_BITS.values())), rows, "line", "Method")
    return Figure(name="policy-bits", title="Bits of weights and activations", notes=notes, **drawn)


def _figure_of_filters(layers: Sequence[_Layer], notes: tuple[str, ...]) -> Figure:
    rows = [
        {"line": layer.line, "layer": layer.layer, "what": "filters", **spread_of(layer.values["pruned"])}
        for layer in layers
        if layer.values["pruned"]
    ]
    order = unique(row["layer"] for row in rows)
    drawn = both(lambda: _bars(order, "filters pruned (%)", ["filters"], top=100), rows, "line", "Method")
    return Figure(name="policy-filters", title="Share of filters pruned", notes=notes, **drawn)


def _bars(order: Sequence[str], title: str, kinds: Sequence[str], top: float | None = None) -> "list[alt.Chart]":
    """Layers of a chart without data: means as bars, one standard deviation to either side as lines."""
    import altair as alt

    scale = alt.Undefined if top is None else alt.Scale(domain=[0, top])
    axis = alt.Axis(labelAngle=-60, labelLimit=130, labelOverlap=True)
    base = alt.Chart().encode(x=alt.X("layer:N", sort=list(order), title=None, axis=axis))
    colour = alt.Color("what:N", title=None, scale=alt.Scale(domain=list(kinds)), legend=_legend(kinds))
    if len(kinds) > 1:
        base = base.encode(xOffset=alt.XOffset("what:N", sort=list(kinds)))
    tooltip = [
        alt.Tooltip("line:N", title="method"),
        alt.Tooltip("layer:N"),
        alt.Tooltip("what:N"),
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
        notes=("An empty share: the layer cannot lose filters", *notes),
    )


def _cells(layer: _Layer) -> tuple[str, ...]:
    pruned = layer.values["pruned"]
    return (
        layer.method,
        layer.budget,
        layer.layer,
        str(len(layer.values["weight_bits"])),
        *(spread(mean(layer.values[key]), std(layer.values[key])) for key in _BITS),
        spread(mean(pruned), std(pruned)) if pruned else number(float("nan"), 0),
    )
