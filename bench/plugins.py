"""Finds methods, models, data sets, reports and checks through entry points, loading only what is asked for."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

import bench
from bench.errors import BenchError, unknown_name

Kind = Literal["methods", "models", "datasets", "reports", "checks"]


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

    Raises:
        BenchError: The name is unknown, or its module cannot be imported.
    """
    known = available(kind)
    if name not in known:
        raise unknown_name(kind.removesuffix("s"), name, known, f"bench list {kind}")
    _check_own_packages()
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        raise BenchError(f"cannot load {kind.removesuffix('s')} '{name}' from {known[name].value}: {error}") from error


def source_file(kind: Kind, name: str) -> Path:
    """The file that defines a plug-in; a change of it makes results of the plug-in stale."""
    module = sys.modules[load(kind, name).__module__]
    return Path(str(module.__file__))


def _check_own_packages() -> None:
    """Refuse to run when another `datasets` package was imported before ours."""
    loaded = sys.modules.get("datasets")
    expected = Path(bench.__file__).resolve().parent.parent / "datasets"
    if loaded is not None and expected.is_dir() and Path(str(loaded.__file__)).resolve().parent != expected:
        raise BenchError(
            f"another package called 'datasets' is already imported from {loaded.__file__}; "
            "import bench before it, or use the `bench` command"
        )
