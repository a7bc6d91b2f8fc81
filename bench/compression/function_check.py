"""The check that a compressed network is the network: it is built with quantizers that do nothing, and compared.

Weights are drawn at random for the check, so that a layer that starts at zero is compared too. In training mode,
outputs and gradients must be those of the float network. In evaluation mode, filters are removed from every layer that
may lose some, and the outputs must be those of the float network in which no weight reads these filters. At last, every
layer is quantized to few bits, and each must compute something else than the float layer does.

Every pass takes as long as a step of training without its gradients, so there are as few as possible. Only where a
difference is found, more of them look for its place.
"""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from bench.compression.compress import compress, replace_layer
from bench.compression.policy import LayerPolicy, Policy, kept_inputs
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.requirements import check_logits
from bench.compression.shapes import NetworkShape
from bench.errors import BenchError, ForeignCodeError, described

Build = Callable[[nn.Module, NetworkShape, Policy, QuantizerFactory], nn.Module]
"""Builds a compressed network of a float one."""

_IMAGES = 2
_FEW_BITS = 2
_TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value. The same operations are carried out, so nearly nothing is."""


def check_function(
    model: nn.Module, network: NetworkShape, input_shape: tuple[int, int, int], build: Build | None = None
) -> None:
    """Check that compression keeps a network's function and its gradients, and that it reaches every layer.

    Args:
        model: Float network on the CPU; it is not changed.
        network: Shapes of the network.
        input_shape: Channels, height and width of one image.
        build: Function that builds the compressed network; `compress` by default.

    Raises:
        BenchError: The model cannot be executed in training mode, or cannot be compressed.
    """
    build = build or _compressed
    with _random_numbers(0):
        original = _with_random_weights(model, network)
        images = torch.randn(_IMAGES, *input_shape).to(next(model.parameters()))
        full = _few_bits(network)
        _check_removed(original, build, network, images)
        _check_same(original, build(original, network, full, _nothing), network, images, training=True)
        _check_reached(original, build(original, network, full, UniformQuantizer), network, images)


def _compressed(model: nn.Module, network: NetworkShape, policy: Policy, quantizer: QuantizerFactory) -> nn.Module:
    return compress(model, network, policy, quantizer=quantizer)


def _nothing(*, bits: int, kind: str, normalized: bool) -> nn.Module:
    """Make a quantizer that does nothing."""
    return nn.Identity()


def _few_bits(network: NetworkShape) -> Policy:
    few = LayerPolicy(weight_bits=_FEW_BITS, activation_bits=_FEW_BITS)
    layers = dict.fromkeys((layer.name for layer in network.layers), few)
    return Policy(model=network.model, dataset=network.dataset, layers=layers)


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Fix the random numbers of PyTorch and Python, and give both generators their states back."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


@torch.no_grad()
def _with_random_weights(model: nn.Module, network: NetworkShape) -> nn.Module:
    """Copy a network with random weights of its layers, and with noise on its other parameters."""
    drawn = copy.deepcopy(model)
    layers = [drawn.get_submodule(layer.name) for layer in network.layers if layer.kind != "matmul"]
    weights: list[Tensor] = [layer.weight for layer in layers]  # type: ignore[misc]
    of_layers = set(map(id, weights))
    for parameter in drawn.parameters():
        if id(parameter) not in of_layers:
            parameter.add_(0.1 * torch.randn_like(parameter))
    for weight in weights:
        weight.normal_(std=weight[0].numel() ** -0.5)
    return drawn


class _Sealed(nn.Module):
    """A layer that can be called, and nothing else: searched layers need not have a weight or a number of channels."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        super().__init__()
        self.__dict__.update(_layer=layer, _name=name)  # not a submodule

    def forward(self, *operands: Tensor) -> Tensor:
        result: Tensor = self.__dict__["_layer"](*operands)
        return result

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"layer '{self._name}' is asked for '{name}' outside of its own forward pass")


