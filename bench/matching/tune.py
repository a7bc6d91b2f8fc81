"""Brings a method onto its budget: Optuna chooses the knobs, trial by trial, one search a trial.

Mode "hinge": the cost term acts above the budget only, so each search ends near it; knobs are chosen by
validation accuracy among trials that end inside the window. Mode "lambda": plain λ log R, and λ is bracketed
in log λ until the cost of a search lands inside the window.

A tuning ends before its last trial where more trials would tell no more: in mode "lambda" when repair has next to
nothing to do, in mode "hinge" when the accuracies of such trials differ by less than validation images can tell
(`docs/tuning.md`).

Proposals depend on completed trials alone. A tuning that was interrupted is therefore gone through again from its
first trial, with those that the store holds taken from there, and goes on exactly as if it had not been.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from bench.costs.budget import Budget
from bench.errors import NonFiniteLossError, UnreachableBudgetError, first_line
from bench.method import Knob
from bench.spec.schema import TuningSpec
from bench.spec.seeds import derive
from bench.store.urls import without_password

if TYPE_CHECKING:
    import optuna
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

_log = logging.getLogger(__name__)

_SPACE_FILLING = 4
"""Trials before the model-based sampler takes over."""
_REACH = 100.0
"""In mode "lambda" a bracket may leave the knob's range by this factor on either side."""
_SLOPE = 0.8
"""How fast log cost is taken to fall with log λ where one side of the window is not known yet; measured: 0.2 to 1.3."""
_LEAST_STEP = 0.1
"""In log λ: searches closer than this differ by their noise more than by their strength."""
_GROWTH = 1.5
"""Each further step towards a window that lies on one side of all searches is longer by this factor."""
_STRADDLE = 1.05
"""Between two strengths closer than this on either side of the window, noise decides and not the strength."""
_NEARBY = 0.02
"""In log λ: how far apart strengths are tried where noise decides."""
_FEW_GATES = 2
"""A search has landed when repair brings it inside by so few moves: seeds differ by more at the same strength."""
_ALIKE_TRIALS = 3
"""In mode "hinge" so many trials, which the first points spread over the range, must be there to be found alike."""
_GUARD = 0.2
"""Interpolation inside a bracket stays this share away from its ends, so that plateaus cannot stall it."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The outcome of one search while tuning.

    Attributes:
        number: Position among completed trials.
        knobs: Values that were tried.
        raw_cost, cost: Before and after repair, in the unit of what the budget limits.
        repaired_gates: Decisions that repair moved.
        within_budget: Whether the cost after repair lies inside the window.
        validation_top1, validation_loss: Of the repaired network after the trial's short fine-tuning.
        validation_images: How many these were read from.
        seconds: Wall time of the trial.
        policy: The policy after repair, as JSON.
        curves: Figures by epoch.
        record: The search's own record.
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
        """Whether the search itself came to the budget: repair had next to nothing to do."""
        return self.within_budget and self.repaired_gates <= _FEW_GATES


SearchTrial = Callable[[int, Mapping[str, float]], Trial | None]
"""Makes the trial with a number at given knobs; `None` when its loss did not stay finite."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned onto what.

    Attributes:
        name: Of the Optuna study.
        knobs: Ranges; must contain "strength".
        budget: The target.
        spec: Mode, number of trials.
        seed: Seeds the sampler.
        storage: A database in which Optuna keeps its study, for its dashboard; in memory when absent. The trials
            themselves are kept by the store.
    """

    name: str
    knobs: Mapping[str, Knob]
    budget: Budget
    spec: TuningSpec
    seed: int
    storage: str | None = None

    @property
    def bracketing(self) -> bool:
        """Whether the strength is bracketed onto the budget rather than chosen by accuracy."""
        return self.spec.match == "lambda"

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """The knobs' ranges for Optuna; a bracket may leave that of the strength."""
        from optuna.distributions import FloatDistribution

        reach = {"strength": _REACH if self.bracketing else 1.0}
        return {
            name: FloatDistribution(knob.low / reach.get(name, 1.0), knob.high * reach.get(name, 1.0), log=knob.log)
            for name, knob in self.knobs.items()
        }


def tune(tuning: Tuning, search: SearchTrial) -> tuple[Trial, Sequence[Trial]]:
    """Find the knobs for a budget.

    Args:
        tuning: What is tuned onto what.
        search: Makes a trial, or returns the one that is there already.

    Returns:
        The chosen trial and all completed ones.

    Raises:
        UnreachableBudgetError: No trial ended at a cost within the budget.
        NonFiniteLossError: No trial's loss stayed finite.
    """
    if tuning.storage is None:
        return _tune(tuning, search)
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _tune(tuning, search)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = first_line(error.__cause__ or error)
        _log.warning("Optuna's storage %s is not up to date: %s", without_password(tuning.storage), reason)
        return _tune(replace(tuning, storage=None), search)


