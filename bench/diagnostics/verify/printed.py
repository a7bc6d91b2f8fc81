"""Checks of every cost of uniform networks that the paper prints, with an explanation for those that differ."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.compression.shapes import NetworkShape
from bench.compression.space_size import CANDIDATES, count, in_words, policies
from bench.costs.budget import PREFIXES, measure_in
from bench.costs.counter import price
from bench.costs.measures import BOPS
from bench.diagnostics.verify import CheckLine
from bench.diagnostics.verify.accelerator import UNPOOLED_INPUTS, unpooled
from bench.diagnostics.verify.networks import network, title
from bench.diagnostics.verify.rounding import rounded
from bench.results.published import Printed, printed
from bench.spec.schema import AcceleratorSpec

_TABLES = (*map(str, range(1, 13)), "I")
_UNIFORM = "fixed"
_FULL = "full_precision"

# Bits of the rows of uniform precision, by table and network, in the order of the rows.
_BITS: Mapping[tuple[str, str], Sequence[int]] = {
    **{(table, model): (4,) for table in ("1", "2", "12") for model in ("resnet20", "resnet56")},
    ("3", "resnet18"): (8, 4),
    ("3", "resnet50"): (8, 4),
    ("4", "resnet18"): (4,),
    ("4", "mobilenet_v2"): (8,),
    ("6", "mobilenet_v2"): (8, 8),
    **{("10", model): (6,) for model in ("resnet20", "resnet56")},
    **{("11", model): (6,) for model in ("resnet18", "resnet50")},
    ("I", "mobilenet_v3_large"): (6,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrintedCost:
    """One printed cost of a uniform network.

    Attributes:
        where: Table or section of the paper.
        model: Name of the network.
        row: Name of the row.
        bits: Bits of all layers.
        value: Printed figure.
        unit: Unit of the figure: M or G (BOPs), KB, ms or mJ.
    """

    where: str
    model: str
    row: str
    bits: int
    value: str
    unit: str

    @property
    def what(self) -> str:
        """Claim in words."""
        return (
            f"{self.where}, {title(self.model)}, {self.row} at {self.bits} bits: paper prints {self.value} {self.unit}"
        )

    def computed(self) -> Decimal:
        """Compute the figure in the printed unit; it is exact, except for latency and energy."""
        return self.computed_for(network(self.model))

    def computed_for(self, shape: NetworkShape) -> Decimal:
        """Compute the figure for a network of another shape."""
        prefix = PREFIXES.get(self.unit)
        measure = BOPS if prefix else measure_in(self.unit, AcceleratorSpec())
        # The shortest text of a cost is exact: memory is a multiple of 1/8000 KB.
        return Decimal(repr(measure.price(shape, uniform(shape, self.bits)))) / int(prefix or 1)


_IN_TEXT = (
    PrintedCost(where="Section 4.4", model="resnet56", row=_UNIFORM, bits=3, value="1156.46", unit="M"),
    PrintedCost(where="Section 4.4", model="resnet56", row=_UNIFORM, bits=3, value="536.24", unit="KB"),
)


def lines() -> Iterator[CheckLine]:
    """Check every printed cost that can be computed, then figures that contradict the paper's own rules."""
    for table in _TABLES:
        yield from _table_lines(table)
    for cost in _IN_TEXT:
        yield _reproduced(cost)
    yield from _ratio_lines()
    yield _foreign_row_line()
    yield _search_space_line()


def _table_lines(table: str) -> Iterator[CheckLine]:
    seen: dict[str, int] = {}
    for row in printed(table):
        if row.row == _FULL:
            yield from _row_lines(row, FULL_PRECISION_BITS)
        elif row.row == _UNIFORM:
            position = seen.get(row.model, 0)
            seen[row.model] = position + 1
            bits = _BITS.get((table, row.model), ())
            yield from _row_lines(row, bits[position]) if position < len(bits) else [_unknown_line(row)]


def _unknown_line(row: Printed) -> CheckLine:
    return CheckLine(
        what=f"Table {row.table}, {row.model}, {row.row}: a row of uniform precision",
        figure="its number of bits is unknown",
        passed=False,
    )


def _row_lines(row: Printed, bits: int) -> Iterator[CheckLine]:
    for unit, value in _costs(row):
        cost = PrintedCost(where=f"Table {row.table}", model=row.model, row=row.row, bits=bits, value=value, unit=unit)
        explain = _EXPLAINED.get((row.table, row.model, row.row, unit), _reproduced)
        yield explain(cost)


