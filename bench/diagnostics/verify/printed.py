"""Checks every cost of full and of uniform precision that the paper prints, and says which cannot be right and why."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.compression.space_size import CANDIDATES, count, in_words, policies
from bench.costs.counter import price
from bench.diagnostics.verify import CheckLine
from bench.diagnostics.verify.accelerator import UNPOOLED_INPUTS, on_accelerator, unpooled
from bench.diagnostics.verify.networks import network, title
from bench.diagnostics.verify.rounding import rounded
from bench.results.published import Printed, printed

_TABLES = (*map(str, range(1, 13)), "I")
_UNIFORM = "fixed"
_FULL = "full_precision"

# Widths of the rows of uniform precision, table by table, in the order of each network's rows.
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
class Claim:
    """One printed cost of a uniform network.

    Attributes:
        where: Table or section.
        model: Name of the network.
        row: Name of the row.
        bits: Uniform width.
        value: As it is printed.
        unit: M, G (BOPs), KB, ms or mJ.
    """

    where: str
    model: str
    row: str
    bits: int
    value: str
    unit: str

    @property
    def what(self) -> str:
        """The claim in words."""
        return (
            f"{self.where}, {title(self.model)}, {self.row} at {self.bits} bits: paper prints {self.value} {self.unit}"
        )

    def computed(self) -> Decimal:
        """The figure of this implementation in the printed unit, exact but for latency and energy."""
        shape = network(self.model)
        if self.unit in _EXECUTED:
            return _EXECUTED[self.unit](on_accelerator(shape, self.bits))
        cost = price(shape, uniform(shape, self.bits))
        return Decimal(cost.memory_bits) / 8000 if self.unit == "KB" else Decimal(cost.bops) / _SCALES[self.unit]


_SCALES = {"M": 10**6, "G": 10**9}
_EXECUTED: Mapping[str, Callable[..., Decimal]] = {
    "ms": lambda found: Decimal(found.latency_ms),
    "mJ": lambda found: Decimal(found.energy_mj),
}
_IN_TEXT = (
    Claim(where="Section 4.4", model="resnet56", row=_UNIFORM, bits=3, value="1156.46", unit="M"),
    Claim(where="Section 4.4", model="resnet56", row=_UNIFORM, bits=3, value="536.24", unit="KB"),
)


def lines() -> Iterator[CheckLine]:
    """Every row of the tables of which the cost can be computed, then figures that cannot be right."""
    for table in _TABLES:
        yield from _table_lines(table)
    for claim in _IN_TEXT:
        yield _reproduced(claim)
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
            widths = _BITS.get((table, row.model), ())
            yield from _row_lines(row, widths[position]) if position < len(widths) else [_unknown_line(row)]


def _unknown_line(row: Printed) -> CheckLine:
    return CheckLine(
        what=f"Table {row.table}, {row.model}, {row.row}: a row of uniform precision",
        figure="of which no width is known here",
        passed=False,
    )


def _row_lines(row: Printed, bits: int) -> Iterator[CheckLine]:
    for unit, value in _costs(row):
        claim = Claim(where=f"Table {row.table}", model=row.model, row=row.row, bits=bits, value=value, unit=unit)
        explain = _EXPLAINED.get((row.table, row.model, row.row, unit), _reproduced)
        yield explain(claim)


def _costs(row: Printed) -> Iterator[tuple[str, str]]:
    """The costs of a row with their units, each with the one decimal that all tables print."""
    unit = "G" if row.dataset == "imagenet" else "M"
    figures = ((unit, row.bops / _SCALES[unit]), ("KB", row.memory_kb), ("ms", row.latency_ms), ("mJ", row.energy_mj))
    return ((unit, f"{value:.1f}") for unit, value in figures if not math.isnan(value))


def _reproduced(claim: Claim) -> CheckLine:
    value = claim.computed()
    return CheckLine(
        what=claim.what, figure=f"{value} {claim.unit}", passed=rounded(value, claim.value) == Decimal(claim.value)
    )


def _rounded_twice(claim: Claim) -> CheckLine:
    """A misprint by one unit of the last digit."""
    value = claim.computed()
    once, twice = rounded(value, "0.1"), rounded(rounded(value, "0.01"), "0.1")
    return CheckLine(
        what=f"{claim.what}, a misprint in the last digit, as if rounded twice",
        figure=f"{value} {claim.unit}; rounded once {once}, rounded to hundredths and then to tenths {twice}",
        passed=once != twice == Decimal(claim.value),
        deviation=True,
    )


def _without_pooling(claim: Claim) -> CheckLine:
    """Figures of a benchmark that leaves pooling out."""
    value, real = _EXECUTED[claim.unit](on_accelerator(unpooled(), claim.bits)), claim.computed()
    return CheckLine(
        what=f"{claim.what}, which takes dense depthwise layers and a classifier that reads {UNPOOLED_INPUTS:,} inputs",
        figure=f"{value:.3f} {claim.unit}; with the real classifier {real:.2f} {claim.unit}",
        passed=rounded(value, claim.value) == Decimal(claim.value) != rounded(real, claim.value),
        deviation=True,
    )


_EXPLAINED: Mapping[tuple[str, str, str, str], Callable[[Claim], CheckLine]] = {
    ("10", "resnet20", _UNIFORM, "M"): _rounded_twice,
    ("6", "mobilenet_v2", _UNIFORM, "ms"): _without_pooling,
    ("6", "mobilenet_v2", _UNIFORM, "mJ"): _without_pooling,
}
"""By table, network, row and unit: printed figures that are not simply what the network costs."""

_RATIOS = (("1", "resnet20", "dnas", "62.9"), ("4", "mobilenet_v2", "dq", "1.9"))
"""Compression ratios that do not fit the BOPs beside them: table, network, row and the ratio that is printed."""


def _ratio_lines() -> Iterator[CheckLine]:
    for table, model, name, ratio in _RATIOS:
        (row,) = (row for row in printed(table) if (row.model, row.row) == (model, name))
        shape = network(model)
        full = price(shape, uniform(shape, FULL_PRECISION_BITS)).bops
        value = Decimal(full) / Decimal(row.bops)
        (unit, bops), *_ = _costs(row)
        yield CheckLine(
            what=f"Table {table}, {title(model)}, {name}: paper prints a ratio of {ratio}, a misprint",
            figure=f"full precision, {Decimal(full) / _SCALES[unit]} {unit}, is {value:.1f} times {bops} {unit}",
            passed=rounded(value, ratio) != Decimal(ratio),
            deviation=True,
        )


def _foreign_row_line() -> CheckLine:
    """A row that was counted by another rule."""
    (row,) = (row for row in printed("4") if row.row == "hawq")
    (unit, value), *_ = _costs(row)
    claim = Claim(where="Table 4", model=row.model, row=row.row, bits=4, value=value, unit=unit)
    found = claim.computed()
    return CheckLine(
        what=f"{claim.what}, the uniform 4-bit network of HAWQ-V3 by its own count, not one of mixed precision",
        figure=f"{found} {unit} at uniform 4 bits by the rule of the other rows",
        passed=rounded(found, value) > Decimal(value),
        deviation=True,
    )


def _search_space_line() -> CheckLine:
    """Eq. (K) for ResNet-18 with 3 candidates and groups of 16 (Appendix E)."""
    shape = network("resnet18")
    counted = [layer for layer in shape.layers if not layer.shortcut]
    groups = [layer.out_channels // shape.group_size if layer.kind == "conv" else 1 for layer in counted]
    found, ours = count(groups, len(CANDIDATES)), policies(shape)
    return CheckLine(
        what=(
            "Appendix E, ResNet-18: paper prints 4.3e34 policies, which takes first and last layer, groups in every "
            "convolution and none of the shortcuts', against its text: all but first and last are searched, and only "
            "the first of a block is pruned"
        ),
        figure=f"{len(counted)} layers so, {found:.2e}; as the text says and searches do, {in_words(ours)}",
        passed=f"{found:.1e}" == "4.3e+34" and f"{ours:.1e}" != "4.3e+34",
        deviation=True,
    )
