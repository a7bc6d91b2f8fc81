"""The pages on Python: the notebook runs, and what the page names exists."""

import ast
import importlib.util
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import Study, price
from bench.execution.settings import make_settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "python.md").read_text()


@pytest.fixture
def script() -> ModuleType:
    """`docs/make_notebook.py` as a module."""
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook() -> dict[str, Any]:
    """The notebook as it is stored."""
    read: dict[str, Any] = json.loads((DOCS / "study.ipynb").read_text())
    return read


def test_the_notebook_is_stored_with_what_its_cells_show(script: ModuleType, notebook: dict[str, Any]) -> None:
    cells = script.code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(
    script: ModuleType, notebook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BENCH_STORE", raising=False)
    before = [[output["output_type"] for output in cell["outputs"]] for cell in script.code_cells(notebook)]
    script.run(notebook)
    after = [[output["output_type"] for output in cell["outputs"]] for cell in script.code_cells(notebook)]
    assert after == before
    runs = Study.open("first").runs
    assert set(runs["status"]) == {"done"} and len(runs) == 6


def test_the_page_names_what_exists() -> None:
    named = set(re.findall(r"\bstudy\.(\w+)", PAGE)) - {"toml", "json", "ipynb"}
    assert named and named <= {*dir(Study), "spec"}
    public = {name for name, member in vars(Study).items() if not name.startswith("_")} - {"document"}
    assert public <= named | {"open"}
    settings = inspect.signature(Study.run).parameters.keys() | inspect.signature(make_settings).parameters.keys()
    section = PAGE.partition("## Running it")[2].partition("\n## ")[0]
    for name in re.findall(r"`(\w+)`", " ".join(re.findall(r"(?m)^\| (.*?) \|", section))):
        assert name in settings, name
    arguments = inspect.signature(Study.__init__).parameters.keys() - {"self", "keys"}
    section = PAGE.partition("## Making a study")[2].partition("\n## ")[0]
    assert arguments <= set(re.findall(r"`(\w+)`", section))


def test_the_blocks_of_the_page_can_be_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        ast.parse(block)
    costs = price("resnet20", 4, dataset="cifar100")
    names: dict[str, Any] = {}
    exec(next(block for block in blocks if "price" in block), names)  # noqa: S102
    assert names["costs"].total("bops") == costs.total("bops")
