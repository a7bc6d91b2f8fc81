"""Names on the command line: a study, one of its methods, or a run."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.errors import BenchError, unknown_name
from bench.outputs.commands import command
from bench.results.groups import with_result
from bench.results.tables import StudyResults
from bench.store.files import Store

if TYPE_CHECKING:
    import pandas as pd

MIN_PREFIX = 4
"""Characters of a run's id that a user must give at least."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The runs that a name stands for.

    Attributes:
        name: Name that the user gave; for a run its whole id.
        kind: Kind of thing that the name stands for.
        results: Study that the runs belong to.
        runs: Rows of `results.runs`.
    """

    name: str
    kind: Literal["study", "method", "run"]
    results: StudyResults
    runs: "pd.DataFrame"

    @property
    def left_out(self) -> dict[str, int]:
        """Number of runs that cannot be compared, by status."""
        compared = set(with_result(self.runs)["id"])
        return dict(Counter(self.runs[~self.runs["id"].isin(compared)]["status"]))


def select(store: Store, text: str) -> Selection:
    """Find the runs that a name stands for.

    Args:
        store: Store to search.
        text: A study; STUDY/METHOD or STUDY/METHOD/BUDGET; a method of the latest study; a run's id or its beginning.

    Raises:
        BenchError: Nothing has this name, or the ids of several runs begin with it.
    """
    latest = StudyResults(store, store.load_study(None))
    study, slash, rest = text.partition("/")
    if slash:
        if study not in store.studies():
            raise unknown_name("study", study, store.studies(), command("status", store=store.root))
        return _select_method(StudyResults(store, store.load_study(study)), rest, text)
    if text in store.studies():
        results = StudyResults(store, store.load_study(text))
        return Selection(name=text, kind="study", results=results, runs=results.runs)
    if text in methods_of(latest):
        return _select_method(latest, text, text)
    return _select_run(store, text, latest)


def methods_of(results: StudyResults) -> list[str]:
    """Return the methods of a study, whether they have been run or not."""
    planned = results.spec.get("methods") or ()
    return list(dict.fromkeys([*filter(None, results.runs["method"]), *map(str, planned)]))


def _select_method(results: StudyResults, rest: str, text: str) -> Selection:
    """Select the runs of METHOD or METHOD/BUDGET."""
    known, see = methods_of(results), command("report", results.name, store=results.store.root)
    method, _, budget = (rest, "", "") if rest in known else rest.rpartition("/")
    if method not in known:
        raise unknown_name(f"method of study {results.name}", method or rest, known, see)
    runs = results.runs
    budgets = sorted({str(value) for value in runs[runs["method"] == method]["budget"]} - {""})
    if budget and budget not in budgets:
        raise unknown_name(f"budget of {results.name}/{method}", budget, budgets, see)
    chosen = runs[runs["method"].eq(method) & (runs["budget"].eq(budget) if budget else True)]
    return Selection(name=text, kind="method", results=results, runs=chosen)


def _select_run(store: Store, text: str, latest: StudyResults) -> Selection:
    """Select the run whose id is, or begins with, the text."""
    identity = _full_id(store, text)
    if identity is None:
        known = [*store.studies(), *methods_of(latest)]
        raise unknown_name("study, method or run", text, known, command("status", store=store.root))
    results = _study_with(store, identity)
    return Selection(name=identity, kind="run", results=results, runs=results.runs[results.runs["id"] == identity])


def _full_id(store: Store, text: str) -> str | None:
    """Return the id of the only run whose id begins with a text; `None` when there is none.

    Raises:
        BenchError: Several ids begin with it.
    """
    folder = store.root / "runs"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = sorted(name for name in names if name.startswith(text) and ".stale-" not in name)
    if text in matches:
        return text
    if not matches or len(text) < MIN_PREFIX:
        return None
    if len(matches) > 1:
        shown = ", ".join(matches[:_SHOWN]) + (" …" if len(matches) > _SHOWN else "")
        raise BenchError(f"run '{text}' is ambiguous: {len(matches)} ids begin with it ({shown}); give more characters")
    return matches[0]


def _study_with(store: Store, identity: str) -> StudyResults:
    """Return the latest study that has a run; a study of this run alone when no study has it any more."""
    for name in reversed(store.studies()):
        with suppress(BenchError):  # a damaged study does not list its runs
            document = store.load_study(name)
            if identity in document["runs"]:
                return StudyResults(store, document)
    return StudyResults(store, {"name": f"of run {identity}", "runs": [identity]})
