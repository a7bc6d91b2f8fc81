"""Agreement between seeds: whether repeats of a search find the same policy, beyond what chance gives."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.api import Column, Report, StudyResults, Table
from bench.results.statistics import mean
from bench.results.tables import IDENTITY
from reports.policies import BITS, decisions
from reports.shared.formatting import named_runs, number

Bits = Sequence[int]
"""Bits that one run chose for every searched tensor, in the network's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """The runs of a method and budget.

    Attributes:
        method, budget: Identity of the row.
        runs: Bits that each run chose, by kind of tensor.
        pruned: Mean percentage of filters that were pruned, over prunable layers; NaN without such layers.
    """

    method: str
    budget: str
    runs: Sequence[Mapping[str, Bits]]
    pruned: float

    def all_bits(self) -> list[Bits]:
        """Return the bits of each run, of weights and activations together."""
        return [[bits for kind in BITS for bits in run[kind]] for run in self.runs]

    def mean_bits(self, kind: str) -> float:
        """Return the mean bits over tensors and runs."""
        return mean([bits for run in self.runs for bits in run[kind]])


class Agreement(Report):
    """The agreement between the policies of different seeds."""

    summary = "whether different seeds find the same policy: agreement beyond chance, mean bits"
    title = "Agreement between seeds"
    rank = 32
    folded = True

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none before two runs of some method have policies."""
        rows = [row for row in _rows(results) if len(row.runs) > 1]
        return [_table(rows)] if rows else []


def _rows(results: StudyResults) -> Iterator[_Row]:
    runs = named_runs(results)
    for _, group in runs[runs["status"] == "done"].groupby(list(IDENTITY), sort=False):
        bits, pruned = [], []
        for run in group["id"]:
            middle = decisions(results, str(run))[1:-1]  # first and last layer have 8 bits in every network
            if middle:
                bits.append({kind: [int(decision[kind]) for _, decision in middle] for kind in BITS})
            pruned += [decision["pruned"] for _, decision in middle if "pruned" in decision]
        line, budget = str(group["line"].iloc[0]), str(group["budget"].iloc[0])
        yield _Row(method=line, budget=budget, runs=bits, pruned=mean(pruned) if pruned else math.nan)


def mean_kappa(runs: Sequence[Bits]) -> tuple[float, float]:
    """Return the share p of equal choices, and Cohen's κ = (p − p_e)/(1 − p_e), as means over all pairs of runs.

    p_e is the share of equal choices that two runs with the same numbers of each choice would have by chance (Cohen
    1960, doi 10.1177/001316446002000104). κ is NaN when two runs can only agree. Runs with the same numbers of each
    choice are added up first, so that the time does not grow with the number of pairs.

    Args:
        runs: At least two runs, with a choice for each tensor; NaN when they have different numbers of tensors.
    """
    if len(set(map(len, runs))) != 1:
        return math.nan, math.nan
    bits = np.asarray(runs)
    tensors = bits.shape[1]
    chosen = bits[:, :, np.newaxis] == np.unique(bits)  # run × tensor × choice
    counts, group = np.unique(chosen.sum(axis=1), axis=0, return_inverse=True)
    members = np.bincount(group.reshape(-1))
    choices = np.zeros((len(counts), chosen[0].size))
    np.add.at(choices, group.reshape(-1), chosen.reshape(len(bits), -1))
    pairs = members * members[:, np.newaxis] - np.diag(members)  # ordered, of two different runs
    equal = choices @ choices.T / tensors - np.diag(members)  # sums over pairs; a run equals itself
    chance = counts @ counts.T / tensors**2
    with np.errstate(invalid="ignore"):
        beyond = (equal - pairs * chance) / (1 - chance)
    return float(equal.sum() / pairs.sum()), float(beyond[pairs > 0].sum() / pairs.sum())


def _table(rows: Sequence[_Row]) -> Table:
    return Table(
        name="agreement",
        title="Do different seeds find the same policy?",
        columns=(
            Column(title="Method", align="left"),
            Column(title="Budget", align="left"),
            Column(title="n"),
            Column(title="Same bits %"),
            Column(title="κ"),
            Column(title="Weight bits"),
            Column(title="Activation bits"),
            Column(title="Filters pruned %", drop=1),
        ),
        rows=tuple(_cells(row) for row in rows),
        notes=(
            "Same bits: share of searched tensors with the same bits, mean over all pairs of seeds",
            "κ: agreement beyond chance. 0 is the agreement by chance of runs with these numbers of each choice, 1 is "
            "the same policy. Empty when all tensors have the same bits",
            "Bits: means over searched tensors and seeds; every tensor has the same weight",
        ),
    )


def _cells(row: _Row) -> tuple[str, ...]:
    equal, beyond = mean_kappa(row.all_bits())
    bits = (number(row.mean_bits(kind), 2) for kind in BITS)
    return (
        row.method,
        row.budget,
        str(len(row.runs)),
        number(100 * equal, 1),
        number(beyond, 2),
        *bits,
        number(row.pruned, 1),
    )
