"""The harness: specification, planning, running, matching of budgets, costs, training and tracking.

It knows no method, data set or report by name; `bench.plugins.registry` finds them through entry points.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["__version__"]

try:
    __version__ = version("sbs-bench")
except PackageNotFoundError:  # a bare checkout, not installed
    __version__ = "0+unknown"


def _prefer_own_packages() -> None:
    """Put the checkout first on the path of this process.

    Hugging Face publishes a package that is also called `datasets`. Inside a process that uses the harness ours
    must win; other programs of the same environment never run this line and keep theirs.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "datasets" / "digits.py").is_file():
        sys.path.insert(0, str(checkout))


_prefer_own_packages()
