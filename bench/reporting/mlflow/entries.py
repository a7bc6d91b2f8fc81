"""The MLflow runs that a study should have, read from its run folders."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.compression.policy import Policy, policy_from_json
from bench.errors import BenchError
from bench.reporting.mlflow.pages import policy_page, table_page
from bench.reporting.mlflow.views import colours
from bench.reporting.report import DEFAULT_REPORT, make_document
from bench.results.tables import FINISHED, IDENTITY, STALE, StudyResults, read_record, section, stale_reason
from bench.spec.schema import canonical_hash
from bench.store.files import CHECKSUM, Store, UnitKind, read_json

NO_BUDGET = "none"
"""The budget of methods that ignore it, as a value that can be filtered and grouped by."""

_STATUS = dict.fromkeys(("failed", "diverged", "timeout", "oom"), "FAILED")
_STATUS |= dict.fromkeys(("killed", "interrupted"), "KILLED")
"""MLflow's word for a status; every other ending is FINISHED: an unreachable budget is a reported outcome."""

_SHOWN = FINISHED - {"skipped"}
"""Statuses of units that MLflow shows; on one that was skipped nobody has worked."""

_LABEL = "label"
"""Of a record: its method with the option that an ablation changes."""

Cell = tuple[str, ...]
"""Model, data set, method and budget."""

