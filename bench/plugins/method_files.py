"""Methods in a user's own file, `path/to/file.py:Class`, which need not be registered.

In tables, options and records such a method has a short name: its class's name in snake_case, or the name given before
`=`. Its location, file and class, is kept in `method_files` of the specification and is not part of a run's identity.
Modules that the file imports from its own folder are part of the method's source.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.errors import BenchError, ForeignCodeError, described, unknown_name
from bench.inputs.reading import TEXT_BYTES, read_bytes
from bench.plugins import entry_points
from bench.plugins.source_hash import file_in, hash_sources, imported_files, module_file

_ENTRY = re.compile(r"(?:(?P<name>[^=/\\]+)=)?(?P<file>.+?\.py)(?::(?P<kind>.*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FORM = "path/to/file.py:Class, or NAME=path/to/file.py:Class"
_ITSELF = "<file>"
"""Name of the method's own file in its source hash, which therefore does not change when the file is renamed."""


def parse_entry(text: str) -> tuple[str, str] | None:
    """Parse an entry of `--methods` into name and location; return `None` for the name of a registered method.

    Args:
        text: Entry of the form `sbs`, `path/to/file.py:Class` or `name=path/to/file.py:Class`; paths are relative to
            the working directory.

    Returns:
        The name, and the location in the form `/absolute/path/file.py:Class`.

    Raises:
        BenchError: The entry has none of these forms.
    """
    match = _ENTRY.fullmatch(text)
    if match is None:
        if "=" in text or ":" in text:
            raise BenchError(f"method '{text}' is neither a name (see `bench list methods`) nor of the form {_FORM}")
        return None
    kind = match["kind"] or ""
    if not kind.isidentifier():
        raise BenchError(f"method '{text}' names no class; the form of a method in a file is {_FORM}")
    name = match["name"] or snake_case(kind)
    if not _NAME.fullmatch(name):
        raise BenchError(f"method '{text}': '{name}' is not a valid name; use letters, digits, '_', '-' and '.'")
    return name, f"{Path(match['file']).expanduser().resolve()}:{kind}"


def snake_case(kind: str) -> str:
    """Turn a class's name into a method's: `HalfBits` becomes `half_bits`, `SBSFast` becomes `sbs_fast`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).strip("_").lower()


def with_files(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace locations in `methods` of a specification by names, and add the locations to `method_files`.

    Raises:
        BenchError: Two methods would have the same name, or an entry has a wrong form.
    """
    methods = values.get("methods")
    if not isinstance(methods, list | tuple) or not all(isinstance(entry, str) for entry in methods):
        return dict(values)  # building the specification reports the error
    locations: dict[str, str] = {}
    names = []
    for entry in methods:
        name, location = parse_entry(entry) or (entry, None)
        names.append(name)
        if location is not None:
            _check_free(name, location, locations)
            locations[name] = location
    if not locations:
        return dict(values)
    earlier = values.get("method_files")
    files = {**(earlier if isinstance(earlier, Mapping) else {}), **locations}
    return {**values, "methods": names, "method_files": files}


def _check_free(name: str, location: str, locations: Mapping[str, str]) -> None:
    known = entry_points.available("methods")
    taken = locations.get(name) or (f"{known[name].value}, which is registered" if name in known else None)
    if taken is not None:
        raise BenchError(
            f"two methods are called '{name}': {taken}, and {location}; give one a name: --methods mine={location}"
        )


def load(location: str) -> Any:
    """Load the class at a location; the file is executed once per process.

    Raises:
        BenchError: There is no such file, executing it fails, or it does not define the class.
    """
    path, _, name = location.rpartition(":")
    module = _run(Path(path))
    if not hasattr(module, name):
        own = ((key, value) for key, value in vars(module).items() if isinstance(value, type))
        known = [key for key, kind in own if kind.__module__ == module.__name__]
        raise unknown_name("class", name, known, path)
    return getattr(module, name)


@cache
def _run(path: Path) -> ModuleType:
    _read(path)  # raises an error when there is no file
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file beside it must not take the place of what others import
    _check_neighbours(path)
    name = f"bench_method_file_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchError(f"'{path}' is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ForeignCodeError(f"cannot load '{path}': {described(error)}") from error
    return module


def _check_neighbours(path: Path) -> None:
    """Check that Python finds the modules of the file's own folder under the names that the file imports.

    Raises:
        BenchError: Another module has such a name, e.g. one beside another method's file.
    """
    for name, file in _neighbours(path):
        importable = module_file(name) if "." not in name else file
        if importable is not None and importable.resolve() != file.resolve():
            raise BenchError(
                f"'{path}' imports '{name}', which is {importable} here and not the file beside it; rename that file"
            )


@cache
def source_hash(location: str) -> str:
    """Hash the file and all that it imports, directly or not, from its own folder and from packages of methods.

    The file's name and folder are not part of the hash: a file that was moved holds the same method.

    Raises:
        BenchError: The file cannot be read.
    """
    path = Path(location.rpartition(":")[0])
    own, imported = _read(path), dict(_imported(path))
    sources = {_ITSELF: own, **{name: file.read_bytes() for name, file in imported.items()}}
    return hash_sources(sources, {"bench", *imported})


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, TEXT_BYTES)
    except OSError as error:
        raise BenchError(f"cannot read the method's file '{path}': {error.strerror}") from error


def _neighbours(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the modules of the file's own folder that it imports, directly or not."""
    return ((name, file) for name, file in _imported(path) if file.is_relative_to(path.parent))


def _imported(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the modules that a file imports, directly or not, from its own folder and from packages of methods."""
    packages = {entry.module.partition(".")[0] for entry in entry_points.available("methods").values()}

    def find(name: str) -> Path | None:
        top = name.partition(".")[0]
        if top in ("", "bench"):  # the harness itself
            return None
        return module_file(name) if top in packages else file_in(path.parent, name)

    _, *imported = imported_files(_ITSELF, path, find)
    yield from imported
