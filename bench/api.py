"""Everything that a method, data set, model or report in a file of your own needs: `from bench.api import …`.

Names are loaded when they are first used. `api.pyi` beside this file lists them and tells type checkers where each is
defined.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_LIST = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
# The library `lazy_loader` would also write the names into `bench`, which has another `price`.
_MODULES = {
    alias.name: f"bench.{line.module or alias.name}"
    for line in _LIST.body
    if isinstance(line, ast.ImportFrom) and line.level
    for alias in line.names
}

__all__ = sorted(_MODULES)  # noqa: PLE0605  (a list of texts, which the checker does not see)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bench.api' has no attribute '{name}'")
    module = import_module(_MODULES[name])
    value = globals()[name] = module if _MODULES[name] == f"bench.{name}" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return __all__
