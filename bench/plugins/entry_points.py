"""Entry points: the plug-ins of every kind by name, and none of them imported."""

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal

from bench.errors import BenchError, unknown_name

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


def find(kind: Kind, name: str) -> EntryPoint:
    """Find a plug-in's entry point by its name, or a model's by its place, `package.module:function`.

    Raises:
        BenchError: The name is unknown.
    """
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
