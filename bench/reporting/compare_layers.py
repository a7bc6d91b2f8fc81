"""The difference between two sides' policies, layer by layer, each averaged over the side's runs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.compression.policy import LayerPolicy, Policy, load_policy
from bench.errors import BenchError
from bench.reporting.compare import Comparison, Line
from bench.reporting.compare_views import known
from bench.reporting.report import Column, Table
from bench.reporting.wording import count
from bench.results.groups import RunGroup
from bench.results.tables import StudyResults, section


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMeans:
    """The policy of one layer, averaged over runs.

    Attributes:
        weight_bits: Mean bits of weights.
        activation_bits: Mean bits of the layer's input.
        kept: Mean share of its filters that are kept, 0 to 1; NaN when a run does not record how many there were.
    """

    weight_bits: float
    activation_bits: float
    kept: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SideLayers:
    """The mean policy of one side.

    Attributes:
        layers: Layers by name, in the order of the network.
        policies: Number of policies that were averaged.
        missing: Number of runs without a readable policy.
    """

    layers: Mapping[str, LayerMeans]
    policies: int
    missing: int


def layers_of(results: StudyResults, group: RunGroup) -> SideLayers:
    """Return the mean policy of a group's runs.

    Args:
        results: Study that the runs belong to.
        group: Group of runs; every run with a policy counts, paired or not.
    """
    policies = [(policy, identity) for identity in group.runs if (policy := _policy(results, identity)) is not None]
    entries: dict[str, list[tuple[LayerPolicy, Any]]] = {}
    for policy, identity in policies:
        filters = section(results.record("runs", identity) or {}, "filters")
        for name, layer in policy.layers.items():
            entries.setdefault(name, []).append((layer, filters.get(name)))
    layers = {name: _averaged(runs) for name, runs in entries.items()}
    return SideLayers(layers=layers, policies=len(policies), missing=len(group.runs) - len(policies))


def _policy(results: StudyResults, identity: str) -> Policy | None:
    try:
        return load_policy(results.store.unit("runs", identity) / "policy.json")
    except BenchError:
        return None


def _averaged(runs: Sequence[tuple[LayerPolicy, Any]]) -> LayerMeans:
    return LayerMeans(
        weight_bits=_mean([layer.weight_bits for layer, _ in runs]),
        activation_bits=_mean([layer.activation_bits for layer, _ in runs]),
        kept=_mean([_share(layer, filters) for layer, filters in runs]),
    )


def _share(layer: LayerPolicy, filters: Any) -> float:
    """Return the share of a layer's filters that are kept."""
    if layer.kept_filters is None:
        return 1.0
    return len(layer.kept_filters) / filters if isinstance(filters, int) and filters > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- as a table ---------------------------------------------------------------------------------------------------


def tables(comparison: Comparison, *, every: bool = False) -> list[Table]:
    """Make one table for each line except the pooled one; none when whole studies are compared.

    Args:
        comparison: Groups of runs that are compared.
        every: Whether layers that both sides treat alike are shown too.
    """
    return [_table(comparison, line, number, every=every) for number, line in enumerate(_lines(comparison))]


def _lines(comparison: Comparison) -> Iterator[Line]:
    if comparison.first.kind != "study":
        yield from (line for line in comparison.lines if not line.pooled)


def _sides(comparison: Comparison, line: Line) -> tuple[SideLayers, SideLayers]:
    return layers_of(comparison.first.results, line.first), layers_of(comparison.second.results, line.second)


def _table(comparison: Comparison, line: Line, number: int, *, every: bool) -> Table:
    first, second = _sides(comparison, line)
    names = list(dict.fromkeys([*first.layers, *second.layers]))
    pairs = [(name, first.layers.get(name), second.layers.get(name)) for name in names]
    shown = [(name, a, b) for name, a, b in pairs if every or a is None or b is None or _differ(a, b)]
    return Table(
        name=f"layers-{number}",
        title=" ".join(filter(None, ("Policies, layer by layer", line.label and f"at {line.label}"))),
        columns=_COLUMNS,
        rows=tuple((name, *_cells(a, b)) for name, a, b in shown),
        notes=tuple(_notes(first, second, names, hidden=len(pairs) - len(shown))),
    )


_COLUMNS = (
    Column(title="Layer", align="left"),
    *(Column(title=figure, align="left") for figure in ("w bits", "a bits", "filters %")),
)
_UNKNOWN = "?"


def _cells(first: LayerMeans | None, second: LayerMeans | None) -> Iterator[str]:
    """Yield each figure of both sides, "4.5 → 4"; once if they are equal."""
    for figure, scale, digits in (("weight_bits", 1, 2), ("activation_bits", 1, 2), ("kept", 100, 1)):
        a, b = (math.nan if side is None else scale * getattr(side, figure) for side in (first, second))
        sides = dict.fromkeys((_short(a, digits), _short(b, digits)))
        yield " → ".join(sides)


def _short(value: float, digits: int) -> str:
    """Format a number without trailing zeros; a question mark for an unknown one."""
    return _UNKNOWN if math.isnan(value) else f"{value:.{digits}f}".rstrip("0").rstrip(".")


def _notes(first: SideLayers, second: SideLayers, names: Sequence[str], *, hidden: int) -> Iterator[str]:
    both = [name for name in names if name in first.layers and name in second.layers]
    changed = sum(_differ(first.layers[name], second.layers[name]) for name in both)
    yield "x → y: x in A, y in B; one figure where they are equal"
    rest = "; `--all` shows the others" if hidden else ""
    yield f"Layers that differ: {changed} of the {len(both)} that both have{rest}"
    yield f"Means over the policies of {count(first.policies, 'run')} of A and {count(second.policies, 'run')} of B"
    for side, name in ((first, "A"), (second, "B")):
        if side.missing:
            yield f"{name}: {count(side.missing, 'run')} without a readable policy left out"
        if any(math.isnan(layer.kept) for layer in side.layers.values()):
            yield f"{name}: a run does not record how many filters a pruned layer had; the layer's share is left out"


def _differ(first: LayerMeans, second: LayerMeans) -> bool:
    """Return whether any figure that is known for both differs."""
    figures = zip(asdict(first).values(), asdict(second).values(), strict=True)
    return any(abs(a - b) > 0 for a, b in figures)


def to_json(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the mean policies of both sides, line by line."""
    lines = []
    for line in _lines(comparison):
        sides = zip(("first", "second"), _sides(comparison, line), strict=True)
        lines.append({"label": line.label, **{side: _side_json(layers) for side, layers in sides}})
    return lines


def _side_json(side: SideLayers) -> dict[str, Any]:
    layers = {name: {key: known(value) for key, value in asdict(means).items()} for name, means in side.layers.items()}
    return {"policies": side.policies, "missing": side.missing, "layers": layers}
