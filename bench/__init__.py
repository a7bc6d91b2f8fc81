"""The harness: specification, planning, running, matching of budgets, costs, training and tracking.

It does not know methods, data sets and reports by name; `bench.plugins.registry` finds them through entry points. A
file of your own imports from `bench.api`.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import moved

__all__ = ["__version__"]

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
