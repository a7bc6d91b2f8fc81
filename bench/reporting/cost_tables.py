"""What policies cost as tables for the terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence

from bench.compression.shapes import LayerShape
from bench.compression.space_size import CANDIDATES, in_words, policies
from bench.costs.breakdown import CostBreakdown, Difference, Side
from bench.costs.counter import LayerCost
from bench.costs.measures import MeasureName
from bench.errors import BenchError
from bench.reporting.report import Column, Table
from bench.reporting.wording import MILLION, count, listed

_MEASURES: Sequence[MeasureName] = ("bops", "memory", "latency", "energy")
_ON_ACCELERATOR: Mapping[MeasureName, str] = {"latency": "ms", "energy": "mJ"}
_TITLES = {"bops": "BOPs (M)", "memory": "KB", "latency": "ms", "energy": "mJ"}
_WORDS = {"bops": "BOPs", "memory": "memory", "latency": "latency", "energy": "energy"}
_SCALES = {"bops": 1 / MILLION}
_DECIMALS = {"bops": 2, "memory": 1, "latency": 4, "energy": 4}
_BAR_WIDTH = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"
_UNKNOWN = "–"


def table(found: CostBreakdown | Difference, by: MeasureName) -> Table:
    """One policy's costs, or two policies' and their difference.

    Args:
        found: What they cost.
        by: The measure that the table is about.

    Raises:
        BenchError: It is not known of the network.
    """
    return cost_table(found, by) if isinstance(found, CostBreakdown) else difference_table(found, by)


def cost_table(overall: CostBreakdown, by: MeasureName) -> Table:
    """The cost of a network layer by layer, with the totals in the last line.

    Args:
        overall: What it costs.
        by: Whose shares are shown.

    Raises:
        BenchError: The network has no figure of that measure.
    """
    _check_known(overall, by)
    shares = overall.shares(by)
    longest = max(shares.values())
    shapes = zip(overall.network.layers, overall.cost.layers, strict=True)
    rows = [_row(overall, shape, layer, _share(shares[layer.name], longest)) for shape, layer in shapes]
    totals = ["total", "", "", "", _millions(overall.cost.macs), *_figures(overall, None), ""]
    return Table(
        name="cost",
        title=_title(overall),
        columns=_columns(by),
        rows=(*map(tuple, rows), tuple(totals)),
        notes=tuple(_notes(overall)),
    )


def _columns(by: MeasureName) -> tuple[Column, ...]:
    """The measure that is asked for always stays; of the others the last go first."""
    measures = (
        Column(title=_TITLES[measure], drop=0 if measure == by else rank) for rank, measure in enumerate(_MEASURES, 1)
    )
    return (
        Column(title="Layer", align="left"),
        Column(title="Shape", align="left", drop=5),
        Column(title="Groups", drop=7),
        Column(title="Bits w/a"),
        Column(title="MACs (M)", drop=6),
        *measures,
        Column(title=f"Share of {_WORDS[by]}", align="left"),
    )


def _row(overall: CostBreakdown, shape: LayerShape, layer: LayerCost, share: str) -> list[str]:
    groups = layer.in_channels if shape.depthwise else shape.groups
    bits = f"{layer.weight_bits}/{layer.activation_bits}"
    figures = _figures(overall, layer)
    return [layer.name, _shape(shape, layer), str(groups), bits, _millions(layer.macs), *figures, share]


def _shape(shape: LayerShape, layer: LayerCost) -> str:
    """With the channels that are left: "3×3/2 16→32 at 16×16"."""
    channels = f"{layer.in_channels}→{layer.out_channels}"
    if shape.kind == "linear":
        return f"linear {channels}"
    stride = "" if set(shape.stride) == {1} else f"/{_sides(shape.stride, '×')}"
    return f"{shape.kernel[0]}×{shape.kernel[1]}{stride} {channels} at {shape.out_size[0]}×{shape.out_size[1]}"


def _sides(pair: tuple[int, int], sign: str) -> str:
    return str(pair[0]) if pair[0] == pair[1] else sign.join(map(str, pair))


def _figures(overall: CostBreakdown, layer: LayerCost | None) -> Iterator[str]:
    """What a layer, or the whole network, costs in each measure."""
    for measure in _MEASURES:
        yield _figure(measure, overall.total(measure) if layer is None else overall.of(measure, layer))


def _figure(measure: MeasureName, value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value * _SCALES.get(measure, 1):,.{_DECIMALS[measure]}f}"


def _millions(value: float) -> str:
    return f"{value / MILLION:,.3f}"


def _share(share: float, longest: float) -> str:
    """A share in percent and as a bar, of which the largest layer's is the longest."""
    eighths = math.ceil(share / longest * _BAR_WIDTH * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    return f"{share:5.1%} {bar.rstrip()}"


def _check_known(overall: CostBreakdown, measure: MeasureName) -> None:
    if overall.total(measure) is None:
        raise BenchError(
            f"--by {measure} needs the {measure} of every layer; {_why(overall)}; "
            f"allowed here: {listed(other for other in _MEASURES if overall.total(other) is not None)}"
        )


def _title(overall: CostBreakdown) -> str:
    cost = overall.cost
    memory = f"{cost.memory_kb:,.1f} KB, peak {cost.peak_memory_kb:,.1f} KB"
    parts = [f"{cost.bops / MILLION:,.1f} M BOPs", memory]
    for measure, unit in _ON_ACCELERATOR.items():
        total = overall.total(measure)
        if total is not None:
            parts.append(f"{total:,.3f} {unit}")
    return f"{cost.model} on {cost.dataset}, for one image: {', '.join(parts)}"


def _notes(overall: CostBreakdown) -> Iterator[str]:
    yield f"Exactly {_exactly(overall)}"
    yield from _accelerator_notes(overall)
    yield (
        f"Search space: {in_words(policies(overall.network))} policies with candidates {listed(CANDIDATES)} "
        f"and groups of {overall.network.group_size}"
    )


def _exactly(overall: CostBreakdown) -> str:
    cost = overall.cost
    return f"{cost.macs:,} MACs, {cost.bops:,} BOPs, {cost.parameters:,} weights"


def _accelerator_notes(overall: CostBreakdown) -> Iterator[str]:
    spec = overall.accelerator
    yield f"Latency and energy: {spec.hardware}, batch {spec.batch}, depthwise {spec.depthwise}"
    if overall.unknown:
        yield f"{_UNKNOWN} {_why(overall)}"


def _why(overall: CostBreakdown) -> str:
    """Why latency and energy are not known, of the first layer of which they are not."""
    name, reason = next(iter(overall.unknown.items()))
    return f"not known of {count(len(overall.unknown), 'layer')}, '{name}' being the first: {reason}"


# --- two policies -------------------------------------------------------------------------------------------------


def difference_table(found: Difference, by: MeasureName) -> Table:
    """Two policies layer by layer: widths, filters that are left, costs, and by how much the second's differ.

    Args:
        found: The policies.
        by: The measure that is always shown.

    Raises:
        BenchError: One of them has no figure of that measure.
    """
    for one in (found.first, found.second):
        _check_known(one.overall, by)
    rows = [_difference_row(found, index) for index, _ in enumerate(found.first.overall.cost.layers)]
    totals = ["total", "", "", "", "", *_differences(found, None)]
    cost = found.first.overall.cost
    return Table(
        name="cost-difference",
        title=f"{cost.model} on {cost.dataset}: A is {found.first.name}, B is {found.second.name}",
        columns=_difference_columns(by),
        rows=(*map(tuple, rows), tuple(totals)),
        notes=tuple(_difference_notes(found)),
    )


def _difference_columns(by: MeasureName) -> tuple[Column, ...]:
    measures = (
        column
        for rank, measure in enumerate(_MEASURES, 1)
        for column in _measure_columns(measure, 0 if measure == by else rank)
    )
    return (
        Column(title="Layer", align="left"),
        *(Column(title=f"{title} {name}", drop=drop) for title, drop in (("Bits", 0), ("Filters", 1)) for name in "AB"),
        *measures,
    )


def _measure_columns(measure: MeasureName, rank: int) -> Iterator[Column]:
    """The figures of both, which go before the difference does."""
    title = _TITLES[measure]
    for name in "AB":
        yield Column(title=f"{title} {name}", drop=rank and rank + len(_MEASURES))
    yield Column(title=f"Δ {title.split()[0]} %", drop=rank)


def _difference_row(found: Difference, index: int) -> list[str]:
    full = found.first.overall.network.layers[index].out_channels
    layers = [one.overall.cost.layers[index] for one in (found.first, found.second)]
    bits = [f"{layer.weight_bits}/{layer.activation_bits}" for layer in layers]
    filters = [str(full) if layer.out_channels == full else f"{layer.out_channels} of {full}" for layer in layers]
    return [layers[0].name, *bits, *filters, *_differences(found, index)]


def _differences(found: Difference, index: int | None) -> Iterator[str]:
    for measure in _MEASURES:
        for one in (found.first, found.second):
            yield _side_figure(one, measure, index)
        change = found.percent(measure, index)
        yield _UNKNOWN if change is None else "0" if change == 0 else f"{change:+.1f}"


def _side_figure(one: Side, measure: MeasureName, index: int | None) -> str:
    layer = None if index is None else one.overall.cost.layers[index]
    return _figure(measure, one.overall.total(measure) if layer is None else one.overall.of(measure, layer))


def _difference_notes(found: Difference) -> Iterator[str]:
    first, second = found.first.overall, found.second.overall
    for name, overall in (("A", first), ("B", second)):
        yield f"{name}: peak {overall.cost.peak_memory_kb:,.1f} KB; exactly {_exactly(overall)}"
    yield "Δ: by how much B costs more than A, in percent of A"
    yield from dict.fromkeys([*_accelerator_notes(first), *_accelerator_notes(second)])
