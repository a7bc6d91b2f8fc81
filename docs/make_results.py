"""Publishes studies in `docs/results`: `.venv/bin/python docs/make_results.py STORE STUDY…`.

Each study gets a folder with its numbers, specification, versions, and all tables and figures of its reports. Tables
between `<!-- results: STUDY -->` and `<!-- end -->` in README.md and in `docs/results/README.md` are replaced by the
study's comparison, so that no figure of a run is ever typed.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from bench.plugins import load
from bench.report import DEFAULT_REPORT, Document, make_document, write_tables
from bench.results import StudyResults
from bench.store import Store

_DOCS = Path(__file__).resolve().parent
_RESULTS = _DOCS / "results"
_PAGES = (_DOCS.parent / "README.md", _RESULTS / "README.md")
_WIDTH = 200


def main(arguments: list[str]) -> None:
    """Publish the studies that are named.

    Args:
        arguments: A store's folder and names of studies.
    """
    store = Store(Path(arguments[0]))
    for name in arguments[1:]:
        results = StudyResults(store, store.load_study(name))
        folder = _RESULTS / name
        folder.mkdir(parents=True, exist_ok=True)
        publish(results, folder)
        fill_in(name, load("forms", "markdown").render(make_document(results, [DEFAULT_REPORT]), _WIDTH))
        print(f"{folder.name}: {len(list(folder.iterdir()))} files")  # noqa: T201


def publish(results: StudyResults, folder: Path) -> None:
    """Write a study's numbers, specification, versions, tables (Markdown) and figures (SVG)."""
    results.write()
    for name in ("runs.csv", "results.csv"):
        shutil.copyfile(results.store.study(results.name) / name, folder / name)
    study = results.store.load_study(results.name)
    (folder / "specification.json").write_text(json.dumps(study["spec"], indent=1) + "\n")
    (folder / "versions.json").write_text(json.dumps(_versions(results), indent=1) + "\n")
    document = make_document(results)
    for path in write_tables(document, folder):
        if path.suffix != ".md":
            path.unlink()
    _draw(document, folder)


def _versions(results: StudyResults) -> dict[str, object]:
    """Versions and hardware as the first finished run recorded them."""
    done = results.runs[results.runs["status"] == "done"]
    record = results.store.record("runs", str(done["id"].iloc[0])) or {}
    return {key: record.get(key) for key in ("versions", "hardware", "fingerprint")}


def _draw(document: Document, folder: Path) -> None:
    from bench.charts import save

    for figure in document.figures:
        save((figure.still or figure.draw)(), folder / f"{figure.name}.svg")


def fill_in(study: str, table: str) -> None:
    """Put a study's table into every page that has a place for it."""
    place = re.compile(rf"(<!-- results: {re.escape(study)} -->\n).*?(<!-- end -->)", re.DOTALL)
    for page in _PAGES:
        text = page.read_text()
        page.write_text(place.sub(lambda found: f"{found[1]}\n{table.strip()}\n\n{found[2]}", text))


if __name__ == "__main__":
    main(sys.argv[1:])
