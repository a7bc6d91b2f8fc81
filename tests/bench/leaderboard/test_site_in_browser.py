"""The leaderboard in a browser: order, filters, the text field, the copy button, the page of a method."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.leaderboard import boards_of, entries_of, write_site
from tests.bench.leaderboard.boards import THEIRS, ours, source
from tests.browsing import MARKS, Opened, chromium, opened
from tests.fake_store import FakeStore

pytestmark = MARKS

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"

browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of two stores, with a second budget and a name that is markup."""
    folder = tmp_path_factory.mktemp("site")
    fake = ours(folder / "mine")
    fake.seeds("hawq", [69.0, 69.5, 70.5], budget_measure="bops")
    fake.seeds("sbs", [61.0, 62.0], budget="3bit", budget_measure="bops", budget_cost=30e6)
    theirs = FakeStore(folder / "theirs", name="again")
    theirs.seeds("sbs", [72.0, 72.5, 74.5], started=THEIRS, budget_measure="bops")
    theirs.seeds("random", [60.0, 61.0], started=THEIRS, budget_measure="bops", hardware={"processor": EVIL})
    sources = (source(fake), source(theirs, EVIL, "numbers"))
    write_site(folder / "site", boards_of(entries_of(sources)), sources)
    return folder / "site"


def ranking(site: Path) -> Path:
    """The page of the ranking at 4 bit."""
    (page,) = site.glob("task-*4bit*.html")
    return page


@pytest.fixture
def shown(browser: Any, site: Path) -> Iterator[Opened]:
    yield from opened(browser, ranking(site), viewport={"width": 1400, "height": 900}, color_scheme="light")


def methods(page: Opened) -> list[str]:
    """The methods of the ranking as they stand now."""
    return [text.split()[0] for text in page.column("ranking", 1)]


def test_rows_stand_in_the_order_of_their_ranks(shown: Opened) -> None:
    ranks, accuracies = shown.column("ranking", 0), shown.column("ranking", 2)
    assert ranks == ["1", "1", "3", "4", "5", "†", "–"]
    assert methods(shown) == ["sbs", "sbs", "fixed", "hawq", "random", "dnas", "full_precision"]
    means = [float(text.partition("±")[0]) for text in accuracies[:5]]
    assert means == sorted(means, reverse=True)
    falling = shown.sort("ranking", "Top-1 %")
    assert float(falling[0].partition("±")[0]) == 80.5  # sorting is the reader's, the rank stays


def test_a_family_can_be_chosen(shown: Opened) -> None:
    shown.tab.locator(".filters select[name=family]").select_option("learned gates")
    shown.tab.wait_for_timeout(300)
    assert methods(shown) == ["sbs", "sbs"]
    shown.tab.locator(".filters select[name=family]").select_option("all")
    shown.tab.locator(".filters select[name=checked]").select_option("numbers")
    shown.tab.wait_for_timeout(300)
    assert methods(shown) == ["sbs", "random"]


def test_a_text_can_be_searched_for(shown: Opened) -> None:
    shown.tab.locator("#part-ranking .dt-search input").fill("hawq")
    shown.tab.wait_for_timeout(300)
    assert methods(shown) == ["hawq"]


def test_the_table_fits_and_differences_are_drawn_on_one_line_at_zero(shown: Opened) -> None:
    table = shown.tab.locator("#part-ranking table.sortable").bounding_box()
    assert table["x"] + table["width"] <= 1400
    zeros = shown.tab.locator("#part-ranking svg.whisker .zero")
    assert zeros.count() == 3
    assert len({round(zero.bounding_box()["x"], 1) for zero in zeros.all()}) == 1


def test_the_command_of_a_row_can_be_copied(browser: Any, site: Path) -> None:
    for page in opened(browser, ranking(site), permissions=["clipboard-read", "clipboard-write"]):
        page.tab.locator("#part-ranking tbody tr", has=page.tab.get_by_role("link", name="hawq")).locator(
            "button.copy"
        ).click()
        page.tab.wait_for_selector("button.copied")
        copied = page.tab.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("bench run --spec specifications/quick-") and "--methods hawq" in copied


def test_from_the_index_to_a_ranking_to_a_method_and_back(browser: Any, site: Path) -> None:
    for page in opened(browser, site / "index.html", viewport={"width": 1400, "height": 900}):
        assert EVIL in page.column("sources", 0)
        page.tab.locator(".filters select[name=budget]").select_option("4bit")
        page.tab.wait_for_timeout(300)
        assert page.column("tasks", 2) == ["4bit"]
        page.tab.locator("#part-tasks tbody a").first.click()
        page.tab.wait_for_selector("html.ready")
        page.tab.locator("#part-ranking").get_by_role("link", name="hawq").click()
        page.tab.wait_for_selector("html.ready")
        assert page.tab.locator("h1").inner_text() == "hawq"
        assert "HAWQ" in page.tab.locator("dl dd").first.inner_text()
        assert "4 of 5" in page.tab.locator("#part-results tbody").inner_text()
        page.tab.locator(".way a").click()
        page.tab.wait_for_selector("html.ready")
        assert page.tab.locator("h1").inner_text() == "Leaderboard"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_only_tables_scroll_sideways(browser: Any, site: Path, scheme: str) -> None:
    for name in (site / "index.html", ranking(site)):
        for page in opened(browser, name, viewport={"width": 390, "height": 800}, color_scheme=scheme):
            widths = page.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] == widths[1]
            ground = page.tab.locator("body").evaluate("element => getComputedStyle(element).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
