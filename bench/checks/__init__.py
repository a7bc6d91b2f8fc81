"""What `bench verify` runs: functions that check a claim or a figure and say what they found, line by line.

A check is a function without arguments in the entry-point group `bench.checks`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckLine:
    """One line of `bench verify`.

    Attributes:
        what: The claim, in words.
        figure: What was measured.
        passed: Whether the claim holds. A line that only reports a measurement passes, and its claim says so.
    """

    what: str
    figure: str
    passed: bool


Check = Callable[[], Iterator[CheckLine]]
"""A check: yields its lines as they are found, so that slow ones can be watched."""
