"""The HTML page: sorting, and texts that are not trusted."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.pages.page import sort_value
from bench.reporting.report import make_document
from bench.store.files import write_json
from reports.forms.page import page
from tests import fake_store
from tests.reports.reading import ALL, EVIL, cells_of_page, layer, results_of


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
