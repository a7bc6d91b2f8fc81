"""The numbers of a study as two tables, read from the run folders: one row for each run, and one for each group.

Missing and damaged records are part of a study's normal life, so nothing here raises because of one.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.store.files import Store, UnitKind, read_json
from bench.store.staleness import Staleness

if TYPE_CHECKING:
    import pandas as pd

FAILURES = frozenset({"failed", "diverged", "timeout", "oom", "killed", "interrupted", "skipped", "unreachable"})
"""Statuses of runs that ended without a network."""

FINISHED = FAILURES | {"done"}
"""Statuses of runs that need no further work."""

MISSING, DAMAGED, STALE = "missing", "damaged", "stale"
"""Statuses in `StudyResults.runs` of a run without a record, with an unreadable one, and with an outdated result."""

INSIDE, COSTLIEST, BELOW, OVER, UNKNOWN = "inside", "costliest", "below", "over", "unknown"
"""Positions of a run's cost relative to the window of its budget: inside; below it, but no network of the method costs
more; below; over the budget; not recorded. A run without a budget or without a result has no position."""

IDENTITY = ("model", "dataset", "method", "budget")
"""Columns that identify a row of `StudyResults.lines`."""

_ROUNDING = 1e-9
"""Relative difference of two costs that are equal on paper."""
_TEXTS = ("status", "reason", "recipe", "match", "tuning", "budget_measure", "started", "finished")
_TIMES = ("search_seconds", "finetune_seconds", "total_seconds")
_METRICS = (
    *(
        "top1",
        "top5",
        "loss",
        "validation_top1",
        "bops",
        "cost",
        "raw_cost",
        "repaired_gates",
        "memory_kb",
        "memory_bits",
        "peak_memory_bits",
        "latency_ms",
        "energy_mj",
    ),
    *("macs", "parameters", "start_top1", "pretrained_top1"),
    *("trained_updates", "training_images", "evaluated_images", "repair_share"),
)
_NUMBERS = ("budget_cost", "peak_memory_mb", *_METRICS, *_TIMES)

RUN_COLUMNS = (
    *(
        "id",
        *IDENTITY,
        "seed",
        "budget_cost",
        "budget_measure",
        "status",
        "reason",
        "recipe",
        "match",
        "tuning",
        "within_budget",
        "position",
    ),
    *_METRICS,
    *_TIMES,
    *("peak_memory_mb", "options", "started", "finished"),
)
"""Columns that `StudyResults.runs` always has. Figures and knobs that only some methods have come after them."""

RESULT_COLUMNS = (
    *IDENTITY,
    *("n", "n_failed", "top1_mean", "top1_std", "top5_mean", "top5_std", "bops_mean", "bops_std"),
    *("memory_kb_mean", "search_seconds_mean", "tuning_seconds", "peak_memory_mb", "within_budget"),
    *("cost_mean", "latency_ms_mean", "energy_mj_mean"),
)
"""Columns of `StudyResults.lines`."""


_MEANS = ("top1", "top5", "bops", "memory_kb", "search_seconds", "cost", "latency_ms", "energy_mj")


class StudyResults:
    """The numbers of one study. Each file is read once.

    Attributes:
        store: Store with the runs.
        study: Document of the study.
        name: Name of the study.
        spec: Specification of the study.
    """

    def __init__(self, store: Store, study: Mapping[str, Any]) -> None:
        self.store = store
        self.study = study
        self.name = str(study["name"])
        self.spec = section(study, "spec")
        self._staleness = Staleness(study)
        self._records: dict[tuple[UnitKind, str], dict[str, Any] | None] = {}

    def record(self, kind: UnitKind, identity: str) -> dict[str, Any] | None:
        """Return a unit's record; `None` when it is missing or cannot be read."""
        key = (kind, identity)
        if key not in self._records:
            self._records[key] = read_record(self.store, kind, identity)
        return self._records[key]

    def why_stale(self, record: Mapping[str, Any]) -> str | None:
        """Explain why a stored result is stale; `None` when it is valid."""
        return self._staleness.why(record)

    def planned(self, unit: str) -> Mapping[str, Any]:
        """Return the planned fields of a tuning or run: model, dataset, method, budget and seed.

        The method of a unit that belongs to an ablation has the changed option in brackets. Studies that are older than
        ablations have no such fields; the mapping is empty then.
        """
        return section(section(self.study, "places"), unit)

    def tunings(self) -> list[dict[str, Any]]:
        """Return the records of all tunings, each with its planned fields."""
        names = map(str, self.study.get("tunings") or ())
        records = [(self.record("tuning", name), self.planned(name)) for name in names]
        return [{**record, **planned} for record, planned in records if record is not None]

    def trials(self, tuning: str) -> list[dict[str, Any]]:
        """Return the trials of a tuning that ended with a network, by number."""
        folder = self.store.unit("tuning", tuning) / "trials"
        numbers = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
        trials = [read_json(folder / str(number) / "trial.json") for number in numbers]
        return [trial for trial in trials if isinstance(trial, dict)]

    def file(self, run: str, name: str) -> Any:
        """Return the content of a run's JSON file, `policy.json` or `curves.json`; `None` when it cannot be read."""
        return read_json(self.store.unit("runs", run) / name)

    @cached_property
    def runs(self) -> "pd.DataFrame":
        """One row for each run of the study, in the study's order.

        A run without a record has the status "missing". A run whose record does not match its checksum has "damaged".
        A run that was made with another method source, other data or another cost counter has "stale", with the reason.
        Percentages are 0 to 100, BOPs are counts. The knob `x` is the column `knob_x`. The method of a run that belongs
        to an ablation has the changed option in brackets: `sbs[group_size=4]`. `position` is where the cost lies
        relative to the window of the budget; empty without a budget or a result.
        """
        return _runs_frame(self)

    @cached_property
    def lines(self) -> "pd.DataFrame":
        """One row for each (model, dataset, method, budget) that has at least one run with a record.

        `n` counts runs that are done and `n_failed` those that ended otherwise; planned runs count as neither. Figures
        are means over the runs that are done; `peak_memory_mb` is their maximum. `tuning_seconds` is the time of all
        tuning trials, 0 when nothing was tuned. `within_budget` says whether all runs that are done are inside the
        budget window, or below it because no network of the method costs more; it is empty without a budget or without
        such a run.
        """
        return _lines_frame(self)

    @cached_property
    def costliest(self) -> Mapping[tuple[str, ...], float]:
        """Cost of the costliest policy of a method at a budget, by the fields of `IDENTITY`, as far as it is known."""
        known = self.study.get("costliest") or ()
        return {tuple(str(entry[key]) for key in IDENTITY): float(entry["cost"]) for entry in known}


