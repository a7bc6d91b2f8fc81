"""Trials of a tuning: what is known of each, and which of several is the best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.costs.budget import Budget
from bench.errors import UnreachableBudgetError
from bench.results.fairness import FEW_REPAIRS
from bench.spec.schema import TuningSpec

_ALIKE_TRIALS = 3
"""Smallest number of trials that can be found alike; the first three are spread over the range of the strength."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One search of a tuning, repaired and fine-tuned briefly.

    Attributes:
        number: Position among the trials of the tuning.
        knobs: Values of the knobs.
        raw_cost, cost: Costs before and after repair, in the unit of the budget's measure.
        repaired_gates: Number of choices that repair changed.
        within_budget: Whether the cost after repair lies in the budget's window.
        validation_top1, validation_loss: Accuracy in percent and loss of the repaired network after the trial's short
            fine-tuning.
        validation_images: Number of images that both were measured on.
        seconds: Wall time.
        policy: Policy after repair, as JSON.
        curves: Figures by epoch.
        record: Record of the search itself.
    """

    number: int
    knobs: Mapping[str, float]
    raw_cost: float
    cost: float
    repaired_gates: int
    within_budget: bool
    validation_top1: float
    validation_loss: float
    validation_images: int
    seconds: float
    policy: Mapping[str, Any]
    curves: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any]

    @property
    def landed(self) -> bool:
        """Whether the search itself reached the budget, so that repair changed next to nothing."""
        return self.within_budget and self.repaired_gates <= FEW_REPAIRS


def alike(trials: Sequence[Trial]) -> bool:
    """Return whether validation cannot tell trials apart.

    It takes at least three trials whose accuracies differ by at most two standard errors of a difference. These are the
    errors for two sets of validation images. Trials share one set, which cannot make the error larger.
    """
    if len(trials) < _ALIKE_TRIALS:
        return False
    accuracies = [trial.validation_top1 for trial in trials]
    return max(accuracies) - min(accuracies) <= _noise(trials)


def _noise(trials: Sequence[Trial]) -> float:
    """Return two standard errors of a difference of the trials' accuracies, in percentage points."""
    mean = sum(trial.validation_top1 for trial in trials) / len(trials) / 100
    return 200 * math.sqrt(2 * mean * (1 - mean) / trials[0].validation_images)


def choose(trials: Sequence[Trial], budget: Budget, spec: TuningSpec, diverged: int) -> Trial:
    """Choose the trial whose knobs the runs will use.

    Mode "hinge" takes the best on validation among trials within the budget's window. It prefers a trial that reached
    the budget without repair, unless the best repaired trial is significantly better on validation. Mode "lambda" takes
    a search that hit the window by itself, otherwise the nearest miss that repair brought into it. Without a trial in
    the window, both take the costliest one below it.

    Args:
        trials: Completed trials, at least one.
        budget: Target of the tuning.
        spec: Settings of the tuning.
        diverged: Number of trials whose loss did not stay finite, for the message.

    Raises:
        UnreachableBudgetError: Every trial costs more than the budget.
    """
    inside = [trial for trial in trials if trial.within_budget]
    if inside and spec.match == "lambda":
        return min(inside, key=lambda t: (not budget.matches(t.raw_cost), abs(math.log(t.raw_cost / budget.limit))))
    if inside:
        best = max(inside, key=_merit)
        landed = [t for t in inside if t.landed and best.validation_top1 - t.validation_top1 <= _noise([best, t])]
        return max(landed, key=_merit, default=best)
    allowed = [trial for trial in trials if trial.cost <= budget.limit]
    if allowed:
        return max(allowed, key=lambda trial: trial.cost)
    nearest = min(trial.cost for trial in trials)
    raise UnreachableBudgetError(
        f"none of {len(trials)} trials reached the budget; the nearest costs {nearest / budget.limit:.3f} of it"
        + (f"; {diverged} more diverged" if diverged else ""),
        nearest,
    )


def _merit(trial: Trial) -> tuple[float, float]:
    return trial.validation_top1, -trial.validation_loss
