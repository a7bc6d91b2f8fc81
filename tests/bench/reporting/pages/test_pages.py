"""Marks and assets of pages."""

import re
from pathlib import Path

from bench.reporting.charts import SHAPES, Look
from bench.reporting.pages.assets import inline_assets, linked_assets, write_assets
from bench.reporting.pages.glyphs import glyph_of


def test_every_mark_of_charts_has_an_outline_of_its_own() -> None:
    paths = [glyph_of(Look("#0072B2", shape)).path for shape in SHAPES]
    assert len(set(paths)) == len(SHAPES)
    assert glyph_of(Look("#D55E00", "circle")).colour == 2


def test_linked_assets_are_the_files_that_are_written(tmp_path: Path) -> None:
    assets = linked_assets()
    named = re.findall(r'(?:href|src)="([^"]+)"', assets.head + assets.scripts)
    assert {path.relative_to(tmp_path).as_posix() for path in write_assets(tmp_path)} == set(named)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in named)


def test_a_page_may_run_its_own_scripts_alone() -> None:
    for assets in (linked_assets(), inline_assets(charts=False), inline_assets(charts=True)):
        assert assets.policy.startswith("default-src 'none'; script-src 'sha256-")
        scripts = assets.policy.partition("script-src")[2].partition(";")[0]
        assert "unsafe-inline" not in scripts and "http" not in assets.policy
    assert len(inline_assets(charts=False).scripts) < len(inline_assets(charts=True).scripts)
