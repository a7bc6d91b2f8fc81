"""Trade-off, policies, convergence, tuning, failures, provenance, environment: against numbers worked out here."""

import csv
import html
import io
import json
import math
import random
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench.cli.run import make_specification, read_specification
from bench.errors import BenchError
from bench.planning.plan import make_plan
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting import report as bench_report
from bench.reporting.report import Figure, Report, Table, make_document, write_document, write_tables
from bench.results.tables import StudyResults
from bench.store.files import Store, write_json
from bench.store.leases import Leases
from reports.comparison import Comparison
from reports.convergence import Convergence
from reports.environment import Environment
from reports.failures import Failures
from reports.page import page, sort_value
from reports.policies import Policies
from reports.provenance import Provenance
from reports.shared.drawing import MOST_POINTS, thinned
from reports.tradeoff import Tradeoff, pareto_front
from reports.tuning import Tuning
from tests import fake_store

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
ALL = ["comparison", "tradeoff", "policies", "convergence", "tuning", "failures", "provenance", "environment"]


@pytest.fixture
def mixed(tmp_path: Path) -> Any:
    return fake_store.mixed(tmp_path / "store")


def results_of(fake: Any, **changes: Any) -> StudyResults:
    return StudyResults(fake.store, fake.document() | changes)


def table_of(report: Report, fake: Any, name: str, **changes: Any) -> Table:
    parts = report.build(results_of(fake, **changes))
    return next(part for part in parts if isinstance(part, Table) and part.name == name)


def figures_of(report: Report, fake: Any) -> dict[str, Figure]:
    return {part.name: part for part in report.build(results_of(fake)) if isinstance(part, Figure)}


def records(table: Table) -> list[dict[str, str]]:
    return [dict(zip([column.title for column in table.columns], row, strict=True)) for row in table.rows]


def rows_in(figure: Figure, field: str) -> list[dict[str, Any]]:
    """The rows of a chart's data sets that have a field."""
    found = figure.draw().to_dict()
    sets = [found.get("data", {}), *(layer.get("data", {}) for layer in found.get("layer", []))]
    values = [row for data in sets for row in data.get("values", found.get("datasets", {}).get(data.get("name"), []))]
    return [row for row in values if field in row]


# --- all of them ----------------------------------------------------------------------------------------------


def test_all_reports_are_declared_and_in_order(mixed: Any) -> None:
    assert set(ALL) <= set(available("reports"))
    document = make_document(results_of(mixed), ALL)
    assert [section.name for section in document.sections] == ALL


def test_a_study_of_which_nothing_is_there_yet(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.missing("a")
    document = make_document(results_of(fake))
    assert {"failures", "environment"} <= {section.name for section in document.sections}
    for name in available("forms"):
        assert isinstance(load("forms", name).render(document, 100), str)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '"x"', '[{"phase": "search"}, 3]', '{"layers": 3}'])
def test_half_written_files_stop_no_report(tmp_path: Path, content: str) -> None:
    fake = fake_store.mixed(tmp_path)
    for path in [*tmp_path.glob("runs/*/*.json"), *tmp_path.glob("tuning/*/trials/*/trial.json")]:
        if path.name != "record.json":
            path.write_text(content)
    document = make_document(results_of(fake))
    assert {"comparison", "tradeoff", "provenance"} <= {section.name for section in document.sections}
    for figure in document.figures:
        figure.draw().to_dict()


