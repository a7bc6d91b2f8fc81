import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression import calibrate, compress
from bench.costs import price
from bench.method import SearchJob
from bench.network import NetworkShape
from bench.policy import LayerPolicy, Policy
from bench.quantization import Kind
from bench.repair import policy_of
from bench.training import reestimate_norms
from methods.sbs import SbsOptions, search_space
from methods.shared_layers import FULL_PRECISION, GatePlace, LayerSettings, LayerSpace, SharedLayer
from methods.shared_network import SharedNetwork, Start

DEFAULT = LayerSettings(
    gate_place="next_input",
    group_metric="raw",
    weight_normalization=True,
    task_gradient=True,
    calibration_bits=4,
)


def shared(
    job: SearchJob,
    settings: LayerSettings = DEFAULT,
    space: dict[str, LayerSpace] | None = None,
    *,
    ready: bool = True,
) -> SharedNetwork:
    """A searched network in float64 with clip values and norms that suit it."""
    if space is None:
        space = search_space(job.task.network, SbsOptions(), prune=True)
    network = SharedNetwork(job, space, settings, Start(state=job.pretrained, clips={}))
    if ready:
        calibrate(network.model, job.task.data.calibration_batches(1, 8)[0])
        reestimate_norms(network.model, job.task.data, 8)
    network.model.double()
    return network


def batch(job: SearchJob, count: int = 8) -> Tensor:
    return job.task.data.calibration_batches(1, count)[0].double()


def labels(count: int = 8) -> Tensor:
    return torch.arange(count) % 10


def reduced(job: SearchJob, network: SharedNetwork, policy: Policy) -> nn.Module:
    """The compressed network with the weights and clip values of the searched one, in float64."""
    model = job.task.make_model().double()
    model.load_state_dict(network.state(job.pretrained))
    return compress(model, job.task.network, policy, clips=network.clips()).double().eval()


def random_policy(network: NetworkShape, seed: int) -> Policy:
    """Widths, and groups that are kept, at random."""
    choose = Random(seed)  # noqa: S311
    layers = {}
    for layer in network.layers:
        kept = None
        if layer.prunable and choose.random() < 0.8:
            groups = [range(start, start + 4) for start in range(0, layer.out_channels, 4)]
            chosen = choose.sample(groups, choose.randint(1, len(groups)))
            kept = tuple(sorted(filter_ for group in chosen for filter_ in group))
        middle = layer.position == "middle"
        layers[layer.name] = LayerPolicy(
            weight_bits=choose.choice((2, 4, 8)) if middle else 8,
            activation_bits=choose.choice((2, 4, 8)) if middle else 8,
            kept_filters=kept,
        )
    return Policy(model=network.model, dataset=network.dataset, layers=layers)


