"""The figures that the SBS paper prints beside those of the study, in separate columns."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.api import Column, Report, StudyResults, Table
from bench.costs.measures import MEASURES, Bops, Measure
from bench.results.published import Printed, printed
from bench.results.tables import section
from reports.shared.formatting import number, spread


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantity:
    """A figure that the paper prints in some of its tables.

    Attributes:
        title: Heading, with the unit in which the figure is shown.
        printed, here: Readers of a printed row and of a row of `StudyResults.lines`, in that unit.
        std: Reader of the standard deviation here, when it is known.
        digits: Decimals.
        drop: Rank at which a narrow terminal drops the two columns.
        is_cost: Whether the figure is a cost, by which rows of different budgets are matched.
    """

    title: str
    printed: Callable[[Printed], float]
    here: Callable[[Mapping[Any, Any]], float]
    std: Callable[[Mapping[Any, Any]], float] | None = None
    digits: int = 1
    drop: int = 0
    is_cost: bool = True


def _cost(measure: type[Measure]) -> _Quantity:
    """Make the quantity of a measure; the paper prints one decimal at most, and so do we."""
    column, scale = measure.column, measure.scale
    return _Quantity(
        title=measure.title,
        printed=lambda row: float(getattr(row, column)) / scale,
        here=lambda line: line[f"{column}_mean"] / scale,
        std=(lambda line: line[f"{column}_std"] / scale) if measure is Bops else None,
    )


_QUANTITIES = (
    *map(_cost, MEASURES.values()),
    _Quantity(
        title="Search h",
        printed=lambda row: row.search_hours,
        here=lambda line: (line["search_seconds_mean"] + line["tuning_seconds"]) / 3600,
        digits=3,
        drop=3,
        is_cost=False,
    ),
    _Quantity(
        title="Peak GB",
        printed=lambda row: row.memory_gb,
        here=lambda line: line["peak_memory_mb"] / 1000,
        digits=2,
        drop=4,
        is_cost=False,
    ),
)


_SCHEDULES = (
    "30 epochs of search and 200 of fine-tuning on CIFAR-100, 10 and 15 on ImageNet, 10 and 150 for MobileNetV2"
)


class Published(Report):
    """The table of the paper beside that of the study."""

    summary = "studies that repeat a table of the paper (`published` in the specification)"
    title = "Beside the paper"
    rank = 20

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none when the study repeats no table of the paper."""
        rows = printed(str(results.spec.get("published")))
        if not rows:
            return []
        lines = results.lines.to_dict("records")
        pairs = [(row, _nearest(row, lines)) for row in rows]
        shown = [quantity for quantity in _QUANTITIES if not all(math.isnan(quantity.printed(row)) for row in rows)]
        table = Table(
            name="published",
            title=f"Table {rows[0].table} of the SBS paper, as printed and in study {results.name}",
            columns=_columns(shown),
            rows=tuple(_cells(row, line, shown) for row, line in pairs),
            notes=tuple(_notes(pairs, results.spec)),
        )
        return [table]


def _nearest(row: Printed, lines: Sequence[Mapping[Any, Any]]) -> Mapping[Any, Any] | None:
    """Return the study's row of the same model and method whose cost is nearest to the printed one."""
    same = [line for line in lines if (line["model"], line["method"]) == (row.model, row.row)]
    costs = [quantity for quantity in _QUANTITIES if quantity.is_cost and not math.isnan(quantity.printed(row))]

    def distance(line: Mapping[Any, Any]) -> float:
        ratios = [quantity.here(line) / quantity.printed(row) for quantity in costs]
        return sum(abs(math.log(ratio)) if ratio > 0 else math.inf for ratio in ratios)

    return min(same, key=distance, default=None)


def _columns(shown: Sequence[_Quantity]) -> tuple[Column, ...]:
    return (
        Column(title="Model", align="left"),
        Column(title="Method", align="left"),
        Column(title="Budget here", align="left", drop=5),
        Column(title="Top-1 %, printed"),
        Column(title="Top-1 %, here"),
        Column(title="n here"),
        *(
            Column(title=f"{quantity.title}, {source}", drop=quantity.drop)
            for quantity in shown
            for source in ("printed", "here")
        ),
    )


def _cells(row: Printed, line: Mapping[Any, Any] | None, shown: Sequence[_Quantity]) -> tuple[str, ...]:
    figures = [
        text
        for quantity in shown
        for text in (
            number(quantity.printed(row), digits=1),
            "" if line is None else _measured(line, quantity),
        )
    ]
    return (
        row.model,
        row.row,
        "" if line is None else str(line["budget"]),
        _as_printed(row.top1, row.top1_std),
        "" if line is None else spread(line["top1_mean"], line["top1_std"]),
        "" if line is None else str(line["n"]),
        *figures,
    )


def _measured(line: Mapping[Any, Any], quantity: _Quantity) -> str:
    value = quantity.here(line)
    return number(value, digits=quantity.digits) if quantity.std is None else spread(value, quantity.std(line))


def _as_printed(mean: float, std: float) -> str:
    """Format an accuracy with the one decimal that the paper prints."""
    return number(mean, digits=1) + ("" if math.isnan(std) else f"±{std:.1f}")


def _notes(pairs: Sequence[tuple[Printed, Mapping[Any, Any] | None]], spec: Mapping[str, Any]) -> Iterator[str]:
    task = section(spec, "task")
    epochs = {name: section(spec, name).get("epochs") for name in ("pretrain", "search", "finetune")}
    images = f"{task['train_images']} training images of " if task.get("train_images") else ""
    seeds = spec.get("seeds") or ()
    data = {row.dataset for row, _ in pairs}
    yield (
        f"Printed: {', '.join(sorted(data))}; {_SCHEDULES} (Section 4.2); on CIFAR-100 mean±std of five runs; search "
        "cost in hours of a TITAN Xp; latency and energy of an image on BitFusion"
    )
    yield (
        f"Here: {images}{task.get('dataset')}, {epochs['pretrain']} epochs of pretraining, {epochs['search']} of "
        f"search, {epochs['finetune']} of fine-tuning, {len(seeds)} seeds; search h: one search and all tuning trials"
    )
    yield "Other data, schedules and machines: compare the order of rows and the size of differences, not the figures"
    missing = [f"{row.model} {row.row}" for row, line in pairs if line is None]
    if missing:
        yield f"Without a result here: {', '.join(missing)}"
    yield from (f"{row.model} {row.row}: {row.note}" for row, _ in pairs if row.note)
