"""Write the tests of the paper's printed differences into `docs/paper.md`.

    .venv/bin/python docs/make_printed_differences.py

The table replaces what stands between `<!-- printed differences -->` and `<!-- end -->`.
"""

from dataclasses import replace
from pathlib import Path

from make_results import fill_in, markdown

from bench.reporting.report import Column, Document, Section, Table
from bench.results.printed_differences import printed_differences
from reports.printed_differences import printed_table

PAGE = Path(__file__).resolve().parent / "paper.md"
_TABLES = (*map(str, range(1, 13)), "I")


def joined() -> Table:
    """Make one table of the differences in all tables of the paper."""
    tables = [(number, printed_table(number)) for number in _TABLES if printed_differences(number)]
    first = tables[0][1]
    return replace(
        first,
        title="Differences of Top-1 in the tables of the SBS paper, from its printed figures",
        columns=(Column(title="Table"), *first.columns),
        rows=tuple((number, *row) for number, table in tables for row in table.rows),
    )


def main() -> None:
    """Write the table."""
    section = Section(name="differences", title="", parts=(joined(),))
    fill_in("printed differences", markdown(Document(study="", sections=(section,))), [PAGE])


if __name__ == "__main__":
    main()
