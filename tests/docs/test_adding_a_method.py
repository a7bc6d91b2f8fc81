"""The page on adding a method: its template, copied from the page as a reader does, works as the page says."""

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.planning.methods import make_method
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.results.tables import StudyResults
from bench.spec.sources import build

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
(TEMPLATE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(REGISTRATION,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for line in PAGE.splitlines() if line.startswith("    bench ")]


@pytest.fixture
def template(bench: Callable[..., Any]) -> Path:
    """The template as `halve.py` in an otherwise empty folder, which is the working directory."""
    Path("halve.py").write_text(TEMPLATE)
    return Path("halve.py").absolute()


@pytest.mark.slow
def test_the_template_keeps_the_contract(bench: Callable[..., Any], template: Path) -> None:
    answer = bench("validate", "halve.py:Halve")
    assert (answer.status, answer.err) == (0, ""), answer.out
    assert "FAIL" not in answer.out and "n/a" not in answer.out


@pytest.mark.slow
def test_the_template_takes_part_in_a_study(template: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    values = {"methods": [f"{template}:Halve", "fixed"], "seeds": [0], "options": {"halve": {"bits": [2, 8]}}}
    worked = tiny.work(build([tiny.values, values]), tmp_path / "store")
    lines = StudyResults(worked.store, worked.document).lines
    assert lines["method"].tolist() == ["halve", "fixed"]
    assert lines["within_budget"].tolist() == [True, True]


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_is_understood(bench: Callable[..., Any], command: str) -> None:
    """What takes long is not carried out."""
    program, name, *arguments = shlex.split(command)
    assert program == "bench"
    if name == "run":
        assert "halve" in bench(name, *arguments, "--model", "resnet8", "--dry-run").out
    else:
        assert f"Usage: bench {name}" in bench(name, *arguments, "--help").out


def test_the_registration_is_one(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tomllib.loads(REGISTRATION)["project"]["entry-points"]["bench.methods"]
    monkeypatch.syspath_prepend(template.parent)
    entry = EntryPoint("halve", entries["halve"], "bench.methods")
    monkeypatch.setattr(entry_points, "available", lambda kind: {"halve": entry})
    plugins.load.cache_clear()
    try:
        assert make_method("halve", {"bits": [2, 3]}).options.bits == (2, 3)
    finally:
        plugins.load.cache_clear()
        del sys.modules["halve"]
