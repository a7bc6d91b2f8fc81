"""Check the tables in the folder of the study: they are made again from the records, and compared cell by cell."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from bench.diagnostics.submission.submission import Submission, outcome
from bench.diagnostics.verify import CheckLine
from bench.errors import BenchError
from bench.inputs.reading import JSON_BYTES, read_text
from bench.reporting.report import write_views

WHAT = "tables, made again from the records"
_ROUNDING = 1e-9
_NAMES = ("runs.csv", "results.csv", "table.csv", "table.md", "table.tex")


def check(submission: Submission) -> CheckLine:
    """Check all tables of a study. Those that the harness writes now replace the others in the temporary store.

    Raises:
        BenchError: A table cannot be read.
    """
    folder = submission.store.study(submission.results.name)
    stated = {name: _cells(_content(submission, name), name) for name in _NAMES if (folder / name).exists()}
    write_views(submission.results)
    faults = []
    for name, rows in stated.items():
        difference = next(_differences(rows, _cells(_content(submission, name), name)), None)
        if difference is not None:
            faults.append(f"{name}: {difference}")
    return outcome(WHAT, faults, f"{', '.join(stated)}: equal" if stated else "there are none yet")


def _content(submission: Submission, name: str) -> str:
    path = submission.store.study(submission.results.name) / name
    try:
        return read_text(path, JSON_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{name} cannot be read") from error


def _cells(text: str, name: str) -> list[list[str]]:
    """Return the rows of a table; notes around it, which may name folders and commands, are left out."""
    if name.endswith(".csv"):
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    mark = "|" if name.endswith(".md") else "&"
    rows = (line for line in text.splitlines() if (line.startswith("|") if mark == "|" else line.endswith(r"\\")))
    return [[cell.strip() for cell in row.split(mark)] for row in rows]


def _differences(stated: Sequence[Sequence[str]], made: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield what differs, the first first. Columns that only newer or older versions write are not compared."""
    heads = [list(rows[0]) if rows else [] for rows in (stated, made)]
    if len(stated) != len(made):
        yield f"it has {len(stated)} lines, and the records give {len(made)}"
        return
    common = [(heads[0].index(title), heads[1].index(title)) for title in heads[0] if title in heads[1]]
    for row, again in zip(stated[1:], made[1:], strict=True):
        for place, here in common:
            first, second = (cells[at] if at < len(cells) else "" for cells, at in ((row, place), (again, here)))
            if not _same(first, second):
                subject = f"{heads[0][place]} of {' '.join(row[:4])}"
                yield f"{subject} is {first or 'empty'}, and the records give {second or 'none'}"


def _same(first: str, second: str) -> bool:
    if first == second:
        return True
    try:
        return math.isclose(float(first), float(second), rel_tol=_ROUNDING)
    except ValueError:
        return False
