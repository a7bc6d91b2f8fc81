"""Checks the cost counter: exact integers, the costs that the SBS paper prints, the accounting of pruning."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache

import torch
from torch import Tensor, nn

from bench.checks import CheckLine
from bench.costs import price
from bench.models.resnet import resnet20, resnet56
from bench.network import LayerShape, NetworkShape, trace
from bench.policy import FULL_PRECISION_BITS, Policy, kept_inputs, kept_outputs, uniform
from bench.relaxed import Choice, RelaxedBops
from bench.seeds import generator

_MODELS: dict[str, Callable[[int, int], nn.Module]] = {"resnet20": resnet20, "resnet56": resnet56}
_TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}

# Uniform k bits, first and last layer at 8 (at 32: at 32), counted independently from the layers' shapes.
_BOPS = {
    "resnet20": {
        2: 190_201_856,
        3: 392_052_736,
        4: 674_643_968,
        5: 1_037_975_552,
        6: 1_482_047_488,
        8: 2_612_412_416,
        32: 41_798_598_656,
    },
    "resnet56": {
        2: 529_940_480,
        3: 1_156_464_640,
        4: 2_033_598_464,
        5: 3_161_341_952,
        6: 4_539_695_104,
        8: 8_048_230_400,
        32: 128_771_686_400,
    },
}
_MEMORY_BYTES = {
    "resnet20": {2: 129_648, 3: 189_488, 4: 249_328, 6: 369_008, 8: 488_688, 32: 1_954_752},
    "resnet56": {2: 360_816, 3: 536_240, 4: 711_664, 6: 1_062_512, 8: 1_413_360, 32: 5_653_440},
}

_CANDIDATES = (2, 4, 8)
_GROUP = 4
"""Filters of a group in the paper's main results."""
_UNIT_MACS = 73_728
"""MACs of 4 filters of the 32→64 convolution on the 8×8 map; what any group removes is a multiple of them."""
# By hand: 4 filters · inputs · 9 · positions, and in the layer that reads them filters · 4 · 9 · positions.
_HAND_COUNT = {
    "16→16 at 32×32": (4 * 16 * 9 * 32 * 32) + (4 * 16 * 9 * 32 * 32),
    "16→32 at 16×16": (4 * 16 * 9 * 16 * 16) + (4 * 32 * 9 * 16 * 16),
    "32→32 at 16×16": (4 * 32 * 9 * 16 * 16) + (4 * 32 * 9 * 16 * 16),
    "32→64 at 8×8": (4 * 32 * 9 * 8 * 8) + (4 * 64 * 9 * 8 * 8),
    "64→64 at 8×8": (4 * 64 * 9 * 8 * 8) + (4 * 64 * 9 * 8 * 8),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Printed:
    """A cost as the paper prints it, in M (BOPs) or KB (memory)."""

    model: str
    bits: int
    value: str
    where: str
    unit: str = "M"

    def computed(self) -> Decimal:
        """The counter's figure in the printed unit, exact."""
        cost = price(network(self.model), uniform(network(self.model), self.bits))
        return Decimal(cost.bops) / 10**6 if self.unit == "M" else Decimal(cost.memory_bits) / 8000


_PRINTED = (
    _Printed(model="resnet20", bits=32, value="41798.6", where="Table 1"),
    _Printed(model="resnet20", bits=4, value="674.6", where="Table 1"),
    _Printed(model="resnet56", bits=32, value="128771.7", where="Table 1"),
    _Printed(model="resnet56", bits=4, value="2033.6", where="Table 1"),
    _Printed(model="resnet56", bits=32, value="5653.4", where="Table 2", unit="KB"),
    _Printed(model="resnet56", bits=4, value="711.7", where="Table 2", unit="KB"),
    _Printed(model="resnet56", bits=6, value="4539.7", where="Table 10"),
    _Printed(model="resnet56", bits=3, value="1156.46", where="text of Section 4.4"),
    _Printed(model="resnet56", bits=3, value="536.24", where="text of Section 4.4", unit="KB"),
)
_MISPRINT = _Printed(model="resnet20", bits=6, value="1482.1", where="Table 10")


@dataclass(frozen=True, kw_only=True, slots=True)
class _PrunedRow:
    """An SBS-P row of Table 1 (32 bits), and groups to drop by kind of layer for a policy of that cost."""

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


def checks() -> Iterator[CheckLine]:
    """The cost counter on ResNet-20 and ResNet-56 (type B shortcuts) for CIFAR-100."""
    for model in _MODELS:
        yield _exact_line(model, "BOPs", _BOPS[model])
        yield _exact_line(model, "memory", _MEMORY_BYTES[model])
    for printed in _PRINTED:
        yield _printed_line(printed)
    yield _misprint_line()
    for model in _MODELS:
        yield _relaxed_line(model)
        yield _hand_count_line(model)
    for row in _PRUNED_ROWS:
        yield _pruned_row_line(row)


@cache
def network(model: str) -> NetworkShape:
    """The shapes of one of the paper's CIFAR networks on CIFAR-100."""
    return trace(_MODELS[model](3, 100), (3, 32, 32), name=model, dataset="cifar100")


def _exact_line(model: str, quantity: str, expected: dict[int, int]) -> CheckLine:
    wrong = []
    for bits, value in expected.items():
        cost = price(network(model), uniform(network(model), bits))
        found = cost.bops if quantity == "BOPs" else cost.memory_bits / 8
        if found != value:
            wrong.append(f"{bits} bits: {found:,} instead of {value:,}")
    return CheckLine(
        what=f"{_TITLES[model]} {quantity}, uniform {', '.join(map(str, expected))} bits, exact integers",
        figure="; ".join(wrong) or f"all {len(expected)} equal",
        passed=not wrong,
    )


def _rounded(value: Decimal, like: str) -> Decimal:
    """Round to as many decimals as a printed number has."""
    return value.quantize(Decimal(like), rounding=ROUND_HALF_UP)


def _printed_line(printed: _Printed) -> CheckLine:
    value = printed.computed()
    return CheckLine(
        what=(
            f"{_TITLES[printed.model]} at {printed.bits} bits, "
            f"paper prints {printed.value} {printed.unit} ({printed.where})"
        ),
        figure=f"{value} {printed.unit}",
        passed=_rounded(value, printed.value) == Decimal(printed.value),
    )


def _misprint_line() -> CheckLine:
    """The one printed cost that the counter misses, by one unit of the last digit, and why."""
    value = _MISPRINT.computed()
    once = _rounded(value, "0.1")
    twice = _rounded(_rounded(value, "0.01"), "0.1")
    return CheckLine(
        what=(
            f"ResNet-20 at 6 bits, paper prints {_MISPRINT.value} M (Table 10): "
            "a misprint in the last digit, as if rounded twice"
        ),
        figure=f"{value} M; rounded once {once}, rounded to hundredths and then to tenths {twice}",
        passed=once != twice == Decimal(_MISPRINT.value),
    )


def random_policy(shape: NetworkShape, source: torch.Generator) -> Policy:
    """A policy with bits drawn from 2, 4 and 8, and in every prunable layer a drawn set of kept filters."""
    policy = uniform(shape, 4)
    for layer in shape.middle:
        weight, activation = (int(2 ** torch.randint(1, 4, (), generator=source)) for _ in range(2))
        kept = None
        if layer.prunable:
            count = int(torch.randint(1, layer.out_channels + 1, (), generator=source))
            kept = tuple(sorted(torch.randperm(layer.out_channels, generator=source)[:count].tolist()))
        policy = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation, kept_filters=kept)
    return policy


