"""The page in a browser: sorting, hovering, choosing, links, dark and narrow; nothing leaves for the network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.reporting.report import make_document
from bench.results.tables import StudyResults
from bench.store.files import write_json
from reports.forms.page import page
from tests import fake_store
from tests.browsing import MARKS, Opened, chromium, opened

pytestmark = MARKS

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
ALL = ["comparison", "tradeoff", "policies", "convergence", "tuning", "failures", "provenance", "environment"]


def policy(weights: int) -> dict[str, Any]:
    entry = {"weight_bits": weights, "activation_bits": 4, "kept_filters": [0, 1]}
    return {"model": "resnet8", "dataset": "digits", "layers": {"stem": entry, EVIL: entry}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    fake = fake_store.mixed(folder / "store")
    fake.failed("sbs", 9, EVIL)
    for run, bits in (("fixed-4bit-0", 4), ("sbs-4bit-0", 2), ("dnas-4bit-0", 8)):
        write_json(fake.store.unit("runs", run) / "policy.json", policy(bits))
    for run in fake.seeds("sbs", [100.0, 75.0, 9.5], budget="8bit"):
        write_json(fake.store.unit("runs", run) / "policy.json", policy(8))
        fake.store.write_record("runs", run, fake.store.record("runs", run) | {"budget": EVIL, "reason": EVIL})
    path = folder / "index.html"
    path.write_text(page(make_document(StudyResults(fake.store, fake.document()), ALL)))
    return path


browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture
def shown(browser: Any, file: Path) -> Iterator[Opened]:
    yield from opened(browser, file, viewport={"width": 1280, "height": 900}, color_scheme="light")


def test_a_click_on_a_heading_sorts_numbers_as_numbers(shown: Opened) -> None:
    falling = shown.sort("table", "Top-1 %")  # the best first
    means = [float(text.partition("±")[0]) for text in falling if text]
    assert means == sorted(means)[::-1] and len(means) >= 5
    rising = shown.sort("table", "Top-1 %")
    assert [text for text in rising if text] == [text for text in falling if text][::-1]


def test_cells_that_are_no_numbers_sort_apart(shown: Opened) -> None:
    differences = shown.sort("table", "Δ fixed")
    known = [text for text in differences if text.startswith(("+", "-"))]
    assert [float(text) for text in known] == sorted(map(float, known), reverse=True) and known
    assert differences[: len(known)] == known  # what is no number comes after all that is


def test_hovering_a_point_tells_its_run(shown: Opened) -> None:
    marks = shown.tab.locator("#part-tradeoff .mark-symbol path[aria-roledescription='point']")
    labels = [mark.get_attribute("aria-label") or "" for mark in marks.all()]
    number = next(index for index, label in enumerate(labels) if "run: sbs-8bit-0" in label)
    marks.nth(number).scroll_into_view_if_needed()
    marks.nth(number).hover(force=True)
    tooltip = shown.tab.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5000)
    keys, values = (tooltip.locator(f"td.{kind}").all_inner_texts() for kind in ("key", "value"))
    assert dict(zip(keys, values, strict=True)) == {
        "method": "sbs",
        "budget": EVIL,
        "Top-1 %": "100.00",
        "BOPs (M)": "39.50",
        "Memory KB": "33.25",
        "seed": "0",
        "run": "sbs-8bit-0",
    }


def test_policies_of_all_methods_are_one_picture(shown: Opened) -> None:
    squares = shown.tab.locator("#part-policy-bits path[aria-roledescription='rect mark']").all()
    labels = [square.get_attribute("aria-label") or "" for square in squares]
    for method, bits in (("fixed", "6.67"), ("sbs", "6.00")):  # means over seeds, of which two have 8 bits
        found = [label for label in labels if f"method: {method} 4bit" in label and "layer: stem" in label]
        assert any(f"weights, bits: {bits}" in label for label in found), (method, found)
        assert any("activations, bits: 6.67" in label for label in found), (method, found)


def test_the_answer_and_the_cost_of_finding_it_are_on_the_first_screen(browser: Any, tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path / "store")
    path = tmp_path / "index.html"
    path.write_text(page(make_document(StudyResults(fake.store, fake.document()))))
    for shown in opened(browser, path, viewport={"width": 1280, "height": 900}):
        for place in ("#part-table .headline", "#part-table tbody tr >> nth=2"):
            box = shown.tab.locator(place).bounding_box()
            assert box["y"] + box["height"] < 900, place
        headings = shown.tab.locator("#part-table thead th").all_inner_texts()
        assert {"Method", "Top-1 %", "Δ fixed", "Δ 95 % interval", "Search s"} <= {text.strip() for text in headings}
        table = shown.tab.locator("#part-table table.sortable").bounding_box()
        assert table["x"] + table["width"] <= 1280


def test_columns_that_are_left_out_can_be_shown(shown: Opened) -> None:
    headings = shown.tab.locator("#part-table thead th")
    before = [text.strip() for text in headings.all_inner_texts()]
    assert "Top-5 %" not in before
    shown.tab.locator("#part-table .dt-buttons button").click()
    shown.tab.locator(".dt-button-collection button", has_text="Top-5 %").click()
    assert "Top-5 %" in [text.strip() for text in headings.all_inner_texts()]


def test_a_filter_holds_for_tables_and_charts(shown: Opened) -> None:
    marks = "#part-tradeoff .mark-symbol path[aria-roledescription='point']"
    assert shown.tab.locator(marks).count() > 1
    shown.tab.locator(".filters select[name=method]").select_option("dnas")
    shown.tab.wait_for_timeout(500)
    assert {text.strip() for text in shown.column("table", 0)} == {"dnas"}
    labels = [mark.get_attribute("aria-label") or "" for mark in shown.tab.locator(marks).all()]
    assert all("method: dnas" in label for label in labels if "method:" in label)
    shown.tab.locator(".filters select[name=method]").select_option("all")
    shown.tab.wait_for_timeout(300)
    assert len(set(shown.column("table", 0))) > 2


def test_the_command_of_a_row_can_be_copied(browser: Any, file: Path) -> None:
    for shown in opened(browser, file, permissions=["clipboard-read", "clipboard-write"]):
        row = shown.tab.locator("#part-table tbody tr", has=shown.tab.get_by_role("link", name="sbs")).first
        row.locator("button.copy").click()
        shown.tab.wait_for_selector("button.copied")
        copied = shown.tab.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("bench run --spec ") and "--methods sbs" in copied


def test_a_link_opens_the_section_that_it_leads_to(shown: Opened) -> None:
    chart = shown.tab.locator("#part-search-loss svg")
    assert chart.count() == 0
    shown.tab.locator("nav a", has_text="Convergence").click()
    chart.wait_for(timeout=10_000)
    assert shown.tab.locator("#convergence").get_attribute("open") is not None


def test_texts_of_a_study_stay_texts(shown: Opened) -> None:
    """Were they markup, an alert or an image that is not there would be among the errors, too."""
    assert EVIL in shown.tab.locator(".filters select[name=budget] option").all_inner_texts()
    labels = shown.tab.locator("#part-policy-bits .role-axis-label text").all_text_contents()
    assert any(label.startswith("</script>") for label in labels)
    assert EVIL in shown.column("failures", 2)
    assert shown.tab.locator("main img, main script").count() == 0


def test_a_line_of_the_comparison_leads_to_how_it_was_obtained(shown: Opened) -> None:
    link = shown.tab.locator("#part-table tbody a").first
    method = link.inner_text()
    link.click()
    target = shown.tab.locator("#part-provenance tr:target")
    assert target.count() == 1 and f"{method}-4bit-0" in target.inner_text()
    shown.tab.locator("nav a").last.click()
    assert shown.tab.url.endswith("#environment")


def test_a_study_of_one_budget_at_work_draws_without_complaint(browser: Any, tmp_path: Path) -> None:
    fake = fake_store.mixed(tmp_path / "store")
    path = tmp_path / "index.html"
    path.write_text(page(make_document(StudyResults(fake.store, fake.document()))))
    for shown in opened(browser, path):
        shown.tab.evaluate("document.querySelectorAll('details').forEach(part => (part.open = true))")
        shown.tab.wait_for_timeout(3000)  # charts of folded parts are drawn when they are opened
        assert shown.tab.locator(".chart svg").count() == shown.tab.locator(".chart").count() >= 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_follow_the_colours_of_the_page(browser: Any, file: Path, scheme: str) -> None:
    for shown in opened(browser, file, color_scheme=scheme):

        def style(where: str, what: str, tab: Any = shown.tab) -> list[int]:
            colour = tab.locator(where).first.evaluate(f"element => getComputedStyle(element).{what}")
            return [int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]

        ground = sum(style("body", "backgroundColor"))
        assert (ground > 600) == (scheme == "light")
        for text in ("#part-tradeoff .role-axis-label text", "#part-tradeoff .role-legend-label text"):
            assert abs(sum(style(text, "fill")) - ground) > 400
        first = style("#part-tradeoff .mark-line path[aria-roledescription='line mark']", "stroke")
        assert abs(sum(first) - ground) > 150


def test_on_a_phone_only_tables_scroll_sideways(browser: Any, file: Path) -> None:
    for shown in opened(browser, file, viewport={"width": 360, "height": 740}):
        widths = shown.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] == widths[1]
        box = shown.tab.locator("#part-table .dt-layout-table .dt-layout-full")
        assert box.evaluate("element => element.scrollWidth > element.clientWidth")
        for chart in shown.tab.locator(".chart svg").all():
            assert chart.bounding_box()["width"] <= 360
