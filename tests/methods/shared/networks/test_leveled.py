"""The network that takes any policy: its outputs are those of the compressed network, and old ones are used again."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.shapes import trace
from bench.method import SearchJob, Task
from methods.shared.levels import Levels, LevelSpace, units_of
from methods.shared.networks import leveled
from methods.shared.networks.leveled import LeveledNetwork
from tests.methods.untrained import BITS, clips, compressed_outputs


def drawn(space: LevelSpace, count: int) -> list[Levels]:
    """Vectors in the order in which a search evaluates them, of which some agree in their first layers."""
    source = torch.Generator().manual_seed(0)
    first = [int(torch.randint(len(unit.options), (), generator=source)) for unit in space.units]
    vectors = [tuple(first)]
    for _ in range(count - 1):
        unit = int(torch.randint(len(first), (), generator=source))
        first[unit] = (first[unit] + 1) % len(space.units[unit].options)
        vectors.append(tuple(first))
    return sorted(vectors)


def space_of(job: SearchJob) -> LevelSpace:
    network = job.task.network
    return LevelSpace(network, units_of(network, BITS, network.group_size, 8), network.group_size, job.pretrained)


def test_outputs_are_those_of_the_reduced_and_quantized_network(pruned_job: SearchJob) -> None:
    job, space = pruned_job, space_of(pruned_job)
    images, values = job.task.data.calibration_batches(1, 24)[0], clips(job)
    policies = [space.policy(levels) for levels in drawn(space, 6)]
    assert any(choice.kept_filters for policy in policies for choice in policy.layers.values())
    network = LeveledNetwork(job, BITS)
    for part in images.chunk(2):
        for policy, outputs in zip(policies, network.outputs(policies, part), strict=True):
            expected = compressed_outputs(job, policy, values, part)
            # A value on the border of two levels may fall to either side.
            assert torch.allclose(outputs, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


class InPlace(nn.Module):
    """A residual network that changes outputs of its layers in place, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.first_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.first_norm(self.first(x))
        y += x
        y = self.relu(self.second(self.relu(y)))
        y = self.third(y)
        y *= 0.5
        return self.fc(F.relu(y, inplace=True).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def in_place_job(small_task: Task, make_job: Callable[..., SearchJob]) -> SearchJob:
    torch.manual_seed(0)
    shapes = trace(InPlace(), (1, 8, 8), name="in_place", dataset="digits")
    return make_job(replace(small_task, network=shapes, make_model=InPlace), state=InPlace().state_dict())


def test_what_a_network_changes_in_place_is_computed_again(in_place_job: SearchJob) -> None:
    space, images = space_of(in_place_job), in_place_job.task.data.calibration_batches(1, 12)[0]
    policies = [space.policy(levels) for levels in drawn(space, 10)]
    network = LeveledNetwork(in_place_job, BITS)
    for policy, outputs in zip(policies, network.outputs(policies, images), strict=True):
        (alone,) = LeveledNetwork(in_place_job, BITS).outputs([policy], images)
        assert torch.equal(outputs, alone)


def test_only_layers_from_the_first_change_on_are_computed_again(make_job: Callable[..., SearchJob]) -> None:
    job = make_job()
    network, images = LeveledNetwork(job, BITS), job.task.data.calibration_batches(1, 12)[0]
    names, computed = [layer.name for layer in job.task.network.layers], list[str]()
    for name in names:
        inner: Any = network.model.get_submodule(name).module
        inner.register_forward_hook(lambda *_, name=name: computed.append(name))
    space = space_of(job)
    base = space.policy(space.with_bits(1))
    changed = base.with_layer(names[4], activation_bits=2)
    pruned = next(layer for layer in job.task.network.middle if layer.prunable)
    narrower = base.with_layer(pruned.name, kept_filters=(0, 1, 2, 3))
    expected = [names, names[4:], names[4:], [], names[names.index(pruned.name) :], []]
    for before, _ in zip(
        expected, network.outputs([base, changed, base, base, narrower, narrower], images), strict=True
    ):
        assert computed == before
        computed.clear()
    list(network.outputs([narrower], images[:6]))
    assert computed == names  # other images


def test_a_layer_keeps_few_quantized_weights(make_job: Callable[..., SearchJob]) -> None:
    job = make_job()
    network, images = LeveledNetwork(job, BITS), job.task.data.calibration_batches(1, 4)[0]
    space = space_of(job)
    layer = max((layer for layer in job.task.network.middle if layer.prunable), key=lambda layer: layer.filters)
    base = space.policy(space.with_bits(1))
    groups = [tuple(range(count)) for count in range(4, layer.filters, 4)]
    policies = [base.with_layer(layer.name, weight_bits=bits, kept_filters=kept) for bits in BITS for kept in groups]
    assert len(policies) > leveled._EARLIER_WEIGHTS
    list(network.outputs(policies, images))
    inner: Any = network.model.get_submodule(layer.name).module
    assert len(inner._weights) == leveled._EARLIER_WEIGHTS
