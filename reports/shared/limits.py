"""The measures that a study's budgets limit, and the runs that belong to each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.costs.measures import MEASURES, Bops, Measure, Memory

if TYPE_CHECKING:
    import pandas as pd


def limited_measures(runs: "pd.DataFrame") -> Sequence[type[Measure]]:
    """Return the measures that the budgets of these runs limit; bit operations when no run has a budget."""
    names = set(runs["budget_measure"]) - {""}
    return [measure for name, measure in MEASURES.items() if name in names] or [Bops]


def shown_measures(runs: "pd.DataFrame") -> Sequence[type[Measure]]:
    """Return the measures that tables show: those that the budgets limit, then bit operations and memory."""
    limited = limited_measures(runs)
    return [*limited, *(measure for measure in (Bops, Memory) if measure not in limited)]


def runs_limited_by(runs: "pd.DataFrame", measure: type[Measure]) -> "pd.DataFrame":
    """Return the runs whose budget limits a measure, and those without a budget, if they have a figure of it."""
    chosen = runs[runs["budget_measure"].isin([measure.name, ""])]
    return chosen[chosen[measure.column] > 0]
