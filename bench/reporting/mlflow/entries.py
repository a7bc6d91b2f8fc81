"""The MLflow runs that a study should have: one for each group of runs, one for each run and trial."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.compression.policy import Policy, policy_from_json
from bench.errors import BenchError, escaped
from bench.inputs.names import FileName
from bench.reporting.mlflow.pages import policy_page
from bench.reporting.wording import TOO_FEW, interval, probability
from bench.results.statistics import MIN_PAIRS, Interval
from bench.results.tables import FINISHED, IDENTITY, STALE, section
from bench.spec.schema import canonical_hash
from bench.store.exports import DOCUMENT, StoredExport
from bench.store.files import CHECKSUM, read_json
from bench.store.staleness import why_stale

NO_BUDGET = "none"
"""Budget of methods that ignore it, as a value by which MLflow can filter and group."""

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or an experiment, in Markdown."""

LABEL = "label"
"""Field that `StudyFolders` adds to a record: its method with the option that an ablation changes."""

_STATUS = dict.fromkeys(("failed", "diverged", "timeout", "oom"), "FAILED")
_STATUS |= dict.fromkeys(("killed", "interrupted"), "KILLED")
"""MLflow's status for a unit's status; every other one is FINISHED, since an unreachable budget is a result."""

_SHOWN = FINISHED - {"skipped"}
"""Statuses of units that MLflow shows; a unit that was skipped never started."""

_AGGREGATES = (
    *("top1_mean", "top1_std", "cost_mean", "bops_mean", "bops_std", "top5_mean", "top5_std"),
    *("memory_kb_mean", "search_seconds_mean", "tuning_seconds", "peak_memory_mb", "n", "n_failed"),
    *("pairs", "delta", "delta_low", "delta_high", "p", "detectable", "budget_share"),
)
"""Metrics of a group of runs. MLflow's comparison of runs starts with the first one."""

GroupKey = tuple[str, ...]
"""Model, data set, method and budget of a group of runs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One MLflow run as it should be.

    Attributes:
        identity: Value of the tag `bench.id`, by which the run is found again.
        stamp: Value of the tag `bench.finished`, which changes when the entry does.
        name: Name in MLflow's lists.
        params: Settings, for filters and plots.
        tags: Settings and more, for filters; unlike params they may change.
        metrics: Final figures.
        curves: Figures by epoch; `curve_points` reads them.
        status: MLflow's status.
        started, ended: Milliseconds since 1970.
        files: Artifacts that exist as files.
        texts: Artifacts that do not exist as files, by name.
    """

    identity: str
    stamp: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Any = None
    status: str = "FINISHED"
    started: int | None = None
    ended: int | None = None
    files: tuple[Path, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> GroupKey:
        """Model, data set, method and budget."""
        return tuple(self.params[key] for key in IDENTITY)


def parent_entry(study: Mapping[str, Any], line: Mapping[str, Any]) -> Entry:
    """Make the entry of a group of runs, with its aggregated figures.

    Args:
        study: Document of the study.
        line: Row of `StudyResults.lines`, or of `result_lines` when all groups are known.
    """
    params = _params(line) | _protocol(study)
    metrics = _numbers({key: line.get(key) for key in _AGGREGATES})
    words = _result(line) | _difference(line)
    return Entry(
        identity="/".join(params[key] for key in IDENTITY),
        stamp=canonical_hash([params, metrics, words]),
        name=_name(params),
        params=params,
        tags=params | {"phase": "summary"} | words | {NOTE: _note(words)},
        metrics=metrics,
        status="FAILED" if line["n_failed"] and not line["n"] else "FINISHED",
    )


def run_entry(
    study: Mapping[str, Any],
    folder: Path,
    identity: str,
    record: Mapping[str, Any],
    export: StoredExport | None = None,
    exported: Path | None = None,
) -> Entry:
    """Make the entry of a run.

    Args:
        study: Document of the study.
        folder: Folder of the run.
        identity: Identity of the entry.
        record: Record of the run.
        export: Document of the run's export, if it was exported.
        exported: Folder of the exported files; files that are elsewhere are left out.
    """
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "run"}
    params |= {key: escaped(str(record.get(key))) for key in ("recipe", "match")}
    metrics = {
        **section(record, "metrics"),
        **section(record, "times"),
        "peak_memory_mb": record.get("peak_memory_mb"),
        **({} if export is None else _export_metrics(export)),
    }
    name = f"{_name(params)} seed {record.get('seed')}"
    return Entry(
        identity=identity,
        stamp=str(with_export(stamp(record, study), export)),
        name=name,
        params=params | _settings(record),
        tags=params | _status_and_reason(study, record) | _within_budget(record),
        metrics=_numbers(metrics),
        curves=read_json(folder / "curves.json"),
        files=(*_present(folder, "policy.json", "error.txt"), *_exported_files(export, exported)),
        texts=policy_artifact([read_json(folder / "policy.json")], name),
        **_times(record),
    )


