"""The comparison table: its numbers, its notes, and that all forms show the same."""

import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.costs.measures import MEASURES, Bops, Energy, Latency, Measure, Memory
from bench.errors import BenchError
from bench.outputs.escaping import in_latex
from bench.plugins.entry_points import available
from bench.plugins.registry import load
from bench.reporting.report import Column, Table, make_document, write_tables
from bench.results.statistics import smallest_detectable
from bench.results.tables import StudyResults
from bench.store.files import write_json
from reports.comparison import Comparison, comparison_table
from reports.forms.text import comma_separated, latex, markdown, terminal
from tests import fake_store

SBS = [71.0, 72.5, 73.0, 71.5, 72.0, 73.5]
FIXED = [70.0, 71.0, 72.0, 70.5, 70.0, 72.0]


def table_of(fake: SimpleNamespace, **spec: object) -> Table:
    return Comparison().build(StudyResults(fake.store, fake.document(**spec)))[0]


def cell(table: Table, method: str, title: str, budget: str = "4bit") -> str:
    titles = [column.title for column in table.columns]
    rows = [row for row in table.rows if row[0] == method and row[1] == budget]
    return rows[0][titles.index(title)]


def notes(table: Table) -> str:
    return "\n".join(table.explained())


@pytest.fixture
def mixed(tmp_path: Path) -> SimpleNamespace:
    return fake_store.mixed(tmp_path)