_AGGREGATES = (
    *("top1_mean", "top1_std", "bops_mean", "bops_std", "top5_mean", "top5_std"),
    *("memory_kb_mean", "search_seconds_mean", "tuning_seconds", "peak_memory_mb", "n", "n_failed"),
)
"""The first one is what MLflow's comparison of runs begins with."""


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


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is known of a unit from its record, without keeping the record.

    Attributes:
        kind, unit: The unit.
        signature: Of the record's file: when it was written, its size, its inode.
        cell: Model, data set, method and budget.
        stamp: Changes when its entry does; `None` when MLflow has nothing to show of it.
        counts: Whether it is a run whose figures are part of the cell's.
    """

    kind: UnitKind
    unit: str
    signature: tuple[int, int, int]
    cell: Cell
    stamp: str | None
    counts: bool = False

    @property
    def identity(self) -> str:
        """Of its entry."""
        return "/".join(self.unit.rsplit("-", 1)) if self.kind == "trials" else self.unit


class Folders:
    """The unit folders of a study. Records are read when their file is new or has changed, not at every look.

    Args:
        store: Where they are.
        study: The study's document.
    """

    def __init__(self, store: Store, study: Mapping[str, Any]) -> None:
        self._store, self._study = store, study
        self._colours = colours(_methods(study))
        self._items: dict[tuple[UnitKind, str], Item] = {}

    def forget(self) -> None:
        """Read every record at the next look."""
        self._items.clear()

    def look(self) -> list[Item]:
        """Every unit with a readable record: tunings, each with its trials, then runs."""
        found = []
        for tuning in map(str, self._study.get("tunings") or ()):
            found += [self._item("tuning", tuning)]
            found += [self._item("trials", f"{tuning}-{number}") for number in self._trials(tuning)]
        found += [self._item("runs", str(run)) for run in self._study.get("runs") or ()]
        return [item for item in found if item is not None]

    def parents(self, cells: Mapping[Cell, Sequence[Item]]) -> Iterator[Entry]:
        """The entries of some cells, with their aggregates.

        Args:
            cells: The units of each.
        """
        members = [item for items in cells.values() for item in items]
        lines = {cell: dict(zip(IDENTITY, cell, strict=True)) | {"n": 0, "n_failed": 0} for cell in cells}
        runs = [item.unit for item in members if item.kind == "runs"]
        frame = StudyResults(self._store, {**self._study, "runs": runs}).lines
        for line in frame.to_dict("records"):
            fields = {str(key): value for key, value in line.items()}
            lines[_cell(fields)] = fields
        return (self._coloured(_parent_entry(self._study, line)) for line in lines.values())

    def child(self, item: Item) -> Entry | None:
        """The entry of a run or trial; `None` when its record has gone meanwhile."""
        record = self._record(item.kind, item.unit)
        if record is None or _stamp(record, self._study) is None:
            return None
        folder = self._store.unit(item.kind, item.unit)
        entry = _trial_entry if item.kind == "trials" else _run_entry
        return self._coloured(entry(self._study, folder, item, record))

    def tables(self) -> dict[str, str]:
        """The study's tables, by the names of their files."""
        file = self._store.study(str(self._study["name"])) / "table.md"
        texts = {file.name: file.read_text()} if file.is_file() else {}
        results = StudyResults(self._store, self._study)
        pages = {f"{table.name}.html": table_page(table) for table in make_document(results, [DEFAULT_REPORT]).tables}
        return texts | pages | {"results.csv": results.lines.to_csv(index=False)}

    def policies(self, cell: Cell, items: Sequence[Item]) -> dict[str, str]:
        """The mean policy of a cell's runs as a page, by the name of its file; nothing when no run has one."""
        found = (_policy(read_json(self._store.unit(item.kind, item.unit) / "policy.json")) for item in items)
        return _policy_file(found, _name(dict(zip(IDENTITY, cell, strict=True))))

    def _coloured(self, entry: Entry) -> Entry:
        return replace(entry, tags={**entry.tags, **self._colours.get(entry.params["method"], {})})

    def _record(self, kind: UnitKind, unit: str) -> dict[str, Any] | None:
        """A unit's record, with the name that its method has in this study's tables."""
        record = read_record(self._store, kind, unit)
        place = section(section(self._study, "places"), unit.rpartition("-")[0] if kind == "trials" else unit)
        return record if record is None or not place else {**record, _LABEL: place["method"]}

    def _trials(self, tuning: str) -> list[int]:
        try:
            names = [path.name for path in (self._store.unit("tuning", tuning) / "trials").iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _item(self, kind: UnitKind, unit: str) -> Item | None:
        try:
            state = (self._store.unit(kind, unit) / "record.json").stat()
        except OSError:
            return None
        # Looked at before it is read: a record that is replaced in between is read again the next time.
        signature = (state.st_mtime_ns, state.st_size, state.st_ino)
        known = self._items.get((kind, unit))
        if known is None or known.signature != signature:
            record = self._record(kind, unit)
            if record is None:
                self._items.pop((kind, unit), None)
                return None
            stamp = None if kind == "tuning" else _stamp(record, self._study)
            # What is out of date has another stamp.
            counts = kind == "runs" and record.get("status") == "done" and stamp == str(record[CHECKSUM])
            known = Item(kind=kind, unit=unit, signature=signature, cell=_cell(record), stamp=stamp, counts=counts)
            self._items[kind, unit] = known
        return known


def _stamp(record: Mapping[str, Any], study: Mapping[str, Any]) -> str | None:
    """Changes whenever what MLflow shows of a unit does; `None` when it shows nothing."""
    if record.get("status") not in _SHOWN:
        return None
    reason = stale_reason(record, study)
    return str(record[CHECKSUM]) if reason is None else canonical_hash([record[CHECKSUM], reason])


def curve_points(curves: Any) -> list[tuple[str, float, int]]:
    """Epoch figures as (name, value, epoch), e.g. ("search_loss", 0.5, 3); what is no number is left out."""
    points = []
    for line in curves if isinstance(curves, list) else ():
        if isinstance(line, Mapping) and isinstance(line.get("epoch"), int):
            figures = {key: value for key, value in line.items() if key not in ("phase", "epoch")}
            for key, value in _numbers(figures).items():
                points.append((f"{line.get('phase', 'epoch')}_{key}", value, int(line["epoch"])))
    return points


def _parent_entry(study: Mapping[str, Any], line: Mapping[str, Any]) -> Entry:
    params = _params(line) | _protocol(study)
    metrics = _numbers({key: line.get(key) for key in _AGGREGATES})
    return Entry(
        identity="/".join(params[key] for key in IDENTITY),
        stamp=canonical_hash([params, metrics]),
        name=_name(params),
        params=params,
        tags=params | {"phase": "summary"},
        metrics=metrics,
        status="FAILED" if line["n_failed"] and not line["n"] else "FINISHED",
    )


def _run_entry(study: Mapping[str, Any], folder: Path, item: Item, record: Mapping[str, Any]) -> Entry:
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "run"}
    params |= {key: str(record.get(key)) for key in ("recipe", "match")}
    metrics = {
        **section(record, "metrics"),
        **section(record, "times"),
        "peak_memory_mb": record.get("peak_memory_mb"),
    }
    name = f"{_name(params)} seed {record.get('seed')}"
    return Entry(
        identity=item.identity,
        stamp=str(_stamp(record, study)),
        name=name,
        params=params | _settings(record),
        tags=params | _ending(study, record) | _within_budget(record),
        metrics=_numbers(metrics),
        curves=read_json(folder / "curves.json"),
        files=tuple(file for file in (folder / "policy.json", folder / "error.txt") if file.is_file()),
        texts=_policy_file([_policy(read_json(folder / "policy.json"))], name),
        **_times(record),
    )