def _seal(model: nn.Module, network: NetworkShape) -> nn.Module:
    """Hide everything of a network's layers but what they compute."""
    for layer in network.layers:
        replace_layer(model, layer.name, _Sealed(model.get_submodule(layer.name), layer.name))
    return model


# --- the same function ------------------------------------------------------------------------------------------------


def _check_same(
    original: nn.Module, rebuilt: nn.Module, network: NetworkShape, images: Tensor, *, training: bool
) -> None:
    """Compare outputs in one mode, and gradients in training mode.

    Raises:
        BenchError: They differ, or a layer is not executed once.
    """
    mode = "training" if training else "evaluation"
    wanted = _outputs(original, network, images, training, f"cannot be executed in {mode} mode")
    with _counted_runs(rebuilt, network) as runs:
        found = _outputs(rebuilt, network, images, training, "cannot be compressed")
    _check_runs(network, runs, training)
    if not _close(found, wanted):
        raise _differing(original, rebuilt, network, images, mode)
    if training:
        _check_gradients(original, rebuilt, network, found, wanted)


@contextmanager
def _counted_runs(rebuilt: nn.Module, network: NetworkShape) -> Iterator[Counter[str]]:
    """Count how often every layer is executed."""
    runs: Counter[str] = Counter()
    hooks = [
        rebuilt.get_submodule(layer.name).register_forward_hook(lambda *_, name=layer.name: runs.update([name]))
        for layer in network.layers
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(model: nn.Module, network: NetworkShape, images: Tensor, training: bool, failure: str) -> Tensor:
    """Compute the logits, with the same random numbers in every call.

    Raises:
        BenchError: That is not possible, or the result is no tensor of logits.
    """
    with _random_numbers(1), torch.set_grad_enabled(training):
        try:
            outputs = model.train(training)(images)
        except Exception as error:
            # A user's forward function may raise any exception, e.g. where it reads an attribute of a layer.
            raise ForeignCodeError(f"model '{network.model}' {failure}: {described(error)}") from error
    check_logits(outputs, len(images), None, network.model)
    result: Tensor = outputs
    return result


def _check_runs(network: NetworkShape, runs: Counter[str], training: bool) -> None:
    """Check that every layer runs once; in training, whole blocks may be left out."""
    allowed = (0, 1) if training else (1,)
    for layer in network.layers:
        if runs[layer.name] not in allowed:
            raise BenchError(
                f"layer '{layer.name}' of model '{network.model}' runs {runs[layer.name]} times once it is replaced by "
                "a quantized layer, not once: modules must be called as attributes or from containers of PyTorch"
            )


def _check_gradients(
    original: nn.Module, rebuilt: nn.Module, network: NetworkShape, found: Tensor, wanted: Tensor
) -> None:
    direction = torch.randn_like(wanted)
    for logits in (wanted, found):
        (logits * direction).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in rebuilt.named_parameters()}
    for name, parameter in original.named_parameters():
        reached = gradients.get(name)
        same = reached is None if parameter.grad is None else reached is not None and _close(reached, parameter.grad)
        if not same:
            raise BenchError(
                f"parameter '{name}' of model '{network.model}' has another gradient once layers are replaced by "
                "quantized ones, so the model cannot be compressed"
            )


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors agree up to rounding; what is not a number must be the same on both sides."""
    found, wanted = found.detach(), wanted.detach()
    if found.shape != wanted.shape:
        return False
    if not wanted.numel() or torch.equal(found, wanted):
        return True
    gap, scale = float((found - wanted).abs_().max()), float(wanted.abs().max())
    if isfinite(gap):
        return gap <= _TOLERANCE * scale
    scale = float(wanted.nan_to_num().abs().max())
    return torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


def _differing(original: nn.Module, rebuilt: nn.Module, network: NetworkShape, images: Tensor, mode: str) -> BenchError:
    """Describe a difference by the first layer that computes something else than its float form."""
    equal = _layers_equal(original, rebuilt, network, images)
    layer = next((name for name, same in equal.items() if not same), None)
    where = f"layer '{layer}' of model" if layer else "model"
    return BenchError(
        f"{where} '{network.model}' computes something else in {mode} mode once layers are replaced by quantized ones, "
        "so the model cannot be compressed"
    )


# --- every layer is reached -------------------------------------------------------------------------------------------


def _check_reached(original: nn.Module, quantized: nn.Module, network: NetworkShape, images: Tensor) -> None:
    """Check that every layer of a network with few bits computes something else than its float form."""
    equal = _layers_equal(original, quantized, network, images)
    unreached = next((layer.name for layer in network.layers if equal.get(layer.name, True)), None)
    if unreached is not None:
        raise BenchError(
            f"layer '{unreached}' of model '{network.model}' computes the same at {_FEW_BITS} bits as in full "
            "precision, so quantization does not reach it"
        )


@torch.no_grad()
def _layers_equal(original: nn.Module, quantized: nn.Module, network: NetworkShape, images: Tensor) -> dict[str, bool]:
    """Compare each layer with its float form, on the input that it has in the quantized network.

    A layer that reads zeros only counts as different, since its output says nothing. So does a product of zeros.
    """
    equal: dict[str, bool] = {}

    def compare(name: str, operands: tuple[Tensor, ...], output: Tensor) -> None:
        equal[name] = all(map(torch.any, operands)) and _close(output, original.get_submodule(name)(*operands))

    hooks = [
        quantized.get_submodule(layer.name).register_forward_hook(
            lambda _, inputs, output, name=layer.name: compare(name, inputs, output)
        )
        for layer in network.layers
    ]
    original.eval()
    _outputs(quantized, network, images, False, "cannot be compressed")
    for hook in hooks:
        hook.remove()
    return equal


# --- removed filters are not read -------------------------------------------------------------------------------------


def _without_last_filters(network: NetworkShape) -> Policy:
    """Make the policy of few bits that removes the last group of filters of every layer."""
    policy = _few_bits(network)
    for layer in network.layers:
        if layer.prunable and layer.filters > 1:
            kept = tuple(range(max(1, layer.filters - layer.group_size(network.group_size))))
            policy = policy.with_layer(layer.name, kept_filters=kept)
    return policy


def _check_removed(original: nn.Module, build: Build, network: NetworkShape, images: Tensor) -> None:
    """Compare the network without some filters with the network whose weights are zero in their place.

    Raises:
        BenchError: The reduced network cannot be executed, a layer is not executed once, or something else is computed.
    """
    policy = _without_last_filters(network)
    sealed = _seal(_masked(original, network, policy), network)
    wanted = _outputs(sealed, network, images, False, "cannot be compressed")
    try:
        reduced = build(original, network, policy, _nothing)
        with _counted_runs(reduced, network) as runs:
            found = _outputs(reduced, network, images, False, "cannot lose filters; set its attribute `prunable` to ()")
        _check_runs(network, runs, training=False)
        same = _close(found, wanted)
    except BenchError:
        _check_same(original, build(original, network, _few_bits(network), _nothing), network, images, training=False)
        raise
    if not same:
        _check_same(original, build(original, network, _few_bits(network), _nothing), network, images, training=False)
        raise BenchError(
            f"model '{network.model}' computes something else once filters are removed; list the layers that may lose "
            "filters in its attribute `prunable`"
        )


@torch.no_grad()
def _masked(original: nn.Module, network: NetworkShape, policy: Policy) -> nn.Module:
    """Copy a network, and set the weights to zero that read a filter which a policy removes."""
    masked = copy.deepcopy(original)
    for layer in network.layers:
        kept = kept_inputs(policy, layer)
        if kept is not None and layer.kind != "matmul" and not layer.depthwise:
            weight: Tensor = masked.get_submodule(layer.name).weight  # type: ignore[assignment]
            mask = torch.zeros(weight.shape[1], dtype=weight.dtype)
            mask[layer.columns(kept)] = 1
            weight.mul_(mask.view(1, -1, *[1] * (weight.ndim - 2)))
    return masked
