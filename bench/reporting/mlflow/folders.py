"""The units of a study as MLflow should show them, read from their folders."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.inputs.reading import JSON_BYTES, read_text
from bench.plugins.registry import load
from bench.reporting.mlflow.entries import (
    LABEL,
    Entry,
    GroupKey,
    group_key,
    group_name,
    parent_entry,
    policy_artifact,
    run_entry,
    stamp,
    trial_entry,
    with_export,
)
from bench.reporting.mlflow.pages import table_page
from bench.reporting.mlflow.views import colours
from bench.reporting.report import DEFAULT_REPORT, DEFAULT_WIDTH, Document, make_document
from bench.results.differences import result_lines
from bench.results.tables import IDENTITY, StudyResults, read_record, section
from bench.store.exports import DOCUMENT, export_folder, read_export
from bench.store.files import CHECKSUM, Store, UnitKind, read_json

Signature = tuple[int, ...]

_LONGEST_NOTE = 4900
"""Characters of a description; MLflow's servers accept tags of 5,000."""


@dataclass(frozen=True, kw_only=True)
class UnitSummary:
    """The part of a unit's record that is kept between two scans.

    Attributes:
        kind, unit: Kind and id of the unit.
        signature: Modification time, size and inode of the record's file, and of the document of a run's export.
        group: Model, data set, method and budget.
        stamp: Text that changes when the unit's entry does; `None` when MLflow does not show the unit.
        counts: Whether the unit is a run whose figures are part of the group's.
    """

    kind: UnitKind
    unit: str
    signature: Signature
    group: GroupKey
    stamp: str | None
    counts: bool = False

    @property
    def identity(self) -> str:
        """Identity of the unit's entry."""
        return "/".join(self.unit.rsplit("-", 1)) if self.kind == "trials" else self.unit


