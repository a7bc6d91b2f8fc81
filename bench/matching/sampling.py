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
"""Number of trials before the model-based sampler takes over."""


def accuracy_sampler(
    knobs: Mapping[str, Knob], budget: Budget, completed: Sequence[Trial], *, seed: int, number: int
) -> "BaseSampler":
    """Make the sampler of mode "hinge": space-filling points first, then a tree-structured Parzen estimator.

    Args:
        knobs: Ranges of the knobs.
        budget: Target of the tuning.
        completed: Completed trials.
        seed: Seed of this trial's draws.
        number: Number of this trial.
    """
    from optuna.samplers import PartialFixedSampler, TPESampler

    base = TPESampler(seed=seed % 2**32, n_startup_trials=_SPACE_FILLING)
    if number >= _SPACE_FILLING:
        return base
    return PartialFixedSampler(space_filling(strong_enough(knobs, budget, completed), number), base)


def strong_enough(knobs: Mapping[str, Knob], budget: Budget, completed: Sequence[Trial]) -> dict[str, Knob]:
    """Remove strengths from the range that were too weak for a search of mode "hinge" to reach the budget."""
    if "strength" not in knobs:
        return dict(knobs)
    weak = [trial.knobs["strength"] for trial in completed if trial.raw_cost > budget.limit and not trial.landed]
    strength = knobs["strength"]
    return {**knobs, "strength": replace(strength, low=max([strength.low, *weak]))}


def space_filling(knobs: Mapping[str, Knob], index: int) -> dict[str, float]:
    """Return point `index` of a Halton sequence over the knobs' ranges; the first is the middle of the first range."""
    from scipy.stats import qmc

    unit = qmc.Halton(len(knobs), scramble=False).random(index + 2)[index + 1]
    return {name: _inside(knob, share) for (name, knob), share in zip(knobs.items(), unit, strict=True)}


def _inside(knob: Knob, share: float) -> float:
    if knob.log:
        return float(math.exp(math.log(knob.low) + share * (math.log(knob.high) - math.log(knob.low))))
    return float(knob.low + share * (knob.high - knob.low))


def bracket_sampler(knobs: Mapping[str, Knob], budget: Budget, block: int, completed: Sequence[Trial]) -> "BaseSampler":
    """Make the sampler of mode "lambda": it brackets log λ and gives other knobs a space-filling value.

    Args:
        knobs: Ranges of the knobs.
        budget: Target of the tuning.
        block: Number of trials during which the other knobs keep their values.
        completed: Completed trials.
    """
    from optuna.samplers import PartialFixedSampler, RandomSampler

    others = {name: knob for name, knob in knobs.items() if name != "strength"}
    fixed = space_filling(others, len(completed) // block) if others else {}
    knob = knobs["strength"]
    proposed = math.exp(propose_log_strength(points_of(completed, budget), budget, knob))
    fixed["strength"] = min(max(proposed, knob.low / REACH), knob.high * REACH)  # exp(log(x)) may leave the range
    return PartialFixedSampler(fixed, RandomSampler(seed=0))
