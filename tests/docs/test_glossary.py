"""The glossary has every heading of a table."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "glossary.md").read_text()


def headings() -> Iterator[str]:
    """Titles of columns that are written in the code; those that are put together are not."""
    for folder in ("bench/reporting", "bench/diagnostics", "reports"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Column":
                    titles = [keyword.value for keyword in node.keywords if keyword.arg == "title"]
                    yield from (str(title.value) for title in titles if isinstance(title, ast.Constant))


def test_every_heading_is_explained() -> None:
    rows = re.findall(r"(?m)^\| (.*?) \|", PAGE)
    explained = {part.strip() for row in rows for part in row.split("·")}
    assert set(headings()) - explained == set()
    assert len(set(headings())) > 60
