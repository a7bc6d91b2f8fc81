"""Groups of filters, their saliency, periods, and how groups fade."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.compression.compress import reduce
from bench.compression.policy import uniform
from bench.method import SearchJob
from methods.shared.removal import Group, Periods, Removal, groups_of, saliency

MakeJob = Callable[..., SearchJob]


# --- groups -------------------------------------------------------------------------------------------------------


def test_a_network_with_zero_groups_computes_what_the_reduced_one_does(pruned_job: SearchJob) -> None:
    """Layers that lose filters with others, and the shifts of their norms, belong to the groups."""
    network, model = pruned_job.task.network, pruned_job.float_model().eval()
    groups = groups_of(network, model, 4)
    policy = uniform(network, 32)
    for layer in network.layers:
        if layer.prunable:
            own = [group for group in groups if group.layer == layer.name]
            assert sorted(filter_ for group in own for filter_ in group.filters) == list(range(layer.filters))
            for group in own[1::2]:
                for parameter, index in group.rows:
                    parameter.data[index] = 0.0
            kept = tuple(filter_ for group in own[::2] for filter_ in group.filters)
            policy = policy.with_layer(layer.name, kept_filters=kept)
    images = pruned_job.task.data.calibration_batches(1, 16)[0]
    with torch.no_grad():
        expected = reduce(pruned_job.float_model(), network, policy).eval()(images)
        assert torch.allclose(model(images), expected, atol=1e-4 * float(expected.abs().max()))


def test_the_saliency_of_three_groups_by_hand() -> None:
    x = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([-2.0])]
    g = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, -0.5, 0.0, 0.0]), torch.tensor([0.0])]
    terms = torch.tensor([[5.0, 2.5, 1.6, 3.0, 4.5], [1.0, 0.25, 0.0, 0.5, 0.125], [2.0, 2.0, 1.0, 0.0, 0.0]])
    expected = sum(0.2 * terms[:, term] / terms[:, term].square().sum().sqrt() for term in range(5))
    assert isinstance(expected, Tensor)
    assert torch.allclose(saliency(zip(x, g, strict=True)), expected, atol=1e-6)


def test_a_direction_has_the_momentum_of_the_optimizer(make_job: MakeJob) -> None:
    job = make_job()
    model = job.float_model()
    group = groups_of(job.task.network, model, 4)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients = []
    for scale in (1.0, 3.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, scale)
        optimizer.step()
        gradients.append(scale)
    assert torch.allclose(group.direction(optimizer), torch.full_like(group.values(), 0.9 * 1 + 3))


# --- periods ------------------------------------------------------------------------------------------------------


def test_periods_are_equal_parts_of_a_share_of_the_search() -> None:
    periods = Periods.of(100, (0.1, 0.6), 5)
    assert periods == Periods(start=10, length=10, count=5)
    assert [step for step in range(100) if periods.begins(step)] == [10, 20, 30, 40, 50]
    assert [periods.share(step) for step in (10, 29, 59)] == pytest.approx([0.2, 0.4, 1.0])
    assert [periods.is_last(step) for step in (10, 49, 50)] == [False, False, True]


def test_what_fades_falls_linearly_to_zero_and_stays_there() -> None:
    periods, value, seen = Periods(start=3, length=4, count=2), 1.0, []
    for step in range(3, 7):
        value *= periods.factor(step)
        seen.append(value)
    assert seen == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert periods.factor(11) == periods.factor(12) == 0


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 19])
def test_a_short_search_has_fewer_periods_and_ends_the_last(steps: int) -> None:
    periods = Periods.of(steps, (0.1, 0.6), 10)
    begins = [step for step in range(steps) if periods.begins(step)]
    assert len(begins) == periods.count >= 1
    assert periods.is_last(begins[-1])
    assert periods.factor(steps) == 0


# --- removal ------------------------------------------------------------------------------------------------------


def test_the_cost_falls_evenly_from_period_to_period(make_job: MakeJob) -> None:
    job = make_job(budget=1.0)
    full = job.price(uniform(job.task.network, 4))
    job = replace(job, budget=0.5 * full)
    model = job.float_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    removal = Removal(job, uniform(job.task.network, 4), groups_of(job.task.network, model, 2))
    largest = 0.1 * full  # more than any group of two filters saves
    for share in (0.25, 0.5, 0.75, 1.0):
        removal.extend(optimizer, share, last=share == 1)
        cost = job.price(removal.policy())
        assert cost <= full - share * 0.5 * full < cost + largest


def test_what_is_removed_is_zero_with_what_reads_it(make_job: MakeJob) -> None:
    """Redundant groups are multiplied; at the end of their period, and later, they and the columns of readers are 0."""
    job = make_job(budget=1.0)
    full = job.price(uniform(job.task.network, 4))
    job = replace(job, budget=0.8 * full)
    model = job.float_model()
    groups = groups_of(job.task.network, model, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    removal = Removal(job, uniform(job.task.network, 4), groups)
    removal.extend(optimizer, 1.0, last=True)
    kept = {name: layer.kept_filters for name, layer in removal.policy().layers.items() if layer.kept_filters}
    gone = [group for group in groups if group.layer in kept and group.filters[0] not in kept[group.layer]]
    assert gone and removal.redundant.keys() == kept.keys()

    def magnitudes(group: Group) -> tuple[float, float]:
        rows = sum(float(parameter.detach()[index].abs().sum()) for parameter, index in group.rows)
        return rows, sum(float(weight.detach()[:, index].abs().sum()) for weight, index in group.columns)

    before = [magnitudes(group) for group in gone]
    removal.fade(0.25)
    for (rows, columns), group in zip(before, gone, strict=True):
        assert magnitudes(group) == pytest.approx((0.25 * rows, columns))
        assert columns > 0
    removal.fade(0.0)
    assert {magnitudes(group) for group in gone} == {(0.0, 0.0)}
    restored = Removal(job, uniform(job.task.network, 4), groups)
    restored.load_state_dict(removal.state_dict())
    assert restored.policy() == removal.policy() and restored.removed() == removal.removed()