def _tune(tuning: Tuning, search: SearchTrial) -> tuple[Trial, Sequence[Trial]]:
    study = _new_study(tuning)
    trials: list[Trial] = []
    diverged: list[Mapping[str, float]] = []
    while len(trials) + len(diverged) < tuning.spec.trials and not _settled(trials, diverged, tuning):
        number = len(trials) + len(diverged)
        asked = _ask(study, tuning, number, trials)
        knobs = {name: float(value) for name, value in asked.params.items()}
        trial = search(number, knobs)
        _tell(study, tuning, asked, trial)
        if trial is None:
            diverged.append(knobs)
        else:
            trials.append(trial)
    if not trials:
        raise NonFiniteLossError(f"the loss of all {len(diverged)} trials became infinite or NaN")
    return _choose(trials, tuning.budget, tuning.spec, len(diverged)), trials


def _new_study(tuning: Tuning) -> "Study":
    """An empty study; one of the same name that an interrupted tuning left in a database is replaced."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # For good: tunings run in several threads, and `catch_warnings` would restore what another one has set.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if tuning.storage is not None:
        with suppress(KeyError):
            optuna.delete_study(study_name=tuning.name, storage=tuning.storage)
    return optuna.create_study(storage=tuning.storage, study_name=tuning.name, direction="maximize")


def _ask(study: "Study", tuning: Tuning, number: int, completed: Sequence[Trial]) -> "optuna.Trial":
    if tuning.bracketing:
        study.sampler = bracket_sampler(tuning.knobs, tuning.budget, tuning.spec.trials, completed)
    else:
        knobs = strong_enough(tuning.knobs, tuning.budget, completed)
        study.sampler = _accuracy_sampler(knobs, derive(tuning.seed, number), number)
    return study.ask(tuning.distributions())


def _tell(study: "Study", tuning: Tuning, asked: "optuna.Trial", trial: Trial | None) -> None:
    from optuna.trial import TrialState

    if trial is None:
        study.tell(asked, state=TrialState.FAIL)
        return
    share = trial.raw_cost / tuning.budget.limit
    if not tuning.bracketing:
        # Trials that did not land teach the sampler where not to look.
        asked.set_constraint("window", 0.0 if trial.landed else abs(math.log(share)) + 1e-9)
    study.tell(asked, trial.validation_top1)
    _log.info(
        "trial %d: %s, %.3f of the budget, validation %.2f %%",
        trial.number,
        trial.knobs,
        share,
        trial.validation_top1,
    )


def _settled(trials: Sequence[Trial], diverged: Sequence[Mapping[str, float]], tuning: Tuning) -> bool:
    """Whether another trial would tell no more."""
    early = tuning.spec.stop_early
    if not tuning.bracketing:
        return early and alike([trial for trial in trials if trial.landed])
    if trials and (tuning.budget.matches(trials[-1].raw_cost) or (early and trials[-1].landed)):
        return True
    return (early and _straddled(trials, tuning)) or _repeated(trials, diverged, tuning)


def _straddled(trials: Sequence[Trial], tuning: Tuning) -> bool:
    """Whether two searches lie so close on either side of the window that none between them is worth its while."""
    low, high = _bracket(_points(trials, tuning.budget), tuning.budget)
    return low is not None and high is not None and high[0] - low[0] < math.log(_STRADDLE)


def _repeated(trials: Sequence[Trial], diverged: Sequence[Mapping[str, float]], tuning: Tuning) -> bool:
    """Whether the next search would repeat one: the strength is at its end, or the loss diverged there."""
    points = _points(trials, tuning.budget)
    proposed = propose_log_strength(points, tuning.budget, tuning.knobs["strength"])
    tried = [point[0] for point in points] + [math.log(knobs["strength"]) for knobs in diverged]
    return any(math.isclose(proposed, strength, abs_tol=1e-9) for strength in tried)


def alike(trials: Sequence[Trial]) -> bool:
    """Whether trials, at least three, differ in accuracy by less than two standard errors of a difference.

    Those are errors of two sets of validation images; trials share one set, which makes them no larger.
    """
    if len(trials) < _ALIKE_TRIALS:
        return False
    accuracies = [trial.validation_top1 for trial in trials]
    return max(accuracies) - min(accuracies) <= _noise(trials)


def _noise(trials: Sequence[Trial]) -> float:
    """Two standard errors of a difference of their accuracies, in points."""
    mean = sum(trial.validation_top1 for trial in trials) / len(trials) / 100
    return 200 * math.sqrt(2 * mean * (1 - mean) / trials[0].validation_images)


def _choose(trials: Sequence[Trial], budget: Budget, spec: TuningSpec, diverged: int) -> Trial:
    """By validation accuracy among trials inside the window; else the dearest allowed.

    Searches that landed go before those that repair brought there, as long as validation cannot tell that the best of
    all is better: a strength of which more is known is worth some noise, but no accuracy.
    """
    inside = [trial for trial in trials if trial.within_budget]
    if inside and spec.match == "lambda":  # a hit needs no repair; a miss that lies nearer does
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


def strong_enough(knobs: Mapping[str, Knob], budget: Budget, completed: Sequence[Trial]) -> dict[str, Knob]:
    """The knobs' ranges without the strengths that are too weak for a search of mode "hinge" to reach the budget."""
    weak = [trial.knobs["strength"] for trial in completed if trial.raw_cost > budget.limit and not trial.landed]
    strength = knobs["strength"]
    return {**knobs, "strength": replace(strength, low=max([strength.low, *weak]))}


