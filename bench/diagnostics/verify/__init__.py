"""What `bench verify` runs: functions that check a claim or a figure and say what they found, line by line.

A check is a function without arguments in the entry-point group `bench.diagnostics.verify`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.reporting.report import Column, Document, Figure, Part, Section, Table


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckLine:
    """One line of `bench verify`.

    Attributes:
        what: The claim, in words.
        figure: What was measured.
        passed: Whether the claim holds. A line that only reports a measurement passes, and its claim says so.
        deviation: Whether the paper prints something else than its own rules give. The claim then says how that comes
            about, where it is known, and it is this that holds or not.
    """

    what: str
    figure: str
    passed: bool
    deviation: bool = False

    @property
    def verdict(self) -> str:
        """In a table."""
        return "no" if not self.passed else "deviation" if self.deviation else "yes"


Check = Callable[[], Iterator[CheckLine | Figure]]
"""A check: yields its lines as they are found, so that slow ones can be watched, and figures of the same numbers."""


def verification(lines: Sequence[CheckLine], figures: Sequence[Figure]) -> Document:
    """What all checks found, as a table and the figures in the order of their names."""
    table = Table(
        name="verify",
        title="Claims of the paper, checked against this implementation",
        columns=(
            Column(title="Claim", align="left"),
            Column(title="Found", align="left"),
            Column(title="Holds", align="left"),
        ),
        rows=tuple((line.what, line.figure, line.verdict) for line in lines),
    )
    parts: tuple[Part, ...] = (table, *sorted(figures, key=lambda figure: figure.name))
    return Document(study="verify", sections=(Section(name="verify", title="Checks", parts=parts),))
