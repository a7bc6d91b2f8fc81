"""Readers of reports for tests: tables as records, the rows behind figures, and the tables of a page."""

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

from bench.reporting.report import Figure, Report, Table
from bench.results.tables import StudyResults

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
ALL = ["comparison", "tradeoff", "policies", "convergence", "tuning", "failures", "provenance", "environment"]


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


def layer(weights: int, activations: int, kept: list[int] | None) -> dict[str, Any]:
    return {"weight_bits": weights, "activation_bits": activations, "kept_filters": kept}


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