def _costs(row: Printed) -> Iterator[tuple[str, str]]:
    """Return the costs of a row with their units, with one decimal as in all tables."""
    unit = "G" if row.dataset == "imagenet" else "M"
    figures = ((unit, row.bops / PREFIXES[unit]), ("KB", row.memory_kb), ("ms", row.latency_ms), ("mJ", row.energy_mj))
    return ((unit, f"{value:.1f}") for unit, value in figures if not math.isnan(value))


def _reproduced(cost: PrintedCost) -> CheckLine:
    value = cost.computed()
    return CheckLine(
        what=cost.what, figure=f"{value} {cost.unit}", passed=rounded(value, cost.value) == Decimal(cost.value)
    )


def _rounded_twice(cost: PrintedCost) -> CheckLine:
    """Explain a misprint by one unit of the last digit."""
    value = cost.computed()
    once, twice = rounded(value, "0.1"), rounded(rounded(value, "0.01"), "0.1")
    return CheckLine(
        what=f"{cost.what}, a misprint in the last digit, as if rounded twice",
        figure=f"{value} {cost.unit}; rounded once {once}, rounded to hundredths and then to tenths {twice}",
        passed=once != twice == Decimal(cost.value),
        deviation=True,
    )


def _without_pooling(cost: PrintedCost) -> CheckLine:
    """Explain a figure by a benchmark that leaves pooling out."""
    value, real = cost.computed_for(unpooled()), cost.computed()
    return CheckLine(
        what=f"{cost.what}, which takes dense depthwise layers and a classifier that reads {UNPOOLED_INPUTS:,} inputs",
        figure=f"{value:.3f} {cost.unit}; with the real classifier {real:.2f} {cost.unit}",
        passed=rounded(value, cost.value) == Decimal(cost.value) != rounded(real, cost.value),
        deviation=True,
    )


_EXPLAINED: Mapping[tuple[str, str, str, str], Callable[[PrintedCost], CheckLine]] = {
    ("10", "resnet20", _UNIFORM, "M"): _rounded_twice,
    ("6", "mobilenet_v2", _UNIFORM, "ms"): _without_pooling,
    ("6", "mobilenet_v2", _UNIFORM, "mJ"): _without_pooling,
}
"""Explanations of printed figures that differ from the cost of the network, by table, network, row and unit."""

_RATIOS = (("1", "resnet20", "dnas", "62.9"), ("4", "mobilenet_v2", "dq", "1.9"))
"""Compression ratios that contradict the BOPs beside them: table, network, row and printed ratio."""


def _ratio_lines() -> Iterator[CheckLine]:
    for table, model, name, ratio in _RATIOS:
        (row,) = (row for row in printed(table) if (row.model, row.row) == (model, name))
        shape = network(model)
        full = price(shape, uniform(shape, FULL_PRECISION_BITS)).bops
        value = Decimal(full) / Decimal(row.bops)
        (unit, bops), *_ = _costs(row)
        yield CheckLine(
            what=f"Table {table}, {title(model)}, {name}: paper prints a ratio of {ratio}, a misprint",
            figure=f"full precision, {Decimal(full) / int(PREFIXES[unit])} {unit}, is {value:.1f} times {bops} {unit}",
            passed=rounded(value, ratio) != Decimal(ratio),
            deviation=True,
        )


def _foreign_row_line() -> CheckLine:
    """Explain a row that was counted by another rule."""
    (row,) = (row for row in printed("4") if row.row == "hawq")
    (unit, value), *_ = _costs(row)
    cost = PrintedCost(where="Table 4", model=row.model, row=row.row, bits=4, value=value, unit=unit)
    computed = cost.computed()
    return CheckLine(
        what=f"{cost.what}, the uniform 4-bit network of HAWQ-V3 by its own count, not one of mixed precision",
        figure=f"{computed} {unit} at uniform 4 bits by the rule of the other rows",
        passed=rounded(computed, value) > Decimal(value),
        deviation=True,
    )


def _search_space_line() -> CheckLine:
    """Check Eq. (K) for ResNet-18 with 3 candidates and groups of 16 (Appendix E)."""
    shape = network("resnet18")
    counted = [layer for layer in shape.layers if not layer.shortcut]
    groups = [layer.out_channels // shape.group_size if layer.kind == "conv" else 1 for layer in counted]
    theirs, ours = count(groups, len(CANDIDATES)), policies(shape)
    return CheckLine(
        what=(
            "Appendix E, ResNet-18: paper prints 4.3e34 policies, which counts the first and the last layer, groups in "
            "every convolution, and no shortcut; its text says otherwise: all layers but the first and the last are "
            "searched, and only the first convolution of a block is pruned"
        ),
        figure=f"{theirs:.2e} with these {len(counted)} layers; {in_words(ours)} by the text, as in our searches",
        passed=f"{theirs:.1e}" == "4.3e+34" and f"{ours:.1e}" != "4.3e+34",
        deviation=True,
    )
