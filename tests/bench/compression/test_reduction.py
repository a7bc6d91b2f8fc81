"""Random policies on all of our networks: the built network has the price, and computes what the masked one does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.compression.compress import reduce
from bench.compression.policy import LayerPolicy, LayerSpace, Policy
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import channels, price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.costs.relaxed import RelaxedCost, channel_counts
from bench.models.build import build_model
from bench.spec.schema import AcceleratorSpec

MODELS = ("resnet8", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large")
IMAGE = (3, 32, 32)
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A float network in float64 whose normalisations have random statistics, and its shapes."""

    model: nn.Module
    network: NetworkShape


@cache
def case_of(model: str, *, stated: bool = True) -> Case:
    torch.manual_seed(0)
    built = build_model(model, IMAGE, 5).double().eval()
    if not stated:
        del built.prunable
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return Case(built, trace(built, IMAGE, name=model, dataset="none"))


def random_policy(network: NetworkShape, seed: int, candidates: Sequence[int] = range(1, 33)) -> Policy:
    """Any bits; a third of the prunable layers keep one filter, a third some, the others all."""
    draw = Random(seed)  # noqa: S311
    layers = {}
    for layer in network.layers:
        kept = None
        share = draw.random()
        if layer.prunable and share < 2 / 3:
            count = 1 if share < 1 / 3 else draw.randint(1, layer.out_channels)
            kept = tuple(sorted(draw.sample(range(layer.out_channels), count)))
        layers[layer.name] = LayerPolicy(
            weight_bits=draw.choice(candidates), activation_bits=draw.choice(candidates), kept_filters=kept
        )
    return Policy(model=network.model, dataset=network.dataset, layers=layers)


