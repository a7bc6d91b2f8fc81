"""Running of a tuning: its trials one after the other, each in a process of its own."""

import logging
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bench.errors import full_traceback
from bench.execution.records import close, new_record, recorded_outcome, write_traceback
from bench.execution.stages.search import check_reachable
from bench.execution.study_run import StudyRun
from bench.execution.unit_runner import prepare_folder, run_in_process
from bench.execution.worker import HeldError
from bench.matching.trial import Trial
from bench.matching.tune import Tuning, tune
from bench.planning.methods import method_of_study
from bench.planning.units import TuningUnit, Unit, title, trial_of
from bench.spec.seeds import derive
from bench.store.files import read_json
from bench.store.leases import Heartbeat, Lease, ignore_loss
from bench.store.outcomes import INTERRUPTED, Outcome, SkippedError, outcome_of_error
from bench.store.schemas import StoredTrial, fitting

_log = logging.getLogger(__name__)

_HELD_PAUSE_SECONDS = 1.0


class _TrialEndedError(Exception):
    """A trial ended without a result, and its tuning ends with it."""

    def __init__(self, number: int, outcome: Outcome) -> None:
        super().__init__(f"trial {number + 1}: {outcome.reason or outcome.status}")
        self.outcome = replace(outcome, reason=str(self))


def run_tuning(study_run: StudyRun, unit: TuningUnit) -> Outcome:
    """Bring a tuning to an outcome.

    Raises:
        HeldError: Another process works on the tuning.
        LostLeaseError: Another process took the tuning over.
    """
    store = study_run.settings.store
    valid = prepare_folder(study_run, unit)
    if valid is not None:
        return valid
    lease = study_run.leases.acquire(f"tuning-{unit.identity}", title(unit))
    if lease is None:
        raise HeldError(title(unit))
    with Heartbeat(lease, ignore_loss):
        record = new_record(unit, study_run.data_checksum, store.record("tuning", unit.identity))
        store.write_record("tuning", unit.identity, record)
        interruption: BaseException | None = None
        try:
            record.update(_tuned(study_run, unit, lease))
            outcome = Outcome(status="done")
        except BaseException as error:
            outcome = _outcome_of(error, study_run, unit)
            interruption = error if outcome == INTERRUPTED else None
        lease.check()
        close(record, outcome)
        if outcome.error != "system":
            store.write_record("tuning", unit.identity, record)
    if interruption is not None:
        raise interruption
    return outcome


def _outcome_of(error: BaseException, study_run: StudyRun, unit: TuningUnit) -> Outcome:
    if isinstance(error, _TrialEndedError):
        return error.outcome
    store = study_run.settings.store
    outcome = outcome_of_error(error, store.root)
    if outcome.status == "failed" and not outcome.error:
        write_traceback(store.unit("tuning", unit.identity), full_traceback(error))
    return outcome


def _tuned(study_run: StudyRun, unit: TuningUnit, lease: Lease) -> Mapping[str, Any]:
    """Tune, and return what the record says of it."""
    store = study_run.settings.store
    method = method_of_study(unit.spec, unit.method)
    check_reachable(unit.network, method, unit.method, unit.budget)
    pretraining = recorded_outcome(store.record("pretrained", unit.pretraining.identity))
    if pretraining.status != "done":
        raise SkippedError(f"pretraining of the tuning's seed did not finish: {pretraining.reason}")

    diverged: list[float] = []

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        lease.progress = {"phase": "trial", "epoch": number + 1, "epochs": unit.trials}
        trial = trial_of(unit, number, knobs)
        outcome = _run_trial(study_run, trial)
        if outcome.status == "diverged":
            diverged.append(float((store.record("trials", trial.identity) or {}).get("seconds", 0.0)))
            return None
        if outcome.status != "done":
            raise _TrialEndedError(number, outcome)
        return _stored_trial(store.unit("trials", trial.identity) / "trial.json", number)

    chosen, trials = tune(
        Tuning(
            name=f"{study_run.spec.name} {unit.label} {unit.budget.text} {unit.identity}",
            knobs=method.knobs(unit.spec.tuning.match),
            budget=unit.budget,
            spec=unit.spec.tuning,
            seed=derive("tuning", unit.seed),
            max_grad_norm=unit.spec.search.max_grad_norm,
            storage=study_run.settings.optuna_storage,
        ),
        search,
    )
    return {
        "knobs": dict(chosen.knobs),
        "chosen_trial": chosen.number,
        "trials_used": len(trials),
        "trials_diverged": len(diverged),
        "tuning_seconds": sum(trial.seconds for trial in trials) + sum(diverged),
    }


def _stored_trial(path: Path, number: int) -> Trial:
    """Read what a trial found.

    Raises:
        _TrialEndedError: The file is damaged or something else.
    """
    document = fitting(read_json(path), StoredTrial)
    if document is None:
        reason = f"'{path}' is damaged; remove its folder and run the same command again"
        raise _TrialEndedError(number, Outcome(status="failed", reason=reason))
    return Trial(**{field.name: document[field.name] for field in fields(Trial)})


def _run_trial(study_run: StudyRun, trial: Unit) -> Outcome:
    """Bring a trial to an outcome; wait if the process of an earlier command still works on it."""
    while True:
        try:
            return run_in_process(study_run, trial)
        except HeldError:
            time.sleep(_HELD_PAUSE_SECONDS)
