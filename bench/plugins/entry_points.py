"""Entry points of plug-ins, listed by kind and name without importing any."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError, unknown_name

_OWN_PACKAGES = ("bench", "methods", "datasets", "reports")

Kind = Literal["methods", "models", "datasets", "reports", "forms", "checks"]


@cache
def available(kind: Kind) -> Mapping[str, EntryPoint]:
    """List the entry points of one kind by name, ours and those of other packages; import none.

    Raises:
        BenchError: Two packages declare the same name, or no package declares any.
    """
    entries: dict[str, EntryPoint] = {}
    for entry in _installed(tuple(sys.path)).select(group=f"bench.{kind}"):
        known = entries.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise BenchError(
                f"two {kind} are called '{entry.name}': {known.value} and {entry.value}; "
                "rename one in its package's entry points and reinstall it"
            )
    if not entries:
        raise BenchError(f"no {kind} are installed; run `pip install -e .` in the checkout")
    return entries


@cache
def _installed(_: tuple[str, ...]) -> EntryPoints:
    """Read the entry points of all packages on the path, which takes tens of milliseconds."""
    everything: Any = entry_points()  # before Python 3.12 its type is a mapping by groups, too
    found: EntryPoints = everything.select()
    return found


def find(kind: Kind, name: str) -> EntryPoint:
    """Find the entry point of a plug-in by its name, or that of a model by its location, `package.module:function`.

    Raises:
        BenchError: The name is unknown.
    """
    if kind == "models" and ":" in name:
        return _model_at(name)
    known = available(kind)
    if name not in known:
        raise unknown_name(kind.removesuffix("s"), name, known, f"bench list {kind}")
    return known[name]


def is_own(kind: Kind, name: str) -> bool:
    """Whether a plug-in comes with the harness.

    Raises:
        BenchError: The name is unknown.
    """
    return find(kind, name).module.partition(".")[0] in _OWN_PACKAGES


def _model_at(location: str) -> EntryPoint:
    """Make an entry point for a function of a module that Python can import, also from the working directory."""
    module, _, function = location.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise BenchError(f"model '{location}' is not of the form package.module:function, e.g. my_nets.small:make")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return EntryPoint(name=location, value=location, group="bench.models")
