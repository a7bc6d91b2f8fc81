"""The packages keep their levels, and `docs/architecture.md` shows them as they are."""

import ast
import importlib.util
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
LINTER = Path(sys.executable).with_name("lint-imports")
WITHOUT_LEVEL = {"bench", "bench.api"}
"""`bench.api` loads names of all levels when they are used, and nothing in `bench` may import it."""


def script() -> ModuleType:
    """`docs/make_architecture.py` as a module."""
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = script()
PACKAGES = [name for names in MAKE.levels() for name in names]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    found: grimp.ImportGraph = MAKE.import_graph()
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the code that a test may change."""
    for name in ("bench", "methods", "datasets", "reports"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the code in a folder."""
    return subprocess.run([LINTER, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_page_shows_the_packages_as_they_are() -> None:
    text = MAKE.PAGE.read_text()
    assert MAKE.page(text) == text, "run .venv/bin/python docs/make_architecture.py"


def test_the_table_follows_the_code(copy: Path) -> None:
    imports: dict[str, set[str]] = {name: set() for name in PACKAGES}
    before = list(MAKE.table(MAKE.levels(), imports, copy))
    (copy / "bench" / "costs" / "carbon.py").write_text("")
    (added,) = set(MAKE.table(MAKE.levels(), imports, copy)) - set(before)
    assert "`bench.costs`" in added and "carbon" in added


def test_every_module_has_a_level(graph: grimp.ImportGraph) -> None:
    without = {module for module in graph.modules if MAKE.package_of(module, PACKAGES) is None}
    assert without == WITHOUT_LEVEL


def test_the_harness_does_not_use_the_face_that_it_shows_to_authors(graph: grimp.ImportGraph) -> None:
    users = graph.find_modules_that_directly_import("bench.api")
    assert {user for user in users if user.startswith("bench.")} <= {"bench.testing"}


def test_every_package_says_what_it_is_for() -> None:
    assert not [name for name in PACKAGES if not MAKE.summary(name)]


def test_packages_import_from_lower_levels_only() -> None:
    answer = lint(ROOT)
    assert answer.returncode == 0, answer.stdout


UPWARD = "A package imports from lower levels only BROKEN"
WAY_BACK = "A study's plan goes down to the method BROKEN"
CIRCLE = "No circle of modules BROKEN"


@pytest.mark.parametrize(
    ("added", "broken"),
    [
        pytest.param({"bench/spec/extra.py": "from bench.cli import main\n"}, UPWARD, id="upward"),
        pytest.param(
            {"bench/spec/extra.py": "def late():\n    from bench.cli import main\n"}, UPWARD, id="in a function"
        ),
        pytest.param(
            {"bench/spec/extra.py": "import typing\nif typing.TYPE_CHECKING:\n    import bench.cli\n"},
            UPWARD,
            id="for types",
        ),
        pytest.param({"bench/results/extra.py": "from bench.data import dataset\n"}, UPWARD, id="on one level"),
        pytest.param({"bench/costs/extra.py": "import methods.fixed\n"}, UPWARD, id="of a method"),
        pytest.param(
            {"bench/execution/stages/extra.py": "from bench.execution import scheduler\n"}, WAY_BACK, id="way back"
        ),
        pytest.param(
            {
                "bench/costs/chicken.py": "from bench.costs import egg\n",
                "bench/costs/egg.py": "from bench.costs import chicken\n",
            },
            CIRCLE,
            id="circle",
        ),
    ],
)
def test_an_import_that_breaks_the_rules_is_found(copy: Path, added: dict[str, str], broken: str) -> None:
    for name, text in added.items():
        (copy / name).write_text(text)
    answer = lint(copy)
    assert answer.returncode == 1
    assert broken in answer.stdout


FILES = [path for name in ("bench", "methods", "datasets", "reports") for path in sorted((ROOT / name).rglob("*.py"))]
MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 50
MEDIAN_LINES_OF_A_FUNCTION = 7
MOST_MODULES_OF_A_PACKAGE = 12


def test_modules_are_short() -> None:
    assert not [path for path in FILES if len(path.read_text().splitlines()) > MOST_LINES_OF_A_MODULE]


def test_functions_are_short() -> None:
    nodes = [(path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text()))]
    functions = [(path, node) for path, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lines = {f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in functions}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FUNCTION}
    assert statistics.median(lines.values()) <= MEDIAN_LINES_OF_A_FUNCTION


def test_packages_of_the_harness_are_small() -> None:
    modules = Counter(path.parent for path in FILES if path.stem != "__init__" and path.is_relative_to(ROOT / "bench"))
    assert not {folder: count for folder, count in modules.items() if count > MOST_MODULES_OF_A_PACKAGE}
