"""Values that are read from environment variables."""

import os
import re

from bench.errors import BenchError


def seconds_from_environment(variable: str, default: float) -> float:
    """Read a number of seconds from an environment variable; return the default if it is unset or empty.

    Raises:
        BenchError: The value is not a number, or negative.
    """
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) is None:
        raise BenchError(f"{variable} is '{text}'; give a number of seconds from 0 upwards, or leave it unset")
    return float(text)
