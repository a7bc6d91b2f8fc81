"""Check that knobs were chosen on validation images by the harness's rule, with seeds that no reported run has."""

from collections.abc import Iterator
from dataclasses import fields

from bench.diagnostics.submission.costs import budget_of
from bench.diagnostics.submission.submission import Submission, SubmittedUnit, network_of, outcome
from bench.diagnostics.verify import CheckLine
from bench.matching.trial import Trial, choose
from bench.spec.schema import REPORT_SEEDS
from bench.store.files import read_json
from bench.store.schemas import StoredTrial, fitting

WHAT = "choices on validation images, not on test images"
_TEST_FIGURES = frozenset({"top1", "top5", "loss"})
"""Metrics of a record that are of test images."""


def check(submission: Submission) -> CheckLine:
    """Check the choices of all tunings, and the knobs of all runs.

    Raises:
        NotChecked: A network cannot be built here.
        UnreachableBudgetError: A tuning chose a trial although none reaches the budget.
    """
    faults = [f"{tuning.title}: {fault}" for tuning in submission.tunings for fault in _of_tuning(submission, tuning)]
    faults += [f"{run.title}: {fault}" for run in submission.runs for fault in _of_run(submission, run)]
    tunings = len(submission.tunings)
    return outcome(WHAT, faults, f"{tunings} tunings chose as the rule does" if tunings else "nothing was tuned")


def _of_run(submission: Submission, run: SubmittedUnit) -> Iterator[str]:
    if not 0 <= int(run.record.get("seed") or 0) < REPORT_SEEDS:
        yield "its seed is one of tunings"
    if run.record.get("tuning") is None:
        return
    tuning = submission.results.record("tuning", str(run.record["tuning"])) or {}
    if run.record["tuning"] not in (submission.results.study.get("tunings") or ()) or tuning.get("status") != "done":
        yield "the tuning that it names is not in the archive"
    elif run.record.get("knobs") != tuning.get("knobs"):
        yield "its knobs are not those that its tuning chose"


def _of_tuning(submission: Submission, tuning: SubmittedUnit) -> Iterator[str]:
    record = tuning.record
    if int(record.get("seed") or 0) < REPORT_SEEDS:
        yield "its seed is one of reported runs"
    trials = list(_trials(submission, tuning))
    if len(trials) != record.get("trials_used"):
        yield f"{record.get('trials_used')} trials are recorded, and {len(trials)} are in the archive"
        return
    budget = budget_of(tuning, network_of(tuning.spec))
    if budget is None or not trials:
        yield "it has no budget or no trials"
        return
    chosen = choose(trials, budget, tuning.spec.tuning, int(record.get("trials_diverged") or 0))
    if chosen.number != record.get("chosen_trial"):
        yield (
            f"trial {record.get('chosen_trial')} was chosen, and by the rule of mode {tuning.spec.tuning.match} on "
            f"validation images it is trial {chosen.number}"
        )
    elif dict(chosen.knobs) != record.get("knobs"):
        yield "its knobs are not those of the trial that it chose"
    for trial in trials:
        of_trial = submission.store.record("trials", f"{tuning.identity}-{trial.number}") or {}
        if _TEST_FIGURES & (of_trial.get("metrics") or {}).keys():
            yield f"trial {trial.number} has figures of test images"


def _trials(submission: Submission, tuning: SubmittedUnit) -> Iterator[Trial]:
    """Yield the trials of a tuning that ended with a network, by number."""
    for document in submission.results.trials(tuning.identity):
        number = document.get("number")
        folder = submission.store.unit("trials", f"{tuning.identity}-{number}")
        stored = fitting(read_json(folder / "trial.json"), StoredTrial)
        if stored is not None:
            yield Trial(**{field.name: stored[field.name] for field in fields(Trial)})
