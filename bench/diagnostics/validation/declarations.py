"""Checks of a method's declarations: summary, source, options, knobs, capabilities."""

import json
import math
from collections.abc import Iterator
from typing import Any, get_args

from bench.compression.policy import FULL_PRECISION_BITS, LayerPolicy, Policy
from bench.compression.quantizer import UniformQuantizer
from bench.diagnostics.validation.under_test import MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable, Violation
from bench.diagnostics.wording import some
from bench.errors import BenchError
from bench.method import Knob
from bench.planning.methods import make_method
from bench.spec.options import Options
from bench.spec.schema import Match

_NO_OPTION = "no_such_option"
_WRONG: dict[str, list[str]] = {"no such": ["value"]}
"""A value that no option accepts."""


def summary_and_source(under_test: MethodUnderTest) -> str:
    """Check the summary of the method, its family, its source, and its deviations from the source."""
    kind = type(under_test.method)
    summary, family, source = getattr(kind, "summary", ""), kind.family, kind.source
    for name, text in (("summary", summary), ("family", family)):
        if not isinstance(text, str) or not text.strip() or "\n" in text:
            raise Violation(f"the class attribute {name!r} is {text!r}; give one line for `bench list methods --long`")
    if not isinstance(source, str) or not source.strip():
        raise Violation("the class attribute 'source' is empty; name the paper, or whose idea the method is")
    deviations: Any = kind.deviations
    if not isinstance(deviations, tuple) or not all(isinstance(text, str) and text.strip() for text in deviations):
        raise Violation(
            "'deviations' is not a tuple of sentences; a single one needs a comma behind it: ('It differs.',)"
        )
    return f"from {source}; deviations: {len(deviations)}"


def options(under_test: MethodUnderTest) -> str:
    """Check that unknown options and wrong values are rejected in one line, and that options can be written as JSON."""
    kind = type(under_test.method).Options
    if not (isinstance(kind, type) and issubclass(kind, Options)):
        raise Violation(f"Options is {kind!r}, not a subclass of bench.api.Options, so wrong values are not noticed")
    _check_rejected(under_test, _NO_OPTION, 1)
    for name in kind.model_fields:
        _check_rejected(under_test, name, _WRONG)
    stated = under_test.method.stated_options(under_test.network)
    try:
        json.dumps(stated, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Violation(f"stated_options cannot be written as JSON, which identifies runs: {error}") from error
    return f"{', '.join(kind.model_fields) or 'none'}: unknown names and wrong values are rejected in one line"


def _check_rejected(under_test: MethodUnderTest, option: str, value: Any) -> None:
    try:
        make_method(under_test.name, {**under_test.options, option: value}, under_test.location)
    except BenchError as error:
        if option not in str(error) or len(str(error).splitlines()) != 1:
            raise Violation(f"{option} = {value!r} is rejected, but not in one line that names it: {error}") from error
        return
    raise Violation(f"{option} = {value!r} is accepted; options must be typed fields of a bench.api.Options")


def knobs(under_test: MethodUnderTest) -> str:
    """Check that a method with a tuned strength has knobs with finite ranges, including 'strength', and others none."""
    budget, described = under_test.method.capabilities.budget, []
    for match in get_args(Match):
        ranges = under_test.method.knobs(match)
        if budget != "strength" and ranges:
            raise Violation(f"knobs are stated ({some(list(ranges))}), but with budget='{budget}' they are not tuned")
        if budget == "strength" and match != "dual" and "strength" not in ranges:
            raise Violation(f"knobs(match='{match}') lacks 'strength', which is tuned to meet the budget")
        for name, knob in ranges.items():
            _check_range(name, knob)
            described.append(f"{name} {knob.low:g} to {knob.high:g}")
    if budget != "strength":
        raise NotApplicable(f"budget='{budget}': nothing is tuned")
    return ", ".join(dict.fromkeys(described))


def _check_range(name: str, knob: Knob) -> None:
    finite = isinstance(knob, Knob) and math.isfinite(knob.low) and math.isfinite(knob.high)
    if not finite or knob.low >= knob.high or (knob.low <= 0 and (knob.log or name == "strength")):
        raise Violation(
            f"the range of knob '{name}' is {knob}; low must be below high, and above 0 for 'strength' and log"
        )


def capabilities(under_test: MethodUnderTest) -> str:
    """Check that the policies of all searches use declared capabilities only."""
    _ = under_test.plain  # without a search there are no policies
    faults = [fault for words, policy in under_test.policies for fault in _undeclared(under_test, words, policy)]
    faults += _quantizer_fault(under_test)
    if faults:
        raise Violation(faults[0])
    can = under_test.method.capabilities
    declared = [
        f"budget='{can.budget}'",
        *(name for name in ("prunes", "mixed_precision", "one_stage") if getattr(can, name)),
    ]
    return f"{', '.join(declared)}: as in {len(under_test.policies)} policies found"


def _undeclared(under_test: MethodUnderTest, words: str, policy: Policy) -> Iterator[str]:
    """Describe what a policy does that the method does not declare."""
    can, network = under_test.method.capabilities, under_test.network
    pruned = [name for name, layer in policy.layers.items() if layer.kept_filters is not None]
    if pruned and not can.prunes:
        yield f"prunes=False, but the {words} search removed filters of {some(pruned)}"
    middle = [policy.layers[layer.name] for layer in network.middle if layer.name in policy.layers]
    pairs = {_bits(layer) for layer in middle}
    if len(pairs) > 1 and not can.mixed_precision:
        shown = some([f"{weight}/{activation}" for weight, activation in sorted(pairs)])
        yield f"mixed_precision=False, but the {words} search gave layers different bits: {shown}"
    unquantized = [name for name, layer in policy.layers.items() if FULL_PRECISION_BITS in _bits(layer)]
    if unquantized and can.budget != "ignored" and not can.full_precision:
        yield f"full_precision=False, but the {words} search left {some(unquantized)} at 32 bits"


def _bits(layer: LayerPolicy) -> tuple[int, int]:
    return layer.weight_bits, layer.activation_bits


def _quantizer_fault(under_test: MethodUnderTest) -> Iterator[str]:
    own = under_test.method.quantizer is not UniformQuantizer
    if own and not under_test.method.capabilities.own_quantizer:
        yield "own_quantizer=False, but the property 'quantizer' returns one of the method's own"
    if not own and under_test.method.capabilities.own_quantizer:
        yield "own_quantizer=True, but the property 'quantizer' returns the common one"
