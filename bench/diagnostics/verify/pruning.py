"""Checks of the costs of pruned networks: hand counts, and figures that the paper prints."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from bench.compression.policy import FULL_PRECISION_BITS, Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape
from bench.compression.space_size import CANDIDATES
from bench.costs.counter import price
from bench.diagnostics.verify import CheckLine
from bench.diagnostics.verify.networks import CIFAR, network, title
from bench.diagnostics.verify.rounding import rounded

_GROUP = 4
"""Number of filters of a group in the paper's main results."""
_UNIT_MACS = 73_728
"""MACs of 4 filters of the 32→64 convolution on the 8×8 map; every group removes a multiple of them."""
# By hand: 4 filters · inputs · 9 · positions, and filters · 4 · 9 · positions in the layer that reads them.
_HAND_COUNT = {
    "16→16 at 32×32": (4 * 16 * 9 * 32 * 32) + (4 * 16 * 9 * 32 * 32),
    "16→32 at 16×16": (4 * 16 * 9 * 16 * 16) + (4 * 32 * 9 * 16 * 16),
    "32→32 at 16×16": (4 * 32 * 9 * 16 * 16) + (4 * 32 * 9 * 16 * 16),
    "32→64 at 8×8": (4 * 32 * 9 * 8 * 8) + (4 * 64 * 9 * 8 * 8),
    "64→64 at 8×8": (4 * 64 * 9 * 8 * 8) + (4 * 64 * 9 * 8 * 8),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _PrunedRow:
    """An SBS-P row of Table 1 (32 bits), and the groups to drop, by kind of layer, for a policy of that cost."""

    model: str
    value: str
    units: int
    groups: dict[str, int]


_PRUNED_ROWS = (
    _PrunedRow(
        model="resnet20",
        value="28586.5",
        units=175,
        groups={"16→16 at 32×32": 9, "32→32 at 16×16": 2, "32→64 at 8×8": 5},
    ),
    _PrunedRow(
        model="resnet56",
        value="87021.6",
        units=553,
        groups={"16→16 at 32×32": 27, "32→32 at 16×16": 14, "32→64 at 8×8": 3},
    ),
)


_LATTICE_BOPS = Decimal("783.52")
"""BOPs of SBS on ResNet-56 in M, from the text of Section 4.4 on Fig. 4."""
_LATTICE_MEMORY = Decimal("4778.0")
"""Memory of SBS-P on ResNet-56 in KB, from Table 2."""


def lines() -> Iterator[CheckLine]:
    """Check pruning on ResNet-20 and ResNet-56 (type B shortcuts) for CIFAR-100."""
    for model in CIFAR:
        yield _hand_count_line(model)
    for row in _PRUNED_ROWS:
        yield _pruned_row_line(row)
    yield _off_bops_line(network("resnet56"))
    yield _off_memory_line(network("resnet56"))


def _kind(layer: LayerShape) -> str:
    return f"{layer.in_channels}→{layer.out_channels} at {layer.out_size[0]}×{layer.out_size[1]}"


def _drop(policy: Policy, layer: LayerShape, groups: int) -> Policy:
    return policy.with_layer(layer.name, kept_filters=tuple(range(groups * _GROUP, layer.out_channels)))


def _hand_count_line(model: str) -> CheckLine:
    """Drop one group of 4 in each prunable layer in turn, and compare the removed MACs with a hand count."""
    shape = network(model)
    full = uniform(shape, FULL_PRECISION_BITS)
    prunable = [layer for layer in shape.layers if layer.prunable]
    wrong = [
        layer.name
        for layer in prunable
        if price(shape, full).macs - price(shape, _drop(full, layer, 1)).macs != _HAND_COUNT[_kind(layer)]
    ]
    units = "/".join(str(macs // _UNIT_MACS) for macs in _HAND_COUNT.values())
    return CheckLine(
        what=f"{title(model)}: a dropped group of 4 filters shrinks its layer and its reader, hand count",
        figure=(
            f"wrong in {', '.join(wrong)}"
            if wrong
            else f"{len(prunable)} layers, {units} units of {_UNIT_MACS:,} MACs a group"
        ),
        passed=not wrong,
    )


def _pruned_row_line(row: _PrunedRow) -> CheckLine:
    """Check that an SBS-P row is full precision minus a whole number of units, and find a policy of that cost."""
    shape = network(row.model)
    full = uniform(shape, FULL_PRECISION_BITS)
    policy = full
    for kind, groups in row.groups.items():
        layers = [layer for layer in shape.layers if layer.prunable and _kind(layer) == kind]
        policy = _drop_groups(policy, layers, groups)
    cost = price(shape, policy)
    removed = price(shape, full).macs - cost.macs
    value = Decimal(cost.bops) / 10**6
    return CheckLine(
        what=f"{title(row.model)} SBS-P, paper prints {row.value} M (Table 1): whole groups of 4 dropped",
        figure=f"full precision less {removed / _UNIT_MACS:g} units of {_UNIT_MACS:,} MACs is {value} M",
        passed=removed == row.units * _UNIT_MACS and rounded(value, row.value) == Decimal(row.value),
    )


def _drop_groups(policy: Policy, layers: Sequence[LayerShape], groups: int) -> Policy:
    """Drop groups from layers one after another, but keep at least one group in each."""
    for layer in layers:
        share = min(groups, layer.out_channels // _GROUP - 1)
        policy = _drop(policy, layer, share) if share else policy
        groups -= share
    return policy


def _off_bops_line(shape: NetworkShape) -> CheckLine:
    """Check that no policy of SBS's search space has the printed cost."""
    edges = sum(
        layer.bops for layer in price(shape, uniform(shape, CANDIDATES[0])).layers if _is_edge(shape, layer.name)
    )
    step = math.gcd(*(_least_macs(layer) for layer in shape.middle)) * CANDIDATES[0] ** 2
    near = [Decimal(value) / 10**6 for value in _neighbours(_LATTICE_BOPS * 10**6, edges, step)]
    return CheckLine(
        what=(
            f"ResNet-56, SBS, paper prints {_LATTICE_BOPS} M (text on Fig. 4): no policy with 2, 4 and 8 bits and "
            f"whole groups of {_GROUP} has that cost; the reason is unknown"
        ),
        figure=f"such policies cost {edges:,} plus multiples of {step:,} BOPs; nearest: {near[0]} and {near[1]} M",
        passed=all(rounded(value, _LATTICE_BOPS) != _LATTICE_BOPS for value in near),
        deviation=True,
    )


def _is_edge(shape: NetworkShape, name: str) -> bool:
    return shape[name].position != "middle"


def _least_macs(layer: LayerShape) -> int:
    """Return the largest number that divides the MACs of a layer, whichever groups it and its producer lose."""
    inputs = _GROUP if layer.producer else layer.in_channels
    outputs = _GROUP if layer.prunable else layer.out_channels
    return inputs * outputs * math.prod(layer.kernel) * math.prod(layer.out_size) // layer.groups


def _neighbours(value: Decimal, first: int, step: int) -> tuple[int, int]:
    """Return the numbers first + n · step just below and above a value."""
    below = first + int((value - first) // step) * step
    return below, below + step


def _off_memory_line(shape: NetworkShape) -> CheckLine:
    """Check that dropping whole groups cannot give a printed figure of SBS-P."""
    full = uniform(shape, FULL_PRECISION_BITS)
    most = price(shape, full).memory_bits
    parts = [most - price(shape, _drop(full, layer, 1)).memory_bits for layer in shape.layers if layer.prunable]
    step = math.gcd(*parts)
    near = [Decimal(value) / 8000 for value in _neighbours(_LATTICE_MEMORY * 8000, most % step, step)]
    return CheckLine(
        what=(
            f"ResNet-56, SBS-P, paper prints {_LATTICE_MEMORY} KB (Table 2): dropping whole groups of {_GROUP} cannot "
            "give that; the reason is unknown"
        ),
        figure=f"it gives full precision less multiples of {step // 8} bytes; nearest: {near[0]} and {near[1]} KB",
        passed=all(rounded(value, _LATTICE_MEMORY) != _LATTICE_MEMORY for value in near),
        deviation=True,
    )