class ResultsAsMade(StudyResults):
    """The numbers of a study as they were made, whatever has changed in the harness and its plug-ins since then."""

    def why_stale(self, record: Mapping[str, Any]) -> str | None:
        """Return `None`: no result is stale."""
        return None


def _runs_frame(results: StudyResults) -> "pd.DataFrame":
    import pandas as pd

    rows = [_run_row(results, str(identity)) for identity in results.study.get("runs") or ()]
    extra = dict.fromkeys(key for row in rows for key in row if key not in RUN_COLUMNS)
    frame = pd.DataFrame(rows, columns=[*RUN_COLUMNS, *extra])
    for column in (*_NUMBERS, *extra):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    frame["seed"] = pd.to_numeric(frame["seed"], errors="coerce").astype("Int64")
    return frame


def _lines_frame(results: StudyResults) -> "pd.DataFrame":
    import pandas as pd

    known = results.runs[~results.runs["status"].isin((MISSING, DAMAGED))]
    groups = known.groupby(list(IDENTITY), sort=False)
    rows = [
        dict(zip(IDENTITY, key, strict=True)) | _aggregate(group, results)
        for key, group in groups
        if isinstance(key, tuple)
    ]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS)).astype({"n": int, "n_failed": int})


def read_record(store: Store, kind: UnitKind, identity: str) -> dict[str, Any] | None:
    """Return a unit's record; `None` when it is missing or no JSON object."""
    record = store.record(kind, identity)
    return record if isinstance(record, dict) else None


