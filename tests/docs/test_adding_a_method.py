"""The page on adding a method: its template, copied from the page as a reader does, works as the page says."""

import dataclasses
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

from bench.compression.policy import load_policy
from bench.compression.shapes import LayerShape
from bench.planning.methods import make_method
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.results.tables import StudyResults
from bench.spec.sources import build

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text()
TEMPLATE, PRUNING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(REGISTRATION,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for line in PAGE.splitlines() if line.startswith("    bench ")]


@pytest.fixture
def template(bench: Callable[..., Any]) -> Path:
    """The examples as `halve.py` and `prune.py` in an otherwise empty folder, which is the working directory."""
    Path("prune.py").write_text(PRUNING)
    Path("halve.py").write_text(TEMPLATE)
    return Path("halve.py").absolute()


@pytest.mark.slow
def test_the_template_keeps_the_contract(bench: Callable[..., Any], template: Path) -> None:
    answer = bench("validate", "halve.py:Halve")
    assert (answer.status, answer.err) == (0, ""), answer.out
    assert "FAIL" not in answer.out and "n/a" not in answer.out


@pytest.mark.slow
def test_the_second_example_keeps_the_contract(bench: Callable[..., Any]) -> None:
    Path("prune.py").write_text(PRUNING)
    answer = bench("validate", "prune.py:Prune")
    assert (answer.status, answer.err) == (0, ""), answer.out
    assert "FAIL" not in answer.out


def test_the_second_example_removes_the_smallest_filters_within_the_budget(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "prune.py").write_text(PRUNING)
    values = {"methods": [f"{tmp_path}/prune.py:Prune"], "seeds": [0], "budgets": ["3.5bit"]}
    worked = tiny.work(build([tiny.values, values]), tmp_path / "store")
    (run,) = StudyResults(worked.store, worked.document).runs.to_dict("records")
    assert run["position"] == "inside" and run["status"] == "done"
    policy = load_policy(worked.store.unit("runs", run["id"]) / "policy.json")
    kept = {name: layer.kept_filters for name, layer in policy.layers.items() if layer.kept_filters is not None}
    assert kept and all(kept.values())
    assert {layer.weight_bits for layer in policy.layers.values()} == {4, 8}  # the ends have 8


def test_all_attributes_of_layers_are_on_the_page() -> None:
    section = PAGE.partition("\n## Layers\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| (`.*?) \|", section)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    fields = {field.name for field in dataclasses.fields(LayerShape)}
    assert fields <= set(listed) and set(listed) <= fields | {"macs", "depthwise"}


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
        said = bench(name, *arguments, "--model", "resnet8", "--dry-run").out
        assert "run prune 3bit" in said or "halve" in said
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
