"""The list of checks that `bench validate` makes, and their results."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.diagnostics.validation import behaviour, budgets, declarations, results
from bench.diagnostics.validation.other_layers import other_layers
from bench.diagnostics.validation.under_test import MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable, Violation

Verdict = Literal["pass", "FAIL", "n/a"]
GUIDE = "docs/adding-a-method.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: Name in the output.
        run: Function that makes the check; see `bench.diagnostics.validation`.
        topic: Paragraph of `docs/adding-a-method.md` that states the rule.
    """

    name: str
    run: Callable[[MethodUnderTest], str]
    topic: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Result of a check.

    Attributes:
        check: Name of the check.
        verdict: "pass", "FAIL", or "n/a" if the check does not apply to this method.
        found: Observation in words.
        see: Paragraph to read; empty unless the check failed.
    """

    check: str
    verdict: Verdict
    found: str
    see: str = ""


CHECKS: Sequence[Check] = (
    Check(name="summary", run=declarations.summary_and_source, topic="Summary and source"),
    Check(name="options", run=declarations.options, topic="Options"),
    Check(name="knobs", run=declarations.knobs, topic="Knobs"),
    Check(name="search", run=results.search, topic="Result"),
    Check(name="policy", run=results.policy, topic="Result"),
    Check(name="decisions", run=results.decisions, topic="Decisions"),
    Check(name="network", run=results.network, topic="Result"),
    Check(name="record", run=results.record, topic="Result"),
    Check(name="repeats", run=behaviour.repeatable, topic="Randomness"),
    Check(name="global generators", run=behaviour.other_generators, topic="Randomness"),
    Check(name="name", run=behaviour.other_name, topic="Randomness"),
    Check(name="test split", run=behaviour.test_split, topic="Data"),
    Check(name="inputs", run=behaviour.inputs, topic="Data"),
    Check(name="allowance", run=behaviour.allowance, topic="Data"),
    Check(name="interruption", run=behaviour.resume, topic="Interruptions"),
    Check(name="budget", run=budgets.within_reach, topic="Decisions"),
    Check(name="impossible budget", run=budgets.out_of_reach, topic="Errors"),
    Check(name="extremes", run=budgets.extremes, topic="Knobs"),
    Check(name="strength", run=budgets.strength, topic="Knobs"),
    Check(name="cheapest", run=budgets.cheapest, topic="Cheapest"),
    Check(name="costliest", run=budgets.costliest, topic="Costliest"),
    Check(name="other layers", run=other_layers, topic="Layers"),
    Check(name="capabilities", run=declarations.capabilities, topic="Capabilities"),
    Check(name="memory", run=behaviour.memory, topic="Memory"),
)
"""All checks. Those that look at the policies of all searches come after those that search."""


def validate(under_test: MethodUnderTest, checks: Sequence[Check] = CHECKS) -> Iterator[CheckResult]:
    """Make all checks of a method; a failure of one does not prevent the others."""
    return (run_check(check, under_test) for check in checks)


def run_check(check: Check, under_test: MethodUnderTest) -> CheckResult:
    """Make one check of a method."""
    verdict, words = _outcome(check, under_test)
    see = f"{GUIDE}, '{check.topic}'" if verdict == "FAIL" else ""
    return CheckResult(check=check.name, verdict=verdict, found=" ".join(words.split()), see=see)


def _outcome(check: Check, under_test: MethodUnderTest) -> tuple[Verdict, str]:
    try:
        return "pass", check.run(under_test)
    except NotApplicable as reason:
        return "n/a", str(reason)
    except Violation as violation:
        return "FAIL", _noted(violation, str(violation))
    except Exception as error:
        return "FAIL", _noted(error, f"{type(error).__name__}: {error}{_where(error, under_test)}")


def _noted(error: Exception, words: str) -> str:
    """Put the notes of an exception before its words: the check adds one if the small task was not the cause."""
    return ": ".join([*getattr(error, "__notes__", []), words])


def _where(error: Exception, under_test: MethodUnderTest) -> str:
    """Return the line of the method that raised an exception, " (file:line)"; empty if another file raised it."""
    bases = type(under_test.method).__mro__
    kinds = [kind for kind in bases if not kind.__module__.startswith(("bench.", "abc", "builtins"))]
    files = {inspect.getsourcefile(kind) for kind in kinds}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f" ({_shown(Path(frame.filename))}:{frame.lineno})"
    return ""


def _shown(path: Path) -> Path:
    """Return a path relative to the working directory if it is inside of it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