def test_reports_import_no_torch(finished: Any) -> None:
    program = (
        "import sys; from pathlib import Path; from bench.store.files import Store\n"
        "from bench.results.tables import StudyResults\n"
        "from bench.reporting.report import make_document; from bench.plugins.registry import load\n"
        f"store = Store(Path({str(finished.store.root)!r}))\n"
        "document = make_document(StudyResults(store, store.load_study(None)))\n"
        "load('forms', 'html').render(document, 100); print(len(document.sections), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False"


def test_every_form_names_every_figure(mixed: Any) -> None:
    document = make_document(results_of(mixed), ALL)
    assert len(document.figures) >= 5
    for figure in document.figures:
        assert f"Figure: {figure.title} ({figure.name}.svg" in load("forms", "terminal").render(document, 100)
        assert f"![{figure.title}]({figure.name}.svg)" in load("forms", "markdown").render(document, 100)
        assert f"{{{figure.name}.pdf}}" in load("forms", "latex").render(document, 100)


# --- trade-off ------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_mean_beats() -> None:
    rng = random.Random(3)  # noqa: S311  (made-up means, no secrets)
    for _ in range(200):
        means = [{"cost": rng.randint(1, 6), "top1": rng.randint(1, 6)} for _ in range(rng.randint(1, 9))]

        def beats(one: dict[str, int], other: dict[str, int]) -> bool:
            no_worse = one["cost"] <= other["cost"] and one["top1"] >= other["top1"]
            return no_worse and one != other

        slow = {i for i, mean in enumerate(means) if not any(beats(other, mean) for other in means)}
        assert set(pareto_front(means)) == slow


def test_the_tradeoff_shows_every_run_and_every_mean(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    values = {("sbs", "3bit"): [70.0, 72.0], ("sbs", "4bit"): [75.0, 78.0], ("fixed", "4bit"): [71.0]}
    for (method, budget), top1 in values.items():
        fake.seeds(method, top1, budget=budget, metrics={"bops": 30e6 if budget == "3bit" else 40e6})
    fake.failed("dnas", 0, "NaN")
    table = table_of(Tradeoff(), fake, "pareto")
    assert [(row["Method"], row["Budget"], row["Top-1 %"], row["On the front"]) for row in records(table)] == [
        ("sbs", "3bit", "71.00±1.41", "yes"),
        ("sbs", "4bit", "76.50±2.12", "yes"),
        ("fixed", "4bit", "71.00", "no"),
    ]
    runs = rows_in(figures_of(Tradeoff(), fake)["tradeoff"], "run")
    assert sorted((row["method"], row["budget"], row["seed"], row["top1"], row["cost"]) for row in runs) == [
        ("fixed", "4bit", 0, 71.0, 40.0),
        ("sbs", "3bit", 0, 70.0, 30.0),
        ("sbs", "3bit", 1, 72.0, 30.0),
        ("sbs", "4bit", 0, 75.0, 40.0),
        ("sbs", "4bit", 1, 78.0, 40.0),
    ]


def test_what_has_no_budget_is_a_line_that_stretches_no_axis(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 72.0], budget="3bit", metrics={"bops": 30e6})
    fake.seeds("full_precision", [80.0, 81.0], budget="", metrics={"bops": 4000e6})
    figure = figures_of(Tradeoff(), fake)["tradeoff"]
    drawn = figure.draw().to_dict()
    lines, *others = drawn["layer"]
    levels = drawn["datasets"][lines["data"]["name"]]
    assert [(row["method"], row["top1"]) for row in levels] == [("full_precision", 80.5)]
    assert "cost" not in str(lines["layer"][0]["encoding"].get("x"))
    assert "log" not in str([layer["encoding"]["x"] for layer in others])
    assert {row["cost"] for row in rows_in(figure, "run")} == {30.0}
    fake = fake_store.FakeStore(tmp_path / "alone")
    fake.seeds("full_precision", [80.0, 81.0], budget="", metrics={"bops": 4000e6})
    assert {row["cost"] for row in rows_in(figures_of(Tradeoff(), fake)["tradeoff"], "run")} == {4000.0}


def test_too_many_points_are_thinned_and_it_is_said() -> None:
    rows = [{"x": number} for number in range(3 * MOST_POINTS + 1)]
    kept, notes = thinned(rows, "runs")
    assert len(kept) <= MOST_POINTS and [row["x"] for row in kept[:3]] == [0, 4, 8]
    assert notes == (f"The figure shows {len(kept)} of {len(rows)} runs, evenly spaced; means are over all",)
    assert thinned(rows[:MOST_POINTS], "runs") == (rows[:MOST_POINTS], ())


# --- policies -------------------------------------------------------------------------------------------------


def layer(weights: int, activations: int, kept: list[int] | None) -> dict[str, Any]:
    return {"weight_bits": weights, "activation_bits": activations, "kept_filters": kept}


@pytest.fixture
def pruned(tmp_path: Path) -> Any:
    """Two runs, of which one lost 4 of 8 and the other 2 of 8 filters of its only layer that can lose some."""
    fake = fake_store.FakeStore(tmp_path)
    runs = fake.seeds("sbs", [70.0, 71.0], filters={"zz.first": 4, "aa.second": 8})
    for run, kept, bits in zip(runs, ([0, 1, 2, 3], [0, 1, 2, 5, 6, 7]), (2, 4), strict=True):
        layers = {"zz.first": layer(8, 8, None), "aa.second": layer(bits, 4, kept)}
        write_json(
            fake.store.unit("runs", run) / "policy.json", {"model": "resnet8", "dataset": "digits", "layers": layers}
        )
    return fake


def test_policies_are_means_over_seeds_in_the_networks_order(pruned: Any) -> None:
    first, second = records(table_of(Policies(), pruned, "policies"))
    assert (first["Layer"], first["Weight bits"], first["Filters pruned %"]) == ("zz.first", "8.00±0.00", "")
    shares = [50.0, 25.0]
    assert second["Weight bits"] == f"3.00±{statistics.stdev([2, 4]):.2f}"
    assert second["Filters pruned %"] == f"{statistics.mean(shares):.2f}±{statistics.stdev(shares):.2f}"


def test_shares_are_left_out_where_the_number_of_filters_is_not_known(pruned: Any) -> None:
    for run in pruned.runs:
        pruned.store.write_record("runs", run, pruned.store.record("runs", run) | {"filters": {}})
    assert {row["Filters pruned %"] for row in records(table_of(Policies(), pruned, "policies"))} == {""}
    assert "policy-filters" not in figures_of(Policies(), pruned)


def test_policies_of_one_method_are_shown_at_a_time(pruned: Any) -> None:
    pruned.seeds("fixed", [70.0])
    figure = figures_of(Policies(), pruned)["policy-bits"]
    chart = figure.draw().to_dict()
    (menu,) = [param for param in chart["params"] if "bind" in param]
    assert menu["bind"]["options"] == ["sbs 4bit", "fixed 4bit"] and menu["value"] == "sbs 4bit"
    assert figure.still is not None
    assert "params" not in figure.still().to_dict() and "facet" in figure.still().to_dict()


def test_a_network_at_full_precision_does_not_set_the_scale_of_bits(pruned: Any) -> None:
    (reference,) = pruned.seeds("full_precision", [72.0], budget="")
    layers = {"zz.first": layer(32, 32, None), "aa.second": layer(32, 32, None)}
    write_json(
        pruned.store.unit("runs", reference) / "policy.json",
        {"model": "resnet8", "dataset": "digits", "layers": layers},
    )
    figure = figures_of(Policies(), pruned)["policy-bits"]
    assert {row["mean"] for row in rows_in(figure, "kind")} == {8.0, 4.0, 3.0}
    assert any("full_precision" in note and "not drawn" in note for note in figure.notes)
    assert "32.00" in {row["Weight bits"] for row in records(table_of(Policies(), pruned, "policies"))}


# --- convergence ----------------------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_with_cost_as_share_of_the_budget(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    runs = fake.seeds("sbs", [70.0, 71.0])
    for run, offset in zip(runs, (0.0, 1.0), strict=True):
        # Two stages, each of which counts its epochs anew.
        entries = [
            {"phase": "search", "epoch": epoch, "loss": 2.0 + offset, "accuracy": 50.0, "cost": bops}
            for epoch, bops in ((1, 80e6), (2, 60e6), (1, 44e6))
        ]
        write_json(fake.store.unit("runs", run) / "curves.json", entries)
    figures = figures_of(Convergence(), fake)
    cost = rows_in(figures["search-cost"], "epoch")
    assert [(row["epoch"], row["mean"]) for row in cost] == [(1, 200.0), (2, 150.0), (3, 110.0)]
    loss = rows_in(figures["search-loss"], "epoch")[0]
    deviation = statistics.stdev([2.0, 3.0])
    assert (loss["mean"], loss["n"]) == (2.5, 2)
    assert math.isclose(loss["low"], 2.5 - deviation, rel_tol=1e-6)
    assert math.isclose(loss["high"], 2.5 + deviation, rel_tol=1e-6)
    assert "finetune-loss" not in figures
    (row,) = records(table_of(Convergence(), fake, "convergence"))
    assert (row["Search epochs"], row["Search cost, % of budget"], row["Fine-tuning loss"]) == ("3", "110.00±0.00", "")


def test_long_curves_keep_their_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.convergence.MOST_POINTS", 10)
    fake = fake_store.FakeStore(tmp_path)
    run = fake.run("sbs", 0, 70.0)
    entries = [{"phase": "search", "loss": 1.0, "accuracy": 1.0} for _ in range(36)]
    write_json(fake.store.unit("runs", run) / "curves.json", entries)
    figure = figures_of(Convergence(), fake)["search-loss"]
    assert [row["epoch"] for row in rows_in(figure, "epoch")] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 36]
    assert "The figure shows every 4th epoch and the last" in figure.notes


