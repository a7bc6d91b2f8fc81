"""Find methods, models, data sets, reports and so on by name, loading only what is asked for."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import bench
from bench.errors import BenchError
from bench.plugins import entry_points, method_files
from bench.plugins.entry_points import Kind
from bench.plugins.source_hash import hash_sources, imported_modules, may_be_module, module_file


@cache
def load(kind: Kind, name: str) -> Any:
    """The object that a plug-in's entry point names.

    A model may also be named by its place, `package.module:function`, and a method by its, `/path/file.py:Class`.

    Raises:
        BenchError: The name is unknown, or its module cannot be imported.
    """
    if _is_file(kind, name):
        _check_own_packages()
        return method_files.load(name)
    entry = entry_points.find(kind, name)
    _check_own_packages()
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise BenchError(f"cannot load {kind.removesuffix('s')} '{name}' from {entry.value}: {error}") from error


def _is_file(kind: Kind, name: str) -> bool:
    return kind == "methods" and ".py:" in name


def module_of(kind: Kind, name: str) -> str | None:
    """The module that a plug-in is in; `None` when it is a file that is no module.

    Raises:
        BenchError: The name is unknown.
    """
    return None if _is_file(kind, name) else entry_points.find(kind, name).module


def source_hash(kind: Kind, name: str) -> str:
    """Hash of the code that a plug-in consists of; a change of it makes its results stale.

    That is the file that defines it and every file that this one imports, directly or not, from packages that
    bring plug-ins of the same kind: the building blocks that methods share belong to all of them. Nothing is
    imported.
    """
    if _is_file(kind, name):
        return method_files.source_hash(name)
    entry = entry_points.find(kind, name)
    if module_file(entry.module) is None:
        raise BenchError(f"the module of {kind.removesuffix('s')} '{name}', {entry.module}, cannot be found from here")
    packages = {known.module.partition(".")[0] for known in entry_points.available(kind).values()}
    return _source_hash(entry.module, frozenset(packages | {entry.module.partition(".")[0]}))


@cache
def _source_hash(module: str, packages: frozenset[str]) -> str:
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        found = waiting.pop()
        if found not in sources and (path := module_file(found)) is not None:
            sources[found] = path.read_bytes()
            waiting += [
                name
                for name in imported_modules(sources[found], found)
                if name.partition(".")[0] in packages and may_be_module(name)
            ]
    return hash_sources(sources, packages | {"bench"})


def _check_own_packages() -> None:
    """Refuse to run when another `datasets` package was imported before ours."""
    loaded = sys.modules.get("datasets")
    expected = Path(bench.__file__).resolve().parent.parent / "datasets"
    if loaded is not None and expected.is_dir() and Path(str(loaded.__file__)).resolve().parent != expected:
        raise BenchError(
            f"another package called 'datasets' is already imported from {loaded.__file__}; "
            "import bench before it, or use the `bench` command"
        )