@torch.no_grad()
def mix_gates(network: SharedNetwork, seed: int) -> None:
    """Shut gates at random, every pattern of the two as often, and in each layer the weaker half of the groups."""
    choose = Random(seed)  # noqa: S311
    patterns = [[0.0, 0.0], [0.0, 0.5], [0.5, 0.0], [0.5, 0.5]]
    layers = list(network.layers.values())
    for of_layer in ("thresholds_weight", "thresholds_activation"):
        drawn = (patterns * len(layers))[: len(layers)]
        choose.shuffle(drawn)
        for layer, pattern in zip(layers, drawn, strict=True):
            thresholds = getattr(layer, of_layer)
            thresholds.copy_(torch.tensor(pattern[: len(thresholds)]))
    for layer in layers:
        if layer.groups is not None and layer.threshold_filters is not None:
            metric = layer.groups.metric(layer.weight)
            layer.threshold_filters.copy_(metric.sort().values[len(metric) // 2] * (1 + 1e-9))


def read_off(network: SharedNetwork) -> Policy:
    """The policy of the gates of the latest forward pass."""
    space = {name: layer.space for name, layer in network.layers.items()}
    metrics = {name: layer.activation_metric for name, layer in network.layers.items()}
    return policy_of(network.base_policy(space), network.decisions(metrics))


# --- the searched network is the reduced one ---


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decided_network_is_the_reduced_one(scrambled_job: SearchJob, seed: int) -> None:
    network = shared(scrambled_job)
    policy = random_policy(scrambled_job.task.network, seed)
    network.decide(policy)
    with torch.no_grad():
        found = network.model.eval()(batch(scrambled_job))
        expected = reduced(scrambled_job, network, policy)(batch(scrambled_job))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert read_off_widths(network) == {
        name: (choice.weight_bits, choice.activation_bits, kept_count(scrambled_job.task.network, policy, name))
        for name, choice in policy.layers.items()
        if name in network.layers
    }


def kept_count(network: NetworkShape, policy: Policy, name: str) -> int:
    kept = policy.layers[name].kept_filters
    return network[name].out_channels if kept is None else len(kept)


def read_off_widths(network: SharedNetwork) -> dict[str, tuple[float, float, float]]:
    return {
        name: (layer.bits()[0].item(), layer.bits()[1].item(), layer.filters().item())
        for name, layer in network.layers.items()
    }


@pytest.mark.parametrize("place", ["next_input", "norm_output"])
@pytest.mark.parametrize("seed", [0, 1])
def test_policy_read_off_is_what_the_undecided_network_does(
    scrambled_job: SearchJob, seed: int, place: GatePlace
) -> None:
    """Weight normalisation over survivors included: the reduced network knows no other weights."""
    network = shared(scrambled_job, replace(DEFAULT, gate_place=place))
    mix_gates(network, seed)
    with torch.no_grad():
        found = network.model.eval()(batch(scrambled_job))
        policy = read_off(network)
        expected = reduced(scrambled_job, network, policy)(batch(scrambled_job))
        of_all = reduced(scrambled_job, network, without_pruning(policy))(batch(scrambled_job))
    choices = [policy.layers[name] for name in network.layers]
    assert {choice.weight_bits for choice in choices} == {choice.activation_bits for choice in choices} == {2, 4, 8}
    assert sum(choice.kept_filters is not None for choice in choices) >= 3
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, of_all, atol=1e-2)


def without_pruning(policy: Policy) -> Policy:
    layers = {name: replace(choice, kept_filters=None) for name, choice in policy.layers.items()}
    return replace(policy, layers=layers)


def test_at_full_precision_pruning_is_the_reduced_network(scrambled_job: SearchJob) -> None:
    space = search_space(scrambled_job.task.network, SbsOptions(), bits=FULL_PRECISION, prune=True)
    network = shared(scrambled_job, space=space)
    mix_gates(network, 0)
    with torch.no_grad():
        found = network.model.eval()(batch(scrambled_job))
        policy = read_off(network)
        expected = reduced(scrambled_job, network, policy)(batch(scrambled_job))
    assert {choice.weight_bits for choice in policy.layers.values()} == {32}
    assert any(choice.kept_filters for choice in policy.layers.values())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_filters_fixed_beforehand_are_those_of_the_reduced_network(scrambled_job: SearchJob) -> None:
    policy = random_policy(scrambled_job.task.network, 4)
    space = {
        name: LayerSpace(
            weight_bits=(choice.weight_bits,),
            activation_bits=(choice.activation_bits,),
            kept_filters=choice.kept_filters,
        )
        for name, choice in policy.layers.items()
        if scrambled_job.task.network[name].position == "middle"
    }
    network = shared(scrambled_job, space=space)
    with torch.no_grad():
        found = network.model.eval()(batch(scrambled_job))
        expected = reduced(scrambled_job, network, policy)(batch(scrambled_job))
    assert network.base_policy(space) == policy
    assert network.relaxed_cost().item() == price(scrambled_job.task.network, policy).bops
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gate_on_the_weight_leaves_a_channel_that_is_not_dead(make_job: Callable[..., SearchJob]) -> None:
    """The letter of Eq. 11: the norm after the pruned filter still emits its bias."""
    job = make_job()
    network = shared(job, replace(DEFAULT, gate_place="weight"))
    mix_gates(network, 0)
    with torch.no_grad():
        found = network.model.eval()(batch(job))
        expected = reduced(job, network, read_off(network))(batch(job))
    assert not torch.allclose(found, expected, atol=1e-2)


# --- what a shut group feels ---


def group_gradients(
    job: SearchJob, place: GatePlace, *, mixed: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss, the gates of all groups, and its gradients for them, in training mode."""
    network = shared(job, replace(DEFAULT, gate_place=place))
    if mixed:
        mix_gates(network, 0)
    loss = F.cross_entropy(network.model.train()(batch(job)), labels())
    gates = [layer.group_gates for layer in network.layers.values() if layer.groups is not None]
    return loss.detach(), [g.detach() for g in gates], list(torch.autograd.grad(loss, gates))


def test_a_shut_group_feels_the_task_where_the_next_layer_reads_it(make_job: Callable[..., SearchJob]) -> None:
    _, gates, gradients = group_gradients(make_job(), "next_input")
    for opened, gradient in zip(gates, gradients, strict=True):
        assert 0 < int(opened.sum()) < len(opened)
        assert bool((gradient[opened == 0] != 0).all())


def test_a_shut_group_feels_nothing_between_norm_and_relu(make_job: Callable[..., SearchJob]) -> None:
    """The trap: the same network and the same loss, but no group could ever come back."""
    loss, gates, gradients = group_gradients(make_job(), "norm_output")
    assert torch.allclose(loss, group_gradients(make_job(), "next_input")[0], rtol=1e-10)
    for opened, gradient in zip(gates, gradients, strict=True):
        assert bool((gradient[opened == 0] == 0).all())
        assert bool((gradient[opened == 1] != 0).any())


def test_open_groups_together_feel_nothing_where_the_next_layer_reads_them(make_job: Callable[..., SearchJob]) -> None:
    """The next layer's norm takes a common factor out: the gradients of a layer add up to zero."""
    _, gates, gradients = group_gradients(make_job(), "next_input", mixed=False)
    for opened, gradient in zip(gates, gradients, strict=True):
        assert bool(opened.all())
        assert abs(gradient.sum().item()) < 1e-3 * gradient.abs().sum().item()


@pytest.mark.parametrize("task_gradient", [True, False])
def test_thresholds_feel_the_task_only_where_they_shall(
    make_job: Callable[..., SearchJob], task_gradient: bool
) -> None:
    job = make_job()
    network = shared(job, replace(DEFAULT, task_gradient=task_gradient))
    mix_gates(network, 0)
    loss = F.cross_entropy(network.model.train()(batch(job)), labels())
    thresholds = [p for name, p in network.model.named_parameters() if "threshold" in name]
    of_task = torch.autograd.grad(loss, thresholds, allow_unused=True, retain_graph=True)
    of_cost = torch.autograd.grad(network.relaxed_cost().log(), thresholds)
    felt = [gradient is not None and bool(gradient.any()) for gradient in of_task]
    assert all(felt) if task_gradient else not any(felt)
    assert sum(bool(gradient.any()) for gradient in of_cost) >= len(thresholds) - 4


# --- metrics count survivors ---


class Seen(NamedTuple):
    """What a layer read, and the layer."""

    layer: SharedLayer
    x: Tensor


@torch.no_grad()
def inputs_of(network: SharedNetwork, images: Tensor) -> dict[str, Seen]:
    seen: dict[str, Seen] = {}

    def recording(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = Seen(network.layers[name], inputs[0].clone())

        return hook

    hooks = [layer.register_forward_pre_hook(recording(name)) for name, layer in network.layers.items()]
    network.model.eval()(images)
    for hook in hooks:
        hook.remove()
    return seen


def mean_error(values: Tensor, clip: float, width: int, kind: Kind) -> float:
    """Mean |z − D(z, s)| of chosen values."""
    ratio = (values / clip).clamp(0 if kind == "activation" else -1, 1)
    z = ratio if kind == "activation" else (ratio + 1) / 2
    count = 2**width - 1
    return float((z - torch.ceil(z * count - 0.5) / count).abs().mean())


def survivors(gates: Tensor | None, count: int) -> list[int]:
    return list(range(count)) if gates is None else [i for i, opened in enumerate(gates.tolist()) if opened]


@pytest.mark.parametrize("weight_normalization", [True, False])
def test_metrics_and_statistics_are_those_of_survivors(
    make_job: Callable[..., SearchJob], weight_normalization: bool
) -> None:
    job = make_job()
    network = shared(job, replace(DEFAULT, weight_normalization=weight_normalization))
    mix_gates(network, 1)
    pruned_inputs = 0
    for layer, x in inputs_of(network, batch(job)).values():
        outputs = survivors(layer.channel_gates, layer.weight.shape[0])
        inputs = survivors(layer.input_gates, layer.weight.shape[1])
        weight = layer.weight.detach()[outputs][:, inputs]
        standard = (weight - weight.mean()) / weight.std() if weight_normalization else weight
        clips = layer.clip_weight.item(), layer.clip_activation.item()
        of_weight = [mean_error(standard, clips[0], width, "weight") for width in (2, 4)]
        of_input = [mean_error(x[:, inputs], clips[1], width, "activation") for width in (2, 4)]
        assert layer.weight_metric.tolist() == pytest.approx(of_weight, rel=1e-9)
        assert layer.activation_metric.tolist() == pytest.approx(of_input, rel=1e-9)
        if len(inputs) < x.shape[1]:
            pruned_inputs += 1
            of_all = [mean_error(x, clips[1], width, "activation") for width in (2, 4)]
            assert layer.activation_metric.tolist() != pytest.approx(of_all, rel=1e-3)
    assert pruned_inputs == 3


@pytest.mark.parametrize("metric", ["raw", "normalized"])
def test_group_metric_is_raw_or_normalised(
    make_job: Callable[..., SearchJob], metric: Literal["raw", "normalized"]
) -> None:
    job = make_job()
    network = shared(job, replace(DEFAULT, group_metric=metric))
    inputs_of(network, batch(job))
    for layer in network.layers.values():
        if layer.groups is None:
            assert len(layer.group_metric) == 0
            continue
        weight = layer.weight.detach()
        if metric == "normalized":
            weight = (weight - weight.mean()) / weight.std()
        expected = [weight[list(members)].abs().mean().item() for members in layer.groups.members]
        assert layer.group_metric.tolist() == pytest.approx(expected, rel=1e-9)


# --- the differentiable cost ---


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_relaxed_cost_is_the_counters(scrambled_job: SearchJob, seed: int | None) -> None:
    """With all gates open, and with mixed ones."""
    network = shared(scrambled_job, ready=False)
    if seed is not None:
        mix_gates(network, seed)
    inputs_of(network, batch(scrambled_job, 2))
    assert network.relaxed_cost().item() == price(scrambled_job.task.network, read_off(network)).bops


GateName = tuple[str, str, int]
"""A gate: layer, kind and position."""


def gate_values(network: SharedNetwork) -> dict[GateName, float]:
    return {
        (name, kind, position): value
        for name, layer in network.layers.items()
        for kind in ("weight_gates", "activation_gates", "group_gates")
        for position, value in enumerate(getattr(layer, kind).tolist())
    }


def multiplied_out(shapes: NetworkShape, gates: dict[GateName, float]) -> float:
    """BOPs of a network whose gates have any values."""

    def several(layer: str, kind: str) -> Iterator[float]:
        position = 0
        while (layer, kind, position) in gates:
            yield gates[layer, kind, position]
            position += 1

    def width(layer: str, kind: str) -> float:
        four, eight = several(layer, kind)
        return 2 + four * 2 + four * eight * 4

    def filters(layer: str | None, full: int) -> float:
        opened = [] if layer is None else list(several(layer, "group_gates"))
        return 4 * sum(opened) if opened else full

    total = 0.0
    for shape in shapes.layers:
        macs = float(math.prod(shape.kernel) * math.prod(shape.out_size))
        macs *= filters(shape.producer, shape.in_channels) * filters(shape.name, shape.out_channels)
        middle = shape.position == "middle"
        total += macs * (width(shape.name, "weight_gates") * width(shape.name, "activation_gates") if middle else 64)
    return total


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_gradient_of_the_log_cost_is_that_of_the_formula(make_job: Callable[..., SearchJob], seed: int | None) -> None:
    """For every gate, open or shut, by a difference of the cost, which is linear in each."""
    job = make_job()
    network = shared(job, ready=False)
    if seed is not None:
        mix_gates(network, seed)
    network.model.eval()(batch(job, 2))
    values = gate_values(network)
    tensors = {
        (name, kind): getattr(layer, kind)
        for name, layer in network.layers.items()
        for kind in ("weight_gates", "activation_gates", "group_gates")
        if len(getattr(layer, kind))
    }
    gradients = torch.autograd.grad(network.relaxed_cost().log(), list(tensors.values()))
    cost = multiplied_out(job.task.network, values)
    for (name, kind), gradient in zip(tensors, gradients, strict=True):
        for position, found in enumerate(gradient.tolist()):
            gate = (name, kind, position)
            ends = [multiplied_out(job.task.network, {**values, gate: values[gate] + h}) for h in (0.5, -0.5)]
            assert found == pytest.approx((ends[0] - ends[1]) / cost, rel=1e-6, abs=1e-12)
