"""The MLflow runs that a study should have, read from its run folders."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.results import FINISHED, IDENTITY, read_record, results_frame, section
from bench.spec import canonical_hash
from bench.store import Store, read_json

NO_BUDGET = "none"
"""The budget of methods that ignore it, as a value that can be filtered and grouped by."""

_STATUS = {"failed": "FAILED", "interrupted": "KILLED"}
"""MLflow's word for a status; every other ending is FINISHED: an unreachable budget is a reported outcome."""

_AGGREGATES = (
    *("n", "n_failed", "top1_mean", "top1_std", "top5_mean", "top5_std", "bops_mean", "bops_std"),
    *("memory_kb_mean", "search_seconds_mean", "tuning_seconds", "peak_memory_mb"),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One MLflow run as it should be.

    Attributes:
        identity: What finds it again; value of the tag `bench.id`.
        stamp: Changes when the entry does; value of the tag `bench.finished`.
        name: Shown in MLflow's lists.
        params: What it was, for filters and plots.
        tags: The same and more, for filters; unlike params they may change.
        metrics: Final figures.
        curves: Figures by epoch, see `curve_points`.
        status: MLflow's word for how it ended.
        started, ended: Milliseconds since 1970.
        files: Artifacts that exist as files.
        texts: Artifacts that do not, by name.
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


def parent_entries(store: Store, study: Mapping[str, Any]) -> Iterator[Entry]:
    """One entry for each (model, data set, method, budget), with the aggregates and the study's tables."""
    frame, texts = results_frame(store, study), _tables(store, study)
    lines = [{str(key): value for key, value in line.items()} for line in frame.to_dict("records")]
    cells = {tuple(line[key] for key in IDENTITY): line for line in lines}
    for _, record in _tuning_records(store, study):
        # Trials come before the first run: their parent must be there already.
        cell = {key: record.get(key) or "" for key in IDENTITY}
        cells.setdefault(tuple(cell.values()), cell | {"n": 0, "n_failed": 0})
    texts["results.csv"] = frame.to_csv(index=False)
    yield from (_parent_entry(study, line, texts) for line in cells.values())


def child_entries(store: Store, study: Mapping[str, Any]) -> Iterator[Entry]:
    """One entry for each tuning trial and for each run that has ended."""
    for identity, record in _tuning_records(store, study):
        for file in sorted((store.unit("tuning", identity) / "trials").glob("*/trial.json")):
            trial = read_json(file)
            if isinstance(trial, dict):
                yield _trial_entry(study, identity, record, trial)
    for identity in map(str, study.get("runs") or ()):
        record = read_record(store, "runs", identity) or {}
        if record.get("status") in FINISHED:
            yield _run_entry(store.unit("runs", identity), identity, record)


def curve_points(curves: Any) -> list[tuple[str, float, int]]:
    """Epoch figures as (name, value, epoch), e.g. ("search_loss", 0.5, 3); what is no number is left out."""
    points = []
    for line in curves if isinstance(curves, list) else ():
        if isinstance(line, Mapping) and isinstance(line.get("epoch"), int):
            figures = {key: value for key, value in line.items() if key not in ("phase", "epoch")}
            for key, value in _numbers(figures).items():
                points.append((f"{line.get('phase', 'epoch')}_{key}", value, int(line["epoch"])))
    return points


def _parent_entry(study: Mapping[str, Any], line: Mapping[str, Any], texts: Mapping[str, str]) -> Entry:
    spec = section(study, "spec")
    params = _params(line) | {
        "recipe": str(spec.get("recipe")),
        "match": str(section(spec, "tuning").get("match")),
    }
    metrics = _numbers({key: line.get(key) for key in _AGGREGATES})
    return Entry(
        identity="/".join(params[key] for key in IDENTITY),
        stamp=canonical_hash([params, metrics, texts]),
        name=_name(line),
        params=params,
        tags=params | {"phase": "summary"},
        metrics=metrics,
        status="FAILED" if line["n_failed"] and not line["n"] else "FINISHED",
        texts=texts,
    )


def _run_entry(folder: Path, identity: str, record: Mapping[str, Any]) -> Entry:
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "run"}
    params |= {key: str(record.get(key)) for key in ("recipe", "match")}
    status = str(record["status"])
    metrics = {
        **section(record, "metrics"),
        **section(record, "times"),
        "peak_memory_mb": record.get("peak_memory_mb"),
    }
    return Entry(
        identity=identity,
        stamp=str(record.get("finished") or canonical_hash(record)),
        name=f"{_name(record)} seed {record.get('seed')}",
        params=params | _settings(record),
        tags=params | {"status": status, "reason": str(record.get("reason") or "")[:500], **_within_budget(record)},
        metrics=_numbers(metrics),
        curves=read_json(folder / "curves.json"),
        status=_STATUS.get(status, "FINISHED"),
        started=_milliseconds(record.get("started")),
        ended=_milliseconds(record.get("finished")),
        files=tuple(file for file in (folder / "policy.json", folder / "error.txt") if file.is_file()),
    )


