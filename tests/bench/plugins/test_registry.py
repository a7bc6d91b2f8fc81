import importlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import pytest

import bench
from bench.errors import BenchError
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.plugins.source_hash import imported_files
from bench.reporting.report import Form

CHECKOUT = Path(bench.__file__).resolve().parent.parent
DECLARED = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["entry-points"]
OURS = [(group.removeprefix("bench."), name) for group, names in DECLARED.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_plugin_of_ours_loads(kind: entry_points.Kind, name: str) -> None:
    assert isinstance(plugins.load(kind, name), Form) if kind == "forms" else callable(plugins.load(kind, name))
    assert len(plugins.source_hash(kind, name)) == len("syntax-1:") + 64


@pytest.mark.parametrize("kind", get_args(entry_points.Kind))
def test_all_that_is_declared_is_available(kind: entry_points.Kind) -> None:
    missing = set(DECLARED[f"bench.{kind}"]) - set(entry_points.available(kind))
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
def test_an_unknown_name_gives_the_nearest_and_where_to_look(kind: entry_points.Kind, wrong: str, nearest: str) -> None:
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
    code = "import sys, bench.plugins.entry_points as p; p.available('datasets'); print('datasets' in sys.modules)"
    assert _succeed(code) == "False"


# --- two packages called `datasets` in one environment ---


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a foreign package called `datasets`, like the one in the package index."""
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
    code = "from bench.plugins.registry import load; print(load('datasets', 'digits').__module__)"
    assert _succeed(code, foreign) == "datasets.digits"


def test_a_foreign_one_stays_intact_in_any_other_process(foreign: Path) -> None:
    code = "import datasets, datasets.arrow; print(datasets.arrow.FOREIGN, datasets.__file__)"
    assert _succeed(code, foreign) == f"True {foreign / 'datasets' / '__init__.py'}"


def test_a_foreign_one_imported_first_is_a_clear_error(foreign: Path) -> None:
    code = (
        "import datasets\n"
        "from bench.errors import BenchError\n"
        "from bench.plugins.registry import load\n"
        "try:\n"
        "    load('datasets', 'digits')\n"
        "except BenchError as error:\n"
        "    print(error)\n"
    )
    message = _succeed(code, foreign)
    assert "another package called 'datasets' is already imported" in message
    assert str(foreign) in message
    assert "import bench before it" in message


# --- what a plug-in's source is ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes modules of a package of methods, of which `mine` and `other` are registered."""
    name = f"methods_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    entries = {
        method: EntryPoint(method, f"{name}.{method}:Method", "bench.methods") for method in ("mine", "other", "nested")
    }
    monkeypatch.setattr(entry_points, "available", lambda kind: entries)

    def write(**modules: str) -> None:
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text.replace("PACKAGE", name))
        plugins._source_hash.cache_clear()
        importlib.invalidate_caches()

    write(__init__="", mine="from PACKAGE.shared import thing\n", other="import math\n", shared="", unused="")
    write(nested="def later():\n    from . import deep\n", deep="import PACKAGE.shared as s, os\n")
    yield write
    plugins._source_hash.cache_clear()
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def hashes() -> dict[str, str]:
    return {name: plugins.source_hash("methods", name) for name in ("mine", "other", "nested")}


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("mine", {"mine"}),
        ("other", {"other"}),
        ("shared", {"mine", "nested"}),  # by name, and through a module that is imported inside a function
        ("deep", {"nested"}),
        ("unused", set()),
    ],
)
def test_a_change_of_a_file_changes_the_source_of_all_that_import_it(
    package: Callable[..., None], changed: str, stale: set[str]
) -> None:
    before = hashes()
    assert len(set(before.values())) == 3
    text = {"mine": "from PACKAGE.shared import thing\n", "deep": "import PACKAGE.shared as s, os\n"}
    package(**{changed: text.get(changed, "") + "a_change = 1\n"})
    after = hashes()
    assert {name for name in after if after[name] != before[name]} == stale


