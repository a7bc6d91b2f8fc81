"""MLflow's pages of a study as a browser shows them; skipped where there is no Chromium."""

import os
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bench.reporting.mlflow.tracker import Tracker
from bench.reporting.mlflow.ui import Ui, launch_ui
from tests import fake_store

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE = 60_000
"""Milliseconds; MLflow's page is large."""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """MLflow on a store with two methods of three seeds and more."""
    fake = fake_store.mixed(tmp_path_factory.mktemp("store"))
    uri = f"sqlite:///{fake.root / 'mlflow.db'}"
    assert Tracker(uri, fake.root).log_study(fake.store, fake.document())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with launch_ui(fake.root, uri, "quick", port=port) as running:
        yield running


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        context = browser.new_context(viewport={"width": 1600, "height": 900})
        context.set_default_timeout(PATIENCE)
        yield context.new_page()
        browser.close()


def table(page: Any, column: str = "top1") -> list[dict[str, str]]:
    """The run table as it is shown: by row, what stands below each heading."""
    page.wait_for_selector(f"[role=gridcell][col-id*='{column}']")
    heads = page.eval_on_selector_all(
        ".ag-header-cell", "cells => cells.map(cell => [cell.getAttribute('col-id'), cell.innerText.trim()])"
    )
    rows: dict[str, dict[str, str]] = {}
    for cell in page.locator("[role=row][row-index] [role=gridcell]").all():
        row = cell.locator("xpath=ancestor::*[@row-index][1]").get_attribute("row-index")
        rows.setdefault(row, {})[dict(heads)[cell.get_attribute("col-id")]] = cell.inner_text().strip()
    return [rows[row] for row in sorted(rows, key=int)]


def test_the_run_table_shows_every_seed_at_once(ui: Ui, page: Any) -> None:
    page.goto(ui.views["every seed"])
    found = {(row["method"], row["budget"], row["seed"]): row for row in table(page)}
    expected = {("fixed", "4bit", str(seed)): top1 for seed, top1 in enumerate(("70", "71", "72"))}
    expected |= {("sbs", "4bit", str(seed)): top1 for seed, top1 in enumerate(("72", "72.5", "74.5"))}
    expected |= {("full_precision", "none", str(seed)): top1 for seed, top1 in enumerate(("80", "81"))}
    assert expected.items() <= {key: row["top1"] for key, row in found.items()}.items()
    assert found["sbs", "4bit", "1"]["bops"] == "39500000" and found["sbs", "4bit", "1"]["search_seconds"] == "11"
    assert found["dnas", "4bit", "2"]["status"] == "failed"
    assert len(found) == 11  # no trials, no aggregates


def test_methods_show_mean_and_deviation_and_can_be_compared(ui: Ui, page: Any) -> None:
    page.goto(ui.url)
    rows = table(page, "result")
    assert [row["result"] for row in rows][:2] == ["80.50 ± 0.71", "73.00 ± 1.32"]
    assert rows[1]["delta"].startswith("+2.00 [+0.76, +3.24]") and rows[1]["share"] == "98.8 %"
    boxes = page.locator("[role=row][row-index] .ag-selection-checkbox input")
    boxes.nth(1).click()
    boxes.nth(2).click()
    page.get_by_role("button", name="Compare").first.click()
    page.get_by_text("Comparing 2 Runs").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    text = page.inner_text("body")
    assert "top1_mean" in text and "1.323" in text and "search_seconds_mean" in text


@pytest.mark.parametrize(
    ("shows", "title", "count"),
    [("every seed", "bops vs. top1", 9), ("mean and standard deviation over seeds", "budget_share vs. top1_mean", 3)],
)
def test_charts_are_there(ui: Ui, page: Any, shows: str, title: str, count: int) -> None:
    page.goto(ui.views[f"{shows}, as charts"])
    page.get_by_text(title).wait_for()
    points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
    points.nth(count - 1).wait_for()
    assert points.count() == count
    page.get_by_text("Parallel Coordinates").wait_for()


def test_policy_and_table_are_shown_as_artifacts(ui: Ui, page: Any) -> None:
    page.goto(ui.url)
    page.get_by_role("link", name="sbs 4bit").first.click()
    page.get_by_text("Artifacts").first.click()
    for name, words in (("policy.html", ("Means of 3 seeds", "stem")), ("table.html", ("73.00±1.32", "Search s"))):
        page.get_by_text(name).first.click()
        shown = page.frame_locator("iframe").locator("body")
        shown.get_by_text(words[0]).first.wait_for()
        assert all(word in shown.inner_text() for word in words)
