"""Checks of a search's result: policy, decisions, weights, record."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from bench.compression.compress import calibrate, compress, restore_state
from bench.compression.policy import Policy, check, policy_from_json
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape
from bench.diagnostics.validation.under_test import MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable, Violation
from bench.diagnostics.wording import some
from bench.errors import BenchError
from bench.execution.stages.finetuning import reduced_form
from bench.matching.repair import policy_of
from bench.method import Decision, SearchResult


def search(under_test: MethodUnderTest) -> str:
    """Check that a search ends and returns a result."""
    result = under_test.search_plainly()
    if not isinstance(result.policy, Policy):
        raise Violation(f"the result's policy is {type(result.policy).__name__}, not a bench.compression.policy.Policy")
    return f"done in {under_test.seconds:.1f} s, {under_test.observed.batches} training batches"


def policy(under_test: MethodUnderTest) -> str:
    """Check that the policy fits the network, has whole numbers of bits, and survives a round trip through JSON."""
    result = under_test.searched.policy
    return f"{valid_policy(under_test, result)}, {under_test.price(result):,.0f} BOPs"


def valid_policy(under_test: MethodUnderTest, checked: Policy) -> str:
    """Check any policy, and describe it.

    Raises:
        Violation: The policy is not valid.
    """
    network = under_test.network
    try:
        check(network, checked)
    except BenchError as error:
        raise Violation(str(error)) from error
    if (checked.model, checked.dataset) != (network.model, network.dataset):
        raise Violation(
            f"the policy is for {checked.model} on {checked.dataset}, not for {network.model} on {network.dataset}"
        )
    if policy_from_json(json.loads(json.dumps(checked.to_json()))) != checked:
        raise Violation("the policy changes in a round trip through JSON; names of layers must be text")
    pairs = Counter(f"{layer.weight_bits}/{layer.activation_bits}" for layer in checked.layers.values())
    dropped = sum(layer.kept_filters is not None for layer in checked.layers.values())
    shown = ", ".join(f"{count} layers {bits}" for bits, count in pairs.most_common(3))
    return f"{shown} bits; filters removed from {dropped} layers"


def decisions(under_test: MethodUnderTest) -> str:
    """Check that the decisions are well-formed and give the policy."""
    result = under_test.plain
    if not result.decisions:
        raise NotApplicable("there are none: repair leaves the policy as it is")
    for decision in result.decisions:
        fault = _fault(under_test.network, decision)
        if fault is not None:
            raise Violation(f"the decision about {decision.what} of layer '{decision.layer}' {fault}")
    base = result.policy
    for name in {decision.layer for decision in result.decisions if decision.what == "filters"}:
        base = base.with_layer(name, kept_filters=tuple(range(under_test.network[name].filters)))
    decided = policy_of(base, result.decisions)
    for name, layer in decided.layers.items():
        if layer != result.policy.layers[name]:
            raise Violation(f"decisions give layer '{name}' {layer}, the policy {result.policy.layers[name]}")
    return f"{len(result.decisions)}, which give the policy"


def _fault(network: NetworkShape, decision: Decision) -> str | None:
    count = len(decision.options)
    if decision.layer not in {layer.name for layer in network.layers}:
        return "is about a layer that the network lacks"
    if list(decision.options) != sorted(set(decision.options)):
        return f"has options {decision.options} that do not rise"
    if not 0 <= decision.chosen < count:
        return f"chose option {decision.chosen} of {count}, counted from 0"
    if len(decision.margins) != count - 1 or not all(map(math.isfinite, decision.margins)):
        return f"has margins {decision.margins}; {count - 1} finite numbers are needed, one between neighbours"
    if decision.what == "filters" and not (decision.options == (0, 1) and decision.filters):
        return "must name its filters and have the options (0, 1), dropped or kept"
    return None


def network(under_test: MethodUnderTest) -> str:
    """Check that the weights fit the float model, and that the compressed network runs and has the policy's cost."""
    result, task = under_test.plain, under_test.task
    model = _loaded(under_test, result)
    reduced, reduced_policy = reduced_form(task.network, model, result.policy, task.data.image_shape)
    stated, real = under_test.price(result.policy), under_test.job(budget=1.0).measure.price(reduced, reduced_policy)
    if stated != real:
        raise Violation(f"the policy costs {stated:,.0f} BOPs, the physically reduced network {real:,.0f}")
    quantizers = [UniformQuantizer]
    if under_test.method.capabilities.own_quantizer:
        quantizers.append(under_test.method.quantizer)  # type: ignore[arg-type]
    for quantizer in quantizers:
        _run(under_test, _loaded(under_test, result), result, quantizer)
    return f"costs {real:,.0f} BOPs, as the policy says, and runs"


def _loaded(under_test: MethodUnderTest, result: SearchResult) -> nn.Module:
    """Load a search's weights into the float model.

    Raises:
        Violation: The weights do not fit, or are not finite.
    """
    check_finite(result)
    model = under_test.task.make_model()
    try:
        restore_state(model, result.state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise Violation(
            f"the state does not fit the float model; it must have all its names, with full shapes: {reason}"
        ) from error
    return model


def check_finite(result: SearchResult) -> None:
    """Check that all weights and quantizers' parameters are finite, and that clip values are positive.

    Raises:
        Violation: They are not.
    """
    kept: Mapping[str, torch.Tensor] = {**result.state, **result.quantizers}
    wrong = [name for name, value in kept.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    signed = (".offset",)  # of a quantizer for inputs that can be negative
    wrong += [
        name
        for name, value in result.clips.items()
        if not math.isfinite(value) or (value <= 0 and not name.endswith(signed))
    ]
    if wrong:
        raise Violation(f"NaN, infinite or unusable after the search: {some(wrong)}")


def _run(under_test: MethodUnderTest, model: nn.Module, result: SearchResult, quantizer: QuantizerFactory) -> None:
    """Run the compressed network as in the first step of fine-tuning."""
    task = under_test.task
    compressed = compress(
        model,
        task.network,
        result.policy,
        clips=result.clips,
        quantizer=quantizer,
        normalized_weights=result.normalized_weights,
    )
    if quantizer is not UniformQuantizer:
        unknown = compressed.load_state_dict(dict(result.quantizers), strict=False).unexpected_keys
        if unknown:
            raise Violation(f"quantizers has names that the compressed network lacks: {some(unknown)}")
    images = task.data.calibration_batches(1, 32)[0]
    calibrate(compressed, images)
    outputs = compressed.train()(images)
    if outputs.shape != (len(images), task.data.num_classes) or not bool(outputs.isfinite().all()):
        raise Violation("the compressed network's outputs are not finite numbers, one for each class")


def record(under_test: MethodUnderTest) -> str:
    """Check that the search's record can be written as JSON."""
    written = under_test.plain.record
    try:
        text = json.dumps(written, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Violation(
            f"it cannot be written as JSON; use plain numbers, lists and texts: {error}{_where(written)}"
        ) from error
    history = written.get("history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise Violation("record['history'] is not a list of dictionaries, one per epoch")
    return f"JSON of {len(text):,} characters" + (f", a history of {len(history)} epochs" if history else "")


def _where(record: Mapping[str, object]) -> str:
    """Name the first key whose value cannot be written."""
    return "".join(f" (under {key!r})" for key in list(_unwritable(record))[:1])


def _unwritable(record: Mapping[str, object]) -> Iterator[str]:
    for key, value in record.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            yield str(key)
