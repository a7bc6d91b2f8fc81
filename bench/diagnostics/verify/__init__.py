"""`bench verify`: checks of the paper's claims and printed figures, reported line by line.

A check is a function without arguments that yields `CheckLine`s and figures. It is registered in the entry-point group
`bench.checks`. The checks here are of costs; those of the paper's theorem are in `methods/checks`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.reporting.report import Column, Document, Figure, Part, Section, Table


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckLine:
    """One line of `bench verify`.

    Attributes:
        what: Claim in words.
        figure: Measured figure.
        passed: Whether the claim holds. A line that only reports a measurement always passes, and says so.
        deviation: Whether the paper's figure differs from what its own rules give. The claim is then an explanation of
            the difference, if there is one.
    """

    what: str
    figure: str
    passed: bool
    deviation: bool = False

    @property
    def verdict(self) -> str:
        """Word for the table: "yes", "no" or "deviation"."""
        return "no" if not self.passed else "deviation" if self.deviation else "yes"


Check = Callable[[], Iterator[CheckLine | Figure]]
"""Function that yields each line as soon as it is known, and figures."""


def verification(lines: Sequence[CheckLine], figures: Sequence[Figure]) -> Document:
    """Make a document of all lines as a table, and of all figures in the order of their names."""
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
