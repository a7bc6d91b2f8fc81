"""The commands that a reader of a report types to repeat runs, or to get a missing one."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.api import StudyResults
from bench.inputs.names import UnitId
from bench.outputs.commands import command, seeds_argument, split
from bench.results.tables import section
from bench.spec.schema import smaller_limit
from bench.store.contents import UnitKey
from bench.store.files import UnitKind, read_checked
from bench.store.outcomes import RETRIABLE
from reports.shared.formatting import figure

_AGAIN = "-again"
_LONGEST_NAME = 100
_STAGES = ("pretrain", "search", "finetune")


def repetition(results: StudyResults, runs: Iterable[Mapping[str, Any]]) -> str:
    """Return the command that repeats runs in a store of its own, because the original store would reuse them.

    Args:
        results: Study that the runs belong to.
        runs: Rows of `StudyResults.runs` of one method and budget.
    """
    return _command(results, list(runs), ["--store", "repeated"])


def continuation(results: StudyResults, run: Mapping[str, Any]) -> str:
    """Return the command that gets one run its result in the study's own store.

    The command has a study name of its own, so that the study keeps all its runs. The study finds the result, because
    a run is the same in every study of a store. For a run without a readable record the command repeats the study.
    """
    store = ["--store", str(results.store.root)]
    if not run["method"] or results.record("runs", str(run["id"])) is None:
        return _joined(["--spec", str(_study_file(results)), *_data(results), *store])
    cause = _cause(results, run)
    retry = ["--retry", cause] if cause in RETRIABLE else []
    limits = smaller_gradients(results) if cause == "diverged" else []
    return _command(results, [run], [*retry, *limits, *store])


def _cause(results: StudyResults, run: Mapping[str, Any]) -> str:
    """Return the status of a run, or that of the tuning or pretraining that it was skipped for."""
    if run["status"] != "skipped":
        return str(run["status"])
    records = (results.store.record(*unit) for unit in needed_units(results, run))
    statuses = [str(record["status"]) for record in records if record is not None]
    return next((status for status in statuses if status in RETRIABLE), "skipped")


def needed_units(results: StudyResults, run: Mapping[str, Any]) -> list[UnitKey]:
    """Return the pretraining and the tuning that a run needs, as its specification names them."""
    needs = (read_checked(results.store.unit("runs", str(run["id"])) / "spec.json") or {}).get("depends_on") or {}
    kinds: tuple[UnitKind, ...] = ("pretrained", "tuning")
    identities = (needs.get("pretraining"), needs.get("tuning"))
    return [(kind, str(unit)) for kind, unit in zip(kinds, identities, strict=True) if UnitId.is_valid(unit)]


def smaller_gradients(results: StudyResults) -> list[str]:
    """Limit the gradients of all trainings, or limit them more than the study did; the same again would diverge."""
    present = {stage: figure(section(results.spec, stage).get("max_grad_norm")) for stage in _STAGES}
    limits = {stage: smaller_limit(limit if limit > 0 else None) for stage, limit in present.items()}
    return [part for stage, limit in limits.items() for part in ("--set", f"{stage}.max_grad_norm={limit:g}")]


def _command(results: StudyResults, runs: list[Mapping[str, Any]], options: Iterable[str]) -> str:
    first = runs[0]
    method = str(first["method"]).partition("[")[0]  # without the change of an ablation
    budget = ["--budget", str(first["budget"])] if first["budget"] else []
    name = results.name[: _LONGEST_NAME - len(_AGAIN)] + _AGAIN
    return _joined(
        [
            *("--spec", str(_specification(results, str(first["id"])))),
            *(("--model", str(first["model"])) if results.spec.get("further_models") else ()),
            *("--methods", method, *budget, "--seeds", seeds_argument([int(run["seed"]) for run in runs])),
            *("--name", name, *_data(results), *options),
        ]
    )


def _joined(arguments: list[str]) -> str:
    return command("run", *arguments)


def _specification(results: StudyResults, run: str) -> Path:
    """Return the file with a run's specification; the study's file when the run has none."""
    own = results.store.unit("runs", run) / "spec.json"
    return own if own.exists() else _study_file(results)


def _study_file(results: StudyResults) -> Path:
    return results.store.study(results.name) / "study.json"


def _data(results: StudyResults) -> list[str]:
    """Return the `--data-dir` of the study's own command, which is no part of its specification."""
    try:
        words = split(str(results.study.get("command") or ""))
    except ValueError:  # an unclosed quotation mark
        return []
    joined = [word.partition("=")[2] for word in words if word.startswith("--data-dir=")]
    apart = [value for flag, value in pairwise(words) if flag == "--data-dir"]
    return [part for folder in (joined + apart)[:1] for part in ("--data-dir", folder)]
