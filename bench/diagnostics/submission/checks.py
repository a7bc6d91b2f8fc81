"""All checks of a submission, one after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.diagnostics.submission import choices, costs, data, networks, tables, units
from bench.diagnostics.submission.submission import NotChecked, Submission
from bench.diagnostics.verify import CheckLine
from bench.errors import first_line

Verdict = Literal["networks", "numbers", "no"]
"""How far a study was checked."""

_Check = tuple[str, Callable[[Submission], CheckLine]]

_CHECKS: Sequence[_Check] = (
    (units.WHAT, units.check),
    (costs.WHAT, costs.check),
    (data.WHAT, data.check),
    (choices.WHAT, choices.check),
    (tables.WHAT, tables.check),
)
_OF_NETWORKS: _Check = (networks.WHAT, networks.check)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Outcome of all checks.

    Attributes:
        lines: One line for each check.
        networks: Whether networks were to be evaluated.
    """

    lines: tuple[CheckLine, ...]
    networks: bool

    @property
    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        return [f"{line.what}: {line.figure}" for line in self.lines if not line.passed]

    @property
    def missing(self) -> list[str]:
        """Checks that could not be made, with the reason."""
        return [f"{line.what}: {line.figure}" for line in self.lines if _is_missing(line)]

    @property
    def verdict(self) -> Verdict:
        """How far the study was checked: also its networks, all but its networks, or not all of it."""
        undone = {line.what for line in self.lines if not line.passed or _is_missing(line)}
        if undone - {networks.WHAT}:
            return "no"
        return "networks" if self.networks and not undone else "numbers"


def _is_missing(line: CheckLine) -> bool:
    return line.passed and line.deviation


def inspect(submission: Submission, *, networks: bool = False) -> Iterator[CheckLine]:
    """Yield the line of each check as soon as it is made.

    Args:
        submission: Study to check.
        networks: Whether every network is evaluated again on the test images.
    """
    for what, check in (*_CHECKS, *([_OF_NETWORKS] if networks else [])):
        line = _made(what, check, submission)
        yield line
        if check is units.check and not line.passed:  # nothing else means anything then
            return


def _made(what: str, check: Callable[[Submission], CheckLine], submission: Submission) -> CheckLine:
    """Make a check; whatever goes wrong with the content of an archive is a fault of the archive."""
    try:
        if check is not units.check and not submission.runs:
            raise NotChecked("no run has a result")
        return check(submission)
    except NotChecked as reason:
        return CheckLine(what=what, figure=f"not checked: {reason}", passed=True, deviation=True)
    except Exception as error:
        return CheckLine(what=what, figure=f"cannot be checked: {first_line(error)}", passed=False)