def test_looking_at_a_source_imports_nothing_of_it(package: Callable[..., None]) -> None:
    package(mine="raise RuntimeError('imported')\nfrom PACKAGE import shared\n", shared="raise RuntimeError\n")
    assert len(plugins.source_hash("methods", "mine")) == len("syntax-1:") + 64
    assert not [name for name in sys.modules if name.endswith((".mine", ".shared")) and "methods_of" in name]


def test_imports_in_a_circle_end(package: Callable[..., None]) -> None:
    package(mine="from PACKAGE import shared\n", shared="from PACKAGE import mine\n")
    first = plugins.source_hash("methods", "mine")
    package(shared="from PACKAGE import mine\nchanged = 1\n")
    assert plugins.source_hash("methods", "mine") != first


def test_our_methods_depend_on_the_building_blocks_that_they_use(tmp_path: Path) -> None:
    """Each shared file is changed in turn, in a copy of the package."""
    shutil.copytree(CHECKOUT / "methods", tmp_path / "methods")
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import methods\n"
        f"assert methods.__file__.startswith({str(tmp_path)!r}), methods.__file__\n"
        "from bench.plugins.entry_points import available\n"
        "from bench.plugins.registry import _source_hash, source_hash\n"
        "names = sorted(n for n, e in available('methods').items() if e.module.startswith('methods.'))\n"
        "def hashes():\n"
        "    _source_hash.cache_clear()\n"
        "    return [source_hash('methods', name) for name in names]\n"
        "before, stale = hashes(), {}\n"
        "from pathlib import Path\n"
        "shared = ('shared/gates', 'shared/bit_sharing/network', 'shared/networks/paths')\n"
        "for changed in (*shared, 'sbs', 'sbs_extended'):\n"
        f"    file = Path({str(tmp_path)!r}) / 'methods' / f'{{changed}}.py'\n"
        "    text = file.read_text()\n"
        "    file.write_text(text + '\\nchanged = 1\\n')\n"
        "    stale[changed] = [n for n, a, b in zip(names, before, hashes()) if a != b]\n"
        "    file.write_text(text)\n"
        "assert hashes() == before\n"
        "print(json.dumps(stale))"
    )
    stale = {name: set(methods) for name, methods in json.loads(_succeed(code)).items()}
    of_sbs = {"cost_only", "cost_only_q", "prune_then_quantize", "quantize_then_prune"}
    of_sbs |= {"sbs", "sbs_extended", "sbs_p", "sbs_q"}
    assert of_sbs <= stale["sbs"] and "dnas" not in stale["sbs"]
    assert stale["sbs_extended"] == {"sbs_extended"}
    assert {"dnas", "edmips", "multi_path"} <= stale["shared/networks/paths"]
    assert "sbs" not in stale["shared/networks/paths"]
    assert of_sbs | {"bayesian_bits", "djpq"} <= stale["shared/gates"] and of_sbs <= stale["shared/bit_sharing/network"]
    without_gates = {"fixed", "full_precision", "random", "greedy", "width"}
    without_gates |= {"clado", "haq", "hawq", "hawq_v3", "ip", "limpq"}
    assert not without_gates & set().union(*stale.values())


def test_the_source_of_what_is_not_there_is_asked_for_by_its_nearest_name() -> None:
    with pytest.raises(BenchError, match="unknown method 'sbss': did you mean 'sbs'"):
        plugins.source_hash("methods", "sbss")


