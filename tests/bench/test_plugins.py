import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import bench
from bench import plugins
from bench.errors import BenchError

CHECKOUT = Path(bench.__file__).resolve().parent.parent
DECLARED = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["entry-points"]
OURS = [(group.removeprefix("bench."), name) for group, names in DECLARED.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_plugin_of_ours_loads(kind: plugins.Kind, name: str) -> None:
    assert callable(plugins.load(kind, name))
    assert plugins.source_file(kind, name).is_relative_to(CHECKOUT)


@pytest.mark.parametrize("kind", get_args(plugins.Kind))
def test_all_that_is_declared_is_available(kind: plugins.Kind) -> None:
    missing = set(DECLARED[f"bench.{kind}"]) - set(plugins.available(kind))
    assert not missing, "the installed package is older than pyproject.toml; install it again"


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [
        ("datasets", "cifar-100", "cifar100"),
        ("datasets", "digit", "digits"),
        ("methods", "sbss", "sbs"),
        ("models", "resnet2o", "resnet20"),
        ("reports", "comparisons", "comparison"),
    ],
)
def test_an_unknown_name_gives_the_nearest_and_where_to_look(kind: plugins.Kind, wrong: str, nearest: str) -> None:
    with pytest.raises(BenchError) as caught:
        plugins.load(kind, wrong)
    message = str(caught.value)
    assert f"unknown {kind.removesuffix('s')} '{wrong}'" in message
    assert f"did you mean '{nearest}'" in message
    assert f"bench list {kind}" in message


def test_a_name_like_no_other_gives_no_guess() -> None:
    with pytest.raises(BenchError) as caught:
        plugins.load("datasets", "xyzzy")
    assert "did you mean" not in str(caught.value)
    assert "digits" in str(caught.value)


def test_looking_at_names_imports_nothing() -> None:
    code = "import sys, bench.plugins as p; p.available('datasets'); print('datasets' in sys.modules)"
    assert _succeed(code) == "False"


# --- two packages called `datasets` in one environment ---


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with another package called `datasets`, as one from the package index would be."""
    package = tmp_path / "site" / "datasets"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("FOREIGN = True\n")
    (package / "arrow.py").write_text("FOREIGN = True\n")
    return package.parent


def _python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Not in the checkout, whose folders would come first on the path; the installation provides `bench`.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _succeed(code: str, path: Path | None = None) -> str:
    result = _python(code, path)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("code", ["import bench, datasets", "import bench.errors, datasets"])
def test_ours_wins_in_a_process_of_bench(foreign: Path, code: str) -> None:
    found = _succeed(f"{code}; print(datasets.__file__)", foreign)
    assert Path(found) == CHECKOUT / "datasets" / "__init__.py"


def test_ours_can_be_loaded_beside_a_foreign_one(foreign: Path) -> None:
    code = "from bench.plugins import load; print(load('datasets', 'digits').__module__)"
    assert _succeed(code, foreign) == "datasets.digits"


def test_a_foreign_one_stays_intact_in_any_other_process(foreign: Path) -> None:
    code = "import datasets, datasets.arrow; print(datasets.arrow.FOREIGN, datasets.__file__)"
    assert _succeed(code, foreign) == f"True {foreign / 'datasets' / '__init__.py'}"


def test_a_foreign_one_imported_first_is_a_clear_error(foreign: Path) -> None:
    code = (
        "import datasets\n"
        "from bench.errors import BenchError\n"
        "from bench.plugins import load\n"
        "try:\n"
        "    load('datasets', 'digits')\n"
        "except BenchError as error:\n"
        "    print(error)\n"
    )
    message = _succeed(code, foreign)
    assert "another package called 'datasets' is already imported" in message
    assert str(foreign) in message
    assert "import bench before it" in message
