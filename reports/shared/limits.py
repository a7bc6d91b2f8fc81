"""What the budgets of a study limit, and how that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.reporting.wording import MILLION

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A kind of cost in tables and figures.

    Attributes:
        measure: Its name in records.
        column: Of `StudyResults.runs`.
        title: With the unit in which it is shown.
        per_unit: Of the column, one shown unit.
    """

    measure: str
    column: str
    title: str
    per_unit: float = 1.0


BOPS = Measured(measure="bops", column="bops", title="BOPs (M)", per_unit=MILLION)
ALL = (
    BOPS,
    Measured(measure="memory", column="memory_kb", title="Memory KB"),
    Measured(measure="latency", column="latency_ms", title="Latency ms"),
    Measured(measure="energy", column="energy_mj", title="Energy mJ"),
)


def limited(runs: "pd.DataFrame") -> Sequence[Measured]:
    """The kinds of cost that budgets of these runs limit; bit operations where none has a budget."""
    names = set(runs["budget_measure"]) - {""}
    return [kind for kind in ALL if kind.measure in names] or [BOPS]


def of_kind(runs: "pd.DataFrame", kind: Measured) -> "pd.DataFrame":
    """The runs whose budget limits one kind of cost, and those without a budget, that have a figure of it."""
    chosen = runs[runs["budget_measure"].isin([kind.measure, ""])]
    return chosen[chosen[kind.column] > 0]
