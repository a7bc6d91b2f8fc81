"""Checks of what a search returns: policy, decisions, weights, record."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import FULL_PRECISION_BITS, LayerPolicy, Policy, check, policy_from_json
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape
from bench.diagnostics.validation.subject import MethodUnderTest, NotApplicable, Violation, some
from bench.errors import BenchError
from bench.execution.stages import reduced_form
from bench.matching.repair import policy_of
from bench.method import Decision, SearchResult


def search(subject: MethodUnderTest) -> str:
    """A search ends, and returns a result."""
    result = subject.search_plainly()
    if not isinstance(result.policy, Policy):
        raise Violation(f"the result's policy is {type(result.policy).__name__}, not a bench.compression.policy.Policy")
    return f"done in {subject.seconds:.1f} s, {subject.watched.batches} training batches"


def policy(subject: MethodUnderTest) -> str:
    """The policy fits the network, its widths are whole numbers, and it is the same after a round trip through JSON."""
    found = subject.searched.policy
    return f"{valid_policy(subject, found)}, {subject.price(found):,.0f} BOPs"


def valid_policy(subject: MethodUnderTest, found: Policy) -> str:
    """The same of any policy.

    Raises:
        Violation: It is not valid.
    """
    network = subject.ground.task.network
    for name, layer in found.layers.items():
        _check_types(name, layer)
    try:
        check(network, found)
    except BenchError as error:
        raise Violation(str(error)) from error
    if (found.model, found.dataset) != (network.model, network.dataset):
        raise Violation(
            f"the policy is for {found.model} on {found.dataset}, not for {network.model} on {network.dataset}"
        )
    if policy_from_json(json.loads(json.dumps(found.to_json()))) != found:
        raise Violation(
            "the policy is another one after a round trip through JSON; kept_filters must be tuples of ints"
        )
    widths = Counter(f"{layer.weight_bits}/{layer.activation_bits}" for layer in found.layers.values())
    dropped = sum(layer.kept_filters is not None for layer in found.layers.values())
    shown = ", ".join(f"{count} layers {bits}" for bits, count in widths.most_common(3))
    return f"{shown} bits; filters removed from {dropped} layers"


def _check_types(name: str, layer: LayerPolicy) -> None:
    for what in ("weight_bits", "activation_bits"):
        bits = getattr(layer, what)
        if type(bits) is not int or not 1 <= bits <= FULL_PRECISION_BITS:
            raise Violation(
                f"{what} of layer '{name}' is {bits!r} ({type(bits).__name__}); an int from 1 to 32 is needed"
            )
    kept = layer.kept_filters
    if kept is not None and (type(kept) is not tuple or any(type(filter_) is not int for filter_ in kept)):
        raise Violation(
            f"kept_filters of layer '{name}' is a {type(kept).__name__}; a tuple of ints, or None, is needed"
        )


def decisions(subject: MethodUnderTest) -> str:
    """What repair may move is well-formed, and stands for the policy."""
    result = subject.plain
    if not result.decisions:
        raise NotApplicable("there are none: repair takes the policy as it is")
    for decision in result.decisions:
        fault = _fault(subject.ground.task.network, decision)
        if fault is not None:
            raise Violation(f"the decision about {decision.what} of layer '{decision.layer}' {fault}")
    base = result.policy
    for name in {decision.layer for decision in result.decisions if decision.what == "filters"}:
        base = base.with_layer(name, kept_filters=tuple(range(subject.ground.task.network[name].out_channels)))
    stand_for = policy_of(base, result.decisions)
    differing = [name for name, layer in stand_for.layers.items() if layer != result.policy.layers[name]]
    if differing:
        name = differing[0]
        raise Violation(
            f"decisions say {stand_for.layers[name]} of layer '{name}', the policy {result.policy.layers[name]}"
        )
    return f"{len(result.decisions)}, and they stand for the policy"


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


def network(subject: MethodUnderTest) -> str:
    """The weights fit the float model, the compressed network runs, and it costs what the policy is priced at."""
    result, task = subject.plain, subject.ground.task
    model = _loaded(subject, result)
    reduced, widths = reduced_form(task.network, model, result.policy, task.data.image_shape)
    stated, real = subject.price(result.policy), subject.job(budget=1.0).measure.price(reduced, widths)
    if stated != real:
        raise Violation(f"the policy is priced at {stated:,.0f} BOPs, the physically reduced network costs {real:,.0f}")
    quantizers = [UniformQuantizer]
    if subject.method.capabilities.own_quantizer:
        quantizers.append(subject.method.quantizer)  # type: ignore[arg-type]
    for quantizer in quantizers:
        _run(subject, _loaded(subject, result), result, quantizer)
    return f"costs {real:,.0f} BOPs, as the policy says, and runs"


def _loaded(subject: MethodUnderTest, result: SearchResult) -> nn.Module:
    """The float model with the weights of a search.

    Raises:
        Violation: They do not fit, or are not finite.
    """
    check_finite(result)
    model = subject.ground.task.make_model()
    try:
        model.load_state_dict(dict(result.state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise Violation(
            f"the state does not fit the float model; all its names, unreduced, are needed: {reason}"
        ) from error
    return model


def check_finite(result: SearchResult) -> None:
    """Make sure that all weights and clips are numbers.

    Raises:
        Violation: They are not.
    """
    kept: Mapping[str, torch.Tensor] = {**result.state, **result.quantizers}
    wrong = [name for name, value in kept.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    wrong += [name for name, value in result.clips.items() if not (math.isfinite(value) and value > 0)]
    if wrong:
        raise Violation(f"NaN, infinite or unusable after the search: {some(wrong)}")


def _run(subject: MethodUnderTest, model: nn.Module, result: SearchResult, quantizer: QuantizerFactory) -> None:
    """Carry the compressed network out, as fine-tuning does first."""
    task = subject.ground.task
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


def record(subject: MethodUnderTest) -> str:
    """What the search tells of itself can be written down."""
    found = subject.plain.record
    try:
        text = json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Violation(
            f"it cannot be written as JSON, use plain numbers, lists and texts: {error}{_where(found)}"
        ) from error
    history = found.get("history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise Violation("record['history'] is no list of dictionaries, one an epoch")
    return f"JSON of {len(text):,} characters" + (f", a history of {len(history)} epochs" if history else "")


def _where(found: Mapping[str, object]) -> str:
    return "".join(f" (under {key!r})" for key in list(_unwritable(found))[:1])


def _unwritable(found: Mapping[str, object]) -> Iterator[str]:
    for key, value in found.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            yield str(key)
