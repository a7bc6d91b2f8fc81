"""Studies that were published as tables: the numbers of a folder with `runs.csv`, `results.csv` and two JSON files.

`docs/make_results.py` writes such folders. They have no records and no networks, so that their numbers can be compared
with each other and not with what they were made from.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, printable
from bench.inputs.names import StudyName
from bench.inputs.reading import JSON_BYTES, parse_json, read_bytes, with_whole_characters
from bench.results.tables import BELOW, IDENTITY, INSIDE, OVER, RUN_COLUMNS, StudyResults, section
from bench.store.files import Store

if TYPE_CHECKING:
    import pandas as pd

SPECIFICATION, RUNS, RESULTS, VERSIONS = "specification.json", "runs.csv", "results.csv", "versions.json"
"""Names of the files of a published study."""

_TRUTH = {"True": True, "False": False}
_ROUNDING = 1e-9
_PERCENTAGES = frozenset({"top1", "top5", "validation_top1"})
"""Columns of `runs.csv` with numbers from 0 to 100."""
_COMPARED = ("n", "n_failed", "top1_mean", "top1_std", "bops_mean", "cost_mean", "search_seconds_mean")
"""Columns of `results.csv` that follow from `runs.csv`; older files do not have all of them."""
_TEXTS = frozenset(
    {"id", *IDENTITY, "status", "reason", "recipe", "match", "tuning", "budget_measure", "options", "position"}
    | {"started", "finished", "within_budget"}
)


class PublishedStudy(StudyResults):
    """The numbers of a published study.

    Attributes:
        versions: Versions, hardware and fingerprint of its first finished run.
    """

    def __init__(self, folder: Path) -> None:
        """Read a study, and compare its rows with its runs.

        Args:
            folder: Folder of the study.

        Raises:
            BenchError: A file is missing, damaged or too large, or the rows do not follow from the runs.
        """
        spec, self.versions = _document(folder / SPECIFICATION), _document(folder / VERSIONS)
        name = spec.get("name")
        if not StudyName.is_valid(name):
            raise BenchError(f"'{folder / SPECIFICATION}' has no valid name of a study: {ascii(name)[:60]}")
        self._rows = _table(folder / RUNS)
        checksum = section(self.versions, "fingerprint").get("data_checksum")
        _check_numbers(self._rows, folder / RUNS)
        runs = [row["id"] for row in self._rows]
        super().__init__(Store(folder), {"name": name, "spec": spec, "runs": runs, "data_checksum": checksum})
        self._results = {tuple(row[key] for key in IDENTITY): row for row in _table(folder / RESULTS)}
        self._compare(folder)

    @cached_property
    def runs(self) -> "pd.DataFrame":
        """One row for each run: see `StudyResults.runs`."""
        import pandas as pd

        numbers = [column for row in self._rows[:1] for column in row if column not in _TEXTS]
        frame = pd.DataFrame(self._rows, columns=list(dict.fromkeys([*RUN_COLUMNS, *numbers])))
        for column in frame.columns.difference(list(_TEXTS)):
            frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
        frame["seed"] = frame["seed"].astype("Int64")
        frame["within_budget"] = frame["within_budget"].map(_TRUTH.get).astype(object)
        frame["position"] = [_position(row) for row in self._rows]
        return frame

    @cached_property
    def lines(self) -> "pd.DataFrame":
        """One row for each group of runs: see `StudyResults.lines`; seconds of tuning are those of `results.csv`."""
        lines = super().lines
        keys = lines[list(IDENTITY)].itertuples(index=False, name=None)
        return lines.assign(tuning_seconds=[_number(self._results.get(key, {}).get("tuning_seconds")) for key in keys])

    def _compare(self, folder: Path) -> None:
        """Make sure that the rows of `results.csv` follow from the runs."""
        for line in self.lines.to_dict("records"):
            key = tuple(str(line[name]) for name in IDENTITY)
            stated = self._results.get(key, {})
            for column in _COMPARED:
                if column in stated and not _same(_number(stated[column]), float(line[column])):
                    raise BenchError(
                        f"'{folder / RESULTS}': {column} of {' '.join(filter(None, key))} is {stated[column]}, and its "
                        f"runs in {RUNS} give {line[column]}"
                    )


def is_published(folder: Path) -> bool:
    """Return whether a folder has the files of a published study."""
    return all((folder / name).is_file() for name in (SPECIFICATION, RUNS, RESULTS, VERSIONS))


def published_below(folder: Path) -> Iterator[Path]:
    """Yield a folder that is a published study, or else those folders directly in it that are, by name."""
    if is_published(folder):
        yield folder
    elif folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if path.is_dir() and is_published(path))


def _document(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, JSON_BYTES)
        document = with_whole_characters(parse_json(content), content)
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise BenchError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise BenchError(f"'{path}' is a {type(document).__name__}, not an object")
    return document


def _table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file whose rows all have the columns that identify a group of runs."""
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(path, JSON_BYTES).decode(), newline=""), strict=True)
        rows = list(reader)
    except OSError as error:
        raise BenchError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise BenchError(f"'{path}' is not a CSV table in UTF-8: {error}") from error
    if not {*IDENTITY} <= {*(reader.fieldnames or ())} or any(None in row or None in row.values() for row in rows):
        raise BenchError(f"'{path}' lacks cells, or one of the columns {', '.join(IDENTITY)}")
    if path.name == RUNS and rows and not {"id", "seed", "status", "top1", "within_budget"} <= rows[0].keys():
        raise BenchError(f"'{path}' lacks one of the columns id, seed, status, top1, within_budget")
    return rows


def _check_numbers(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Make sure that no number is infinite, and that percentages are some."""
    for row in rows:
        for column, text in row.items():
            if not text or column in _TEXTS:
                continue
            number = _number(text)
            if math.isinf(number) or (column in _PERCENTAGES and not 0 <= number <= 100):
                allowed = "0 to 100" if column in _PERCENTAGES else "finite numbers"
                raise BenchError(f"'{path}': {column} of run {row['id']} is {printable(text)}; allowed: {allowed}")


def _position(row: Mapping[str, str]) -> str:
    """Return the position of a run's cost, which older tables do not state; see `StudyResults.runs`."""
    if row.get("position") or row["status"] != "done" or not row["budget"]:
        return row.get("position", "")
    if _TRUTH.get(row["within_budget"]):
        return INSIDE
    return OVER if _number(row.get("cost")) > _number(row.get("budget_cost")) else BELOW


def _number(text: object) -> float:
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def _same(first: float, second: float) -> bool:
    if math.isnan(first) or math.isnan(second):
        return math.isnan(first) and math.isnan(second)
    return math.isclose(first, second, rel_tol=_ROUNDING, abs_tol=_ROUNDING)
