"""Load methods, models, data sets, reports and other plug-ins by name, importing only what is asked for."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import bench
from bench.errors import BenchError, ForeignCodeError, described, first_line, place
from bench.plugins import entry_points, method_files
from bench.plugins.entry_points import Kind
from bench.plugins.source_hash import file_in, folders_of, hash_sources, imported_files, module_file


@cache
def load(kind: Kind, name: str) -> Any:
    """Load the object that a plug-in's entry point names.

    A model may also be named by its location, `package.module:function`, and a method by its, `/path/file.py:Class`.

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
    except (Exception, SystemExit) as error:
        text = described(error) if place(error, only_users=True) else first_line(error)
        raise ForeignCodeError(f"cannot load {kind.removesuffix('s')} '{name}' from {entry.value}: {text}") from error


def _is_file(kind: Kind, name: str) -> bool:
    return kind == "methods" and ".py:" in name


def module_of(kind: Kind, name: str) -> str | None:
    """Return the name of a plug-in's module; `None` for a method in a file that is not part of a package.

    Raises:
        BenchError: The name is unknown.
    """
    return None if _is_file(kind, name) else entry_points.find(kind, name).module


def source_hash(kind: Kind, name: str) -> str:
    """Hash a plug-in's code; when the hash changes, results of the plug-in become stale.

    The code consists of the file that defines the plug-in and of every file that this one imports, directly or not,
    from its own folder and package, and from packages that bring plug-ins of the same kind. Building blocks that
    methods share are thus part of each of them. The plug-in is not imported.

    Raises:
        BenchError: The name is unknown, or its module cannot be found.
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
    own_package = f"{module.rpartition('.')[0]}."
    file = module_file(module)
    folders = [] if file is None or module.startswith("bench.") else folders_of(module, file)

    def find(name: str) -> Path | None:
        top = name.partition(".")[0]
        # The harness itself is not part of a plug-in. Of the harness's own plug-ins, only their package is.
        if not top or (top == "bench" and not name.startswith(own_package)):
            return None
        if top in packages and (found := module_file(name)) is not None:
            return found
        return next(filter(None, (file_in(folder, name) for folder in folders)), None)

    files = dict(imported_files(module, file, find))
    sources = {name: path.read_bytes() for name, path in files.items()}
    return hash_sources(sources, packages | {"bench", *files})


def _check_own_packages() -> None:
    """Raise an error if another package called `datasets` was imported before ours."""
    loaded = sys.modules.get("datasets")
    expected = Path(bench.__file__).resolve().parent.parent / "datasets"
    if loaded is not None and expected.is_dir() and Path(str(loaded.__file__)).resolve().parent != expected:
        raise BenchError(
            f"another package called 'datasets' is already imported from {loaded.__file__}; "
            "import bench before it, or use the `bench` command"
        )