def test_the_harness_is_no_part_of_a_model_that_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "using_networks.py").write_text(
        "from bench.costs.counter import price\nfrom using_parts import block\ndef make(a, b): return price, block\n"
    )
    (tmp_path / "using_parts.py").write_text("block = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    followed: list[str] = []

    def followed_files(
        module: str, file: Path | None, find: Callable[[str], Path | None]
    ) -> Iterator[tuple[str, Path]]:
        for name, path in imported_files(module, file, find):
            followed.append(name)
            yield name, path

    monkeypatch.setattr(plugins, "imported_files", followed_files)
    plugins._source_hash.cache_clear()
    plugins.source_hash("models", "using_networks:make")
    assert followed[0] == "using_networks"
    assert not [name for name in followed if name.startswith("bench")]
    followed.clear()
    plugins.source_hash("models", "resnet20")
    assert followed[0] == "bench.models.resnet"
    assert all(name.startswith("bench.models.") for name in followed)
    plugins._source_hash.cache_clear()


def test_a_model_may_be_named_by_its_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "placed_networks.py").write_text("def make(in_channels, num_classes): return in_channels\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert plugins.load("models", "placed_networks:make")(3, 10) == 3
    for wrong, message in (
        ("placed_networks:other", "has no attribute 'other'"),
        ("placed-networks:make", "is not of the form package.module:function"),
        (":make", "is not of the form package.module:function"),
        ("placed_nothing:make", "No module named 'placed_nothing'"),
    ):
        with pytest.raises(BenchError, match=message):
            plugins.load("models", wrong)


# --- staleness of a model follows what it imports ---

HELPERS = {
    "beside": ("nets_beside.py", "from helper_beside import WIDTH\n", "helper_beside.py"),
    "lazily": ("nets_lazily.py", "def later():\n    import helper_lazily\n", "helper_lazily.py"),
    "by a call": (
        "nets_by_call.py",
        "import importlib\ndef later():\n    return importlib.import_module('helper_by_call')\n",
        "helper_by_call.py",
    ),
    "in turn": ("nets_in_turn.py", "import helper_in_turn\n", "deep_in_turn.py"),
    "of its package": ("pack_full/nets.py", "from pack_full.blocks import block\n", "pack_full/blocks.py"),
    "of its package, relative": ("pack_near/nets.py", "from .blocks import block\n", "pack_near/blocks.py"),
    "of a package beside it": ("pack_out/nets.py", "from parts_out.blocks import block\n", "parts_out/blocks.py"),
    "in the package itself": ("pack_init/nets.py", "", "pack_init/__init__.py"),
}


@pytest.mark.parametrize("with_init", [True, False], ids=["__init__", "no __init__"])
@pytest.mark.parametrize("case", HELPERS)
def test_a_change_of_what_a_model_imports_changes_its_source(
    case: str, with_init: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, text, helper = HELPERS[case]
    if case == "in the package itself" and not with_init:
        pytest.skip("there is no such file")
    unused = "unused.py"
    for name, content in ((helper, "block = WIDTH = 1\n"), (file, text), (unused, "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        if with_init and "/" in name and not (tmp_path / name).with_name("__init__.py").exists():
            (tmp_path / name).with_name("__init__.py").write_text("")
    (tmp_path / "helper_in_turn.py").write_text("from deep_in_turn import block\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    location = f"{file.removesuffix('.py').replace('/', '.')}:make"

    def now() -> str:
        plugins._source_hash.cache_clear()
        importlib.invalidate_caches()
        return plugins.source_hash("models", location)

    first = now()
    (tmp_path / unused).write_text("changed = 1\n")
    assert now() == first
    (tmp_path / helper).write_text("block = WIDTH = 2\n")
    assert now() != first
    (tmp_path / helper).write_text("# a comment\nblock = WIDTH = 1\n")
    assert now() == first


def test_a_package_whose_import_fails_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack_failing").mkdir()
    (tmp_path / "pack_failing" / "__init__.py").write_text("[][1]\n")
    (tmp_path / "pack_failing" / "nets.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert plugins.source_hash("models", "pack_failing.nets:make")


def test_what_is_installed_beside_a_model_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "installed_nets.py").write_text("import installed_library\n")
    (site / "installed_library.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(site)
    first = plugins.source_hash("models", "installed_nets:make")
    (site / "installed_library.py").write_text("x = 2\n")
    plugins._source_hash.cache_clear()
    assert plugins.source_hash("models", "installed_nets:make") == first
