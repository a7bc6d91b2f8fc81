"""The commands that repeat runs: what a reader of a report types to check a number, or to get a missing one."""

import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.api import StudyResults
from bench.store.outcomes import RETRIABLE

_AGAIN = "-again"
_LONGEST_NAME = 100


def repetition(results: StudyResults, runs: Iterable[Mapping[str, Any]]) -> str:
    """The command that makes runs anew, in a store of their own, since the store that has them repeats nothing.

    Args:
        results: The study.
        runs: Lines of `StudyResults.runs` of one method and budget.
    """
    return _command(results, list(runs), ["--store", "repeated"])


def continuation(results: StudyResults, run: Mapping[str, Any]) -> str:
    """The command that gets one run its result, in the study's own store; for a run that nothing is known of, all.

    The command goes under a name of its own, so that the study keeps all its runs. It finds the result there, since
    a run is the same in every study of a store.
    """
    store = ["--store", str(results.store.root)]
    if not run["method"] or results.record("runs", str(run["id"])) is None:
        return _joined(["--spec", str(_study_file(results)), *_data(results), *store])
    retry = ["--retry", str(run["status"])] if run["status"] in RETRIABLE else []
    return _command(results, [run], [*retry, *store])


def _command(results: StudyResults, runs: list[Mapping[str, Any]], rest: Iterable[str]) -> str:
    first = runs[0]
    method = str(first["method"]).partition("[")[0]  # what follows names the change of an ablation
    budget = ["--budget", str(first["budget"])] if first["budget"] else []
    name = results.name[: _LONGEST_NAME - len(_AGAIN)] + _AGAIN
    return _joined(
        [
            *("--spec", str(_specification(results, str(first["id"])))),
            *(("--model", str(first["model"])) if results.spec.get("further_models") else ()),
            *("--methods", method, *budget, "--seeds", _seeds([int(run["seed"]) for run in runs])),
            *("--name", name, *_data(results), *rest),
        ]
    )


def _seeds(seeds: list[int]) -> str:
    """Seeds as `--seeds` takes them: a count, where they are the first ones, or a list."""
    if len(seeds) > 1 and seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def _joined(arguments: list[str]) -> str:
    return shlex.join(["bench", "run", *arguments])


def _specification(results: StudyResults, run: str) -> Path:
    """The file with the specification of a run; the study's, where the run left none."""
    own = results.store.unit("runs", run) / "spec.json"
    return own if own.exists() else _study_file(results)


def _study_file(results: StudyResults) -> Path:
    return results.store.study(results.name) / "study.json"


def _data(results: StudyResults) -> list[str]:
    """The folder of data that the study was given, which is no part of its specification."""
    try:
        words = shlex.split(str(results.study.get("command") or ""))
    except ValueError:  # a quotation that nobody closed
        return []
    joined = [word.partition("=")[2] for word in words if word.startswith("--data-dir=")]
    apart = [value for flag, value in pairwise(words) if flag == "--data-dir"]
    return [part for folder in (joined + apart)[:1] for part in ("--data-dir", folder)]
