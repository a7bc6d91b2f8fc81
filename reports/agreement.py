"""Do repeats of a search find the same policy? Agreement between seeds beyond what chance gives."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from bench.api import Column, Report, StudyResults, Table
from bench.results.statistics import mean
from bench.results.tables import IDENTITY
from reports.policies import BITS, decisions
from reports.shared.formatting import named_runs, number

Widths = Sequence[int]
"""What one run chose for every searched tensor, in the network's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """The runs of a method and budget.

    Attributes:
        method, budget: Of the runs.
        widths: Of each run, by kind of tensor.
        pruned: Mean percentage of filters that are gone, of the layers that could lose some; NaN where none could.
    """

    method: str
    budget: str
    widths: Sequence[Mapping[str, Widths]]
    pruned: float

    def of_both(self) -> list[Widths]:
        """All widths of each run."""
        return [[width for kind in BITS for width in run[kind]] for run in self.widths]

    def mean_of(self, kind: str) -> float:
        """Mean width over tensors and runs."""
        return mean([width for run in self.widths for width in run[kind]])


class Agreement(Report):
    """How alike the policies of different seeds are."""

    summary = "whether different seeds find the same policy: agreement beyond chance, mean widths"
    title = "Agreement between seeds"
    rank = 32

    def build(self, results: StudyResults) -> list[Table]:
        """Nothing before two runs of some method have left policies."""
        rows = [row for row in _rows(results) if len(row.widths) > 1]
        return [_table(rows)] if rows else []


def _rows(results: StudyResults) -> Iterator[_Row]:
    runs = named_runs(results)
    for _, group in runs[runs["status"] == "done"].groupby(list(IDENTITY), sort=False):
        widths, pruned = [], []
        for run in group["id"]:
            middle = list(decisions(results, str(run)))[1:-1]  # first and last layer have 8 bits in every network
            if middle:
                widths.append({kind: [int(found[kind]) for _, found in middle] for kind in BITS})
            pruned += [found["pruned"] for _, found in middle if "pruned" in found]
        line, budget = str(group["line"].iloc[0]), str(group["budget"].iloc[0])
        yield _Row(method=line, budget=budget, widths=widths, pruned=mean(pruned) if pruned else math.nan)


def kappa(one: Widths, two: Widths) -> tuple[float, float]:
    """The share of equal choices, and Cohen's κ: that share beyond chance, (p − p_e)/(1 − p_e).

    p_e is the share that two runs with the same numbers of each width would have in common by chance (Cohen 1960,
    doi 10.1177/001316446002000104). κ is NaN where there is no other outcome than to agree.
    """
    n = len(one)
    equal = sum(a == b for a, b in zip(one, two, strict=True)) / n
    counts, others = Counter(one), Counter(two)
    chance = sum(counts[width] * others[width] for width in counts) / n**2
    return equal, math.nan if chance == 1 else (equal - chance) / (1 - chance)


def _over_pairs(runs: Sequence[Widths]) -> tuple[float, float]:
    """Both, as means over all pairs of runs."""
    found = [kappa(one, two) for one, two in combinations(runs, 2)]
    return mean([equal for equal, _ in found]), mean([beyond for _, beyond in found])


def _table(rows: Sequence[_Row]) -> Table:
    return Table(
        name="agreement",
        title="Do different seeds find the same policy?",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="n"),
            Column(title="Same width %"),
            Column(title="κ"),
            Column(title="Weight bits"),
            Column(title="Activation bits"),
            Column(title="Filters pruned %", drop=1),
        ),
        rows=tuple(_cells(row) for row in rows),
        notes=(
            "Same width: share of searched tensors with the same width, over all pairs of seeds",
            "κ: the same beyond chance; 0 is what runs with as many tensors of each width agree on by chance, 1 is the "
            "same policy; empty where all tensors have one width",
            "Bits: means over searched tensors and seeds, each tensor counting alike",
        ),
    )


def _cells(row: _Row) -> tuple[str, ...]:
    equal, beyond = _over_pairs(row.of_both())
    bits = (number(row.mean_of(kind), 2) for kind in BITS)
    return (
        row.method,
        row.budget,
        str(len(row.widths)),
        number(100 * equal, 1),
        number(beyond, 2),
        *bits,
        number(row.pruned, 1),
    )
