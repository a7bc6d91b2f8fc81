"""What a name on the command line stands for: a study, one of its methods, or a run."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.errors import BenchError, unknown_name
from bench.results.groups import with_result
from bench.results.tables import StudyResults
from bench.store.files import Store

if TYPE_CHECKING:
    import pandas as pd

MIN_PREFIX = 4
"""Characters of a run's id that must be given."""
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Runs that were named.

    Attributes:
        name: What they were called; for a run its whole id.
        kind: What the name stands for.
        results: The study that they belong to.
        runs: Their lines of `results.runs`.
    """

    name: str
    kind: Literal["study", "method", "run"]
    results: StudyResults
    runs: "pd.DataFrame"

    @property
    def left_out(self) -> dict[str, int]:
        """How many of the runs cannot be compared, by status."""
        compared = set(with_result(self.runs)["id"])
        return dict(Counter(self.runs[~self.runs["id"].isin(compared)]["status"]))


def select(store: Store, text: str) -> Selection:
    """Find what a name stands for.

    Args:
        store: Where to look.
        text: A study; STUDY/METHOD or STUDY/METHOD/BUDGET; a method of the latest study; a run's id or its beginning.

    Raises:
        BenchError: There is no such thing, or several runs begin so.
    """
    latest = StudyResults(store, store.load_study(None))
    study, slash, rest = text.partition("/")
    if slash:
        if study not in store.studies():
            raise unknown_name("study", study, store.studies(), "bench status STUDY")
        return _of_method(StudyResults(store, store.load_study(study)), rest, text)
    if text in store.studies():
        results = StudyResults(store, store.load_study(text))
        return Selection(name=text, kind="study", results=results, runs=results.runs)
    if text in methods_of(latest):
        return _of_method(latest, text, text)
    identity = _run_called(store, text)
    if identity is None:
        known = [*store.studies(), *methods_of(latest)]
        raise unknown_name("study, method or run", text, known, "bench status")
    results = _study_of(store, identity)
    return Selection(name=identity, kind="run", results=results, runs=results.runs[results.runs["id"] == identity])


def methods_of(results: StudyResults) -> list[str]:
    """The methods of a study, whether they have been run or not."""
    planned = results.spec.get("methods") or ()
    return list(dict.fromkeys([*filter(None, results.runs["method"]), *map(str, planned)]))


def _of_method(results: StudyResults, rest: str, text: str) -> Selection:
    """The selection that METHOD or METHOD/BUDGET stands for."""
    known = methods_of(results)
    method, _, budget = (rest, "", "") if rest in known else rest.rpartition("/")
    if method not in known:
        raise unknown_name(f"method of study {results.name}", method or rest, known, f"bench report {results.name}")
    runs = results.runs
    budgets = sorted({str(value) for value in runs[runs["method"] == method]["budget"]} - {""})
    if budget and budget not in budgets:
        raise unknown_name(f"budget of {results.name}/{method}", budget, budgets, f"bench report {results.name}")
    chosen = runs[runs["method"].eq(method) & (runs["budget"].eq(budget) if budget else True)]
    return Selection(name=text, kind="method", results=results, runs=chosen)


def _run_called(store: Store, text: str) -> str | None:
    """The id of the run that is called so or begins so; `None` when there is none.

    Raises:
        BenchError: Several begin so.
    """
    folder = store.root / "runs"
    known = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = sorted(name for name in known if name.startswith(text) and ".stale-" not in name)
    if text in found:
        return text
    if not found or len(text) < MIN_PREFIX:
        return None
    if len(found) > 1:
        shown = ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
        raise BenchError(f"run '{text}' is ambiguous: {len(found)} runs begin so ({shown}); give more characters")
    return found[0]


def _study_of(store: Store, identity: str) -> StudyResults:
    """The latest study that has a run; one that has nothing else when none has it any more."""
    for name in reversed(store.studies()):
        with suppress(BenchError):  # a damaged study says nothing of its runs
            document = store.load_study(name)
            if identity in document["runs"]:
                return StudyResults(store, document)
    return StudyResults(store, {"name": f"of run {identity}", "runs": [identity]})
