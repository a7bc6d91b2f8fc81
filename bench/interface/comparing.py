"""Comparison of two methods, runs or studies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.outputs.commands import DEFAULT_STORE
from bench.plugins.registry import load
from bench.reporting import compare_layers as layers
from bench.reporting import compare_views as views
from bench.reporting.compare import Comparison
from bench.reporting.compare import compare as compare_selections
from bench.reporting.report import DEFAULT_WIDTH, Document, Section, Table
from bench.results.selection import select
from bench.store.files import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairedComparison:
    """Two methods, runs or studies, A and B, compared over their common seeds. Printing it shows its tables.

    Attributes:
        comparison: Groups of runs that are compared, line by line.
    """

    comparison: Comparison

    @property
    def verdicts(self) -> Sequence[str]:
        """One sentence for each line: which side is ahead, or that the runs cannot tell."""
        return views.verdicts(self.comparison)

    @property
    def frame(self) -> "pd.DataFrame":
        """One row for each line: pairs, differences in points of Top-1 with intervals, p-values and costs."""
        import pandas as pd

        return pd.json_normalize(self.to_json()["lines"])

    @property
    def tables(self) -> Sequence[Table]:
        """The lines as a table, then the layers whose policies differ."""
        return self.tables_with(every_layer=False)

    def tables_with(self, *, every_layer: bool) -> Sequence[Table]:
        """Return the lines as a table, then the policies layer by layer.

        Args:
            every_layer: Whether layers that both sides treat alike are shown too.
        """
        return [views.table(self.comparison), *layers.tables(self.comparison, every=every_layer)]

    def to_json(self) -> dict[str, Any]:
        """Return the document that `bench compare --json` prints."""
        return views.to_json(self.comparison) | {"layers": layers.to_json(self.comparison)}

    def __str__(self) -> str:
        document = Document(study="", sections=(Section(name="", title="", parts=tuple(self.tables)),))
        return str(load("forms", "terminal").render(document, DEFAULT_WIDTH))


def compare(
    first: str, second: str, *, study: str | None = None, store: str | PathLike[str] = DEFAULT_STORE
) -> PairedComparison:
    """Compare two methods, runs or studies of a store over their common seeds.

    Args:
        first: A study; STUDY/METHOD or STUDY/METHOD/BUDGET; a method of the latest study; or a run's id or its
            beginning.
        second: The same for the other side.
        study: Study whose methods, as METHOD or METHOD/BUDGET, both sides are.
        store: Folder of results.

    Raises:
        BenchError: A name is unknown, or one is a whole study and the other is not.
    """
    folder = Store(Path(store))
    first, second = str(first), str(second)
    if study is None:
        return PairedComparison(compare_selections(select(folder, first), select(folder, second)))
    one, other = (replace(select(folder, f"{study}/{name}"), name=name) for name in (first, second))
    return PairedComparison(compare_selections(one, other))
