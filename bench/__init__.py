"""The harness: specification, planning, running, matching of budgets, costs, training and tracking.

It does not know methods, data sets and reports by name; `bench.plugins.registry` finds them through entry points. A
file of your own imports from `bench.api`. Scripts and notebooks import from `bench` itself: `Study`, `price`,
`compare`, `load_network` and `BenchError`, which are loaded when they are first used.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import moved

__all__ = ["BenchError", "Study", "__version__", "compare", "load_network", "price"]

_MODULES = {
    "BenchError": "bench.errors",
    "Study": "bench.interface.study",
    "compare": "bench.interface.comparing",
    "load_network": "bench.export.rebuild",
    "price": "bench.interface.pricing",
}
"""Modules of the public names, which are loaded when first used. `__init__.pyi` lists them for type checkers."""

try:
    __version__ = version("sbs-bench")
except PackageNotFoundError:  # a bare checkout, not installed
    __version__ = "0+unknown"


def _prefer_own_packages() -> None:
    """Put the checkout first on the path of this process.

    Hugging Face publishes a package that is also called `datasets`. A process that uses the harness needs ours. Other
    programs of the same environment do not run this function and get theirs.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "datasets" / "digits.py").is_file():
        sys.path.insert(0, str(checkout))


_prefer_own_packages()
moved.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
