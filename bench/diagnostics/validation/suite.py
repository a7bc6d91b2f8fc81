"""Runs the checks of `bench validate`, each by itself."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.diagnostics.validation import budgets, conduct, declared, outcome
from bench.diagnostics.validation.subject import MethodUnderTest, NotApplicable, Violation

Verdict = Literal["pass", "FAIL", "n/a"]
GUIDE = "docs/adding-a-method.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: In the output.
        run: Says what it found; see `bench.diagnostics.validation`.
        topic: What of `docs/adding-a-method.md` it is about.
    """

    name: str
    run: Callable[[MethodUnderTest], str]
    topic: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: Its name.
        verdict: "pass", "FAIL", or "n/a" where it says nothing of this method.
        found: In words.
        see: Where to read on; empty unless it failed.
    """

    check: str
    verdict: Verdict
    found: str
    see: str = ""


CHECKS: Sequence[Check] = (
    Check(name="summary", run=declared.summary_and_source, topic="Summary and source"),
    Check(name="options", run=declared.options, topic="Options"),
    Check(name="knobs", run=declared.knobs, topic="Knobs"),
    Check(name="search", run=outcome.search, topic="Result"),
    Check(name="policy", run=outcome.policy, topic="Result"),
    Check(name="decisions", run=outcome.decisions, topic="Decisions"),
    Check(name="network", run=outcome.network, topic="Result"),
    Check(name="record", run=outcome.record, topic="Result"),
    Check(name="repeats", run=conduct.repeatable, topic="Randomness"),
    Check(name="global generators", run=conduct.other_generators, topic="Randomness"),
    Check(name="name", run=conduct.other_name, topic="Randomness"),
    Check(name="test split", run=conduct.test_split, topic="Data"),
    Check(name="inputs", run=conduct.inputs, topic="Data"),
    Check(name="interruption", run=conduct.resume, topic="Interruptions"),
    Check(name="budget", run=budgets.within_reach, topic="Decisions"),
    Check(name="impossible budget", run=budgets.out_of_reach, topic="Errors"),
    Check(name="extremes", run=budgets.extremes, topic="Knobs"),
    Check(name="strength", run=budgets.strength, topic="Knobs"),
    Check(name="cheapest", run=budgets.cheapest, topic="Cheapest"),
    Check(name="capabilities", run=declared.capabilities, topic="Capabilities"),
    Check(name="memory", run=conduct.memory, topic="Memory"),
)
"""Those that look at all policies found come after those that search."""


def validate(subject: MethodUnderTest, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Make every check of a method; what goes wrong in one does not hinder the others."""
    for check in checks:
        verdict, found = _carried_out(check, subject)
        see = f"{GUIDE}, '{check.topic}'" if verdict == "FAIL" else ""
        yield Finding(check=check.name, verdict=verdict, found=" ".join(found.split()), see=see)


def _carried_out(check: Check, subject: MethodUnderTest) -> tuple[Verdict, str]:
    try:
        return "pass", check.run(subject)
    except NotApplicable as reason:
        return "n/a", str(reason)
    except Violation as violation:
        return "FAIL", str(violation)
    except Exception as error:
        return "FAIL", f"{type(error).__name__}: {error}{_where(error, subject)}"


def _where(error: Exception, subject: MethodUnderTest) -> str:
    """Where in the method an exception came up, " (file:line)"; nothing when it came up elsewhere."""
    kinds = [
        kind for kind in type(subject.method).__mro__ if not kind.__module__.startswith(("bench.", "abc", "builtins"))
    ]
    files = {inspect.getsourcefile(kind) for kind in kinds}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f" ({_shown(Path(frame.filename))}:{frame.lineno})"
    return ""


def _shown(path: Path) -> Path:
    """Relative to the working directory where it lies in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
