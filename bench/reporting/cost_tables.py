"""Tables of what policies cost, for the terminal."""

import math
from collections.abc import Iterator

from bench.compression.policy import FULL_PRECISION_BITS
from bench.compression.shapes import LayerShape, NetworkShape
from bench.compression.space_size import CANDIDATES, in_words, policies
from bench.costs.breakdown import CostBreakdown, Difference, Side
from bench.costs.counter import LayerCost, OperationCost
from bench.costs.measured import read_times
from bench.costs.measures import MEASURES, Bops, Measure, MeasureName
from bench.errors import BenchError
from bench.reporting.report import Column, Table
from bench.reporting.wording import MILLION, count, listed

_BAR_WIDTH = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"
_UNKNOWN = "–"


def table(costs: CostBreakdown | Difference, by: MeasureName) -> Table:
    """Make the table of one policy's cost, or of two policies and their difference.

    Args:
        costs: Cost of one policy, or of two.
        by: Measure that the table is about.

    Raises:
        BenchError: The measure is not known for the network.
    """
    return cost_table(costs, by) if isinstance(costs, CostBreakdown) else difference_table(costs, by)


def cost_table(costs: CostBreakdown, by: MeasureName) -> Table:
    """Make the table of a network's cost, layer by layer, with the totals in the last row.

    Args:
        costs: Cost of the policy.
        by: Measure whose shares are shown.

    Raises:
        BenchError: The measure is not known for the network.
    """
    _check_known(costs, by)
    shares = costs.shares(by)
    largest = max(shares.values())
    shapes = zip(costs.network.layers, costs.cost.layers, strict=True)
    rows = [_row(costs, shape, layer, _share(shares[layer.name], largest)) for shape, layer in shapes]
    rows += [_unquantized_row(costs, operation, by) for operation in costs.cost.unquantized]
    totals = ("total", "", "", "", _millions(costs.cost.macs), *_figures(costs, None), "")
    return Table(
        name="cost",
        title=_title(costs),
        columns=_columns(by),
        rows=(*rows, totals),
        notes=tuple(_notes(costs)),
    )


def _columns(by: MeasureName) -> tuple[Column, ...]:
    """Make the headings. The measure asked for always stays; of the others the last ones are dropped first."""
    measures = (
        Column(title=measure.title, drop=0 if name == by else rank)
        for rank, (name, measure) in enumerate(MEASURES.items(), 1)
    )
    return (
        Column(title="Layer", align="left"),
        Column(title="Shape", align="left", drop=5),
        Column(title="Groups", drop=7),
        Column(title="Bits w/a"),
        Column(title="MACs (M)", drop=6),
        *measures,
        Column(title=f"Share of {MEASURES[by].word}", align="left"),
    )


def _row(costs: CostBreakdown, shape: LayerShape, layer: LayerCost, share: str) -> tuple[str, ...]:
    groups = layer.in_channels if shape.depthwise else shape.groups
    bits = f"{layer.weight_bits}/{layer.activation_bits}"
    figures = _figures(costs, layer)
    return (layer.name, _shape(shape, layer), str(groups), bits, _millions(layer.macs), *figures, share)


def _unquantized_row(costs: CostBreakdown, operation: OperationCost, by: MeasureName) -> tuple[str, ...]:
    """Make the row of multiplications outside of the layers, which only bit operations count."""
    figures = (_figure(measure, operation.bops if name == "bops" else None) for name, measure in MEASURES.items())
    share = f"{operation.bops / costs.cost.bops:5.1%}" if by == "bops" else ""
    bits = f"{FULL_PRECISION_BITS}/{FULL_PRECISION_BITS}"
    return (operation.name, "not quantized", "", bits, _millions(operation.macs), *figures, share)


def _shape(shape: LayerShape, layer: LayerCost) -> str:
    """Describe a layer with its remaining channels: "3×3/2 16→32 at 16×16"."""
    channels = f"{layer.in_channels}→{layer.out_channels}"
    if shape.kind == "linear":
        return f"linear {channels}" + (f", {shape.out_size[0]} tokens" if shape.out_size != (1, 1) else "")
    if shape.kind == "matmul":
        pairs = shape.groups * layer.out_channels // shape.out_channels
        inner, columns = shape.in_channels // shape.groups, shape.out_channels // shape.groups
        return f"{'product' if pairs == 1 else f'{pairs} products'} {shape.in_size[0]}×{inner}×{columns}"
    stride = "" if set(shape.stride) == {1} else f"/{_sides(shape.stride, '×')}"
    return f"{shape.kernel[0]}×{shape.kernel[1]}{stride} {channels} at {shape.out_size[0]}×{shape.out_size[1]}"