def section(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an inner table of a record; an empty one when it is missing or something else."""
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _run_row(results: StudyResults, identity: str) -> dict[str, Any]:
    record = results.record("runs", identity)
    if record is None:
        return _row_without_record(results, identity)
    stale = results.why_stale(record)
    stale_fields = {} if stale is None else {"status": STALE, "reason": stale}
    return {
        **dict(_figures(record)),
        "id": identity,
        **{key: _text(record.get(key)) for key in (*IDENTITY, *_TEXTS)},
        "method": results.planned(identity).get("method", _text(record.get("method"))),
        **stale_fields,
        **{key: record.get(key) for key in ("seed", "budget_cost", "peak_memory_mb")},
        "within_budget": _truth(record.get("within_budget")),
        "position": "" if stale else _position(results, identity, record),
        "options": json.dumps(section(record, "options"), sort_keys=True),
    }


def _position(results: StudyResults, identity: str, record: Mapping[str, Any]) -> str:
    """Return the position of a run's cost relative to the window of its budget."""
    inside = _truth(record.get("within_budget"))
    if record.get("status") != "done" or not record.get("budget"):
        return ""
    if inside:
        return INSIDE
    cost, budget = section(record, "metrics").get("cost"), record.get("budget_cost")
    if inside is None or not isinstance(cost, int | float) or not isinstance(budget, int | float):
        return UNKNOWN
    if cost > budget:
        return OVER
    method = results.planned(identity).get("method", record.get("method"))
    key = tuple(map(str, (record.get("model"), record.get("dataset"), method, record["budget"])))
    return COSTLIEST if cost >= (1 - _ROUNDING) * results.costliest.get(key, math.inf) else BELOW


def _row_without_record(results: StudyResults, identity: str) -> dict[str, Any]:
    """Make the row of a run without a readable record from its planned fields, or at least from the study's task."""
    damaged = (results.store.unit("runs", identity) / "record.json").exists()
    planned = results.planned(identity) or section(results.spec, "task")
    return {
        "id": identity,
        **{key: _text(planned.get(key)) for key in (*IDENTITY, *_TEXTS)},
        "seed": planned.get("seed"),
        "status": DAMAGED if damaged else MISSING,
        "reason": "its record does not match its checksum" if damaged else "",
    }


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from section(record, "metrics").items()
    yield from section(record, "times").items()
    yield from ((f"knob_{name}", value) for name, value in section(record, "knobs").items())


def _aggregate(runs: "pd.DataFrame", results: StudyResults) -> dict[str, Any]:
    done = runs[runs["status"] == "done"]
    return {
        "n": len(done),
        "n_failed": int(runs["status"].isin(FAILURES).sum()),
        **{f"{figure}_mean": done[figure].mean() for figure in _MEANS},
        **{f"{figure}_std": done[figure].std(ddof=1) for figure in ("top1", "top5", "bops")},
        "tuning_seconds": sum(_tuning_seconds(results, tuning) for tuning in sorted(set(runs["tuning"]) - {""})),
        "peak_memory_mb": done["peak_memory_mb"].max(),
        "within_budget": all(done["position"].isin((INSIDE, COSTLIEST)))
        if len(done) and runs["budget"].iloc[0]
        else None,
    }


def _tuning_seconds(results: StudyResults, identity: str) -> float:
    value = (results.record("tuning", identity) or {}).get("tuning_seconds")
    return float(value) if isinstance(value, int | float) else math.nan


def _text(value: Any) -> str:
    """Make a table's cell of a field: text on one line; empty for none."""
    return "" if value is None else " ".join(str(value).split())


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
