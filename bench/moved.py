"""Old import paths of documented modules, which keep working for one release and warn.

A method's file that was written for an earlier release, e.g. with `from bench.policy import uniform`, still runs. Each
use of an old path gives a `FutureWarning` that names the new import.
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: Mapping[str, str] = {
    "bench.checkpoints": "bench.training.checkpoints",
    "bench.image_loading": "bench.data.image_loading",
    "bench.options": "bench.spec.options",
    "bench.policy": "bench.compression.policy",
    "bench.quantization": "bench.compression.quantizer",
    "bench.repair": "bench.matching.repair",
    "bench.report": "bench.reporting.report",
}
"""New module by old module."""

RENAMED: Mapping[str, str] = {"bench.options.Strict": "Options"}
"""New name by old path, for names that have changed too."""


def install() -> None:
    """Make the old paths importable."""
    sys.meta_path.append(_Finder())


class _Finder(MetaPathFinder, Loader):
    """Import hook that finds the old modules, and loads them as modules that look their names up elsewhere."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification for an old module; `None` for all others."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Give an old module a function that looks up its names."""
        vars(module)["__getattr__"] = partial(_moved_name, module.__name__)


def _moved_name(module: str, name: str) -> Any:
    """Look up a name of an old module, and warn.

    Raises:
        AttributeError: The new module does not have the name.
    """
    if name.startswith("__"):
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    new = RENAMED.get(f"{module}.{name}", name)
    value = getattr(import_module(MOVED[module]), new)
    home = "bench.api" if new in import_module("bench.api").__all__ else MOVED[module]
    warnings.warn(
        f"{module}.{name} has moved, and its old path will be removed in the next release; use "
        f"`from {home} import {new}`",
        FutureWarning,
        stacklevel=2,
    )
    return value