# --- tuning ---------------------------------------------------------------------------------------------------


def test_every_trial_is_shown_and_the_chosen_one_marked(mixed: Any) -> None:
    rows = records(table_of(Tuning(), mixed, "tuning"))
    assert [(row["Method"], row["Trial"], row["λ"], row["Chosen"]) for row in rows] == [
        ("sbs", "0", "0.2", "yes"),
        ("sbs", "1", "0.4", ""),
    ]
    assert {(row["Cost, % of budget"], row["Repaired, % of budget"]) for row in rows} == {("102.5", "97.5")}
    assert [row["Validation Top-1 %"] for row in rows] == ["90.00", "91.00"]
    drawn = rows_in(figures_of(Tuning(), mixed)["tuning-cost"], "strength")
    assert [(row["strength"], row["raw"], row["chosen"]) for row in drawn] == [(0.2, 102.5, True), (0.4, 102.5, False)]


def test_the_trials_of_a_tuning_at_work_are_shown_too(mixed: Any) -> None:
    for path in mixed.root.glob("tuning/*/record.json"):
        path.unlink()
    rows = records(table_of(Tuning(), mixed, "tuning"))
    assert [(row["Method"], row["Budget"], row["Chosen"]) for row in rows] == [("sbs", "4bit", "")] * 2