def _sides(pair: tuple[int, int], sign: str) -> str:
    return str(pair[0]) if pair[0] == pair[1] else sign.join(map(str, pair))


def _figures(costs: CostBreakdown, layer: LayerCost | None) -> Iterator[str]:
    """Yield the cost of a layer, or of the whole network, in each measure."""
    for name, measure in MEASURES.items():
        yield _figure(measure, costs.total(name) if layer is None else costs.layer_cost(name, layer))


def _figure(measure: type[Measure], cost: float | None) -> str:
    return _UNKNOWN if cost is None else f"{cost / measure.scale:,.{measure.decimals}f}"


def _millions(value: float) -> str:
    return f"{value / MILLION:,.3f}"


def _share(share: float, largest: float) -> str:
    """Show a share in percent and as a bar; the largest layer's bar has the full length."""
    eighths = math.ceil(share / largest * _BAR_WIDTH * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8]
    return f"{share:5.1%} {bar.rstrip()}"


def _check_known(costs: CostBreakdown, measure: MeasureName) -> None:
    if costs.total(measure) is None and costs.accelerator.measured and not costs.unknown:
        raise BenchError(
            f"--by {measure}: on '{costs.accelerator.title}' only latency is measured; allowed: --by latency"
        )
    if costs.total(measure) is None:
        raise BenchError(
            f"--by {measure} needs the {measure} of every layer; {_reason(costs)}; "
            f"allowed here: {listed(other for other in MEASURES if costs.total(other) is not None)}"
        )


def _title(costs: CostBreakdown) -> str:
    cost = costs.cost
    memory = f"{cost.memory_kb:,.1f} KB, peak {cost.peak_memory_kb:,.1f} KB"
    executed = (
        measure.in_words(total)
        for name, measure in MEASURES.items()
        if measure.on_accelerator and (total := costs.total(name)) is not None
    )
    parts = [f"{cost.bops / Bops.scale:,.1f} M BOPs", memory, *executed]
    return f"{cost.model} on {cost.dataset}, for one image: {', '.join(parts)}"


def _notes(costs: CostBreakdown) -> Iterator[str]:
    yield f"Exactly {_exactly(costs)}"
    if costs.network.constant:
        macs = sum(operation.macs for operation in costs.network.constant)
        yield (
            f"Not counted: {macs:,} multiplications of {count(len(costs.network.constant), 'layer')} that read no "
            f"image, such as '{costs.network.constant[0].path}'; their results are the same for all images"
        )
    yield from _accelerator_notes(costs)
    yield (
        f"Search space: {in_words(policies(costs.network))} policies with candidates {listed(CANDIDATES)} "
        f"and groups of {costs.network.group_size}"
    )


def filters_table(network: NetworkShape) -> Table:
    """Make the table of which layers may lose filters, with which others, and why the rest may not.

    Args:
        network: Shapes of the full network.
    """
    able = [layer for layer in network.layers if layer.prunable]
    return Table(
        name="filters",
        title=f"{network.model} on {network.dataset}: filters that may be removed",
        columns=(
            Column(title="Layer", align="left"),
            Column(title="Filters"),
            Column(title="May lose filters", align="left"),
        ),
        rows=tuple((layer.name, _filters(layer), _may_lose_filters(network, layer)) for layer in network.layers),
        notes=(
            f"{sum(layer.filters for layer in able):,} filters of {count(len(able), 'layer')} may be removed, by "
            f"default in groups of {network.group_size}, heads one by one",
        ),
    )


def _filters(layer: LayerShape) -> str:
    return f"{layer.filters} heads" if layer.outputs_per_filter > 1 else str(layer.filters)


def _may_lose_filters(network: NetworkShape, layer: LayerShape) -> str:
    """Say whether a layer may lose filters; in a reason "they" are its filters."""
    if layer.leader is not None:
        return f"only with {layer.leader}"
    if not layer.prunable:
        return f"no: {network.obstacles[layer.name]}"
    followers = [other.name for other in network.layers if other.leader == layer.name]
    return f"yes, together with {listed(followers)}" if followers else "yes"


