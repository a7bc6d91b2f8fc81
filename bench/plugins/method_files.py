"""Methods in a file of the user's own, `path/to/file.py:Class`, beside those that packages register.

In tables, options and records such a method has a short name: that of its class in snake_case, or the one given before
`=`. The file's place is kept beside it, in the specification's `method_files`, and is no part of what identifies a run.
What the file imports from its own folder belongs to its source.
"""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import BenchError, unknown_name
from bench.plugins import entry_points
from bench.plugins.source_hash import hash_sources, imported_modules, module_file, module_file_of_import

_ENTRY = re.compile(r"(?:(?P<name>[^=/\\]+)=)?(?P<file>.+?\.py)(?::(?P<kind>.*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FORM = "path/to/file.py:Class, or NAME=path/to/file.py:Class"


def stated(text: str) -> tuple[str, str] | None:
    """The name and the place that an entry of `--methods` stands for; `None` for the name of a registered method.

    Args:
        text: `sbs`, `path/to/file.py:Class` or `name=path/to/file.py:Class`, relative to the working directory.

    Returns:
        A name, and a place of the form `/absolute/path/file.py:Class`.

    Raises:
        BenchError: It is a file, but not of that form.
    """
    match = _ENTRY.fullmatch(text)
    if match is None:
        if "=" in text or ":" in text:
            raise BenchError(f"method '{text}' is neither a name (see `bench list methods`) nor of the form {_FORM}")
        return None
    kind = match["kind"] or ""
    if not kind.isidentifier():
        raise BenchError(f"method '{text}' names no class of the file; methods in files have the form {_FORM}")
    name = match["name"] or snake_case(kind)
    if not _NAME.fullmatch(name):
        raise BenchError(f"method '{text}': '{name}' is no name; give letters, digits, '_', '-' and '.'")
    return name, f"{Path(match['file']).expanduser().resolve()}:{kind}"


def snake_case(kind: str) -> str:
    """A class's name as a method's: `HalfBits` is `half_bits`, `SBSFast` is `sbs_fast`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).strip("_").lower()


def is_place(text: str) -> bool:
    """Whether a method is named by its place, `/path/file.py:Class`."""
    return ".py:" in text


def with_files(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a specification in which every method has a name, and the places of those in files stand beside.

    Raises:
        BenchError: Two methods would have the same name, or an entry is not understood.
    """
    methods = values.get("methods")
    if not isinstance(methods, list | tuple) or not all(isinstance(entry, str) for entry in methods):
        return dict(values)  # what is wrong with it is said when the specification is built
    found: dict[str, str] = {}
    names = []
    for entry in methods:
        name, place = stated(entry) or (entry, None)
        names.append(name)
        if place is not None:
            _check_free(name, place, found)
            found[name] = place
    if not found:
        return dict(values)
    earlier = values.get("method_files")
    files = {**(earlier if isinstance(earlier, Mapping) else {}), **found}
    return {**values, "methods": names, "method_files": files}


def _check_free(name: str, place: str, found: Mapping[str, str]) -> None:
    known = entry_points.available("methods")
    taken = found.get(name) or (f"{known[name].value}, which is registered" if name in known else None)
    if taken is not None:
        raise BenchError(
            f"two methods are called '{name}': {taken}, and {place}; give one a name: --methods mine={place}"
        )


def load(place: str) -> Any:
    """What a place names; the file is run once a process.

    Raises:
        BenchError: There is no such file, it cannot be run, or it has no such thing in it.
    """
    path, _, name = place.rpartition(":")
    module = _run(Path(path))
    if not hasattr(module, name):
        own = ((key, value) for key, value in vars(module).items() if isinstance(value, type))
        known = [key for key, kind in own if kind.__module__ == module.__name__]
        raise unknown_name("class", name, known, path)
    return getattr(module, name)


@cache
def _run(path: Path) -> ModuleType:
    _read(path)  # says so when it is not there
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file beside it must not take the place of what others import
    _check_neighbours(path)
    name = f"bench_method_file_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchError(f"'{path}' is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BenchError(f"cannot load '{path}': {_in_one_line(error, path)}") from error
    return module


def _in_one_line(error: BaseException, path: Path) -> str:
    """An exception with the line of the file in which it came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


def _check_neighbours(path: Path) -> None:
    """Make sure that what the file imports from its own folder is what Python would find under these names.

    Raises:
        BenchError: Something else has such a name, e.g. the neighbour of another method's file.
    """
    for name, file in _neighbours(path):
        found = module_file(name) if "." not in name else file
        if found is not None and found.resolve() != file.resolve():
            raise BenchError(
                f"'{path}' imports '{name}', which is {found} here and not the file beside it; rename that file"
            )


@cache
def source_hash(place: str) -> str:
    """Hash of the file and of what it imports, directly or not, from its own folder and from packages of methods.

    Neither the file's name nor its folder is a part of it: moved, it is the same method.

    Raises:
        BenchError: The file cannot be read.
    """
    path = Path(place.rpartition(":")[0])
    imported = dict(_imported(path))
    sources = {"file": _read(path), **{name: file.read_bytes() for name, file in imported.items()}}
    return hash_sources(sources, {"bench", *imported})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read the method's file '{path}': {error.strerror}") from error


def _neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    """Modules of the file's own folder that it imports, directly or not."""
    return ((name, file) for name, file in _imported(path) if file.is_relative_to(path.parent))


def _imported(path: Path) -> Iterator[tuple[str, Path]]:
    """Modules that a file imports, directly or not, from its own folder and from packages of methods; with files."""
    packages = {entry.module.partition(".")[0] for entry in entry_points.available("methods").values()}
    waiting, seen = _names_in(path, "file"), {""}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        top = name.partition(".")[0]
        file = module_file_of_import(name) if top in packages else _beside(path.parent, name)
        if file is not None:
            yield name, file
            waiting += _names_in(file, f"{name}.__init__" if file.name == "__init__.py" else name)


def _names_in(file: Path, module: str) -> list[str]:
    """What a file imports, with the packages on the way; nothing when it is no Python, which running it will tell."""
    try:
        names = imported_modules(file.read_bytes(), module)
    except (SyntaxError, ValueError, OSError):
        return []
    return [".".join(name.split(".")[: depth + 1]) for name in names for depth in range(len(name.split(".")))]


def _beside(folder: Path, name: str) -> Path | None:
    """The file of a module of a folder; `None` when there is none, and for the harness's own."""
    if name.partition(".")[0] == "bench":
        return None
    base = folder.joinpath(*name.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)
