"""Tuning of a method's knobs onto a budget: Optuna chooses the knobs of each trial, and each trial is one search.

In mode "hinge" the cost term acts above the budget only, so each search ends near the budget. Knobs are then chosen by
validation accuracy among the trials within the budget's window. In mode "lambda" the cost term is plain λ log R, and λ
is bracketed in log λ until the cost of a search lies in the window. In mode "dual" λ moves during each search, and the
other knobs are chosen by accuracy as in mode "hinge"; a method without other knobs is not tuned.

A tuning ends early when more trials would not improve it (`docs/tuning.md`): in mode "lambda" when repair has next to
nothing to change, in mode "hinge" when validation cannot tell the trials' accuracies apart.

Proposals depend on completed trials alone. An interrupted tuning is therefore repeated from its first trial, with
stored trials in place of searches, and continues exactly as if it had not been interrupted.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.costs.budget import Budget
from bench.errors import BenchError, NonFiniteLossError, first_line
from bench.matching.bracket import REACH, is_straddled, points_of, propose_log_strength
from bench.matching.sampling import accuracy_sampler, bracket_sampler
from bench.matching.trial import Trial, alike, choose
from bench.method import Knob
from bench.spec.schema import TuningSpec, smaller_limit
from bench.spec.seeds import derive
from bench.store.urls import without_password, without_secrets

if TYPE_CHECKING:
    import optuna
    from optuna import Study
    from optuna.distributions import BaseDistribution

_log = logging.getLogger(__name__)

SearchTrial = Callable[[int, Mapping[str, float]], Trial | None]
"""Function that makes the trial of a given number at given knobs; returns `None` when its loss did not stay finite."""


def largest_trials(spec: TuningSpec, knobs: Mapping[str, Knob]) -> int:
    """Return the largest number of trials of a tuning: `tuning.trials` for each knob that is tuned.

    Args:
        spec: Settings of the tuning.
        knobs: Ranges of the knobs. Mode "lambda" tunes the strength alone.
    """
    return spec.trials * (1 if spec.match == "lambda" else len(knobs))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning: what is tuned onto which budget.

    Attributes:
        name: Name of the Optuna study.
        knobs: Ranges of the knobs; in mode "lambda" they contain "strength".
        budget: Target.
        spec: Mode, number of trials, and when to stop.
        seed: Seed of the sampler.
        max_grad_norm: Limit of the gradients in searches, for the advice after all trials have diverged.
        storage: URL of a database in which Optuna keeps its study for its dashboard; in memory when absent. The store
            keeps the trials in any case.
    """

    name: str
    knobs: Mapping[str, Knob]
    budget: Budget
    spec: TuningSpec
    seed: int
    max_grad_norm: float | None = None
    storage: str | None = None

    @property
    def trials(self) -> int:
        """Largest number of trials, diverged ones included."""
        return largest_trials(self.spec, self.knobs)

    @property
    def bracketing(self) -> bool:
        """Whether the strength is bracketed onto the budget rather than chosen by accuracy."""
        return self.spec.match == "lambda"

    def distributions(self) -> dict[str, "BaseDistribution"]:
        """Return the knobs' ranges for Optuna; a bracket may leave that of the strength."""
        from optuna.distributions import FloatDistribution

        reach = {"strength": REACH if self.bracketing else 1.0}
        return {
            name: FloatDistribution(knob.low / reach.get(name, 1.0), knob.high * reach.get(name, 1.0), log=knob.log)
            for name, knob in self.knobs.items()
        }


def tune(tuning: Tuning, search: SearchTrial) -> tuple[Trial, Sequence[Trial]]:
    """Find the knobs for a budget. A database that fails is reported and does not stop the tuning.

    Args:
        tuning: Tuning to carry out.
        search: Function that makes a trial, or returns the stored one.

    Returns:
        The chosen trial and all completed ones.

    Raises:
        UnreachableBudgetError: Every trial costs more than the budget.
        NonFiniteLossError: No trial's loss stayed finite.
    """
    if tuning.storage is None:
        return _tune(tuning, search)
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return _tune(tuning, search)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = without_secrets(first_line(error.__cause__ or error))
        _log.warning("Optuna's storage %s is not up to date: %s", without_password(tuning.storage), reason)
        return _tune(replace(tuning, storage=None), search)


