"""Losses under many policies, against fresh networks that are evaluated one by one."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress, quantized_layer
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import UniformQuantizer
from bench.compression.shapes import LayerShape, trace
from bench.method import SearchJob, Task
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


def measuring(network: nn.Module) -> nn.Module:
    """Nothing left out at random; statistics of the batch."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return network


@torch.no_grad()
def one_by_one(job: SearchJob, base: Policy, policies: Sequence[Policy], count: int) -> list[float]:
    """A network for each policy; its quantizers are calibrated on what layers read in the base."""
    network, read = job.task.network, dict[str, tuple[Tensor, ...]]()
    images = job.task.data.calibration_batches(1, job.schedule.batch_size)[0]
    of_base = compress(job.float_model(), network, base)
    calibrate(of_base, images)
    for layer in network.middle:
        of_base.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, inputs, name=layer.name: read.update({name: inputs})
        )
    measuring(of_base)(images)
    losses = []
    for policy in policies:
        made = compress(job.float_model(), network, policy)
        for layer in network.layers:
            if hasattr(made.get_submodule(layer.name), "weight_quantizer"):
                put_quantizers(job, made, layer, policy, read.get(layer.name), of_base)
        total = 0.0
        for batch, labels in sensitivity_batches(job, count):
            total += float(F.cross_entropy(measuring(made)(batch).double(), labels))
        losses.append(total / count)
    return losses


def put_quantizers(
    job: SearchJob,
    made: nn.Module,
    layer: LayerShape,
    policy: Policy,
    read: tuple[Tensor, ...] | None,
    of_base: nn.Module,
) -> None:
    target = made.get_submodule(layer.name)
    if read is None:
        own = of_base.get_submodule(layer.name)
    else:
        choice = policy.layers[layer.name]
        module = job.float_model().get_submodule(layer.name)
        bits = choice.weight_bits, choice.activation_bits
        own = quantized_layer(module, layer, bits, UniformQuantizer, normalized=True)
        own.calibrate(*read)
    target.weight_quantizer, target.activation_quantizer = own.weight_quantizer, own.activation_quantizer


def drawn(job: SearchJob, base: Policy, count: int) -> list[Policy]:
    """The base, policies with one and with two layers changed, and policies with all layers changed, in any order."""
    names = [layer.name for layer in job.task.network.middle]
    draws = torch.Generator().manual_seed(1)

    def pick(values: Sequence[int]) -> int:
        return values[int(torch.randint(len(values), (), generator=draws))]

    policies = [base, base]
    for number in range(count):
        policy = base
        for _ in range((1, 2, len(names))[number % 3]):
            name = names[pick(range(len(names)))]
            policy = policy.with_layer(name, weight_bits=pick(BITS), activation_bits=pick(BITS))
        policies.append(policy)
    return policies


@pytest.mark.parametrize("bits", [8, 32])
def test_losses_are_those_of_networks_that_are_made_one_by_one(pruned_job: SearchJob, bits: int) -> None:
    """On convolutions, gates, depthwise layers, signed inputs and products of activations."""
    base = uniform(pruned_job.task.network, bits)
    policies = drawn(pruned_job, base, 9)
    found = PolicyLosses(pruned_job, base, BITS, sensitivity_batches(pruned_job, 2)).of(policies)
    assert found == pytest.approx(one_by_one(pruned_job, base, policies, 2), rel=1e-5)
    assert found[0] == found[1] and len({round(loss, 9) for loss in found}) > 5


def test_a_layer_is_computed_again_only_behind_a_change(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of L layers, the base takes L, and a change in layer l takes those from l on, in any order of the policies."""
    job = make_job()
    names = [layer.name for layer in job.task.network.middle]
    base = uniform(job.task.network, 8)
    losses = PolicyLosses(job, base, (2, 8), sensitivity_batches(job, 1))
    computed = []
    for name, layer in losses._layers.items():
        layer.layer.register_forward_hook(lambda *_, name=name: computed.append(name))
    singles = [base.with_layer(name, weight_bits=2) for name in names]
    losses.of([*singles[3:], base, *singles[:3]])
    assert len(computed) == len(names) + sum(len(names) - number for number in range(len(names)))


class InPlace(nn.Module):
    """Activations that work in place on the output of layers without a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.two(self.act(self.one(self.act(self.stem(x))))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_works_in_place_does_not_change_an_output_that_is_given_again(small_task: Task, make_job: MakeJob) -> None:
    shapes = trace(InPlace(), (1, 8, 8), name="in place", dataset="digits")
    job = make_job(replace(small_task, network=shapes, make_model=InPlace), state=InPlace().state_dict())
    base = uniform(shapes, 32)
    policies = [base, base.with_layer("two", weight_bits=2), base.with_layer("two", weight_bits=4)]
    found = PolicyLosses(job, base, BITS, sensitivity_batches(job, 1)).of(policies)
    assert found == pytest.approx(one_by_one(job, base, policies, 1), rel=1e-6)


def test_nothing_of_the_search_is_changed(make_job: MakeJob) -> None:
    job = make_job()
    before = {name: value.clone() for name, value in job.pretrained.items()}
    base = uniform(job.task.network, 8)
    PolicyLosses(job, base, (2, 8), sensitivity_batches(job, 1)).of([base])
    assert all(torch.equal(value, before[name]) for name, value in job.pretrained.items())