class StudyFolders:
    """The unit folders of a study. A scan reads a record only when its file is new or has changed.

    Args:
        store: Store with the folders.
        study: Document of the study.
    """

    def __init__(self, store: Store, study: Mapping[str, Any]) -> None:
        self._store, self._study = store, study
        self._colours = colours(_methods(study))
        self._summaries: dict[tuple[UnitKind, str], UnitSummary] = {}
        self._comparison: Document | None = None

    def forget(self) -> None:
        """Make the next scan read every record."""
        self._summaries.clear()

    def scan(self) -> list[UnitSummary]:
        """Return all units with a readable record: each tuning with its trials, then the runs."""
        self._comparison = None
        units: list[UnitSummary | None] = []
        for tuning in map(str, self._study.get("tunings") or ()):
            units += [self._summary("tuning", tuning)]
            units += [self._summary("trials", f"{tuning}-{number}") for number in self._trials(tuning)]
        units += [self._summary("runs", str(run)) for run in self._study.get("runs") or ()]
        return [unit for unit in units if unit is not None]

    def parents(self, groups: Mapping[GroupKey, Sequence[UnitSummary]], *, compared: bool) -> Iterator[Entry]:
        """Return the entries of groups of runs, with their aggregated figures.

        Args:
            groups: Units of each group.
            compared: Whether these are all groups of the study, so that differences to the baseline are known.
        """
        units = [unit for members in groups.values() for unit in members]
        lines = {key: dict(zip(IDENTITY, key, strict=True)) | {"n": 0, "n_failed": 0} for key in groups}
        runs = [unit.unit for unit in units if unit.kind == "runs"]
        results = StudyResults(self._store, {**self._study, "runs": runs})
        frame = result_lines(results) if compared else results.lines
        limits = results.runs.groupby(list(IDENTITY), sort=False)["budget_cost"].max().to_dict()
        for line in frame.to_dict("records"):
            fields = {str(key): value for key, value in line.items()}
            limit = limits.get(tuple(line[name] for name in IDENTITY), math.nan)
            lines[group_key(fields)] = fields | {"budget_share": fields["cost_mean"] / limit}
        return (self._coloured(parent_entry(self._study, line)) for line in lines.values())

    def child(self, unit: UnitSummary) -> Entry | None:
        """Return the entry of a run or trial; `None` when its record was deleted since the scan."""
        record = self._record(unit.kind, unit.unit)
        if record is None or stamp(record, self._study) is None:
            return None
        folder = self._store.unit(unit.kind, unit.unit)
        if unit.kind == "trials":
            return self._coloured(trial_entry(self._study, folder, unit.identity, record))
        export, exported = read_export(self._store, unit.unit), export_folder(self._store, unit.unit)
        return self._coloured(run_entry(self._study, folder, unit.identity, record, export, exported))

    def tables(self) -> dict[str, str]:
        """Return the study's tables, by the names of their files."""
        file = self._store.study(str(self._study["name"])) / "table.md"
        texts = {file.name: read_text(file, JSON_BYTES)} if file.is_file() else {}
        results = StudyResults(self._store, self._study)
        pages = {f"{table.name}.html": table_page(table) for table in self._compared().tables}
        return texts | pages | {"results.csv": result_lines(results).to_csv(index=False)}

    def note(self) -> str:
        """Return the verdict and the table of the study in Markdown, for the description of its experiment."""
        document = self._compared()
        tables = tuple(table.without(table.expendable()) for table in document.tables)
        brief = replace(document, sections=(replace(document.sections[0], parts=tables),))
        text = str(load("forms", "markdown").render(brief, DEFAULT_WIDTH))
        return text if len(text) <= _LONGEST_NOTE else "\n".join(f"- {line}" for line in tables[0].headline)

    def _compared(self) -> Document:
        """Return the comparison of the study; it is made once after each scan."""
        if self._comparison is None:
            self._comparison = make_document(StudyResults(self._store, self._study), [DEFAULT_REPORT])
        return self._comparison

    def policies(self, group: GroupKey, runs: Sequence[UnitSummary]) -> dict[str, str]:
        """Return the mean policy of a group's runs as a page, by the name of its file; nothing without policies."""
        documents = (read_json(self._store.unit(run.kind, run.unit) / "policy.json") for run in runs)
        return policy_artifact(documents, group_name(group))

    def _coloured(self, entry: Entry) -> Entry:
        return replace(entry, tags={**entry.tags, **self._colours.get(entry.params["method"], {})})

    def _record(self, kind: UnitKind, unit: str) -> dict[str, Any] | None:
        """Return a unit's record, with the name that its method has in the study's tables."""
        record = read_record(self._store, kind, unit)
        planned = section(section(self._study, "places"), unit.rpartition("-")[0] if kind == "trials" else unit)
        return record if record is None or not planned else {**record, LABEL: planned["method"]}

    def _trials(self, tuning: str) -> list[int]:
        try:
            names = [path.name for path in (self._store.unit("tuning", tuning) / "trials").iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def _summary(self, kind: UnitKind, unit: str) -> UnitSummary | None:
        # Taken before the record is read, so that a record that is replaced in between is read again the next time.
        signature = _signature(self._store.unit(kind, unit) / "record.json")
        if not signature:
            return None
        if kind == "runs":
            signature += _signature(export_folder(self._store, unit) / DOCUMENT)
        known = self._summaries.get((kind, unit))
        if known is not None and known.signature == signature:
            return known
        record = self._record(kind, unit)
        if record is None:
            self._summaries.pop((kind, unit), None)
            return None
        summary = self._summarized(kind, unit, signature, record)
        self._summaries[kind, unit] = summary
        return summary

    def _summarized(self, kind: UnitKind, unit: str, signature: Signature, record: Mapping[str, Any]) -> UnitSummary:
        shown = None if kind == "tuning" else stamp(record, self._study)
        # The stamp of an outdated result is not its checksum.
        counts = kind == "runs" and record.get("status") == "done" and shown == str(record[CHECKSUM])
        if kind == "runs":
            shown = with_export(shown, read_export(self._store, unit))
        return UnitSummary(
            kind=kind, unit=unit, signature=signature, group=group_key(record), stamp=shown, counts=counts
        )


def _signature(file: Path) -> Signature:
    """Return modification time, size and inode of a file; nothing if there is none."""
    try:
        state = file.stat()
    except OSError:
        return ()
    return state.st_mtime_ns, state.st_size, state.st_ino


def _methods(study: Mapping[str, Any]) -> Iterator[str]:
    """Yield the methods of a study, then those with the option that an ablation changes."""
    named = section(study, "spec").get("methods")
    yield from map(str, named if isinstance(named, list) else ())
    yield from (str(planned["method"]) for planned in section(study, "places").values())
