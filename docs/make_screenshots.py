"""Draw the picture of a report's page in the documentation: `.venv/bin/python docs/make_screenshots.py STORE STUDY`.

It needs Chromium and the package playwright, which comes with `.[dev]`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import drawings
from playwright.sync_api import sync_playwright

from bench.reporting.report import make_document, write_document
from bench.results.tables import StudyResults
from bench.store.files import Store

_FIGURES = Path(__file__).resolve().parent / "figures"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SIZE = {"width": 1400, "height": 1150}
_TEMPLATES = Path(__file__).resolve().parents[1] / "bench" / "reporting" / "pages" / "templates"


def fingerprints() -> dict[str, str]:
    """Return the fingerprint of the page's looks."""
    return {"page": drawings.of_sources(*(path for path in _TEMPLATES.iterdir() if path.is_file()))}


def main(store: Path, study: str) -> None:
    """Write `docs/figures/report_page.png`, the first screen of a study's page.

    Args:
        store: Folder of a store.
        study: Name of a study in it.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser here; install one of {', '.join(_BROWSERS)}")
    opened = Store(store)
    document = make_document(StudyResults(opened, opened.load_study(study)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        write_document(document, Path(folder))
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport=_SIZE, color_scheme="light")
        page.goto((Path(folder) / "index.html").as_uri())
        page.wait_for_selector("html.ready", timeout=60_000)
        page.screenshot(path=str(_FIGURES / "report_page.png"))
        chromium.close()
    drawings.note({_FIGURES / "report_page.png": "page"}, fingerprints())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
