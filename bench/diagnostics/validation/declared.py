"""Checks of what a method says of itself: summary, source, options, knobs, capabilities."""

import json
import math
from collections.abc import Iterator
from typing import Any

from bench.compression.policy import FULL_PRECISION_BITS, Policy
from bench.compression.quantizer import UniformQuantizer
from bench.diagnostics.validation.subject import MethodUnderTest, NotApplicable, Violation, some
from bench.errors import BenchError
from bench.method import Knob
from bench.planning.plan import make_method
from bench.spec.options import Options
from bench.spec.schema import Match

_NO_OPTION = "no_such_option"
_WRONG: dict[str, list[str]] = {"no such": ["value"]}
"""A value that no option takes."""


def summary_and_source(subject: MethodUnderTest) -> str:
    """One line that says what it is, the paper it is from, and what differs from that."""
    kind = type(subject.method)
    summary, source = getattr(kind, "summary", ""), kind.source
    if not isinstance(summary, str) or not summary.strip() or "\n" in summary:
        raise Violation(f"the class attribute 'summary' is {summary!r}; give one line for `bench list methods`")
    if not isinstance(source, str) or not source.strip():
        raise Violation("the class attribute 'source' is empty; name the paper, or whose definition it is")
    deviations: Any = kind.deviations
    if not isinstance(deviations, tuple) or not all(isinstance(text, str) and text.strip() for text in deviations):
        raise Violation("'deviations' is no tuple of sentences; one sentence needs a comma behind it: ('It differs.',)")
    return f"from {source}; deviations: {len(deviations)}"


def options(subject: MethodUnderTest) -> str:
    """A wrong option or value is refused in one line that names it and what is allowed; the rest is JSON."""
    kind = type(subject.method).Options
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        raise Violation(f"Options is {kind!r}, not a subclass of bench.api.Strict, so wrong values go unnoticed")
    _refused(subject, _NO_OPTION, 1)
    for name in kind.model_fields:
        _refused(subject, name, _WRONG)
    stated = subject.method.stated_options(subject.ground.task.network)
    try:
        json.dumps(stated, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Violation(f"stated_options cannot be written as JSON, which identifies runs: {error}") from error
    return f"{', '.join(kind.model_fields) or 'none'}: unknown names and wrong values are refused in one line"


def _refused(subject: MethodUnderTest, option: str, value: Any) -> None:
    try:
        make_method(subject.name, {**subject.options, option: value}, subject.place)
    except BenchError as error:
        if option not in str(error) or len(str(error).splitlines()) != 1:
            raise Violation(f"{option} = {value!r} is refused, but not in one line that names it: {error}") from error
        return
    raise Violation(f"{option} = {value!r} is accepted; options must be fields of a bench.api.Strict, with types")


def knobs(subject: MethodUnderTest) -> str:
    """What is tuned, for methods whose strength is tuned: finite ranges, 'strength' among them. Others have none."""
    budget, described = subject.method.capabilities.budget, []
    for match in _modes():
        found = subject.method.knobs(match)
        if budget != "strength" and found:
            raise Violation(f"knobs are stated ({some(list(found))}), but with budget='{budget}' nobody tunes them")
        if budget == "strength" and "strength" not in found:
            raise Violation(f"knobs(match='{match}') lacks 'strength', which is brought onto the budget")
        for name, knob in found.items():
            _check_range(name, knob)
            described.append(f"{name} {knob.low:g} to {knob.high:g}")
    if budget != "strength":
        raise NotApplicable(f"budget='{budget}': nothing is tuned")
    return ", ".join(dict.fromkeys(described))


def _modes() -> tuple[Match, ...]:
    return "hinge", "lambda"


def _check_range(name: str, knob: Knob) -> None:
    finite = isinstance(knob, Knob) and math.isfinite(knob.low) and math.isfinite(knob.high)
    if not finite or knob.low >= knob.high or (knob.low <= 0 and (knob.log or name == "strength")):
        raise Violation(
            f"the range of knob '{name}' is {knob}; low must be below high, and above 0 for 'strength' and log"
        )


def capabilities(subject: MethodUnderTest) -> str:
    """What it says it can do is what its searches do."""
    _ = subject.plain  # without a search there is nothing to compare with
    faults = [fault for words, policy in subject.found for fault in _overstepped(subject, words, policy)]
    faults += _quantizer_fault(subject)
    if faults:
        raise Violation(faults[0])
    can = subject.method.capabilities
    said = [
        f"budget='{can.budget}'",
        *(name for name in ("prunes", "mixed_precision", "one_stage") if getattr(can, name)),
    ]
    return f"{', '.join(said)}: as in {len(subject.found)} policies found"


def _overstepped(subject: MethodUnderTest, words: str, policy: Policy) -> Iterator[str]:
    """What a policy does that the method says it cannot."""
    can, network = subject.method.capabilities, subject.ground.task.network
    pruned = [name for name, layer in policy.layers.items() if layer.kept_filters is not None]
    if pruned and not can.prunes:
        yield f"prunes=False, but the {words} search removed filters of {some(pruned)}"
    middle = [policy.layers[layer.name] for layer in network.middle if layer.name in policy.layers]
    widths = {(layer.weight_bits, layer.activation_bits) for layer in middle}
    if len(widths) > 1 and not can.mixed_precision:
        shown = some([f"{weight}/{activation}" for weight, activation in sorted(widths)])
        yield f"mixed_precision=False, but the {words} search gave layers different widths: {shown} bits"
    wide = [name for name, layer in policy.layers.items() if FULL_PRECISION_BITS in _widths(layer)]
    if wide and can.budget != "ignored" and not can.full_precision:
        yield f"full_precision=False, but the {words} search left {some(wide)} at 32 bits"


def _widths(layer: Any) -> tuple[int, int]:
    return layer.weight_bits, layer.activation_bits


def _quantizer_fault(subject: MethodUnderTest) -> Iterator[str]:
    own = subject.method.quantizer is not UniformQuantizer
    if own and not subject.method.capabilities.own_quantizer:
        yield "own_quantizer=False, but the property 'quantizer' returns one of the method's own"
    if not own and subject.method.capabilities.own_quantizer:
        yield "own_quantizer=True, but the property 'quantizer' returns the common one"