def trial_entry(study: Mapping[str, Any], folder: Path, identity: str, record: Mapping[str, Any]) -> Entry:
    """Make the entry of a tuning trial.

    Args:
        study: Document of the study.
        folder: Folder of the trial.
        identity: Identity of the entry.
        record: Record of the trial.
    """
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "trial"} | _protocol(study)
    document = read_json(folder / "trial.json") if record.get("status") == "done" else None
    trial = document if isinstance(document, dict) else {}
    figures = ("raw_cost", "cost", "repaired_gates", "validation_top1", "seconds")
    name = f"{_name(params)} trial {int(identity.rpartition('/')[2]) + 1}"
    texts = {"policy.json": json.dumps(trial["policy"], indent=1)} if trial.get("policy") else {}
    return Entry(
        identity=identity,
        stamp=str(stamp(record, study)),
        name=name,
        params=params | _settings(record),
        tags=params | _status_and_reason(study, record) | _within_budget(trial),
        metrics=_numbers({key: trial.get(key) for key in figures}),
        curves=trial.get("curves"),
        files=_present(folder, "error.txt"),
        texts=texts | policy_artifact([trial.get("policy")], name),
        **_times(record),
    )


def _present(folder: Path, *names: str) -> tuple[Path, ...]:
    """Return the files that a folder has, without links, which could lead to anything."""
    return tuple(file for name in names if (file := folder / name).is_file() and not file.is_symlink())


