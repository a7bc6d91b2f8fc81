"""Exceptions of a user's code, described in one line with the place in the user's file."""

import traceback
from pathlib import Path

from bench.errors import first_line

_HARNESS = Path(__file__).parent.parent
_NETWORKS = _HARNESS / "models"


def described(error: Exception) -> str:
    """Describe an exception of a user's code: its type, the first line of what it says, and the user's file and line.

    The place is the last one that is neither in PyTorch nor in the harness.
    """
    import torch

    pytorch = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        of_the_harness = path.is_relative_to(_HARNESS) and not path.is_relative_to(_NETWORKS)
        if path.is_file() and not path.is_relative_to(pytorch) and not of_the_harness:
            return f"{type(error).__name__}: {first_line(error)} ({path}:{frame.lineno})"
    return f"{type(error).__name__}: {first_line(error)}"