# --- failures -------------------------------------------------------------------------------------------------


def test_every_run_without_a_result_is_called_what_it_is(mixed: Any) -> None:
    mixed.run("sbs", 7, 70.0, fingerprint={"cost_counter": 0})
    mixed.run("sbs", 8, 70.0, within_budget=False, metrics={"bops": 1.2 * fake_store.BUDGET_BOPS})
    rows = {row["Id"]: row for row in records(table_of(Failures(), mixed, "failures"))}
    states = {identity: (row["State"], row["Reason"]) for identity, row in rows.items()}
    assert states.pop("sbs-4bit-7")[0] == "stale"
    assert states == {
        "dnas-4bit-0": ("below the window", "costs 0.988 of the budget"),
        "dnas-4bit-1": ("unreachable", "the cheapest policy costs 44.1 M"),
        "dnas-4bit-2": ("failed", "NaN loss"),
        "dnas-4bit-3": ("orphaned", "started 2026-01-01T00:00:00+00:00"),
        "not-yet-run": ("missing", ""),
        "cut-off": ("damaged", "its record does not match its checksum"),
        "sbs-4bit-8": ("over budget", "costs 1.200 of the budget"),
    }
    assert "--retry failed" in rows["dnas-4bit-2"]["To get a result"]
    assert "--seeds 2," in rows["dnas-4bit-2"]["To get a result"]
    assert "--methods" not in rows["not-yet-run"]["To get a result"]
    assert "--store repeated" in rows["sbs-4bit-8"]["To get a result"]


