"""The answer of a study in words: which methods are better than the baseline, and what could not have been seen."""

import math
from collections.abc import Iterable, Iterator, Sequence

from bench.reporting import wording
from bench.results.differences import BaselineDifference
from bench.results.statistics import LEVEL, MIN_PAIRS, Interval, PairedDifference, pairs_needed

WANTED = 0.5
"""Difference in points of Top-1 for which the number of seeds is stated."""


def study_verdicts(differences: Sequence[BaselineDifference]) -> list[str]:
    """State for each task and budget how the methods compare with the baseline.

    Args:
        differences: All rows of a study, as `baseline_differences` returns them.

    Returns:
        One text for each task and budget at which the baseline and another method have runs.
    """
    compared = [row for row in differences if row.baseline is not None]
    several = len({row.group.task for row in compared}) > 1
    tests = sum(not math.isnan(row.p) for row in differences)
    places = dict.fromkeys((*row.group.task, row.group.budget) for row in compared)
    texts = []
    for place in places:
        rows = [row for row in compared if (*row.group.task, row.group.budget) == place]
        sentences = " ".join(_sentences(rows, tests))
        if sentences:
            label = " ".join(filter(None, place if several else place[-1:]))
            texts.append(f"{label}: {sentences}" if label else sentences)
    return texts


def _sentences(rows: Sequence[BaselineDifference], tests: int) -> Iterator[str]:
    """Yield the sentences about one task and budget.

    Args:
        rows: Rows of the task and budget.
        tests: Number of tests in the study, over which p is corrected.
    """
    tested = sorted((row for row in rows if row.pair and not row.flags), key=lambda row: -_mean(row))
    members = {standing: [row for row in tested if _standing(row, tests) == standing] for standing in _STANDINGS}
    baseline = next((row.baseline.method for row in rows if row.baseline is not None), "")
    if tested and not members["better"]:
        yield f"No method is shown to be better than {baseline}."
    for standing, words in _STANDINGS.items():
        if members[standing]:
            stated = words.format(baseline=baseline, tests=tests, needed=_pairs_for(tests))
            yield f"{stated}: {_listed(members[standing])}."
    unknown = (*members["same"], *members["undecided"], *members["untested"])
    pairs = [row.pair for row in unknown if row.pair]
    # A row of two or three pairs would hide what those with enough of them could have shown.
    yield from _limits([pair for pair in pairs if pair.n >= MIN_PAIRS] or pairs)
    flagged = [row.group.method for row in rows if row.pair and row.flags]
    if flagged:
        yield f"No verdict ({wording.FLAGGED}): {wording.listed(flagged)}."


_STANDINGS = {
    "better": "Better than {baseline}",
    "worse": "Worse than {baseline}",
    "same": "Not distinguishable from {baseline}",
    "undecided": "Too few pairs for {tests} corrected tests, which take {needed}",
    "untested": f"Untested, with fewer than {MIN_PAIRS} pairs",
}
"""Positions of a method beside the baseline, with their words."""


def _pairs_for(tests: int) -> int:
    """Return the fewest pairs with which the smallest p, 2 of 2ⁿ sign patterns, survives the correction."""
    return math.ceil(math.log2(2 * tests / (1 - LEVEL)) - 1e-9) if tests else MIN_PAIRS


def _standing(row: BaselineDifference, tests: int) -> str:
    """Return the position of a method; "better" and "worse" need both the test and the interval."""
    if math.isnan(row.p):
        return "untested"
    if row.p > 1 - LEVEL and row.pair is not None and row.pair.n < _pairs_for(tests):
        return "undecided"
    interval = row.pair.interval if row.pair else Interval(math.nan, math.nan)
    if row.p > 1 - LEVEL or not (interval.low > 0 or interval.high < 0):
        return "same"
    return "better" if _mean(row) > 0 else "worse"


def _mean(row: BaselineDifference) -> float:
    return row.pair.mean if row.pair else math.nan


def _limits(pairs: Sequence[PairedDifference]) -> Iterator[str]:
    """State what so few pairs could not have found, and how many would find a given difference."""
    known = [pair for pair in pairs if not math.isnan(pair.detectable)]
    if not known:
        return
    widest = max(known, key=lambda pair: pair.detectable)
    needed = pairs_needed(WANTED, widest.std)
    seeds = "" if needed is None or needed <= widest.n else f"; {WANTED} points would take about {needed} seeds"
    yield f"Differences below {widest.detectable:.2f} points would not have been found reliably{seeds}."


def _listed(rows: Iterable[BaselineDifference]) -> str:
    """Return methods with their differences: "sbs +0.19 [-1.25, +1.63], dnas -2.14 [-3.58, -0.70]"."""
    return ", ".join(
        " ".join(filter(None, (row.group.method, *wording.difference(row.pair, math.nan)[:2]))) for row in rows
    )
