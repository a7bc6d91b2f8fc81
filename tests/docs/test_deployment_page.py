"""`docs/make_deployment.py` writes what a study's exports say into `docs/deployment.md`."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.store.files import write_checked
from tests.fake_store import FakeStore
from tests.reports.test_deployment import document

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "deployment.md"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """`docs/make_deployment.py` as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        spec = importlib.util.spec_from_file_location("make_deployment", DOCS / "make_deployment.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the page without what a study says."""
    path = tmp_path / "deployment.md"
    path.write_text(
        re.sub(r"(<!-- deployment: \w+ -->\n).*?(<!-- end -->)", r"\1\2", PAGE.read_text(), flags=re.DOTALL)
    )
    return path


def store(root: Path, *, measured: bool) -> FakeStore:
    fake = FakeStore(root)
    for method, ratio in (("fixed", 0.8), ("sbs", 2.5)):
        made: dict[str, Any] = document(fake.run(method, 0, 70.0), 100_000, 100, measured=measured)
        for time in made["measured"]:
            if time["form"] != "float":
                time["ratio"] = [0.9 * ratio, ratio, 1.1 * ratio]
        made["machine"] = {"processor": "abacus", "instructions": ["beads"]}
        write_checked(root / "exports" / made["run"] / "export.json", made)
    fake.document()
    return fake


def test_the_page_says_what_the_exports_say(make: ModuleType, page: Path, tmp_path: Path) -> None:
    fake = store(tmp_path / "store", measured=True)
    make.main([str(fake.root), "quick"], page)
    text = page.read_text()
    words = " ".join(text.split())
    assert "Measured on one thread of an abacus (beads), with onnxruntime 1." in words
    assert "Uniform 4 bit counts 64 times fewer bit operations than the float network." in words
    assert "`onnx-qdq` in onnxruntime with 1 image, is 1.2 times faster than the float network" in words
    assert re.search(r"(?m)^\| sbs +\| 4bit +\| +0\.0156 \| +2\.50 \|$", text)
    assert re.search(r"(?m)^\| fixed +\| 4bit +\| packed +\| +1 \| +100\.0 \|", text)
    assert "<svg" in (tmp_path / "figures" / "deployment_ratios.svg").read_text()
    make.main([str(fake.root), "quick"], page)
    assert page.read_text() == text


def test_a_study_that_was_not_measured_is_refused(make: ModuleType, page: Path, tmp_path: Path) -> None:
    fake = store(tmp_path / "store", measured=False)
    with pytest.raises(SystemExit, match="measure first: bench export quick --format packed,onnx,onnx-qdq --measure"):
        make.main([str(fake.root), "quick"], page)


def test_the_published_page_is_complete() -> None:
    parts = re.findall(r"<!-- deployment: (\w+) -->\n(.*?)<!-- end -->", PAGE.read_text(), flags=re.DOTALL)
    assert {name for name, content in parts if content.strip()} == {"machine", "message", "times", "sizes"}
    assert (DOCS / "figures" / "deployment_ratios.svg").is_file()
