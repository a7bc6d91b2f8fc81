"""The report of what the paper's own figures tell apart."""

from pathlib import Path

from reports.printed_differences import PrintedDifferences
from tests import fake_store
from tests.reports.reading import records, results_of, table_of


def test_a_study_that_repeats_a_table_shows_its_printed_differences(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path, spec={"published": "1"})
    rows = records(table_of(PrintedDifferences(), fake, "printed-differences"))
    row = next(row for row in rows if (row["Model"], row["B"]) == ("resnet20", "fixed"))
    assert (row["A"], row["A, printed"], row["B, printed"], row["A − B"]) == ("sbs", "68.1±0.3", "67.8±0.3", "+0.3")
    assert (row["95 % interval"], row["p"], row["Runs needed"]) == ("[-0.14, +0.74]", "0.153", "17")
    exact = next(row for row in rows if (row["Model"], row["B"]) == ("resnet56", "dq"))
    assert (exact["A − B"], exact["Told apart"]) == ("+0.9", "yes")


def test_other_studies_and_tables_without_deviations_have_no_such_table(tmp_path: Path) -> None:
    fake = fake_store.FakeStore(tmp_path)
    assert not PrintedDifferences().build(results_of(fake))
    fake.spec["published"] = "3"
    assert not PrintedDifferences().build(results_of(fake))