def stamp(record: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    """Return a text that changes whenever the unit's entry does; `None` when MLflow does not show the unit."""
    if record.get("status") not in _SHOWN:
        return None
    reason = why_stale(record, study)
    return str(record[CHECKSUM]) if reason is None else canonical_hash([record[CHECKSUM], reason])


def with_export(text: str | None, export: StoredExport | None) -> str | None:
    """Return the stamp of a run, which also changes when the run is exported; `None` as `stamp`."""
    return text if text is None or export is None else canonical_hash([text, export.checksum])


def _export_metrics(export: StoredExport) -> dict[str, float]:
    """Return sizes, agreement and measured times of an exported network, by form and runtime."""
    metrics: dict[str, float] = {}
    for name, form in export.forms.items():
        worst = min(form.agreements, key=lambda agreement: agreement.equal)
        metrics[f"export.{name}.kb"] = next(iter(form.files.values())) / 1000
        metrics[f"export.{name}.equal_percent"] = 100 * worst.equal / worst.images
    for time in export.measured:
        engine = time.engine.partition(",")[0]
        metrics[f"export.{time.form}.{engine}.batch{time.batch}.ms"] = time.milliseconds
        metrics[f"export.{time.form}.{engine}.batch{time.batch}.ratio"] = time.ratio[1]
    return metrics


def _exported_files(export: StoredExport | None, folder: Path | None) -> tuple[Path, ...]:
    """Return the document and the files of an export, as far as they are in its folder of the store."""
    if export is None or folder is None:
        return ()
    names = [name for form in export.forms.values() for name in form.files if FileName.is_valid(name)]
    return _present(folder, DOCUMENT, *dict.fromkeys(names))


def curve_points(curves: Any) -> list[tuple[str, float, int]]:
    """Return epoch figures as (name, value, epoch), e.g. ("search_loss", 0.5, 3); other entries are left out."""
    points = []
    for line in curves if isinstance(curves, list) else ():
        if isinstance(line, Mapping) and isinstance(line.get("epoch"), int):
            figures = {key: value for key, value in line.items() if key not in ("phase", "epoch")}
            for key, value in _numbers(figures).items():
                points.append((f"{line.get('phase', 'epoch')}_{key}", value, int(line["epoch"])))
    return points


def policy_artifact(documents: Iterable[Any], title: str) -> dict[str, str]:
    """Return the page of the policies that can be read, by the name of its file; nothing when there is none.

    Args:
        documents: Contents of policy files.
        title: Heading of the page.
    """
    policies = [policy for policy in map(_policy, documents) if policy is not None]
    same = [policy for policy in policies if policy.layers.keys() == policies[0].layers.keys()]
    return {"policy.html": policy_page(same, title)} if same else {}


def _policy(document: Any) -> Policy | None:
    """Return a policy from the content of its file; `None` when it cannot be read."""
    try:
        return policy_from_json(document)
    except BenchError:
        return None


# --- fields -------------------------------------------------------------------------------------------------------


def group_key(fields: Mapping[str, Any]) -> GroupKey:
    """Return the model, data set, method and budget of a record or of a row of `StudyResults.lines`."""
    fields = {**fields, "method": fields.get(LABEL, fields.get("method"))}
    return tuple(escaped(" ".join(str(fields.get(key) or NO_BUDGET).split())) for key in IDENTITY)


def group_name(key: GroupKey) -> str:
    """Return the method and budget of a group, for a heading."""
    return _name(dict(zip(IDENTITY, key, strict=True)))


def _name(params: Mapping[str, str]) -> str:
    return " ".join(params[key] for key in ("method", "budget") if params[key] != NO_BUDGET)


def _params(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that are compared; every run has a copy, so that MLflow can filter and group without joins."""
    return dict(zip(IDENTITY, group_key(fields), strict=True))


def _difference(line: Mapping[str, Any]) -> dict[str, str]:
    """Return the difference to the baseline as the comparison shows it, and why a group takes no part in verdicts."""
    known = isinstance(line.get("pairs"), int)
    return {"delta": _in_words(line) if known else "", "flags": escaped(str(line.get("flags") or ""))}


def _result(line: Mapping[str, Any]) -> dict[str, str]:
    """Return accuracy, cost and effort of a group as short texts, since MLflow shows metrics with all their digits."""
    top1, deviation, share, search, tuning = (
        float(value) if isinstance(value := line.get(key), int | float) else math.nan
        for key in ("top1_mean", "top1_std", "budget_share", "search_seconds_mean", "tuning_seconds")
    )
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    effort = search + (0.0 if math.isnan(tuning) else tuning)
    return {
        "result": "" if math.isnan(top1) else f"{top1:.2f}{spread}",
        "share": "" if math.isnan(share) else f"{100 * share:.1f} %",
        "effort": "" if math.isnan(effort) else f"{effort:.0f} s",
    }


def _note(words: Mapping[str, str]) -> str:
    """Write the description of a group's entry, which MLflow shows above everything else."""
    lines = {
        "Top-1": f"{words['result']} %" if words["result"] else "",
        "difference to the baseline": words["delta"],
        "cost": f"{words['share']} of the budget" if words["share"] else "",
        "search and tuning": words["effort"],
        "not compared": words["flags"],
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items() if text)


def _in_words(line: Mapping[str, Any]) -> str:
    """Write a difference with its interval and p: "+0.42 [+0.33, +0.51] p 0.031"."""
    delta, low, high, p = (float(line[key]) for key in ("delta", "delta_low", "delta_high", "p"))
    tested = "not tested" if math.isnan(p) else f"p {probability(p)}"
    parts = (f"{delta:+.2f}", interval(Interval(low, high), "+"), TOO_FEW if line["pairs"] < MIN_PAIRS else tested)
    return " ".join(filter(None, parts))


def _protocol(study: Mapping[str, Any]) -> dict[str, str]:
    spec = section(study, "spec")
    return {"recipe": str(spec.get("recipe")), "match": str(section(spec, "tuning").get("match"))}


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Return knobs and options as params, with the prefixes `knob.` and `option.`."""
    options = {f"option.{_key(name)}": value for name, value in section(record, "options").items()}
    knobs = {f"knob.{_key(name)}": value for name, value in section(record, "knobs").items()}
    return {key: escaped(str(value)) for key, value in (options | knobs).items()}


def _status_and_reason(study: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """Return the outcome of a unit and its reason, as tags; an outdated result has the status "stale"."""
    reason = why_stale(record, study)
    if reason is not None:
        return {"status": STALE, "reason": escaped(reason)}
    return {"status": str(record.get("status")), "reason": escaped(str(record.get("reason") or ""))}


def _within_budget(record: Mapping[str, Any]) -> dict[str, str]:
    value = record.get("within_budget")
    return {"within_budget": str(value).lower()} if isinstance(value, bool) else {}


def _times(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return MLflow's status, and the start and end of the work."""
    return {
        "status": _STATUS.get(str(record.get("status")), "FINISHED"),
        "started": _milliseconds(record.get("started")),
        "ended": _milliseconds(record.get("finished")),
    }


def _numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among some fields, under names that MLflow accepts."""
    plain = {key: value for key, value in fields.items() if isinstance(value, int | float)}
    return {_key(key): float(v) for key, v in plain.items() if not isinstance(v, bool) and math.isfinite(v)}


def _key(name: Any) -> str:
    return re.sub(r"[^\w.-]", "_", str(name))


def _milliseconds(moment: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (TypeError, ValueError):
        return None
