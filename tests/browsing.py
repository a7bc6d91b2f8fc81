"""Pages in a browser, for tests: what happened in them that should not, and what they load."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no Chromium here"),
]
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@dataclass
class Opened:
    """A page in a browser, and what happened in it that should not."""

    tab: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def column(self, part: str, number: int) -> list[str]:
        """The cells of a column as they stand now."""
        cells = self.tab.locator(f"#part-{part} tbody tr td:nth-child({number + 1})")
        found: list[str] = cells.all_inner_texts()
        return found

    def sort(self, part: str, title: str) -> list[str]:
        """Click a heading, and read its column."""
        headings = self.tab.locator(f"#part-{part} thead th")
        number = [text.strip() for text in headings.all_inner_texts()].index(title)
        headings.nth(number).click()
        self.tab.wait_for_timeout(300)  # rows are moved a moment later
        return self.column(part, number)


def chromium() -> Iterator[Any]:
    """A browser, for a fixture."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here; it comes with .[dev]")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=next(filter(None, map(shutil.which, BROWSERS))), args=_FLAGS)
        yield browser
        browser.close()


def opened(browser: Any, file: Path, **how: Any) -> Iterator[Opened]:
    """Open a page; afterwards nothing must have gone wrong, and nothing loaded from outside of its folder."""
    context = browser.new_context(**how)
    found = Opened(context.new_page())
    found.tab.on("request", lambda request: found.requests.append(request.url))
    found.tab.on("pageerror", lambda error: found.errors.append(str(error)))
    found.tab.on("dialog", lambda dialog: (found.errors.append(dialog.message), dialog.dismiss()))
    found.tab.on(
        "console",
        lambda message: found.errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    found.tab.goto(file.as_uri())
    found.tab.wait_for_selector("html.ready", timeout=30_000)
    yield found
    context.close()
    assert found.errors == []
    folder = file.parent.as_uri()
    assert [url for url in found.requests if not url.startswith(("data:", f"{folder}/"))] == []
