"""The origin of each row of the comparison: its runs, their conditions and times, and the command to repeat them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bench.api import Column, Report, StudyResults, Table
from bench.outputs.commands import study_command
from bench.reporting import wording
from bench.reporting.about import hardware_in_words, versions_in_words
from bench.results.tables import DAMAGED, IDENTITY, MISSING
from reports.shared.commands import repetition
from reports.shared.formatting import anchor, named_runs, number

if TYPE_CHECKING:
    import pandas as pd

_MOST_RUNS = 20


class Provenance(Report):
    """The runs, versions, hardware, times and commands behind every row of the comparison."""

    summary = "for each row of the comparison its runs, versions, hardware, times, and the command to repeat them"
    title = "How this was obtained"
    rank = 70

    def build(self, results: StudyResults) -> list[Table]:
        """Make the table; none before the first run has a record."""
        runs = named_runs(results)
        known = runs[~runs["status"].isin((MISSING, DAMAGED))]
        groups = [group for _, group in known.groupby(list(IDENTITY), sort=False)]
        if not groups:
            return []
        return [
            Table(
                name="provenance",
                title="For each row of the comparison",
                columns=(
                    Column(title="Method", align="left"),
                    Column(title="Budget", align="left"),
                    Column(title="To repeat", align="left", code=True),
                    Column(title="Runs: seed and id", align="left", drop=3, code=True),
                    Column(title="Versions", align="left", drop=5),
                    Column(title="Hardware", align="left", drop=4),
                    Column(title="Made", align="left", drop=2),
                    Column(title="Run s", drop=1),
                ),
                rows=(*(_cells(results, group) for group in groups), *_whole_study(results)),
                notes=(
                    "Run s: seconds of all runs together, without tuning",
                    "A command repeats the runs, and the tuning before them, in a store of its own; "
                    "numbers agree if versions and hardware do",
                ),
                anchors=(*(anchor(group.iloc[0].to_dict()) for group in groups), *("" for _ in _whole_study(results))),
            )
        ]


def _cells(results: StudyResults, group: "pd.DataFrame") -> tuple[str, ...]:
    runs = [{str(key): value for key, value in run.items()} for run in group.to_dict("records")]
    records = [record for run in runs if (record := results.record("runs", run["id"])) is not None]
    return (
        str(runs[0]["line"]),
        str(runs[0]["budget"]),
        repetition(results, runs),
        _listed([f"{run['seed']}: {run['id']}" for run in runs]),
        _distinct(versions_in_words(record) for record in records),
        _distinct(hardware_in_words(record) for record in records),
        _period(runs),
        number(group["total_seconds"].sum(), 0),
    )


def _whole_study(results: StudyResults) -> list[tuple[str, ...]]:
    """Return the row of the study itself; none when its command is not known."""
    line = study_command(results.study.get("command"), results.store.root)
    return [("the whole study", "", line, *("" for _ in range(5)))] if line else []


def _listed(runs: list[str]) -> str:
    """List the runs; only the first ones when there are very many."""
    more = [f"and {len(runs) - _MOST_RUNS} more, in the study's runs.csv"] if len(runs) > _MOST_RUNS else []
    return ", ".join([*runs[:_MOST_RUNS], *more])


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(filter(None, dict.fromkeys(texts)))


def _period(runs: Iterable[Mapping[str, Any]]) -> str:
    """Return the time from the start of the first run to the end of the last."""
    runs = list(runs)
    start = min(filter(None, (run["started"] for run in runs)), default="")
    end = max(filter(None, (run["finished"] for run in runs)), default="")
    return wording.period(start, end)