def _trial_entry(study: Mapping[str, Any], tuning: str, record: Mapping[str, Any], trial: Mapping[str, Any]) -> Entry:
    spec = section(study, "spec")
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "trial"}
    params |= {"recipe": str(spec.get("recipe")), "match": str(section(spec, "tuning").get("match"))}
    figures = ("raw_bops", "bops", "repaired_gates", "validation_top1", "seconds")
    return Entry(
        identity=f"{tuning}/{trial.get('number')}",
        stamp=canonical_hash(trial),
        name=f"{_name(record)} trial {trial.get('number')}",
        params=params | _settings(trial),
        tags=params | {"status": "done", **_within_budget(trial)},
        metrics=_numbers({key: trial.get(key) for key in figures}),
        curves=trial.get("curves"),
        texts={"policy.json": json.dumps(trial["policy"], indent=1)} if trial.get("policy") else {},
    )


def _tuning_records(store: Store, study: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for identity in map(str, study.get("tunings") or ()):
        record = read_record(store, "tuning", identity)
        if record is not None:
            yield identity, record


def _tables(store: Store, study: Mapping[str, Any]) -> dict[str, str]:
    """The tables that a report left in the study's folder."""
    file = store.study(str(study["name"])) / "table.md"
    return {file.name: file.read_text()} if file.is_file() else {}


def _params(fields: Mapping[str, Any]) -> dict[str, str]:
    """What is compared, copied to every run so that MLflow can filter and group without joins."""
    return {key: str(fields.get(key) or NO_BUDGET) for key in IDENTITY}


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Knobs under their own names and options with a prefix, as params."""
    options = {f"option.{_key(name)}": value for name, value in section(record, "options").items()}
    knobs = {f"knob.{_key(name)}": value for name, value in section(record, "knobs").items()}
    return {key: str(value)[:500] for key, value in (options | knobs).items()}


def _within_budget(record: Mapping[str, Any]) -> dict[str, str]:
    value = record.get("within_budget")
    return {"within_budget": str(value).lower()} if isinstance(value, bool) else {}


def _name(fields: Mapping[str, Any]) -> str:
    return " ".join(str(fields[key]) for key in ("method", "budget") if fields.get(key))


def cell(entry: Entry) -> tuple[str, ...]:
    """Model, data set, method and budget of an entry."""
    return tuple(entry.params[key] for key in IDENTITY)


def _numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among some fields, under names that MLflow accepts."""
    plain = {key: value for key, value in fields.items() if isinstance(value, int | float)}
    return {_key(key): float(v) for key, v in plain.items() if not isinstance(v, bool) and math.isfinite(v)}


def _key(name: Any) -> str:
    return re.sub(r"[^\w.-]", "_", str(name))


def _milliseconds(moment: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (TypeError, ValueError):
        return None
