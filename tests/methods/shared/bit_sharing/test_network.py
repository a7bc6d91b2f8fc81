import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random
from typing import Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import LayerPolicy, LayerSpace, Policy
from bench.compression.quantizer import Kind
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.accelerator.pricing import execute_layer
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.costs.relaxed import channel_counts
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from bench.training.loop import reestimate_norms
from methods.sbs import SbsOptions, search_space
from methods.shared.bit_sharing.layer import GatePlace, LayerSettings, SharedLayer
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.gates import opened, shares
from methods.shared.space import FULL_PRECISION

DEFAULT = SbsOptions().layer_settings()


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
    model.load_state_dict(network.state(policy, job.pretrained))
    return compress(model, job.task.network, policy, clips=network.clips(policy)).double().eval()


def random_policy(network: NetworkShape, seed: int) -> Policy:
    """Widths, and groups that are kept, at random."""
    choose = Random(seed)  # noqa: S311
    layers = {}
    for layer in network.layers:
        kept = None
        if layer.prunable and choose.random() < 0.8:
            size = layer.group_size(4)
            groups = [range(start, start + size) for start in range(0, layer.filters, size)]
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
    for of_layer in ("weight_quantizer", "activation_quantizer"):
        drawn = (patterns * len(layers))[: len(layers)]
        choose.shuffle(drawn)
        for layer, pattern in zip(layers, drawn, strict=True):
            thresholds = getattr(layer, of_layer).thresholds
            thresholds.copy_(torch.tensor(pattern[: len(thresholds)]))
    for layer in layers:
        if layer.filter_gates is not None:
            metric = layer.filter_gates.groups.metric(layer.weight)
            layer.filter_gates.threshold.copy_(metric.sort().values[len(metric) // 2] * (1 + 1e-9))


def read_off(network: SharedNetwork) -> Policy:
    """The policy of the gates of the latest forward pass."""
    return network.policy(network.decisions())


# --- the searched network is the reduced one ---


@pytest.mark.parametrize("training", [False, True], ids=["stored statistics", "the batch's"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_decided_network_is_the_reduced_one(pruned_job: SearchJob, seed: int, training: bool) -> None:
    network = shared(pruned_job)
    policy = random_policy(pruned_job.task.network, seed)
    network.decide(policy)
    rebuilt = reduced(pruned_job, network, policy)
    with torch.no_grad():
        found = network.model.train(training)(batch(pruned_job))
        expected = rebuilt.train(training)(batch(pruned_job))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert read_off_widths(network) == {
        name: (choice.weight_bits, choice.activation_bits, kept_count(pruned_job.task.network, policy, name))
        for name, choice in policy.layers.items()
        if name in network.layers
    }


def kept_count(network: NetworkShape, policy: Policy, name: str) -> int:
    kept = policy.layers[name].kept_filters
    return network[name].filters if kept is None else len(kept)


def read_off_widths(network: SharedNetwork) -> dict[str, tuple[float, float, float]]:
    return {name: tuple(layer.choices()) for name, layer in network.layers.items()}


@pytest.mark.parametrize("place", ["next_input", "norm_output"])
@pytest.mark.parametrize("seed", [0, 1])
def test_policy_read_off_is_what_the_undecided_network_does(pruned_job: SearchJob, seed: int, place: GatePlace) -> None:
    """Weight normalisation over survivors included: the reduced network knows no other weights."""
    network = shared(pruned_job, replace(DEFAULT, gate_place=place))
    mix_gates(network, seed)
    with torch.no_grad():
        found = network.model.eval()(batch(pruned_job))
        policy = read_off(network)
        expected = reduced(pruned_job, network, policy)(batch(pruned_job))
        of_all = reduced(pruned_job, network, without_pruning(policy))(batch(pruned_job))
    choices = [policy.layers[name] for name in network.layers]
    assert {choice.weight_bits for choice in choices} == {choice.activation_bits for choice in choices} == {2, 4, 8}
    assert sum(choice.kept_filters is not None for choice in choices) >= 2
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, of_all, atol=1e-2)


def without_pruning(policy: Policy) -> Policy:
    layers = {name: replace(choice, kept_filters=None) for name, choice in policy.layers.items()}
    return replace(policy, layers=layers)


def test_at_full_precision_pruning_is_the_reduced_network(pruned_job: SearchJob) -> None:
    space = search_space(pruned_job.task.network, SbsOptions(), bits=FULL_PRECISION, prune=True)
    network = shared(pruned_job, space=space)
    mix_gates(network, 0)
    with torch.no_grad():
        found = network.model.eval()(batch(pruned_job))
        policy = read_off(network)
        expected = reduced(pruned_job, network, policy)(batch(pruned_job))
    assert {choice.weight_bits for choice in policy.layers.values()} == {32}
    assert any(choice.kept_filters for choice in policy.layers.values())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_filters_fixed_beforehand_are_those_of_the_reduced_network(pruned_job: SearchJob) -> None:
    policy = random_policy(pruned_job.task.network, 4)
    space = {
        name: LayerSpace(
            weight_bits=(choice.weight_bits,),
            activation_bits=(choice.activation_bits,),
            kept_filters=choice.kept_filters,
        )
        for name, choice in policy.layers.items()
        if pruned_job.task.network[name].position == "middle"
    }
    network = shared(pruned_job, space=space)
    with torch.no_grad():
        found = network.model.eval()(batch(pruned_job))
        expected = reduced(pruned_job, network, policy)(batch(pruned_job))
    assert network.base_policy() == policy
    assert network.relaxed_cost().item() == price(pruned_job.task.network, policy).bops
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
    gates = [layer.filter_gates.gates for layer in network.layers.values() if layer.filter_gates is not None]
    return loss.detach(), [g.detach() for g in gates], list(torch.autograd.grad(loss, gates))


def test_a_shut_group_feels_the_task_where_the_next_layer_reads_it(pruned_job: SearchJob) -> None:
    """Through depthwise convolutions, gates and linear layers too."""
    _, gates, gradients = group_gradients(pruned_job, "next_input")
    assert len(gates) == sum(layer.prunable for layer in pruned_job.task.network.layers) >= 2
    for gate, gradient in zip(gates, gradients, strict=True):
        assert 0 < int(gate.sum()) < len(gate)
        assert bool((gradient[gate == 0] != 0).all())


def test_a_shut_group_feels_nothing_between_norm_and_relu(make_job: Callable[..., SearchJob]) -> None:
    """The trap: the same network and the same loss, but no group could ever come back."""
    loss, gates, gradients = group_gradients(make_job(), "norm_output")
    assert torch.allclose(loss, group_gradients(make_job(), "next_input")[0], rtol=1e-10)
    for gate, gradient in zip(gates, gradients, strict=True):
        assert bool((gradient[gate == 0] == 0).all())
        assert bool((gradient[gate == 1] != 0).any())


def test_open_groups_together_feel_nothing_where_the_next_layer_reads_them(make_job: Callable[..., SearchJob]) -> None:
    """The next layer's norm takes a common factor out: the gradients of a layer add up to zero."""
    _, gates, gradients = group_gradients(make_job(), "next_input", mixed=False)
    for gate, gradient in zip(gates, gradients, strict=True):
        assert bool(gate.all())
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
    return list(range(count)) if gates is None else [i for i, kept in enumerate(gates.tolist()) if kept]


@pytest.mark.parametrize("weight_normalization", [True, False])
def test_metrics_and_statistics_are_those_of_survivors(pruned_job: SearchJob, weight_normalization: bool) -> None:
    network = shared(pruned_job, replace(DEFAULT, weight_normalization=weight_normalization))
    mix_gates(network, 1)
    pruned_inputs = 0
    for name, (layer, read) in inputs_of(network, batch(pruned_job)).items():
        shape = pruned_job.task.network[name]
        if shape.kind == "matmul":  # a product has no weights
            continue
        outputs = survivors(layer.output_gates, layer.weight.shape[0])
        x = read if layer.activation_quantizer.offset is None else read - layer.activation_quantizer.offset.detach()
        x = x.movedim(-1, 1) if shape.kind == "linear" else x
        inputs = survivors(layer.input_gates, x.shape[1])
        weight = layer.weight.detach()[outputs][:, [0] if shape.depthwise else inputs]
        normal = weight_normalization and shape.normalized
        standard = (weight - weight.mean()) / weight.std() if normal else weight
        assert (layer.activation_quantizer.offset is not None) == shape.signed_input
        clips = layer.weight_quantizer.clip.item(), layer.activation_quantizer.clip.item()
        of_weight = [mean_error(standard, clips[0], width, "weight") for width in (2, 4)]
        of_input = [mean_error(x[:, inputs], clips[1], width, "activation") for width in (2, 4)]
        assert layer.weight_quantizer.metric.tolist() == pytest.approx(of_weight, rel=1e-9)
        assert layer.activation_quantizer.metric.tolist() == pytest.approx(of_input, rel=1e-9)
        if len(inputs) < x.shape[1]:
            pruned_inputs += 1
            of_all = [mean_error(x, clips[1], width, "activation") for width in (2, 4)]
            assert layer.activation_quantizer.metric.tolist() != pytest.approx(of_all, rel=1e-3)
    shapes = [shape for shape in pruned_job.task.network.middle if shape.kind != "matmul"]
    assert pruned_inputs == sum(shape.producer is not None for shape in shapes) >= 2


@pytest.mark.parametrize("metric", ["raw", "normalized"])
def test_group_metric_is_raw_or_normalised(
    make_job: Callable[..., SearchJob], metric: Literal["raw", "normalized"]
) -> None:
    job = make_job()
    network = shared(job, replace(DEFAULT, group_metric=metric))
    inputs_of(network, batch(job))
    for layer in network.layers.values():
        if layer.filter_gates is None:
            continue
        weight = layer.weight.detach()
        if metric == "normalized":
            weight = (weight - weight.mean()) / weight.std()
        expected = [weight[list(members)].abs().mean().item() for members in layer.filter_gates.groups.members]
        assert layer.filter_gates.metric.tolist() == pytest.approx(expected, rel=1e-9)


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


def gates_of(network: SharedNetwork) -> dict[tuple[str, str], Tensor]:
    """The gates of all layers, by layer and kind."""
    gates = {}
    for name, layer in network.layers.items():
        gates[name, "weight_gates"] = layer.weight_quantizer.gates
        gates[name, "activation_gates"] = layer.activation_quantizer.gates
        if layer.filter_gates is not None:
            gates[name, "group_gates"] = layer.filter_gates.gates
    return gates


def gate_values(network: SharedNetwork) -> dict[GateName, float]:
    return {
        (name, kind, position): value
        for (name, kind), gates in gates_of(network).items()
        for position, value in enumerate(gates.tolist())
    }


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What the gates make of one layer."""

    weight_bits: float
    activation_bits: float
    weight_shares: Mapping[int, float]
    activation_shares: Mapping[int, float]
    inputs: float
    outputs: float


def nested(four: float, eight: float) -> dict[int, float]:
    """The share of each width: 2 unless 4, 4 unless 8."""
    return {2: 1 - four, 4: four * (1 - eight), 8: four * eight}


Cost = Callable[[LayerShape, Factors], float]


def weights(shape: LayerShape, found: Factors) -> float:
    """A depthwise filter has one input."""
    return math.prod(shape.kernel) * found.outputs * (1 if shape.groups > 1 else found.inputs)


def literal_bops(shape: LayerShape, found: Factors) -> float:
    return weights(shape, found) * math.prod(shape.out_size) * found.weight_bits * found.activation_bits


def literal_memory(shape: LayerShape, found: Factors) -> float:
    elements = found.inputs * math.prod(shape.in_size)
    return (weights(shape, found) * found.weight_bits + elements * found.activation_bits) / 8000


def literal_table(measure: Latency | Energy) -> Cost:
    """The mean over widths, and lines between the two tabulated counts around each number of channels."""

    @cache
    def at(shape: LayerShape, *point: int) -> float:
        executed = execute_layer(measure.accelerator, shape, *point)
        return executed.latency_ms if isinstance(measure, Latency) else executed.energy_mj

    def ends(count: float, full: int) -> dict[int, float]:
        counts = channel_counts(full)
        if count >= full:
            return {full: 1.0}
        low, high = max(c for c in counts if c <= count), min(c for c in counts if c > count)
        return {low: (high - count) / (high - low), high: (count - low) / (high - low)}

    def cost(shape: LayerShape, found: Factors) -> float:
        total = 0.0
        widths = product(found.weight_shares.items(), found.activation_shares.items())
        for (weight, of_weight), (activation, of_activation) in widths:
            for outputs, of_outputs in ends(found.outputs, shape.out_channels).items():
                # The channels of a depthwise convolution are one count.
                inputs = {outputs: 1.0} if shape.groups > 1 else ends(found.inputs, shape.in_channels)
                for count, of_inputs in inputs.items():
                    share = of_weight * of_activation * of_outputs * of_inputs
                    total += share * at(shape, weight, activation, count, outputs) if share else 0
        return total

    return cost


def multiplied_out(shapes: NetworkShape, gates: dict[GateName, float], cost: Cost) -> float:
    """The cost of a network whose gates have any values (Eq. 14), layer by layer."""

    def several(layer: str, kind: str) -> Iterator[float]:
        position = 0
        while (layer, kind, position) in gates:
            yield gates[layer, kind, position]
            position += 1

    def width(layer: str, kind: str) -> float:
        four, eight = several(layer, kind)
        return 2 + four * 2 + four * eight * 4

    def filters(layer: str | None, full: int) -> float:
        groups = [] if layer is None else list(several(layer, "group_gates"))
        return 4 * sum(groups) if groups else full

    def literal(shape: LayerShape) -> Factors:
        middle = shape.position == "middle"
        return Factors(
            weight_bits=width(shape.name, "weight_gates") if middle else 8.0,
            activation_bits=width(shape.name, "activation_gates") if middle else 8.0,
            weight_shares=nested(*several(shape.name, "weight_gates")) if middle else {8: 1.0},
            activation_shares=nested(*several(shape.name, "activation_gates")) if middle else {8: 1.0},
            inputs=filters(shape.producer, shape.in_channels),
            outputs=filters(shape.leader or shape.name, shape.out_channels),
        )

    return sum(cost(shape, literal(shape)) for shape in shapes.layers)


MEASURES: dict[str, tuple[Measure, Cost]] = {
    "bops": (BOPS, literal_bops),
    "memory": (Memory(), literal_memory),
    "latency": (Latency(AcceleratorSpec()), literal_table(Latency(AcceleratorSpec()))),
    "energy": (Energy(AcceleratorSpec(batch=1)), literal_table(Energy(AcceleratorSpec(batch=1)))),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_gradient_of_the_log_cost_is_that_of_the_formula(scrambled_job: SearchJob, seed: int | None, name: str) -> None:
    """For every gate, open or shut, by a difference of the cost, which is linear in each.

    Costs of a table are linear between two of its counts: there the difference is downwards, to what the network would
    cost with a little less of a group.
    """
    measure, cost = MEASURES[name]
    network = shared(replace(scrambled_job, measure=measure), ready=False)
    if seed is not None:
        mix_gates(network, seed)
    network.model.eval()(batch(scrambled_job, 2))
    values = gate_values(network)
    tensors = {key: gates for key, gates in gates_of(network).items() if len(gates)}
    relaxed = network.relaxed_cost()
    gradients = torch.autograd.grad(relaxed.log(), list(tensors.values()))
    shapes = scrambled_job.task.network
    total = multiplied_out(shapes, values, cost)
    assert relaxed.item() == pytest.approx(total, rel=1e-9)
    between = 0.05 if name in ("latency", "energy") else 1e-12  # a table does not have all counts
    assert relaxed.item() == pytest.approx(measure.price(shapes, read_off(network)), rel=between)
    steps = (0.0, -0.01) if name in ("latency", "energy") else (0.5, -0.5)
    for (layer, kind), gradient in zip(tensors, gradients, strict=True):
        for position, found in enumerate(gradient.tolist()):
            gate = (layer, kind, position)
            ends = [multiplied_out(shapes, {**values, gate: values[gate] + h}, cost) for h in steps]
            expected = (ends[0] - ends[1]) / (steps[0] - steps[1]) / total
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_to_shut_an_open_group_saves(mobile_job: SearchJob, name: str) -> None:
    """Where every search begins: all groups are open, and the cost must draw none of them further up."""
    network = shared(replace(mobile_job, measure=MEASURES[name][0]), ready=False)
    network.model.eval()(batch(mobile_job, 2))
    gates = [layer.filter_gates.gates for layer in network.layers.values() if layer.filter_gates is not None]
    gradients = torch.cat(torch.autograd.grad(network.relaxed_cost(), gates))
    assert bool((gradients >= 0).all()) and bool((gradients > 0).any())


def test_shares_are_the_nested_gates() -> None:
    """Chains of different lengths; values and gradients for gates that are neither open nor shut."""
    chains = [(2, 4, 8), (3,), (1, 2, 4, 8), (4, 8)]
    draws = torch.Generator().manual_seed(0)
    gates = [torch.rand(len(chain) - 1, generator=draws, dtype=torch.float64, requires_grad=True) for chain in chains]
    found = shares(gates)
    assert found.shape == (4, 4)
    assert torch.allclose(found.sum(1), torch.ones(4, dtype=torch.float64))
    for row, chain, of_layer in zip(found, chains, gates, strict=True):
        assert row[len(chain) :].tolist() == [0.0] * (4 - len(chain))
        values = of_layer.tolist()
        for index in range(len(chain)):
            shut = 1 - values[index] if index < len(values) else 1.0
            assert row[index].item() == pytest.approx(math.prod(values[:index]) * shut)
        if not values:
            continue
        # The width that they stand for is that of Eq. 14, and so is its gradient for each gate.
        widths = [(row[: len(chain)] * torch.tensor(chain)).sum(), opened(chain, of_layer)]
        assert widths[0].item() == pytest.approx(widths[1].item())
        one, other = (torch.autograd.grad(width, of_layer, retain_graph=True)[0] for width in widths)
        assert torch.allclose(one, other)
