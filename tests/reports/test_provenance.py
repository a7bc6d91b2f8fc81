"""The origin of the rows of the comparison, the environment, and the commands that repeat runs."""

import shlex
from pathlib import Path
from typing import Any

from bench.cli.run import make_specification
from bench.planning.plan import make_plan
from bench.reporting.report import make_document
from bench.results.tables import StudyResults
from reports.environment import Environment
from reports.provenance import Provenance
from tests import fake_store
from tests.reports.reading import ALL, records, results_of, table_of


def test_every_line_of_the_comparison_leads_to_its_origin(mixed: Any) -> None:
    document = make_document(results_of(mixed), ALL)
    tables = {table.name: table for table in document.tables}
    assert tables["table"].links and set(tables["table"].links) == set(tables["provenance"].anchors) - {""}
    line = dict(zip(tables["provenance"].anchors, records(tables["provenance"]), strict=True))
    row = line[tables["table"].links[0]]
    assert row["Runs: seed and id"] == "0: sbs-4bit-0, 1: sbs-4bit-1, 2: sbs-4bit-2"
    assert row["Run s"] == "90"


def test_of_very_many_runs_the_first_are_listed_and_all_are_repeated(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0] * 25)
    row, whole = records(table_of(Provenance(), fake, "provenance"))
    assert row["Runs: seed and id"].endswith("19: fixed-4bit-19, and 5 more, in the study's runs.csv")
    assert "--seeds 25 " in row["To repeat"]
    assert (whole["Method"], whole["To repeat"]) == ("the whole study", f"bench run --store {tmp_path}")


def planned(command: str) -> list[str]:
    """The identities of the runs that a printed command would make."""
    words = shlex.split(command)
    assert words[:2] == ["bench", "run"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    spec = make_specification(
        preset=None,
        spec_file=Path(given["--spec"]),
        name=given.get("--name"),
        methods=given.get("--methods"),
        model=None,
        dataset=None,
        budgets=given.get("--budget"),
        seeds=given.get("--seeds"),
        device=None,
        devices=None,
        settings=(),
        ablations=(),
        schedule=None,
        elsewhere=False,
    )
    return [unit.identity for unit in make_plan(spec).runs]


def test_printed_commands_make_exactly_the_runs_of_their_line(finished: Any) -> None:
    results = StudyResults(finished.store, finished.store.load_study(None))
    (table,) = Provenance().build(results)
    *rows, whole = records(table)
    assert len(rows) == 4 and whole["Method"] == "the whole study"
    for row in rows:
        runs = [pair.split(": ")[1] for pair in row["Runs: seed and id"].split(", ")]
        assert len(runs) == 2 and planned(row["To repeat"]) == runs


def test_the_environment_counts_runs_by_what_they_were_made_with(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for seed, version in enumerate(("2.6", "2.7", "2.7")):
        fake.run("fixed", seed, 70.0, versions={"torch": version}, hardware={"device": "cpu"})
    rows = [tuple(row.values()) for row in records(table_of(Environment(), fake, "environment"))]
    assert ("torch", "2.6", "1") in rows and ("torch", "2.7", "2") in rows and ("device", "cpu", "3") in rows
    assert ("data and split, SHA-256", fake_store.DATA_CHECKSUM, "3") in rows
    keys = dict(table_of(Environment(), fake, "specification").rows)
    assert keys["task.model"] == "resnet8" and keys["seeds"] == "0, 1, 2"
