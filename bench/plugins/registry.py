"""Finds methods, models, data sets, reports and so on through entry points, loading only what is asked for."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import bench
from bench.errors import BenchError, unknown_name
from bench.plugins.source_hash import hash_sources, imported_modules, may_be_module, module_file

Kind = Literal["methods", "models", "datasets", "reports", "forms", "checks"]


@cache
def available(kind: Kind) -> Mapping[str, EntryPoint]:
    """All plug-ins of one kind by name, ours and other packages' alike, none of them imported.

    Raises:
        BenchError: Two packages declare the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"bench.{kind}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise BenchError(
                f"two {kind} are called '{entry.name}': {found[entry.name].value} and {entry.value}; "
                "rename one in its package's entry points and reinstall it"
            )
        found[entry.name] = entry
    if not found:
        raise BenchError(f"no {kind} are installed; run `pip install -e .` in the checkout")
    return found


@cache
def load(kind: Kind, name: str) -> Any:
    """The object that a plug-in's entry point names.

    A model may also be named by its place, `package.module:function`, and a method by its, `/path/file.py:Class`.

    Raises:
        BenchError: The name is unknown, or its module cannot be imported.
    """
    if _is_file(kind, name):
        from bench.plugins.method_files import load as load_file

        _check_own_packages()
        return load_file(name)
    entry = _entry(kind, name)
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
    return None if _is_file(kind, name) else _entry(kind, name).module


def _entry(kind: Kind, name: str) -> EntryPoint:
    if kind == "models" and ":" in name:
        return _by_place(name)
    known = available(kind)
    if name not in known:
        raise unknown_name(kind.removesuffix("s"), name, known, f"bench list {kind}")
    return known[name]


def _by_place(place: str) -> EntryPoint:
    """A function of a module that Python can import, or of one in the working directory."""
    module, _, function = place.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise BenchError(f"model '{place}' is not of the form package.module:function, e.g. my_nets.small:make")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return EntryPoint(name=place, value=place, group="bench.models")


def source_hash(kind: Kind, name: str) -> str:
    """Hash of the code that a plug-in consists of; a change of it makes its results stale.

    That is the file that defines it and every file that this one imports, directly or not, from packages that
    bring plug-ins of the same kind: the building blocks that methods share belong to all of them. Nothing is
    imported.
    """
    if _is_file(kind, name):
        from bench.plugins.method_files import source_hash as hash_of_file

        return hash_of_file(name)
    entry = _entry(kind, name)
    if module_file(entry.module) is None:
        raise BenchError(f"the module of {kind.removesuffix('s')} '{name}', {entry.module}, cannot be found from here")
    packages = {known.module.partition(".")[0] for known in available(kind).values()}
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