def _trial_entry(study: Mapping[str, Any], folder: Path, item: Item, record: Mapping[str, Any]) -> Entry:
    params = _params(record) | {"seed": str(record.get("seed")), "phase": "trial"} | _protocol(study)
    number = item.identity.rpartition("/")[2]
    document = read_json(folder / "trial.json") if record.get("status") == "done" else None
    trial = document if isinstance(document, dict) else {}
    figures = ("raw_cost", "cost", "repaired_gates", "validation_top1", "seconds")
    error = folder / "error.txt"
    name = f"{_name(params)} trial {number}"
    texts = {"policy.json": json.dumps(trial["policy"], indent=1)} if trial.get("policy") else {}
    return Entry(
        identity=item.identity,
        stamp=str(_stamp(record, study)),
        name=name,
        params=params | _settings(record),
        tags=params | _ending(study, record) | _within_budget(trial),
        metrics=_numbers({key: trial.get(key) for key in figures}),
        curves=trial.get("curves"),
        files=(error,) if error.is_file() else (),
        texts=texts | _policy_file([_policy(trial.get("policy"))], name),
        **_times(record),
    )


def _policy(document: Any) -> Policy | None:
    """A policy from its file; `None` when there is none that can be read."""
    try:
        return policy_from_json(document)
    except BenchError:
        return None


def _policy_file(policies: Iterable[Policy | None], title: str) -> dict[str, str]:
    """The page of those policies that could be read, by the name of its file; nothing when there is none."""
    found = [policy for policy in policies if policy is not None]
    same = [policy for policy in found if policy.layers.keys() == found[0].layers.keys()]
    return {"policy.html": policy_page(same, title)} if same else {}


def _methods(study: Mapping[str, Any]) -> Iterator[str]:
    """The methods of a study, and with them the values of ablated options."""
    named = section(study, "spec").get("methods")
    yield from map(str, named if isinstance(named, list) else ())
    yield from (str(place["method"]) for place in section(study, "places").values())


def _protocol(study: Mapping[str, Any]) -> dict[str, str]:
    spec = section(study, "spec")
    return {"recipe": str(spec.get("recipe")), "match": str(section(spec, "tuning").get("match"))}


def _ending(study: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """How a unit ended and why, as tags; what is out of date is no result any more."""
    reason = stale_reason(record, study)
    if reason is not None:
        return {"status": STALE, "reason": reason}
    return {"status": str(record.get("status")), "reason": str(record.get("reason") or "")}


def _times(record: Mapping[str, Any]) -> dict[str, Any]:
    """MLflow's status, and when the work began and ended."""
    return {
        "status": _STATUS.get(str(record.get("status")), "FINISHED"),
        "started": _milliseconds(record.get("started")),
        "ended": _milliseconds(record.get("finished")),
    }


def _params(fields: Mapping[str, Any]) -> dict[str, str]:
    """What is compared, copied to every run so that MLflow can filter and group without joins."""
    return dict(zip(IDENTITY, _cell(fields), strict=True))


def _cell(fields: Mapping[str, Any]) -> Cell:
    fields = {**fields, "method": fields.get(_LABEL, fields.get("method"))}
    return tuple(" ".join(str(fields.get(key) or NO_BUDGET).split()) for key in IDENTITY)


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """Knobs under their own names and options with a prefix, as params."""
    options = {f"option.{_key(name)}": value for name, value in section(record, "options").items()}
    knobs = {f"knob.{_key(name)}": value for name, value in section(record, "knobs").items()}
    return {key: str(value) for key, value in (options | knobs).items()}


def _within_budget(record: Mapping[str, Any]) -> dict[str, str]:
    value = record.get("within_budget")
    return {"within_budget": str(value).lower()} if isinstance(value, bool) else {}


def _name(params: Mapping[str, str]) -> str:
    return " ".join(params[key] for key in ("method", "budget") if params[key] != NO_BUDGET)


def cell(entry: Entry) -> Cell:
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