def test_a_run_at_work_is_no_failure(mixed: Any) -> None:
    lease = Leases(mixed.root).acquire("runs-dnas-4bit-3", "run dnas")
    assert lease is not None
    with lease:
        assert "dnas-4bit-3" not in {row["Id"] for row in records(table_of(Failures(), mixed, "failures"))}


def test_a_study_without_failures_has_no_such_table(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0])
    assert not Failures().build(results_of(fake))


# --- provenance, environment ----------------------------------------------------------------------------------


def test_every_line_of_the_comparison_leads_to_its_origin(mixed: Any) -> None:
    document = make_document(results_of(mixed), ALL)
    tables = {table.name: table for table in document.tables}
    assert tables["table"].links and set(tables["table"].links) == set(tables["provenance"].anchors)
    line = dict(zip(tables["provenance"].anchors, records(tables["provenance"]), strict=True))
    row = line[tables["table"].links[0]]
    assert row["Runs: seed and id"] == "0: fixed-4bit-0, 1: fixed-4bit-1, 2: fixed-4bit-2"
    assert row["Run s"] == "90"


def test_of_very_many_runs_the_first_are_listed_and_all_are_repeated(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0] * 25)
    (row,) = records(table_of(Provenance(), fake, "provenance"))
    assert row["Runs: seed and id"].endswith("19: fixed-4bit-19, and 5 more, in the study's runs.csv")
    assert "--seeds 25 " in row["To repeat"]


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
    assert len(table.rows) == 4
    for row in records(table):
        runs = [pair.split(": ")[1] for pair in row["Runs: seed and id"].split(", ")]
        assert len(runs) == 2 and planned(row["To repeat"]) == runs


def test_a_failed_run_gets_its_result_by_the_printed_command(copied: Path) -> None:
    """The whole way: the command that the report prints is run, and the study then has the run."""
    store = Store(copied)
    study = store.load_study(None)
    fixed = next(run for run in study["runs"] if (store.record("runs", run) or {})["method"] == "fixed")
    record = dict(store.record("runs", fixed) or {})
    store.write_record("runs", fixed, record | {"status": "failed", "reason": "cosmic ray", "metrics": {}})
    (row,) = records(Failures().build(StudyResults(store, study))[0])
    assert (row["Id"], row["State"], row["Reason"]) == (fixed, "failed", "cosmic ray")
    words = [sys.executable, "-m", *shlex.split(row["To get a result"])]
    subprocess.run([*words, "--in-process"], check=True, capture_output=True)
    again = StudyResults(store, store.load_study("tiny"))
    assert not Failures().build(again)
    assert (store.record("runs", fixed) or {})["metrics"]["top1"] == record["metrics"]["top1"]


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{"])
def test_a_json_file_without_a_specification_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "record.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(
        BenchError, match=r"record.json' holds no specification; give a TOML file, a study's study.json"
    ):
        read_specification(file)


