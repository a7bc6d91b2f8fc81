import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests import lowest_versions as module
from tests.lowest_versions import lowest_versions

ROOT = Path(__file__).parents[1]
PROJECT = """
[project]
dependencies = ["one>=1.2", "two-words>=3.0.1,<4", "sbs-bench[more]", "any"]
[project.optional-dependencies]
more = ["under_score>=2026.1"]
"""


def test_every_range_gives_its_lowest_version(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    assert list(lowest_versions(tmp_path / "pyproject.toml")) == ["one==1.2", "two-words==3.0.1", "under_score==2026.1"]


def test_all_that_runs_has_a_lowest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: of_extra for name, of_extra in project["optional-dependencies"].items() if name != "dev"}
    wanted = {Requirement(text).name for group in (project["dependencies"], *extras.values()) for text in group}
    assert wanted - {"sbs-bench"} <= {line.partition("==")[0] for line in lowest_versions()}


def test_the_script_prints_them_where_nothing_is_installed() -> None:
    isolated = [sys.executable, "-I", "-S", str(module.__file__)]
    printed = subprocess.run(isolated, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == list(lowest_versions())
