"""Samplers that tell Optuna which knobs to try next. They depend on completed trials only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.costs.budget import Budget
from bench.matching.bracket import REACH, points_of, propose_log_strength
from bench.matching.trial import Trial
from bench.method import Knob

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_SPACE_FILLING = 4
"""Number of trials after the first landing before the model-based sampler takes over."""
_AROUND = 3.0
"""Factor by which strengths are tried above and below that of the first trial that landed."""
_DIVERGED = math.log(0.5)
"""Log cost, relative to the budget, that a strength counts with at which the loss did not stay finite: too strong."""


def accuracy_sampler(
    knobs: Mapping[str, Knob],
    budget: Budget,
    completed: Sequence[Trial],
    diverged: Sequence[Mapping[str, float]],
    *,
    seed: int,
) -> "BaseSampler":
    """Make the sampler of modes in which accuracy decides.

    Until a search has landed, the strength is bracketed, with the other knobs in the middle of their ranges. Then
    space-filling points follow, around the strength that landed, and after them a tree-structured Parzen estimator.
    Without a strength there is nothing to bracket.

    Args:
        knobs: Ranges of the knobs.
        budget: Target of the tuning.
        completed: Completed trials.
        diverged: Knobs of trials whose loss did not stay finite.
        seed: Seed of this trial's draws.
    """
    from optuna.samplers import PartialFixedSampler, TPESampler

    base = TPESampler(seed=seed % 2**32, n_startup_trials=_SPACE_FILLING)
    number, first = len(completed) + len(diverged), _first_landed(knobs, completed)
    if first is None:
        fixed = _bracketed(knobs, budget, completed, diverged)
        return base if fixed is None else PartialFixedSampler(fixed, base)
    later = number - first
    if later > _SPACE_FILLING:
        return base
    return PartialFixedSampler(space_filling(_around_landed(knobs, completed), later), base)


def _first_landed(knobs: Mapping[str, Knob], completed: Sequence[Trial]) -> int | None:
    """Return the number of the first trial that landed; 0 where no strength has to be found first, `None` for none."""
    if "strength" not in knobs:
        return 0
    return next((trial.number for trial in completed if trial.landed), None)


def _bracketed(
    knobs: Mapping[str, Knob], budget: Budget, completed: Sequence[Trial], diverged: Sequence[Mapping[str, float]]
) -> dict[str, float] | None:
    """Propose a strength nearer to the budget, the other knobs in the middle; `None` if it was tried before."""
    knob = knobs["strength"]
    points = points_of(completed, budget) + [(math.log(tried["strength"]), _DIVERGED) for tried in diverged]
    proposed = min(max(math.exp(propose_log_strength(points, budget, knob)), knob.low), knob.high)
    if any(math.isclose(math.log(proposed), tried, abs_tol=1e-9) for tried, _ in points):
        return None
    return {**{name: other.middle for name, other in knobs.items()}, "strength": proposed}


def _around_landed(knobs: Mapping[str, Knob], completed: Sequence[Trial]) -> dict[str, Knob]:
    """Narrow the range of the strength to the neighbourhood of the first one that landed."""
    landed = [trial.knobs["strength"] for trial in completed if trial.landed and "strength" in knobs]
    if not landed:
        return dict(knobs)
    knob = knobs["strength"]
    low, high = max(knob.low, landed[0] / _AROUND), min(knob.high, landed[0] * _AROUND)
    return {**knobs, "strength": replace(knob, low=low, high=high)}


def space_filling(knobs: Mapping[str, Knob], index: int) -> dict[str, float]:
    """Return point `index` of a Halton sequence over the knobs' ranges; the first is the middle of the first range."""
    from scipy.stats import qmc

    unit = qmc.Halton(len(knobs), scramble=False).random(index + 2)[index + 1]
    return {name: _inside(knob, share) for (name, knob), share in zip(knobs.items(), unit, strict=True)}


def _inside(knob: Knob, share: float) -> float:
    if knob.log:
        return float(math.exp(math.log(knob.low) + share * (math.log(knob.high) - math.log(knob.low))))
    return float(knob.low + share * (knob.high - knob.low))


def bracket_sampler(knobs: Mapping[str, Knob], budget: Budget, completed: Sequence[Trial]) -> "BaseSampler":
    """Make the sampler of mode "lambda": it brackets log λ, and leaves the other knobs in the middle of their ranges.

    Args:
        knobs: Ranges of the knobs.
        budget: Target of the tuning.
        completed: Completed trials.
    """
    from optuna.samplers import PartialFixedSampler, RandomSampler

    knob = knobs["strength"]
    proposed = math.exp(propose_log_strength(points_of(completed, budget), budget, knob))
    strength = min(max(proposed, knob.low / REACH), knob.high * REACH)  # exp(log(x)) may leave the range
    fixed = {**{name: other.middle for name, other in knobs.items()}, "strength": strength}
    return PartialFixedSampler(fixed, RandomSampler(seed=0))
