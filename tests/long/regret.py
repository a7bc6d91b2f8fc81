"""Regret of methods' choices in windows whose every policy was trained, and the tables of `docs/known-answers.md`.

    python -m tests.long.regret docs/results/known-answers

The folder has the files `truth.csv` and `choices.csv` of `tests.long.known_answers`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.api import Column, Document, Table
from bench.reporting import wording
from bench.reporting.report import Section
from bench.results.statistics import holm, t_interval
from docs.make_results import fill_in, markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "known-answers.md"
TOLERANCE = 0.03
_ROUNDING = 1e-9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """The policies that meet a budget, all of them trained with the same seeds of fine-tuning.

    Attributes:
        budget: Largest cost, as the study states it.
        seeds: Accuracies in percent, a row for each policy and a column for each seed.
    """

    budget: str
    seeds: pd.DataFrame

    @cached_property
    def truth(self) -> pd.Series:
        """Mean accuracy of each policy."""
        return self.seeds.mean(axis=1)

    @property
    def noise(self) -> float:
        """Standard deviation over seeds of fine-tuning, pooled over policies."""
        return float(np.sqrt(self.seeds.var(axis=1, ddof=1).mean()))

    @property
    def unbiased_best(self) -> float:
        """Accuracy of the best policy, chosen by one half of the seeds and measured by the other, and the reverse.

        The largest of many noisy means is too large; this estimate is at most too small.
        """
        halves = [self.seeds.iloc[:, start::2].mean(axis=1) for start in (0, 1)]
        return float(np.mean([measured[chosen.idxmax()] for chosen, measured in (halves, halves[::-1])]))

    def better(self, accuracy: float) -> float:
        """Return the share of the policies that are better than an accuracy."""
        return float((self.truth > accuracy + _ROUNDING).mean())


def windows(truth: pd.DataFrame, budgets: Sequence[str], tolerance: float = TOLERANCE) -> list[Window]:
    """Return the window of each budget.

    Args:
        truth: Cost and accuracy by seed of every policy of the space.
        budgets: Budgets.
        tolerance: Relative width of a window.
    """
    found = []
    for budget in budgets:
        inside = truth["cost"].between((1 - tolerance) * float(budget), float(budget))
        found.append(Window(budget, truth[inside].filter(like="seed")))
    return found


def share_as_good(drawn_from: Sequence[Floats], reached: Sequence[float]) -> float:
    """Return the probability that policies drawn at random, one from each window, are together at least as good.

    All combinations are counted, so it is exact. It is the p-value of the hypothesis that a method's choice at each
    budget is one random draw.

    Args:
        drawn_from: Accuracies of all policies of each window.
        reached: Accuracies that a method reached in the same windows.
    """
    sums = reduce(np.add.outer, drawn_from)
    return float((sums >= sum(reached) - _ROUNDING).mean())


def regrets(truth: pd.DataFrame, choices: pd.DataFrame, of: Sequence[Window]) -> pd.DataFrame:
    """Return choices with the true accuracy of each, its regret, and the share of the window that is better."""
    rows = choices.dropna(subset=["policy"]).copy()
    by_budget = {window.budget: window for window in of}
    rows["truth"] = truth.filter(like="seed").mean(axis=1).loc[rows["policy"]].to_numpy()
    pairs = [(by_budget[str(row.budget)], float(row.truth)) for row in rows.itertuples()]
    rows["regret"] = [window.truth.max() - accuracy for window, accuracy in pairs]
    rows["better"] = [window.better(accuracy) for window, accuracy in pairs]
    return rows


# --- tables -------------------------------------------------------------------------------------------------------


def table_of_windows(of: Sequence[Window]) -> Document:
    """Make the table of what is known of each window."""
    titles = ("Budget, BOPs", "Policies", "Seeds", "Worst", "Mean", "Best", "Best, unbiased", "Noise", "Best policy")
    rows = []
    for window in of:
        truth = window.truth
        known = (truth.min(), truth.mean(), truth.max(), window.unbiased_best, window.noise)
        shape = (f"{int(window.budget):,}", *map(str, window.seeds.shape))
        rows.append((*shape, *map(wording.number, known), str(truth.idxmax())))
    return _document("windows", titles, rows)


def table_of_methods(of: Sequence[Window], rows: pd.DataFrame) -> Document:
    """Make the table of regrets: of a random draw, computed from the windows, and of each method."""
    titles = ("Method", *(f"{int(window.budget):,}" for window in of))
    titles += ("Mean", "95 % interval", "Better, %", "p", "Runs")
    expected = [window.truth.max() - window.truth.mean() for window in of]
    better = np.mean([window.truth.map(window.better).mean() for window in of])
    drawn = ("a random draw", *map(wording.number, expected), wording.number(np.mean(expected)), "exact")
    by_method = {str(name): group for name, group in rows.groupby("method")}
    corrected = holm([chance(of, group) for group in by_method.values()])
    ordered = sorted(_method_line(name, of, by_method[name], p) for name, p in zip(by_method, corrected, strict=True))
    lines = [(*drawn, wording.number(100 * better, 0), "", ""), *(line for _, line in ordered)]
    return _document("methods", titles, lines)


def chance(of: Sequence[Window], group: pd.DataFrame) -> float:
    """Return the probability that one random draw at each budget is together as good as the means of a method."""
    means = group.groupby(group["budget"].astype(str))["truth"].mean()
    reached = [window for window in of if window.budget in means.index]
    return share_as_good([window.truth.to_numpy() for window in reached], [means[window.budget] for window in reached])


def _method_line(name: str, of: Sequence[Window], group: pd.DataFrame, p: float) -> tuple[float, tuple[str, ...]]:
    """Return the mean regret of a method, and its row of the table."""
    regret = group.groupby(group["budget"].astype(str))["regret"].mean()
    by_seed = t_interval(group.groupby("seed")["regret"].mean().tolist())
    at_budgets = (wording.number(regret.get(window.budget, np.nan)) for window in of)
    better = wording.number(100 * group["better"].mean(), 0)
    figures = (wording.number(regret.mean()), wording.interval(by_seed), better, wording.probability(p))
    return float(regret.mean()), (name, *at_budgets, *figures, str(len(group)))


def _document(name: str, titles: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Document:
    left = {"Method", "Best policy"}
    columns = tuple(Column(title=title, align="left" if title in left else "right") for title in titles)
    table = Table(name=name, title=f"known answers: {name}", columns=columns, rows=tuple(rows))
    return Document(study="known answers", sections=(Section(name=name, title="", parts=(table,)),))


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the truth and the choices from a folder."""
    return pd.read_csv(folder / "truth.csv", index_col="policy"), pd.read_csv(folder / "choices.csv")


def tables(folder: Path) -> dict[str, str]:
    """Return the tables of a folder as Markdown, by name."""
    truth, choices = read(folder)
    of = windows(truth, sorted(choices["budget"].astype(str).unique(), key=int))
    rows = regrets(truth, choices, of)
    return {"windows": markdown(table_of_windows(of)), "methods": markdown(table_of_methods(of, rows))}


if __name__ == "__main__":
    for name, text in tables(Path(sys.argv[1])).items():
        fill_in(f"known answers: {name}", text, PAGE)
