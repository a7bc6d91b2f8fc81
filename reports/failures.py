"""Runs without a usable result: the state of each, its reason, and the command that gets a result."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.api import Column, Report, StudyResults, Table
from bench.results.tables import BELOW, DAMAGED, FAILURES, MISSING, OVER, STALE, section
from bench.store.contents import UnitKey
from bench.store.leases import Leases
from reports.shared.commands import continuation, needed_units, repetition

_OPEN = "running"
_ORPHANED, _OVER, _BELOW = "orphaned", "over budget", "below the window"
_MEANING = {
    "failed": "an exception",
    "diverged": "the loss became infinite or NaN",
    "timeout": "over the time limit",
    "oom": "out of memory",
    "killed": "its process died",
    "interrupted": "stopped by the user",
    "skipped": "a pretraining or tuning that it needs did not finish",
    "unreachable": "no policy of the method fits the budget; this counts as a result",
    MISSING: "not started yet",
    DAMAGED: "its record does not match its checksum",
    STALE: "made with another method source, other data or another cost counter",
    _ORPHANED: "its process died without reporting an outcome",
    _OVER: "finished, but costs more than the budget",
    _BELOW: "finished, but costs less than the window below the budget",
}


class Failures(Report):
    """Every run that is not done within its budget."""

    summary = "runs that failed, are missing, stale, damaged or unreachable, or missed their budget, and what to do"
    title = "Runs without a result, or outside their budget"
    rank = 60

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none when every run is done within its budget, or still running."""
        living = _living(results)
        runs = [{str(key): value for key, value in run.items()} for run in results.runs.to_dict("records")]
        failures = [(run, state, reason) for run in runs for state, reason in _state(run, living)]
        if not failures:
            return []
        counts = Counter(state for _, state, _ in failures)
        return [
            Table(
                name="failures",
                title=f"{len(failures)} of {len(results.runs)} runs",
                columns=(
                    Column(title="Run", align="left"),
                    Column(title="State", align="left"),
                    Column(title="Reason", align="left"),
                    Column(title="Id", align="left", drop=2, code=True),
                    Column(title="To get a result", align="left", code=True),
                ),
                rows=tuple(_cells(results, run, state, reason) for run, state, reason in failures),
                notes=(
                    *(f"{state} ({n}): {_MEANING.get(state, 'see the reason')}" for state, n in counts.items()),
                    *(f"traceback of {_title(results, run)}: {file}" for run, file in _tracebacks(results, failures)),
                ),
            )
        ]


def _tracebacks(
    results: StudyResults, failures: Sequence[tuple[Mapping[str, Any], str, str]]
) -> Iterator[tuple[Mapping[str, Any], Path]]:
    """Yield failed runs with the files that hold their tracebacks; skipped ones with those of what they needed."""
    for run, state, _ in failures:
        own: UnitKey = ("runs", str(run["id"]))
        units = [own] if state == "failed" else needed_units(results, run) if state == "skipped" else []
        files = (results.store.unit(*unit) / "error.txt" for unit in units)
        yield from ((run, file) for file in files if file.exists())


def _living(results: StudyResults) -> set[str]:
    """Return the names of the units that a process is running."""
    leases = Leases(results.store.root)
    return {view.name for view in leases.all() if not leases.is_dead(view)}


def _state(run: Mapping[str, Any], living: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the state and reason of a run without a usable result; nothing for any other run."""
    status, reason = str(run["status"]), str(run["reason"])
    if status == _OPEN and f"runs-{run['id']}" not in living:
        yield _ORPHANED, f"started {run['started']}"
    elif status in FAILURES | {MISSING, DAMAGED, STALE}:
        yield status, reason
    elif run["position"] in (BELOW, OVER):
        share = run["cost"] / run["budget_cost"]
        yield (_OVER if share > 1 else _BELOW), f"costs {share:.3f} of the budget"


def _cells(results: StudyResults, run: Mapping[str, Any], state: str, reason: str) -> tuple[str, ...]:
    made = state in (_OVER, _BELOW, "unreachable")
    command = repetition(results, [run]) if made else continuation(results, run)
    return _title(results, run), state, reason, str(run["id"]), command


def _title(results: StudyResults, run: Mapping[str, Any]) -> str:
    """Return the name of a run: the study's title for it, else method, budget and seed, else its id."""
    stated = section(results.study, "titles").get(str(run["id"]))
    if stated is not None:
        return str(stated).removeprefix("run ")
    known = [str(run["method"]), str(run["budget"]), f"seed {run['seed']}" if run["seed"] == run["seed"] else ""]
    return " ".join(filter(None, known if run["method"] else [])) or str(run["id"])