def relaxed_arguments(shape: NetworkShape, policy: Policy) -> dict[str, Tensor]:
    """The whole choices with which the relaxed cost must equal the counter's figure for a policy."""

    def share(bits: int) -> list[float]:
        return [float(bits == candidate) for candidate in _CANDIDATES]

    def left(kept: Sequence[int] | None, full: int) -> int:
        # Counted here: a check by what the counter itself makes of a policy would agree with its mistakes.
        return full if kept is None else len(kept)

    choices = [policy.layers[layer.name] for layer in shape.middle]
    inputs = [left(kept_inputs(policy, layer), layer.in_channels) for layer in shape.middle]
    outputs = [left(kept_outputs(policy, layer), layer.out_channels) for layer in shape.middle]
    return {
        "weight_shares": torch.tensor([share(choice.weight_bits) for choice in choices]),
        "activation_shares": torch.tensor([share(choice.activation_bits) for choice in choices]),
        "in_channels": torch.tensor(inputs, dtype=torch.float64),
        "out_channels": torch.tensor(outputs, dtype=torch.float64),
    }


def relaxed_bops(shape: NetworkShape) -> RelaxedBops:
    """The relaxed cost of a search over 2, 4 and 8 bits everywhere."""
    everywhere = Choice(weight_bits=_CANDIDATES, activation_bits=_CANDIDATES, pruned=True)
    return RelaxedBops(shape, {layer.name: everywhere for layer in shape.middle})


def _relaxed_line(model: str, policies: int = 20) -> CheckLine:
    shape = network(model)
    relaxed = relaxed_bops(shape)
    source = generator("check relaxed cost", model)
    wrong = 0
    for _ in range(policies):
        policy = random_policy(shape, source)
        wrong += float(relaxed(**relaxed_arguments(shape, policy))) != price(shape, policy).bops
    return CheckLine(
        what=f"{_TITLES[model]}: the differentiable cost of searches equals the counter on whole numbers",
        figure=f"{policies - wrong} of {policies} random policies equal",
        passed=wrong == 0,
    )


def _kind(layer: LayerShape) -> str:
    return f"{layer.in_channels}→{layer.out_channels} at {layer.out_size[0]}×{layer.out_size[1]}"


def _drop(policy: Policy, layer: LayerShape, groups: int) -> Policy:
    return policy.with_layer(layer.name, kept_filters=tuple(range(groups * _GROUP, layer.out_channels)))


def _hand_count_line(model: str) -> CheckLine:
    """Drop one group of 4 in each prunable layer in turn, and compare the MACs that go with a hand count."""
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
        what=f"{_TITLES[model]}: a dropped group of 4 filters shrinks its layer and its reader, hand count",
        figure=(
            f"wrong in {', '.join(wrong)}"
            if wrong
            else f"{len(prunable)} layers, {units} units of {_UNIT_MACS:,} MACs a group"
        ),
        passed=not wrong,
    )


def _pruned_row_line(row: _PrunedRow) -> CheckLine:
    """An SBS-P row: full precision less a whole number of units, and a policy that costs just that."""
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
        what=f"{_TITLES[row.model]} SBS-P, paper prints {row.value} M (Table 1): whole groups of 4 dropped",
        figure=f"full precision less {removed / _UNIT_MACS:g} units of {_UNIT_MACS:,} MACs is {value} M",
        passed=removed == row.units * _UNIT_MACS and _rounded(value, row.value) == Decimal(row.value),
    )


def _drop_groups(policy: Policy, layers: Sequence[LayerShape], groups: int) -> Policy:
    """Drop groups from layers one after another, leaving each at least one group."""
    for layer in layers:
        share = min(groups, layer.out_channels // _GROUP - 1)
        policy = _drop(policy, layer, share) if share else policy
        groups -= share
    return policy
