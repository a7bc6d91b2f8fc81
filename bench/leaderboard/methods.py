"""What the methods of rows are: from the classes that are registered here, and from nowhere else."""

from dataclasses import dataclass

from bench.plugins.entry_points import available
from bench.plugins.summaries import summary_of

UNKNOWN = "not registered here"
"""Family of methods whose code is not part of this installation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodFacts:
    """What a method says of itself.

    Attributes:
        name: Name of the method.
        family: Kind of search, by which rows are filtered.
        summary: One line.
        source: Paper or other origin.
        abilities: What it can do, in words.
        deviations: Differences from the source, one sentence each.
    """

    name: str
    family: str = UNKNOWN
    summary: str = "A method whose code is not part of this installation"
    source: str = ""
    abilities: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


def facts_of(name: str) -> MethodFacts:
    """Return what a method says of itself; no code that a study names is loaded.

    Args:
        name: Name of the method as a study states it.

    Raises:
        BenchError: A registered method cannot be loaded.
    """
    from bench.planning.methods import method_class

    if name not in available("methods"):
        return MethodFacts(name=name)
    kind = method_class(name)
    return MethodFacts(
        name=name,
        family=kind.family,
        summary=summary_of(kind),
        source=kind.source,
        abilities=kind.capabilities.in_words(),
        deviations=kind.deviations,
    )