def _exactly(costs: CostBreakdown) -> str:
    cost = costs.cost
    return f"{cost.macs:,} MACs, {cost.bops:,} BOPs, {cost.parameters:,} weights"


def _accelerator_notes(costs: CostBreakdown) -> Iterator[str]:
    spec = costs.accelerator
    if spec.measured:
        beyond = f"{costs.rest_ms:.4f} ms of the total are beyond the layers"
        yield f"Latency: {read_times(spec.hardware).in_words()}; {beyond}"
    else:
        yield f"Latency and energy: {spec.hardware}, batch {spec.batch}, depthwise {spec.depthwise}"
    if costs.unknown:
        yield f"{_UNKNOWN} {_reason(costs)}"


def _reason(costs: CostBreakdown) -> str:
    """Say why latency and energy are not known, for the first layer without them."""
    name, reason = next(iter(costs.unknown.items()))
    return f"not known for {count(len(costs.unknown), 'layer')}; the first is '{name}': {reason}"


# --- two policies -------------------------------------------------------------------------------------------------


def difference_table(difference: Difference, by: MeasureName) -> Table:
    """Make the table of two policies, layer by layer: bits, kept filters, costs, and the difference of the costs.

    Args:
        difference: The two policies.
        by: Measure that is always shown.

    Raises:
        BenchError: The measure is not known for one of them.
    """
    for side in (difference.first, difference.second):
        _check_known(side.costs, by)
    rows = [_difference_row(difference, index) for index, _ in enumerate(difference.first.costs.cost.layers)]
    totals = ("total", "", "", "", "", *_differences(difference, None))
    cost = difference.first.costs.cost
    return Table(
        name="cost-difference",
        title=f"{cost.model} on {cost.dataset}: A is {difference.first.name}, B is {difference.second.name}",
        columns=_difference_columns(by),
        rows=(*rows, totals),
        notes=tuple(_difference_notes(difference)),
    )


def _difference_columns(by: MeasureName) -> tuple[Column, ...]:
    measures = (
        column
        for rank, (name, measure) in enumerate(MEASURES.items(), 1)
        for column in _measure_columns(measure, 0 if name == by else rank)
    )
    return (
        Column(title="Layer", align="left"),
        *(Column(title=f"{title} {side}", drop=drop) for title, drop in (("Bits", 0), ("Filters", 1)) for side in "AB"),
        *measures,
    )


def _measure_columns(measure: type[Measure], rank: int) -> Iterator[Column]:
    """Yield the headings of one measure. On a narrow terminal both figures are dropped before their difference."""
    for side in "AB":
        yield Column(title=f"{measure.title} {side}", drop=rank and rank + len(MEASURES))
    yield Column(title=f"Δ {measure.word} %", drop=rank)


def _difference_row(difference: Difference, index: int) -> tuple[str, ...]:
    shape = difference.first.costs.network.layers[index]
    layers = [side.costs.cost.layers[index] for side in (difference.first, difference.second)]
    bits = [f"{layer.weight_bits}/{layer.activation_bits}" for layer in layers]
    counts = [layer.out_channels // shape.outputs_per_filter for layer in layers]
    filters = [_filters(shape) if kept == shape.filters else f"{kept} of {_filters(shape)}" for kept in counts]
    return (layers[0].name, *bits, *filters, *_differences(difference, index))


def _differences(difference: Difference, index: int | None) -> Iterator[str]:
    for name in MEASURES:
        for side in (difference.first, difference.second):
            yield _side_figure(side, name, index)
        change = difference.percent(name, index)
        yield _UNKNOWN if change is None else "0" if change == 0 else f"{change:+.1f}"


def _side_figure(side: Side, measure: MeasureName, index: int | None) -> str:
    costs = side.costs
    cost = costs.total(measure) if index is None else costs.layer_cost(measure, costs.cost.layers[index])
    return _figure(MEASURES[measure], cost)


def _difference_notes(difference: Difference) -> Iterator[str]:
    first, second = difference.first.costs, difference.second.costs
    for name, costs in (("A", first), ("B", second)):
        yield f"{name}: peak {costs.cost.peak_memory_kb:,.1f} KB; exactly {_exactly(costs)}"
    yield "Δ: by how much B costs more than A, in percent of A"
    yield from dict.fromkeys([*_accelerator_notes(first), *_accelerator_notes(second)])