def _accuracy_sampler(knobs: Mapping[str, Knob], seed: int, completed: int) -> "BaseSampler":
    """Space-filling points first, then a tree-structured Parzen estimator; both depend on completed trials only."""
    from optuna.samplers import PartialFixedSampler, TPESampler

    base = TPESampler(seed=seed % 2**32, n_startup_trials=_SPACE_FILLING)
    return base if completed >= _SPACE_FILLING else PartialFixedSampler(space_filling(knobs, completed), base)


def space_filling(knobs: Mapping[str, Knob], index: int) -> dict[str, float]:
    """Point `index` of a Halton sequence over the knobs' ranges; the first lies in the middle of the first range."""
    from scipy.stats import qmc

    unit = qmc.Halton(len(knobs), scramble=False).random(index + 2)[index + 1]
    return {name: _inside(knob, share) for (name, knob), share in zip(knobs.items(), unit, strict=True)}


def _inside(knob: Knob, share: float) -> float:
    if knob.log:
        return float(math.exp(math.log(knob.low) + share * (math.log(knob.high) - math.log(knob.low))))
    return float(knob.low + share * (knob.high - knob.low))


def bracket_sampler(knobs: Mapping[str, Knob], budget: Budget, block: int, completed: Sequence[Trial]) -> "BaseSampler":
    """A stateless sampler that brackets log λ; other knobs keep a space-filling value."""
    from optuna.samplers import PartialFixedSampler, RandomSampler

    others = {name: knob for name, knob in knobs.items() if name != "strength"}
    fixed = space_filling(others, len(completed) // block) if others else {}
    knob = knobs["strength"]
    proposed = math.exp(propose_log_strength(_points(completed, budget), budget, knob))
    fixed["strength"] = min(max(proposed, knob.low / _REACH), knob.high * _REACH)  # exp of log may end outside
    return PartialFixedSampler(fixed, RandomSampler(seed=0))


Point = tuple[float, float]
"""(log λ, log(cost/budget)) of a completed search."""


def _points(trials: Sequence[Trial], budget: Budget) -> list[Point]:
    return [(math.log(t.knobs["strength"]), math.log(t.raw_cost / budget.limit)) for t in trials]


def _bracket(points: Sequence[Point], budget: Budget) -> tuple[Point | None, Point | None]:
    """Neighbouring points on either side of the window, too dear at the smaller λ and too cheap at the larger.

    Noise may make several such pairs: the one at the smallest λ is taken. Without any, one point is missing.
    """
    cheap = [point for point in points if point[1] < math.log(1 - budget.tolerance)]
    dear = [point for point in points if point[1] > 0]
    for low, high in pairwise(sorted(cheap + dear)):
        if low[1] > 0 > high[1]:
            return low, high
    return (None, min(cheap)) if cheap else (max(dear, default=None), None)


def propose_log_strength(points: Sequence[Point], budget: Budget, knob: Knob) -> float:
    """The next log λ: the middle of the range, outwards until the window is bracketed, then guarded false position.

    Where the bracket is so narrow that noise decides, strengths close to it are tried one after the other.

    Args:
        points: Completed searches, in any order.
        budget: The target.
        knob: The range of λ.
    """
    low, high = _bracket(points, budget)
    if low is not None and high is not None:
        if high[0] - low[0] < math.log(_STRADDLE):
            return _nearest_untried((low[0] + high[0]) / 2, [point[0] for point in points])
        return _inside_bracket(low, high, budget)
    bottom, top = math.log(knob.low), math.log(knob.high)
    if low is not None:
        return min(low[0] + _step(low, len(points), budget), top + math.log(_REACH))
    if high is not None:
        return max(high[0] - _step(high, len(points), budget), bottom - math.log(_REACH))
    return (bottom + top) / 2


def _step(edge: Point, missed: int, budget: Budget) -> float:
    """How far the window is from the outermost of so many searches on one side of it, by the usual slope.

    Longer from search to search, so that a plateau is crossed in a few.
    """
    gap = abs(edge[1] - _target(budget))
    return max(gap / _SLOPE, _LEAST_STEP) * _GROWTH ** (missed - 1)


def _target(budget: Budget) -> float:
    """The middle of the window as log(cost/budget)."""
    return math.log(1 - budget.tolerance / 2)


def _inside_bracket(low: Point, high: Point, budget: Budget) -> float:
    """False position between a point that is too dear and one that is too cheap."""
    share = (low[1] - _target(budget)) / (low[1] - high[1])
    return low[0] + min(max(share, _GUARD), 1 - _GUARD) * (high[0] - low[0])


def _nearest_untried(middle: float, tried: Sequence[float]) -> float:
    """The log λ nearest to a middle that is not close to any that was tried."""
    steps = (sign * _NEARBY * number for number in count() for sign in (1, -1))
    return next(middle + step for step in steps if all(abs(middle + step - x) > _NEARBY / 2 for x in tried))