def _tune(tuning: Tuning, search: SearchTrial) -> tuple[Trial, Sequence[Trial]]:
    study = _new_study(tuning)
    trials: list[Trial] = []
    diverged: list[Mapping[str, float]] = []
    while len(trials) + len(diverged) < tuning.trials and not _is_settled(trials, diverged, tuning):
        number = len(trials) + len(diverged)
        asked = _ask(study, tuning, trials, diverged)
        knobs = {name: float(value) for name, value in asked.params.items()}
        trial = search(number, knobs)
        _tell(study, tuning, asked, trial)
        if trial is None:
            diverged.append(knobs)
        else:
            trials.append(trial)
    if not trials:
        raise NonFiniteLossError(_all_diverged(len(diverged), smaller_limit(tuning.max_grad_norm)))
    return choose(trials, tuning.budget, tuning.spec, len(diverged)), trials


def _all_diverged(count: int, limit: float) -> str:
    who = "the only trial diverged: its loss" if count == 1 else f"all {count} trials diverged: their losses"
    return f"{who} became infinite or NaN; limit the gradients: --set search.max_grad_norm={limit:g} --retry diverged"


def require_storage(uri: str) -> None:
    """Make sure that a database can hold Optuna's studies, before a study relies on it.

    Raises:
        BenchError: It cannot be reached, or is not one for Optuna.
    """
    from optuna.exceptions import OptunaError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        RDBStorage(uri)
    except (OptunaError, SQLAlchemyError, RuntimeError, OSError) as error:
        reason = without_secrets(first_line(error.__cause__ or error))
        raise BenchError(
            f"--optuna-storage '{without_password(uri)}' cannot be used: {reason}; start the database, correct the "
            "address, or leave the option out, since the store keeps all trials itself"
        ) from error


def _new_study(tuning: Tuning) -> "Study":
    """Make an empty study; it replaces one of the same name that an interrupted tuning left in a database."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Not with `catch_warnings`: tunings run in several threads, and it would undo what another thread has set.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if tuning.storage is not None:
        with suppress(KeyError):
            optuna.delete_study(study_name=tuning.name, storage=tuning.storage)
    return optuna.create_study(storage=tuning.storage, study_name=tuning.name, direction="maximize")


def _ask(
    study: "Study", tuning: Tuning, completed: Sequence[Trial], diverged: Sequence[Mapping[str, float]]
) -> "optuna.Trial":
    """Let Optuna propose the knobs of the next trial."""
    if tuning.bracketing:
        study.sampler = bracket_sampler(tuning.knobs, tuning.budget, completed)
    else:
        seed = derive(tuning.seed, len(completed) + len(diverged))
        study.sampler = accuracy_sampler(tuning.knobs, tuning.budget, completed, diverged, seed=seed)
    return study.ask(tuning.distributions())


def _tell(study: "Study", tuning: Tuning, asked: "optuna.Trial", trial: Trial | None) -> None:
    """Report the outcome of a trial to Optuna."""
    from optuna.trial import TrialState

    if trial is None:
        study.tell(asked, state=TrialState.FAIL)
        return
    share = trial.raw_cost / tuning.budget.limit
    if not tuning.bracketing:  # trials that did not land teach the sampler where not to look
        asked.set_constraint("window", 0.0 if trial.landed else abs(math.log(share)) + 1e-9)
    study.tell(asked, trial.validation_top1)
    figures = (trial.number + 1, trial.knobs, share, trial.validation_top1)
    _log.info("trial %d: %s, %.3f of the budget, validation %.2f %%", *figures)


def _is_settled(trials: Sequence[Trial], diverged: Sequence[Mapping[str, float]], tuning: Tuning) -> bool:
    """Return whether another trial would not improve the tuning."""
    early = tuning.spec.stop_early
    if not tuning.bracketing:
        return early and alike([trial for trial in trials if trial.landed])
    if trials and (tuning.budget.matches(trials[-1].raw_cost) or (early and trials[-1].landed)):
        return True
    straddled = early and is_straddled(points_of(trials, tuning.budget), tuning.budget)
    return straddled or _would_repeat(trials, diverged, tuning)


def _would_repeat(trials: Sequence[Trial], diverged: Sequence[Mapping[str, float]], tuning: Tuning) -> bool:
    """Return whether the next search would repeat one: λ is at the end of its range, or the loss diverged there."""
    points = points_of(trials, tuning.budget)
    proposed = propose_log_strength(points, tuning.budget, tuning.knobs["strength"])
    tried = [point[0] for point in points] + [math.log(knobs["strength"]) for knobs in diverged]
    return any(math.isclose(proposed, strength, abs_tol=1e-9) for strength in tried)
