"""The published figures: each is listed, and those whose drawing is known are as the code would draw them today."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.reporting.report import make_document
from bench.results.tables import StudyResults
from reports import tradeoff
from tests import fake_store
from tests.docs.test_pages import ROOT

OLDER = 135
"""Figures that were drawn before their drawing was noted. The number may only fall."""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The scripts that draw, and the module that notes what they draw."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    names = ("drawings", "make_deployment", "make_figures", "make_results", "make_screenshots")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_every_published_figure_says_what_drew_it(scripts: SimpleNamespace) -> None:
    noted = scripts.drawings.noted()
    assert sorted(noted) == scripts.drawings.figures()
    assert sum(note["drawing"] is None for note in noted.values()) <= OLDER


def test_no_published_figure_is_older_than_what_draws_it(scripts: SimpleNamespace) -> None:
    today = {
        **scripts.drawings.of_reports(),
        **scripts.make_deployment.fingerprints(),
        **scripts.make_figures.fingerprints(),
        **scripts.make_screenshots.fingerprints(),
    }
    changed = [
        name
        for name, note in scripts.drawings.noted().items()
        if note["drawing"] is not None and note["drawing"] != today.get(note["by"])
    ]
    assert changed == [], "draw them again: docs/make_figures.py, docs/make_results.py, docs/make_screenshots.py"


def test_a_changed_chart_has_another_fingerprint(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scripts.drawings.of_reports()
    assert scripts.drawings.of_reports() == before  # whatever was drawn in this process before
    assert {"comparison", "tradeoff", "policies", "convergence", "tuning"} <= before.keys()
    draw = tradeoff.Tradeoff.build

    def smaller(report: Any, results: StudyResults) -> Any:
        parts = draw(report, results)
        for part in parts:
            if hasattr(part, "draw"):
                chart = part.still or part.draw
                object.__setattr__(part, "still", lambda chart=chart: chart().configure_axis(labelFontSize=7))
        return parts

    monkeypatch.setattr(tradeoff.Tradeoff, "build", smaller)
    after = scripts.drawings.of_reports()
    assert {name for name in before if after[name] != before[name]} == {"tradeoff"}


def test_the_code_of_a_figure_counts_and_its_wording_does_not(scripts: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "draws.py"

    def of(text: str) -> str:
        file.write_text(text)
        return str(scripts.drawings.of_sources(file))

    first = of('"""Draw."""\n\nSIZE = 3\n')
    assert of('"""Draw a figure."""\n\nSIZE = 3  # points\n') == first
    assert of('"""Draw."""\n\nSIZE = 4\n') != first


def test_publishing_notes_the_figures_of_a_study(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_store.mixed(tmp_path / "store")
    document = make_document(StudyResults(fake.store, fake.document()))
    folder = tmp_path / "docs" / "results" / "quick"
    folder.mkdir(parents=True)
    monkeypatch.setattr(scripts.drawings, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(scripts.drawings, "NOTES", tmp_path / "docs" / "drawn.json")
    (tmp_path / "docs" / "drawn.json").write_text('{"results/quick/gone.svg": {"by": "tuning", "drawing": "1"}}')
    monkeypatch.setattr("bench.reporting.charts.save", lambda _, path: Path(path.write_text("") or path))
    drawn = scripts.make_results._draw(document, folder)
    names = {section.name for section in document.sections}
    scripts.drawings.note(drawn, dict.fromkeys(names, "2"))
    noted = scripts.drawings.noted()
    assert noted["results/quick/differences.svg"] == {"by": "comparison", "drawing": "2"}
    assert sorted(noted) == sorted(f"results/quick/{path.name}" for path in folder.iterdir())
