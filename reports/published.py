"""What the paper prints beside what was measured here: two columns each, never mixed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.published import Printed, printed
from bench.report import Column, Report, Table
from bench.results import StudyResults, section
from reports.cells import MILLION, number, spread

_COLUMNS = (
    Column(title="Model", align="left"),
    Column(title="Method", align="left"),
    Column(title="Top-1 %, printed"),
    Column(title="Top-1 %, here"),
    Column(title="n here"),
    Column(title="BOPs (M), printed"),
    Column(title="BOPs (M), here"),
    Column(title="Search h, printed", drop=3),
    Column(title="Search h, here", drop=3),
    Column(title="Memory GB, printed", drop=4),
    Column(title="Peak GB, here", drop=4),
)


class Published(Report):
    """The paper's table beside the study's."""

    summary = "studies that repeat a table of the paper (`published` in the specification)"
    title = "Beside the paper"
    rank = 20

    def build(self, results: StudyResults) -> list[Table]:
        """The rows of the printed table; none where the study repeats none."""
        rows = printed(str(results.spec.get("published")))
        if not rows:
            return []
        lines = {(line["model"], line["method"]): line for line in results.lines.to_dict("records")}
        pairs = [(row, lines.get((row.model, row.row))) for row in rows]
        table = Table(
            name="published",
            title=f"Table {rows[0].table} of the SBS paper, as printed and in study {results.name}",
            columns=_COLUMNS,
            rows=tuple(_cells(row, line) for row, line in pairs),
            notes=tuple(_notes(pairs, results.spec)),
        )
        return [table]


def _cells(row: Printed, line: Mapping[Any, Any] | None) -> tuple[str, ...]:
    here = (
        ("", "", "", "", "")
        if line is None
        else (
            spread(line["top1_mean"], line["top1_std"]),
            str(line["n"]),
            spread(line["bops_mean"] / MILLION, line["bops_std"] / MILLION),
            number((line["search_seconds_mean"] + line["tuning_seconds"]) / 3600, digits=3),
            number(line["peak_memory_mb"] / 1000, digits=2),
        )
    )
    top1, n, bops, hours, memory = here
    return (
        row.model,
        row.row,
        _as_printed(row.top1, row.top1_std),
        top1,
        n,
        number(row.bops / MILLION, digits=1),
        bops,
        number(row.search_hours, digits=1),
        hours,
        number(row.memory_gb, digits=1),
        memory,
    )


def _as_printed(mean: float, std: float) -> str:
    """With the one digit that the paper prints."""
    return number(mean, digits=1) + ("" if math.isnan(std) else f"±{std:.1f}")


def _notes(pairs: Sequence[tuple[Printed, Mapping[Any, Any] | None]], spec: Mapping[str, Any]) -> Iterator[str]:
    task = section(spec, "task")
    epochs = {name: section(spec, name).get("epochs") for name in ("pretrain", "search", "finetune")}
    images = f"{task['train_images']} training images of " if task.get("train_images") else ""
    seeds = spec.get("seeds") or ()
    data = {row.dataset for row, _ in pairs}
    yield (
        f"Printed: {', '.join(sorted(data))}, 30 epochs of search, 200 of fine-tuning on CIFAR-100 (Section 4.2), "
        "mean±std of five runs, search cost in hours of a TITAN Xp"
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
