"""The fairness statement: start, training and effort of every method, and the rows that break equality."""

import math

from bench.api import Column, Report, StudyResults, Table
from bench.results.fairness import START_MARGIN, UPDATES_MARGIN, Conditions, conditions, flags, summary

_MEANING = (
    "Start: validation accuracy before the first update of the search. Updates: training updates after pretraining "
    "that the final weights have seen. Fine-tuning: those of them that fine-tuning made, at the final bits; the search "
    "made the others, at its own learning rate. Images: those of search and fine-tuning. Evaluated: images on which "
    "the search measured accuracy or loss.",
    "Landed: runs whose search met the budget, so that repair changed at most two choices. Repair's share: part of the "
    "compression, from uniform 8 bit on a logarithmic scale, that repair made.",
    f"A row is marked if its searches start more than {START_MARGIN:g} points below the others, its updates differ by "
    f"more than {100 * UPDATES_MARGIN:g} %, repair changed more than two choices, or its cost is outside the window. "
    "Marked rows take no part in verdicts.",
)


class Fairness(Report):
    """What each method was given, from the records of its runs."""

    summary = "the start, training and effort of every method, and the rows that break equality"
    title = "Were the methods treated alike?"
    rank = 15

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none before the first result."""
        rows, found = conditions(results), flags(results)
        if not rows:
            return []
        several = len({row.task for row in rows}) > 1
        return [
            Table(
                name="fairness",
                title=summary(rows, found) or "Nothing is recorded of the conditions of these runs",
                columns=_COLUMNS,
                rows=tuple(_cells(row, found.get(row.place, ()), several=several) for row in rows),
                notes=_MEANING,
            )
        ]


_COLUMNS = (
    Column(title="Method", align="left"),
    Column(title="Budget", align="left"),
    Column(title="Start (%)"),
    Column(title="Updates"),
    Column(title="Fine-tuning"),
    Column(title="Images", drop=3),
    Column(title="Evaluated", drop=3),
    Column(title="Trials", drop=1),
    Column(title="Per knob", drop=1),
    Column(title="Landed (%)"),
    Column(title="Repaired", drop=1),
    Column(title="Repair's share (%)", drop=2),
    Column(title="Breaks equality", align="left"),
)


def _cells(row: Conditions, breaches: tuple[str, ...], *, several: bool) -> tuple[str, ...]:
    model, _, method, budget = row.place
    return (
        f"{model} {method}" if several else method,
        budget,
        _number(row.start_top1, "{:.1f}"),
        _number(row.updates, "{:,.0f}"),
        _number(row.finetuning_updates, "{:,.0f}"),
        _number(row.images, "{:,.0f}"),
        _number(row.evaluated_images, "{:,.0f}"),
        f"{row.trials:.0f}",
        _number(row.trials_per_knob, "{:.1f}"),
        f"{100 * row.landed:.0f}" if budget else "",
        _number(row.repairs, "{:g}") if budget else "",
        _number(100 * row.repair_share, "{:.0f}") if budget else "",
        "; ".join(breaches),
    )


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