def test_figures_of_a_row(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert table.title == "quick: resnet8 on digits"
    assert cell(table, "sbs", "Top-1 %") == "73.00±1.32"
    assert cell(table, "sbs", "95 % interval") == "[69.71, 76.29]"
    assert cell(table, "sbs", "BOPs (M)") == "39.50±0.00"
    assert cell(table, "sbs", "% of budget") == "98.8"
    assert cell(table, "sbs", "In budget") == "yes"
    assert cell(table, "dnas", "In budget") == "below the window (98.8 %)"
    assert cell(table, "sbs", "Search s") == "11.0"
    assert cell(table, "sbs", "Tuning s") == "45.0"
    assert cell(table, "sbs", "Peak MB") == "202"


def test_the_table_shows_the_numbers_of_results_csv(mixed: SimpleNamespace) -> None:
    table, document = table_of(mixed), mixed.document()
    for line in StudyResults(mixed.store, document).lines.to_dict("records"):
        shown = cell(table, line["method"], "Top-1 %", line["budget"])
        assert shown.split("±")[0] == f"{line['top1_mean']:.2f}"


def test_failed_runs_show_in_n_and_with_their_reasons(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert cell(table, "dnas", "n") == "1/3"
    assert "dnas 4bit: 1 failed (seed 2): NaN loss" in table.notes
    assert "dnas 4bit: 1 unreachable (seed 1): the cheapest policy costs 44.1 M" in table.notes
    assert "To try failed runs again: --retry failed" in table.notes
    mixed.run("dnas", 4, status="diverged", reason="the loss became nan")
    changes = " ".join(f"--set {stage}.max_grad_norm=5" for stage in ("pretrain", "search", "finetune"))
    assert f"To try failed runs again: --retry diverged,failed {changes}" in table_of(mixed).notes


def test_one_run_has_no_deviation_and_no_interval(mixed: SimpleNamespace) -> None:
    mixed.run("haq", 0, 69.0)
    table = table_of(mixed)
    assert cell(table, "haq", "Top-1 %") == "69.00"
    assert cell(table, "haq", "95 % interval") == ""
    assert cell(table, "haq", "Δ fixed") == "-1.00"
    assert cell(table, "haq", "Δ 95 % interval") == ""


OUTSIDE = {"within_budget": False, "metrics": {"bops": 22.76e6}}
"""56.9 % of the made-up budget of 40 M."""


def test_a_baseline_outside_the_window_is_no_baseline(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED)
    fake.seeds("sbs", SBS)
    fake.seeds("fixed", [26.0] * 6, budget="20KB", **OUTSIDE)
    fake.seeds("sbs", [71.1] * 6, budget="20KB")
    table = table_of(fake)
    assert cell(table, "sbs", "Top-1 %", "20KB") == "71.10±0.00"
    for title in ("Δ fixed", "Δ 95 % interval", "p"):
        assert cell(table, "sbs", title, "20KB") == ""
    assert cell(table, "sbs", "p") == "0.031"  # the only test, so Holm changes nothing
    said = notes(table)
    assert "so without difference and test, as nothing else has this cost: fixed 20KB (6 runs, 56.9 %)" in said
    assert "No difference because the baseline is outside the window: sbs 20KB" in said
    assert "Holm-corrected over the table's 1 test\n" in said
    assert cell(table, "sbs", "Detectable") and not cell(table, "sbs", "Detectable", "20KB")
    assert table.headline == ("4bit: Better than fixed: sbs +1.33 [+0.90, +1.76].",)


def test_only_pairs_inside_the_window_count(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED)
    fake.seeds("sbs", SBS[:3])
    fake.run("sbs", 3, 99.0, within_budget=False, metrics={"bops": 41e6})
    table = table_of(fake)
    expected = sum(sbs - fixed for sbs, fixed in zip(SBS[:3], FIXED[:3], strict=True)) / 3
    assert cell(table, "sbs", "Δ fixed") == f"{expected:+.2f}"
    assert cell(table, "sbs", "In budget") == "over (102.5 %)"
    assert "sbs 4bit (1 run, 102.5 %)" in notes(table)


def test_a_method_at_its_costliest_is_not_out_of_budget(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    fake.seeds("sbs", [72.0, 73.0], **OUTSIDE)
    document = fake.document()
    most = {"model": "resnet8", "dataset": "digits", "method": "sbs", "budget": "4bit", "cost": 22.76e6}
    results = StudyResults(fake.store, {**document, "costliest": [most]})
    table = Comparison().build(results)[0]
    assert cell(table, "sbs", "In budget") == "at most 56.9 %"
    assert cell(table, "sbs", "Δ fixed") == ""
    assert "Below the window because no network of the method costs more" in notes(table)
    assert list(results.lines["within_budget"]) == [True, True]
    below = StudyResults(fake.store, {**document, "costliest": [most | {"cost": 30e6}]})
    assert cell(Comparison().build(below)[0], "sbs", "In budget") == "below the window (56.9 %)"


def test_equal_pairs_have_no_interval_and_detect_nothing(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    fake.seeds("sbs", [71.0, 72.0])
    table = table_of(fake)
    assert (cell(table, "sbs", "Δ fixed"), cell(table, "sbs", "Δ 95 % interval")) == ("+1.00", "")
    assert "all of them are equal, which shows no scatter" in notes(table)
    assert cell(table, "sbs", "Detectable") == ""


@pytest.mark.parametrize("measure", [Memory, Latency, Energy, Bops])
def test_the_limited_cost_comes_first_and_always_stays(tmp_path: Path, measure: type[Measure]) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("prune_then_quantize", [70.0, 71.0], budget_measure=measure.name, metrics={measure.column: 39.5})
    fake.seeds("full_precision", [70.0, 71.0], budget=None)
    table = table_of(fake)
    costs = [column.title for column in table.columns if column.title in {kind.title for kind in MEASURES.values()}]
    assert costs[0] == measure.title
    assert set(costs) == {measure.title, Bops.title, Memory.title}
    for width in (80, 200):
        heading = " ".join(terminal(table, width).splitlines()[:5])
        assert measure.title.split()[0] in heading


FLAG = "its searches start 44 points below the others"


def test_a_flagged_row_has_a_mark_and_no_test(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED)
    fake.seeds("sbs", SBS)
    fake.seeds("dnas", [value - 1 for value in SBS])
    results = StudyResults(fake.store, fake.document())
    assert cell(comparison_table(results), "sbs", "p") == "0.062"
    table = comparison_table(results, {("resnet8", "digits", "dnas", "4bit"): [FLAG, "second"]})
    assert cell(table, "dnas", "Δ fixed") == "+0.33" and cell(table, "dnas", "p") == "†"
    assert cell(table, "sbs", "p") == "0.031"  # Holm's family has only this test
    assert f"† dnas 4bit: {FLAG}; second" in table.notes
    table = comparison_table(results, {("resnet8", "digits", "fixed", "4bit"): [FLAG]})
    assert {cell(table, name, "p") for name in ("sbs", "dnas")} == {""}
    assert "No tests where the baseline has the mark †" in table.notes


def test_the_effort_of_searches_is_noted(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0])
    for run in fake.seeds("haq", [71.0, 72.0]):
        write_json(fake.store.unit("runs", run) / "search.json", {"effort": "40 episodes, 1,000 reward images"})
    assert "Effort of a search: haq 4bit 40 episodes, 1,000 reward images" in table_of(fake).notes


def test_references_have_no_budget_and_no_difference(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    for title in ("Δ fixed", "p", "% of budget", "In budget"):
        assert cell(table, "full_precision", title, budget="") == ""
    assert "References without a budget: full_precision" in table.notes


def test_methods_that_their_papers_train_once_are_marked(mixed: SimpleNamespace) -> None:
    document = mixed.document()
    said = "Trained once in their papers, here searched and then fine-tuned like all others: sbs"
    for known, expected in ((None, False), ([], False), (["sbs", "not in the table"], True)):
        results = StudyResults(mixed.store, document if known is None else {**document, "one_stage": known})
        assert (said in Comparison().build(results)[0].notes) is expected


def test_notes_say_what_is_missing_and_how_it_was_matched(mixed: SimpleNamespace) -> None:
    text = notes(table_of(mixed))
    assert "3 of 14 runs without a result yet: 1 running, 1 missing, 1 damaged" in text
    assert "The record of run cut-off is damaged" in text
    assert "Matching: dual, cost within [0.97, 1.00] of the budget. Recipe: common. Seeds: 0, 1, 2" in text
    assert (
        "Outside the window of the budget, so without difference and test, as nothing else has this cost: dnas" in text
    )


def test_few_pairs_get_no_p(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert cell(table, "sbs", "p") == "n<6"
    assert cell(table, "fixed", "p") == ""
    assert "n<6: too few pairs for a test" in table.explained()
    assert not any(note.startswith("p: ") for note in table.explained())


def test_differences_are_paired_by_seed_and_holm_corrected(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED)
    fake.seeds("sbs", SBS)
    for seed, top1 in enumerate(FIXED):
        fake.run("dnas", seed, top1 - 0.5 * (-1) ** seed)
    table = table_of(fake)
    assert cell(table, "fixed", "Δ fixed") == "baseline"
    assert cell(table, "sbs", "Δ fixed") == "+1.33"
    assert cell(table, "sbs", "p") == "0.062"  # 2 / 2^6 as the smaller of two
    assert cell(table, "dnas", "Δ fixed") in ("+0.00", "-0.00")
    assert cell(table, "dnas", "p") == "1.000"
    assert "Holm-corrected over the table's 2 tests" in notes(table)


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", FIXED)
    fake.failed("sbs", 0, "out of memory")
    fake.run("sbs", 1, 73.0)
    fake.run("sbs", 9, 99.0)
    table = table_of(fake)
    assert cell(table, "sbs", "Δ fixed") == "+2.00"
    assert cell(table, "sbs", "p") == "n<6"


def test_each_budget_has_its_own_baseline(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for budget, top1 in (("4bit", 70.0), ("2bit", 60.0)):
        fake.seeds("fixed", [top1, top1], budget=budget)
        fake.seeds("sbs", [top1 + 1, top1 + 3], budget=budget)
    table = table_of(fake)
    assert cell(table, "sbs", "Δ fixed", "4bit") == cell(table, "sbs", "Δ fixed", "2bit") == "+2.00"


def test_a_baseline_without_budget_serves_every_budget(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("full_precision", [80.0, 80.0], budget=None)
    fake.seeds("sbs", [79.0, 79.5])
    table = table_of(fake, baseline="full_precision")
    assert cell(table, "sbs", "Δ full_precision") == "-0.75"


def test_a_study_without_its_baseline_says_so(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", SBS)
    table = table_of(fake)
    assert cell(table, "sbs", "p") == ""
    assert "No differences: the baseline 'fixed' has no finished run in this study" in table.notes


def test_the_smallest_detectable_difference_is_shown(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 70.0, 70.0])
    fake.seeds("sbs", [71.0, 72.0, 73.0])
    assert cell(table_of(fake), "sbs", "Detectable") == f"{smallest_detectable(1.0, 3):.2f}"


def test_nothing_run_yet_is_a_table_too(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.missing("a")
    fake.run("sbs", 1, status="unreachable", reason="too dear")
    table = table_of(fake)
    assert cell(table, "sbs", "Top-1 %") == ""
    assert "1 of 2 runs without a result yet: 1 missing" in table.notes
    document = make_document(StudyResults(fake.store, fake.document()), ["comparison"])
    for form in available("forms"):
        assert "sbs" in load("forms", form).render(document, 120)


def test_small_counts_keep_their_digits(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.run("sbs", 0, 50.0, metrics={"bops": 12_300.0})
    assert cell(table_of(fake), "sbs", "BOPs (M)") == "0.0123"


# ------------------------------------------------------------------------------- the pretrained network


def pretrained(fake: SimpleNamespace, seed: int, top1: float, **fields: object) -> str:
    """Add a pretraining and return its id; that of a tuning's seed has no test accuracy."""
    figures = {"validation_top1": 99.0, "top1": top1, "top5": 99.0, "bops": 2.5e9, "memory_kb": 300.0}
    metrics = figures if seed < 1_000_000 else {"validation_top1": 99.0}
    record = {"id": f"pretrained-{seed}", "kind": "pretrained", "status": "done", "reason": None, "model": "resnet8"}
    record |= {"dataset": "digits", "seed": seed, "metrics": metrics, "files": {}}
    record |= {"fingerprint": fake_store.made_with("fixed"), **fields}
    fake.store.write_record("pretrained", record["id"], record)
    return str(record["id"])


def with_pretrained(fake: SimpleNamespace, *identities: str, **document: object) -> Table:
    return Comparison().build(StudyResults(fake.store, {**fake.document(), "pretrained": identities, **document}))[0]


def test_without_a_reference_the_pretrained_networks_are_the_last_row(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    known = [pretrained(fake, seed, top1) for seed, top1 in ((0, 68.0), (1, 69.0), (1_000_000, 0.0))]
    table = with_pretrained(fake, *known)
    assert [row[0] for row in table.rows] == ["fixed", "pretrained"]
    assert cell(table, "pretrained", "Top-1 %", "") == "68.50±0.71" and cell(table, "pretrained", "n", "") == "2"
    assert cell(table, "pretrained", "BOPs (M)", "") == "2500.00±0.00"
    assert cell(table, "pretrained", "Memory KB", "") == "300.0"
    for title in ("Δ fixed", "p", "In budget", "Search s", "Tuning s", "Peak MB"):
        assert cell(table, "pretrained", title, "") == ""
    assert "not trained any further; full_precision among --methods is a reference" in notes(table)
    for form in available("forms"):
        document = make_document(
            StudyResults(fake.store, {**fake.document(), "pretrained": known}), ["comparison", "provenance"]
        )
        assert "68.50±0.71" in load("forms", form).render(document, 120).replace(r"$\pm$", "±")


def test_a_study_with_the_reference_or_without_figures_has_no_such_row(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("fixed", [70.0, 71.0])
    ablated = pretrained(fake, 0, 68.0)
    assert len(with_pretrained(fake, ablated).rows) == 2
    assert len(with_pretrained(fake, ablated, titles={ablated: "pretrain[lr=1] seed 0"}).rows) == 1
    assert len(with_pretrained(fake, pretrained(fake, 2, 68.0, status="failed")).rows) == 1
    other = fake_store.made_with("fixed") | {"data_checksum": "e" * 64}
    assert len(with_pretrained(fake, pretrained(fake, 3, 68.0, fingerprint=other)).rows) == 1
    assert len(with_pretrained(fake, "missing", pretrained(fake, 1_000_000, 0.0)).rows) == 1
    fake.seeds("full_precision", [80.0], budget=None)
    assert [row[0] for row in with_pretrained(fake, ablated).rows] == ["fixed", "full_precision"]


# ------------------------------------------------------------------------------------------- forms


def plain(text: str) -> str:
    """LaTeX and Markdown without their markup, for comparing what a reader sees."""
    for command, sign in (
        (r"$\pm$", "±"),
        (r"$\dagger$", "†"),
        ("$-$", "-"),
        (r"\textless{}", "<"),
        ("{[}", "["),
        ("{]}", "]"),
    ):
        text = text.replace(command, sign)
    return text.replace(r"$\Delta$", "Δ").replace("\\", "")


def rows_of_latex(text: str) -> list[list[str]]:
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    return [[part.strip() for part in plain(line).split(" & ")] for line in lines]


def rows_of_markdown(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\| -", line)]
    return [[part.strip() for part in plain(line)[2:-2].split(" | ")] for line in lines]


def test_all_forms_show_the_same_cells(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    expected = [[column.title for column in table.columns], *map(list, table.rows)]
    assert list(csv.reader(io.StringIO(comma_separated(table)))) == expected
    assert rows_of_markdown(markdown(table)) == expected
    assert rows_of_latex(latex(table)) == expected
    shown = terminal(table, 300)
    for row in table.rows:
        assert any(line.split() == " ".join(row).split() for line in shown.splitlines())


def test_notes_are_in_every_form_with_notes(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert table.headline
    for note in (*table.headline, *table.explained()):
        assert note in plain(markdown(table)) and note in plain(terminal(table, 300))
        assert note in plain(latex(table)).replace("''", '"')


def test_notes_explain_only_columns_that_are_shown() -> None:
    columns = (Column(title="name", align="left"), Column(title="x" * 30, drop=1, note="x is wide"))
    table = Table(name="t", title="t", columns=columns, rows=(("a", "1"), ("b", "2")), notes=("own",))
    assert table.explained() == ["x is wide", "own"]
    assert "x is wide" in terminal(table, 60) and "x is wide" not in terminal(table, 20)
    assert "Left out at this width" in " ".join(terminal(table, 20).split())


def test_columns_that_distinguish_nothing_are_dropped_first() -> None:
    columns = (Column(title="name", align="left"), Column(title="same", drop=1), Column(title="other", drop=9))
    table = Table(name="t", title="t", columns=columns, rows=(("a", "yes", "1"), ("b", "yes", "2")))
    shown = terminal(table, 17)
    assert "other" in shown and "same (yes in all rows)" in " ".join(shown.split())


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_terminal_form_keeps_to_the_width(mixed: SimpleNamespace, width: int) -> None:
    mixed.seeds("prune_then_quantize", [71.2, 71.9])
    lines = terminal(table_of(mixed), width).splitlines()
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "71.55±0.49" in line)
    assert "+1.05 [-0.86, +2.96]" in " ".join(row.split()) and "39.50±0.00" in row and "10.5" in row


def test_a_narrow_terminal_names_what_it_leaves_out(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert "p (n<6 in all rows)" in " ".join(terminal(table, 100).split())
    assert "Left out" not in terminal(table, 240)
    # Too narrow for even the columns that always stay: cells are folded, none is lost.
    assert max(map(len, terminal(table, 50).splitlines())) <= 50


def test_the_terminal_form_shows_brackets_as_they_are() -> None:
    table = Table(name="t", title="[bold]t", columns=(Column(title="[red]"),), rows=(("[1, 2]",),), notes=("[dim]n",))
    shown = terminal(table, 60)
    assert "[bold]t" in shown and "[red]" in shown and "[1, 2]" in shown and "[dim]n" in shown


def test_latex_is_escaped() -> None:
    assert in_latex("prune_then_quantize 50% & #1 {a} $x$ ~ ^ \\") == (
        r"prune\_then\_quantize 50\% \& \#1 \{a\} \$x\$ \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert in_latex("-0.50 seed-2 [-1, *]") == r"$-$0.50 seed-2 {[}$-$1, {*}{]}"
    text = latex(Table(name="t", title="100% a_b", columns=(Column(title="x_y", align="left"),), rows=(("[a]",),)))
    assert r"\caption{100\% a\_b}" in text and r"\begin{tabular}{l}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_markdown_is_escaped() -> None:
    notes = ("<class 'x'>\nlost *w* _v_ a_b",)
    table = Table(name="t", title="t", columns=(Column(title="a|b"),), rows=(("n<6",),), notes=notes)
    text = markdown(table)
    assert r"a\|b" in text and "n<6" in text
    assert r"- \<class 'x'>\\nlost \*w\* \_v\_ a_b" in text


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 2 cells in a table of 1 columns"):
        Table(name="t", title="t", columns=(Column(title="a"),), rows=(("1", "2"),))


def test_an_unknown_form_names_the_nearest(mixed: SimpleNamespace) -> None:
    with pytest.raises(BenchError, match="did you mean 'markdown'"):
        load("forms", "markdwn")


def test_tables_are_written_beside_the_study(mixed: SimpleNamespace) -> None:
    document = mixed.document()
    results = StudyResults(mixed.store, document)
    files = write_tables(make_document(results, ["comparison"]), mixed.store.study("quick"))
    assert {file.name for file in files} == {"table.md", "table.tex", "table.csv"}
    folder = mixed.store.study("quick")
    assert (folder / "table.md").read_text() == markdown(table_of(mixed))
    assert json.loads((folder / "study.json").read_text()) == document


@pytest.mark.parametrize(("knobs", "trials", "few"), [(3, 8, True), (3, 9, False), (2, 5, True), (1, 1, False)])
def test_few_trials_for_several_knobs_are_told(tmp_path: Path, knobs: int, trials: int, few: bool) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 71.0])
    identity = fake.tuning("sbs", [0.1] * trials)
    record = fake.store.record("tuning", identity)
    fake.store.write_record("tuning", identity, record | {"knobs": {f"knob {index}": 0.1 for index in range(knobs)}})
    said = f"Few trials for several knobs, more may well change the row: sbs 4bit ({knobs})"
    assert (said in table_of(fake).notes) == few


def test_the_table_says_what_repair_did(mixed: SimpleNamespace) -> None:
    table = table_of(mixed)
    assert cell(table, "sbs", "Repaired") == "1.0"
    assert cell(table, "full_precision", "Repaired", "") == ""
    assert "Repaired: choices of a policy that repair changed to meet the budget, mean of a run" in notes(table)


def test_rows_are_ranked_within_their_budget_and_references_come_last(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("full_precision", [80.0], budget=None)
    for budget, values in (("3bit", {"fixed": 60.0, "sbs": 61.0}), ("4bit", {"sbs": 70.0, "fixed": 72.0})):
        for method, top1 in values.items():
            fake.seeds(method, [top1], budget=budget)
    fake.run("dnas", 0, status="failed", budget="3bit")
    assert [row[:2] for row in table_of(fake).rows] == [
        ("sbs", "3bit"),
        ("fixed", "3bit"),
        ("dnas", "3bit"),
        ("fixed", "4bit"),
        ("sbs", "4bit"),
        ("full_precision", ""),
    ]


def test_no_interval_of_an_accuracy_leaves_its_range(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [99.0, 97.0])
    fake.seeds("fixed", [1.0, 3.0])
    table = table_of(fake)
    assert cell(table, "sbs", "95 % interval") == "[85.29, 100.00]"
    assert cell(table, "fixed", "95 % interval") == "[0.00, 14.71]"


def test_the_terms_of_the_comparison_are_stated(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 71.0], metrics={"trained_updates": 250, "start_top1": 52.0})
    fake.seeds("fixed", [70.0, 70.0], metrics={"trained_updates": 250})
    expected = (
        "Terms: 250 updates of every network after pretraining; searches start at 52.0 %; "
        "100 % of the runs met the budget with at most 2 choices repaired"
    )
    assert expected in notes(Comparison().build(StudyResults(fake.store, fake.document()))[0])