def test_the_environment_counts_runs_by_what_they_were_made_with(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for seed, version in enumerate(("2.6", "2.7", "2.7")):
        fake.run("fixed", seed, 70.0, versions={"torch": version}, hardware={"device": "cpu"})
    rows = [tuple(row.values()) for row in records(table_of(Environment(), fake, "environment"))]
    assert ("torch", "2.6", "1") in rows and ("torch", "2.7", "2") in rows and ("device", "cpu", "3") in rows
    assert ("data and split, SHA-256", fake_store.DATA_CHECKSUM, "3") in rows
    keys = dict(table_of(Environment(), fake, "specification").rows)
    assert keys["task.model"] == "resnet8" and keys["seeds"] == "0, 1, 2"


# --- all forms alike --------------------------------------------------------------------------------------------

_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


class _Tables(HTMLParser):
    """The cells of every table of a page, by the name of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        identity = dict(attrs).get("id") or ""
        if identity.startswith("part-"):
            self._rows = self.tables.setdefault(identity.removeprefix("part-"), [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._rows[-1][-1] += data


def cells_of_page(text: str) -> dict[str, list[list[str]]]:
    parser = _Tables()
    parser.feed(text)
    return {name: rows for name, rows in parser.tables.items() if rows}


def numbers(lines: Sequence[str]) -> list[str]:
    return _NUMBERS.findall(" ".join(lines))


def body_of_latex(text: str) -> str:
    text = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    return text.replace(r"\textasciitilde{}", "~")


def body_of_markdown(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("|")).split("\n", 2)[2]


def test_all_renderings_show_the_same_numbers(mixed: Any, tmp_path: Path) -> None:
    document = make_document(results_of(mixed), ALL)
    out = tmp_path / "out"
    shown = cells_of_page(page(document))
    names = {table.name for table in document.tables}
    assert set(shown) == names == {file.stem for file in write_tables(document, out) if file.suffix == ".csv"}
    for table in document.tables:
        expected = [[column.title for column in table.columns], *map(list, table.rows)]
        assert list(csv.reader(io.StringIO((out / f"{table.name}.csv").read_text()))) == expected
        assert shown[table.name] == expected
        of_cells = [number for row in table.rows for number in numbers(row)]
        assert numbers([body_of_latex((out / f"{table.name}.tex").read_text())]) == of_cells
        assert numbers([body_of_markdown((out / f"{table.name}.md").read_text())]) == of_cells


def test_everything_is_written(mixed: Any, tmp_path: Path) -> None:
    document = make_document(results_of(mixed), ALL)
    files = {file.name for file in write_document(document, tmp_path / "out")}
    wanted = {"index.html"}
    wanted |= {f"{table.name}{suffix}" for table in document.tables for suffix in (".md", ".tex", ".csv")}
    wanted |= {f"{figure.name}{suffix}" for figure in document.figures for suffix in (".svg", ".pdf", ".png")}
    assert files == wanted == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "tradeoff.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(mixed: Any, tmp_path: Path) -> None:
    mixed.failed("sbs", 9, "50% of _x_ & $y$ #1 {a} ~ ^ \\ é → 漢 \U0001f600 " + EVIL)
    document = make_document(results_of(mixed), ALL)
    write_document(document, tmp_path)
    text = load("forms", "latex").render(document, 100)
    inputs = "".join(rf"\input{{{table.name}.tex}}\clearpage " for table in document.tables)
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}"
    (tmp_path / "all.tex").write_text(rf"{head}\begin{{document}}{inputs}\end{{document}}")
    (tmp_path / "whole.tex").write_text(f"{head}\\begin{{document}}\n{text}\n\\end{{document}}")
    for name in ("all.tex", "whole.tex"):
        done = subprocess.run(
            [str(shutil.which("pdflatex")), "-interaction=nonstopmode", "-halt-on-error", name],
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


# --- the page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("71.20±0.31", 71.2),
        ("[0.10, 0.74]", 0.1),
        ("[-1.25, +0.74]", -1.25),
        ("+1.33", 1.33),
        ("-0.50", -0.5),
        ("−0.50", -0.5),
        ("1/3", 1.0),
        ("1.5e-03", 0.0015),
        ("12", 12.0),
    ],
)
def test_cells_sort_by_their_first_number(text: str, number: float) -> None:
    assert float(sort_value(text)) == number


def test_cells_without_a_number_sort_by_none() -> None:
    assert [sort_value(text) for text in ("", "baseline", "n<6", "yes")] == [""] * 4
    assert float(sort_value("<0.001")) < 0.001


@pytest.fixture
def hostile(tmp_path: Path) -> Any:
    """A study whose budgets, reasons, layers and options are markup."""
    fake = fake_store.mixed(tmp_path / "store")
    fake.failed("sbs", 9, EVIL)
    for number, run in enumerate(fake.seeds("sbs", [70.0, 75.0, 71.0], budget="EVIL")):
        record = fake.store.record("runs", run)
        fake.store.write_record("runs", run, record | {"budget": EVIL, "versions": {EVIL: EVIL}})
        policy = {"model": "m", "dataset": "d", "layers": {EVIL: layer(2 + number, 4, [0, 1])}}
        write_json(fake.store.unit("runs", run) / "policy.json", policy)
    return fake


def without_libraries(text: str) -> str:
    """A page without what stands in its scripts and style sheets."""
    return re.sub(r"(<(script|style)[^>]*>).*?</\2>", r"\1", text, flags=re.DOTALL)


def test_nothing_of_a_study_becomes_markup(hostile: Any) -> None:
    text = page(make_document(results_of(hostile), ALL))
    assert "<script>alert" not in text and "<img" not in without_libraries(text)
    assert "&lt;script&gt;alert(1)" in text and r"\u003c/script\u003e" in text
    data = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert data is not None and EVIL in json.dumps(json.loads(data[1]), ensure_ascii=False)
    assert cells_of_page(text)["failures"][-1][2] == EVIL


def test_the_page_names_no_other_place(mixed: Any) -> None:
    text = page(make_document(results_of(mixed), ALL))
    assert not re.findall(r"<(?:script|img|iframe|object|embed)[^>]*\ssrc=", without_libraries(text))
    targets = re.findall(r'href="([^"]*)"', without_libraries(text))
    assert len(targets) > 10 and all(target.startswith(("#", "data:,")) for target in targets)
    assert "default-src 'none'" in html.unescape(text)
    assert len(text) < 4e6


def test_the_examples_of_the_documentation_work(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    blocks = re.findall(r"(?m)^    (?:class|JSON) .*\n(?:(?:    .*)?\n)*?(?=\S|    \[)", text)
    names: dict[str, Any] = dict(vars(bench_report)) | {"json": json}
    for block in blocks:
        exec(textwrap.dedent(block), names)  # noqa: S102  (our own documentation)
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    table = names["Slowest"]().build(results_of(fake))[0]
    assert table.rows == (("fixed-4bit-0", "30"), ("fixed-4bit-1", "30"))
    document = make_document(results_of(fake), ["provenance"])
    assert list(json.loads(names["JSON"].render(document, 100))) == ["provenance"]


def test_cost_is_what_budgets_limit(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    latency = {"budget_measure": "latency", "budget_cost": 2.0}
    fake.seeds("sbs", [70.0, 71.0], budget="2ms", metrics={"latency_ms": 1.96, "cost": 1.96}, **latency)
    fake.seeds("sbs", [75.0], budget="40KB", metrics={"memory_kb": 39.0}, budget_measure="memory", budget_cost=40.0)
    fake.seeds("full_precision", [80.0], budget=None, metrics={"memory_kb": 300.0})
    assert set(figures_of(Tradeoff(), fake)) == {"tradeoff_memory", "tradeoff_latency"}
    table = table_of(Tradeoff(), fake, "pareto_latency")
    assert [(row["Method"], row["Latency ms"], row["Memory KB"]) for row in records(table)] == [
        ("sbs", "1.9600", "33.2")
    ]
    memory = records(table_of(Tradeoff(), fake, "pareto_memory"))
    assert [(row["Method"], row["Memory KB"]) for row in memory] == [("sbs", "39.0"), ("full_precision", "300.0")]
    compared = records(table_of(Comparison(), fake, "table"))
    assert [(row["Budget"], row["Latency ms"], row["% of budget"]) for row in compared[:1]] == [
        ("2ms", "1.9600", "98.0")
    ]
    assert "Energy mJ" not in compared[0]