@torch.no_grad()
def masked_output(case: Case, policy: Policy, images: Tensor) -> Tensor:
    """Outputs of the full network with dropped channels set to zero at the inputs of layers that mix channels."""

    def masking(kept: tuple[int, ...]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            (x,) = inputs
            masked = torch.zeros_like(x)
            masked[:, list(kept)] = x[:, list(kept)]
            return (masked,)

        return hook

    hooks = []
    for layer in case.network.layers:
        kept = None if layer.producer is None else policy.layers[layer.producer].kept_filters
        if kept is not None and layer.groups == 1:
            module = case.model.get_submodule(layer.name)
            hooks.append(module.register_forward_pre_hook(masking(kept)))
    try:
        return case.model(images)  # type: ignore[no-any-return]
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Count:
    """Weights and operations of a network's layers, counted from tensors."""

    macs: int = 0
    bops: int = 0
    weights: int = 0
    memory: int = 0
    weight_memory: int = 0
    largest_input: int = 0


@torch.no_grad()
def slow_count(reduced: nn.Module, policy: Policy) -> Count:
    count = Count()

    def counting(choice: LayerPolicy) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weights = module.weight.numel()
            # Each weight is multiplied once for each position of the output.
            macs = weights * output[0, 0].numel()
            count.macs += macs
            count.bops += macs * choice.weight_bits * choice.activation_bits
            count.weights += weights
            count.weight_memory += weights * choice.weight_bits
            count.memory += weights * choice.weight_bits + inputs[0].numel() * choice.activation_bits
            count.largest_input = max(count.largest_input, inputs[0].numel() * choice.activation_bits)

        return hook

    hooks = [
        reduced.get_submodule(name).register_forward_hook(counting(choice)) for name, choice in policy.layers.items()
    ]
    reduced(torch.zeros(1, *IMAGE, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return count


def unpruned(policy: Policy) -> Policy:
    for name in policy.layers:
        policy = policy.with_layer(name, kept_filters=None)
    return policy


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("model", "stated"),
    # Without its statement a mobile network may also lose the hidden channels of its gates and more.
    [*((model, True) for model in MODELS), ("mobilenet_v3_large", False), ("mobilenet_v2", False)],
)
def test_the_reduced_network_is_the_masked_one_at_the_price_of_the_policy(model: str, stated: bool, seed: int) -> None:
    case = case_of(model, stated=stated)
    policy = random_policy(case.network, seed)
    reduced = reduce(case.model, case.network, policy)
    images = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        found, full = reduced(images), case.model(images)
    expected = masked_output(case, policy, images)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(full, expected, rtol=1e-2, atol=1e-2)

    cost = price(case.network, policy)
    count = slow_count(reduced, policy)
    assert (cost.macs, cost.bops, cost.parameters) == (count.macs, count.bops, count.weights)
    assert cost.memory_bits == count.memory
    assert cost.peak_memory_bits == count.weight_memory + count.largest_input
    assert price(trace(reduced, IMAGE, name=model, dataset="none"), unpruned(policy)) == cost


def test_more_may_go_where_a_model_states_nothing() -> None:
    """Otherwise the cases above would test the same thing twice."""
    stated, all_of_it = case_of("mobilenet_v3_large", stated=True), case_of("mobilenet_v3_large", stated=False)
    more = {layer.name for layer in all_of_it.network.layers if layer.prunable}
    more -= {layer.name for layer in stated.network.layers if layer.prunable}
    gates = {layer.name for layer in stated.network.layers if layer.name.endswith("fc1")}
    assert more == gates | {"features.16.0"}  # and the convolution that the linear layer in the middle reads


# --- the differentiable form ------------------------------------------------------------------------------------

BITS = (2, 4, 8)


def relaxed_cost(relaxed: RelaxedCost, network: NetworkShape, policy: Policy, bits: Sequence[int] = BITS) -> float:
    """The differentiable cost of a policy's choices."""
    chosen = [policy.layers[layer.name] for layer in network.middle]
    left = [channels(policy, layer) for layer in network.middle]
    return float(
        relaxed(
            torch.tensor([[float(choice.weight_bits == candidate) for candidate in bits] for choice in chosen]),
            torch.tensor([[float(choice.activation_bits == candidate) for candidate in bits] for choice in chosen]),
            in_channels=torch.tensor([inputs for inputs, _ in left]),
            out_channels=torch.tensor([outputs for _, outputs in left]),
        )
    )


def search_policy(network: NetworkShape, seed: int, *, tabulated: bool = False) -> Policy:
    """A policy in the search space; on request with channel counts that tables contain."""
    policy = random_policy(network, seed, BITS)
    draw = Random(seed)  # noqa: S311
    for layer in network.layers:
        if layer.position != "middle":
            policy = policy.with_layer(layer.name, weight_bits=8, activation_bits=8)
        elif tabulated and layer.prunable:
            count = draw.choice(channel_counts(layer.out_channels))
            kept = tuple(sorted(draw.sample(range(layer.out_channels), count)))
            policy = policy.with_layer(layer.name, kept_filters=kept)
    return policy


def all_choices(network: NetworkShape) -> dict[str, LayerSpace]:
    return {
        layer.name: LayerSpace(weight_bits=BITS, activation_bits=BITS, group_size=int(layer.prunable))
        for layer in network.middle
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("measure", [BOPS, Memory()], ids=["bops", "memory"])
def test_relaxed_costs_of_whole_choices_are_exact(model: str, measure: Measure) -> None:
    network = case_of(model).network
    relaxed = measure.relaxed(network, all_choices(network), DEVICE, 8)
    for seed in range(5):
        policy = search_policy(network, seed)
        assert relaxed_cost(relaxed, network, policy) == measure.price(network, policy)


@pytest.mark.parametrize("measure", [BOPS, Memory()], ids=["bops", "memory"])
def test_relaxed_costs_know_full_precision_edges(measure: Measure) -> None:
    """Pruning only: no layer is quantized, not even the first and the last."""
    network = case_of("mobilenet_v2").network
    choices = {
        layer.name: LayerSpace(weight_bits=(32,), activation_bits=(32,), group_size=int(layer.prunable))
        for layer in network.middle
    }
    policy = random_policy(network, 3, [32])
    relaxed = measure.relaxed(network, choices, DEVICE, 32)
    assert relaxed_cost(relaxed, network, policy, [32]) == measure.price(network, policy)


DENSE = AcceleratorSpec()
CHANNELWISE = AcceleratorSpec(depthwise="channelwise", batch=1)


@pytest.mark.parametrize(
    ("model", "measure"),
    [
        ("resnet8", Latency(DENSE)),
        ("mobilenet_v3_large", Energy(DENSE)),
        ("mobilenet_v2", Latency(CHANNELWISE)),
    ],
    ids=["resnet8 latency", "mobilenet_v3_large energy", "mobilenet_v2 latency channelwise"],
)
def test_tables_are_exact_at_their_channel_counts(model: str, measure: Measure) -> None:
    network = case_of(model).network
    relaxed = measure.relaxed(network, all_choices(network), DEVICE, 8)
    for seed in range(3):
        policy = search_policy(network, seed, tabulated=True)
        assert relaxed_cost(relaxed, network, policy) == pytest.approx(measure.price(network, policy), rel=1e-12)
