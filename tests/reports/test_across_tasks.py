"""The table over several tasks."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.reporting.report import DEFAULT_REPORT, Table, make_document
from bench.results.tables import StudyResults
from bench.results.task_statistics import interquartile_mean, probability_of_improvement
from reports.across_tasks import AcrossTasks
from tests import fake_store

FIXED = {"resnet8": [70.0, 71.0, 72.0], "resnet20": [80.0, 82.0, 81.0], "resnet56": [85.0, 84.0, 86.0]}
SBS = {"resnet8": [71.0, 71.5, 71.9], "resnet20": [82.0, 82.0, 83.0], "resnet56": [85.5, 85.0, 85.5]}
DNAS = {"resnet8": [69.0, 70.0, 72.5], "resnet20": [80.0, 81.0, 81.5], "resnet56": [86.0, 87.0, 86.5]}


def add(fake: SimpleNamespace, method: str, figures: dict[str, list[float]], **fields: object) -> None:
    for model, values in figures.items():
        for seed, value in enumerate(values):
            fake.run(method, seed, value, model=model, id=f"{method}-{model}-{fields.get('budget')}-{seed}", **fields)


@pytest.fixture
def three(tmp_path: Path) -> SimpleNamespace:
    fake = fake_store.FakeStore(tmp_path, spec={"methods": ["fixed", "sbs", "dnas", "full_precision"]})
    for method, figures in (("fixed", FIXED), ("sbs", SBS), ("dnas", DNAS)):
        add(fake, method, figures)
    add(fake, "full_precision", {"resnet8": [90.0], "resnet20": [91.0]}, budget=None)
    return fake


def table_of(fake: SimpleNamespace, **spec: object) -> Table:
    (table,) = AcrossTasks().build(StudyResults(fake.store, fake.document(**spec)))
    return table


def row_of(table: Table, method: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0] == method)
    return dict(zip((column.title for column in table.columns), row, strict=True))


def test_figures_of_a_row(three: SimpleNamespace) -> None:
    table = table_of(three)
    assert table.title == "quick: 3 tasks (resnet8 on digits, resnet20 on digits, resnet56 on digits)"
    row = row_of(table, "sbs")
    assert (row["Tasks"], row["Runs"], row["Budget"]) == ("3", "9", "4bit")
    assert row["IQM Top-1 %"] == f"{interquartile_mean(list(SBS.values())).value:.2f}"
    pairs = [[a - b for a, b in zip(SBS[model], FIXED[model], strict=True)] for model in SBS]
    expected = interquartile_mean(pairs)
    assert row["IQM Δ fixed"] == f"{expected.value:+.2f}"
    assert row["Δ 95 % interval"] == f"[{expected.interval.low:+.2f}, {expected.interval.high:+.2f}]"
    better = probability_of_improvement(list(SBS.values()), list(FIXED.values()))
    assert row["P > fixed"] == f"{better.value:.2f}"
    assert row["P 95 % interval"] == f"[{better.interval.low:.2f}, {better.interval.high:.2f}]"


def test_ranks_are_those_of_the_means_task_by_task(three: SimpleNamespace) -> None:
    table = table_of(three)
    # Means: resnet8 71, 71.47, 70.5; resnet20 81, 82.33, 80.83; resnet56 85, 85.33, 86.5.
    assert row_of(table, "fixed")["Mean rank"] == f"{(2 + 2 + 3) / 3:.2f}"
    assert row_of(table, "sbs")["Mean rank"] == f"{(1 + 1 + 2) / 3:.2f}"
    assert row_of(table, "dnas")["Mean rank"] == f"{(3 + 3 + 1) / 3:.2f}"
    assert row_of(table, "full_precision")["Mean rank"] == ""


def test_the_baseline_is_not_compared_with_itself(three: SimpleNamespace) -> None:
    row = row_of(table_of(three), "fixed")
    assert (row["IQM Δ fixed"], row["Δ 95 % interval"], row["P > fixed"]) == ("baseline", "", "")


def test_a_method_that_lacks_a_task_is_named(three: SimpleNamespace) -> None:
    table = table_of(three)
    assert "Not on all tasks, hence not comparable with the others: full_precision" in table.notes
    row = row_of(table, "full_precision")
    assert (row["Tasks"], row["Runs"], row["IQM 95 % interval"], row["P > fixed"]) == ("2", "2", "", "")


def test_ranks_are_over_the_tasks_that_all_have(three: SimpleNamespace) -> None:
    add(three, "cost_only", {"resnet8": [99.0], "resnet20": [10.0]})
    table = table_of(three)
    assert row_of(table, "cost_only")["Mean rank"] == f"{(1 + 4) / 2:.2f}"
    assert row_of(table, "sbs")["Mean rank"] == f"{(2 + 1) / 2:.2f}"


def test_differences_are_paired_by_seed_and_failures_are_left_out(three: SimpleNamespace) -> None:
    three.run("sbs", 7, 99.0, model="resnet8", id="sbs-extra")  # its partner is missing
    three.failed("sbs", 8, "NaN loss", model="resnet8")
    row = row_of(table_of(three), "sbs")
    pairs = [[a - b for a, b in zip(SBS[model], FIXED[model], strict=True)] for model in SBS]
    assert row["IQM Δ fixed"] == f"{interquartile_mean(pairs).value:+.2f}"
    assert row["Runs"] == "10"


def test_a_study_of_one_task_has_none(tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path)
    assert AcrossTasks().build(StudyResults(fake.store, fake.document())) == []


def test_a_second_task_without_results_does_not_count(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    fake.seeds("sbs", [70.0, 71.0])
    fake.failed("sbs", 5, "NaN loss", model="resnet20")
    assert AcrossTasks().build(StudyResults(fake.store, fake.document())) == []


def test_without_the_baseline_it_says_so(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    add(fake, "sbs", SBS)
    table = table_of(fake)
    assert "No differences: the baseline 'fixed' has no finished run in this study" in table.notes
    assert row_of(table, "sbs")["Mean rank"] == ""


def test_each_data_set_is_a_task_of_its_own(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    for dataset in ("digits", "cifar10"):
        fake.run("sbs", 0, 70.0, dataset=dataset, id=f"sbs-{dataset}")
    assert table_of(fake).title.startswith("quick: 2 tasks (resnet8 on digits, resnet8 on cifar10)")


def test_it_stands_beside_the_comparison(three: SimpleNamespace, plugin: object) -> None:
    plugin("reports", "across_tasks", AcrossTasks)  # type: ignore[operator]
    document = make_document(StudyResults(three.store, three.document()), [DEFAULT_REPORT, "across_tasks"])
    assert [section.name for section in document.sections] == ["comparison", "across_tasks"]


def test_runs_outside_the_window_are_part_of_no_figure(three: SimpleNamespace) -> None:
    outside = {"within_budget": False, "metrics": {"bops": 20e6}}
    add(three, "fixed", {name: [26.0] * 3 for name in FIXED}, budget="20KB", **outside)
    add(three, "sbs", SBS, budget="20KB")
    table = table_of(three)
    assert [row[0] for row in table.rows if row[1] == "20KB"] == ["sbs"]
    (row,) = [row for row in table.rows if row[1] == "20KB"]
    cells = dict(zip((column.title for column in table.columns), row, strict=True))
    assert cells["IQM Δ fixed"] == cells["P > fixed"] == cells["Mean rank"] == ""
