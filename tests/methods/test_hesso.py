"""HESSO: groups, their saliency, how they fade, and a problem whose best groups are known."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import reduce
from bench.compression.policy import uniform
from bench.compression.shapes import trace
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import fit
from methods.hesso import Hesso, HessoOptions, Periods, Removal, groups_of, saliency

MakeJob = Callable[..., SearchJob]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]


def quiet(figures: Mapping[str, float]) -> None:
    """A report that nobody reads."""


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
                group.scale(0.0)
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
    periods = Periods.of(100, HessoOptions(warmup=0.1, pruned_after=0.6, periods=5))
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
    periods = Periods.of(steps, HessoOptions())
    begins = [step for step in range(steps) if periods.begins(step)]
    assert len(begins) == periods.count >= 1
    assert periods.is_last(begins[-1])
    assert periods.factor(steps) == 0


# --- removal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_search_ends_inside_the_window(make_job: MakeJob, measure: Measure) -> None:
    job = make_job(measure=measure)
    method, network = Hesso(HessoOptions(bits=4)), job.task.network
    job = replace(job, budget=0.3 * job.price(method.cheapest(network)) + 0.7 * job.price(uniform(network, 4)))
    result = method.search(job)
    assert 0.97 * job.budget <= job.price(result.policy) <= job.budget
    removed = {name: choice.kept_filters for name, choice in result.policy.layers.items() if choice.kept_filters}
    assert removed.keys() == result.record["removed"].keys()
    for name, kept in removed.items():
        rows = result.state[f"{name}.weight"].abs().flatten(1).sum(1)
        gone = [row for row in range(len(rows)) if row not in kept]
        assert bool((rows[gone] == 0).all()) and bool((rows[list(kept)] > 0).all())
    assert [entry["epoch"] for entry in result.record["history"]] == [1]


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


def test_the_bits_are_the_fewest_above_the_budget(make_job: MakeJob) -> None:
    job = make_job()
    for bits in (2, 3, 5):
        job = replace(job, budget=0.98 * job.price(uniform(job.task.network, bits)))
        result = Hesso().search(job)
        assert result.record["bits"] == bits
        middle = [result.policy.layers[layer.name] for layer in job.task.network.middle]
        assert {(choice.weight_bits, choice.activation_bits) for choice in middle} == {(bits, bits)}


def test_bits_fall_where_filters_do_not_save_enough(make_job: MakeJob) -> None:
    """Here every layer is one group, which stays."""
    job = make_job()
    job = replace(job, budget=0.98 * job.price(uniform(job.task.network, 3)))
    result = Hesso(HessoOptions(group_size=64)).search(job)
    assert result.record["bits"] == 2 and result.policy == uniform(job.task.network, 2)


def test_every_layer_keeps_a_group_at_the_smallest_budget(make_job: MakeJob) -> None:
    job = make_job()
    method = Hesso(HessoOptions(bits=4))
    least = job.price(method.cheapest(job.task.network))
    result = method.search(replace(job, budget=least))
    assert job.price(result.policy) == least
    with pytest.raises(UnreachableBudgetError, match="even one group of filters a layer at 4 bits costs") as caught:
        method.search(replace(job, budget=least - 1))
    assert caught.value.nearest == least


class Pair(nn.Module):
    """A layer of which nothing reads the last filters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.reader, self.reader_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.reader_norm(self.reader(torch.relu(self.wide_norm(self.wide(x))))))
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


def test_the_groups_that_nothing_reads_are_removed(task: Task) -> None:
    """The best half of four groups is known; it is not that of the largest weights."""
    shapes = trace(Pair(), task.data.image_shape, name="pair", dataset="digits")
    torch.manual_seed(0)
    model = Pair()
    fit(model, task.data, Schedule(epochs=3, batch_size=64, decay="one_cycle"), generator("tests"), quiet)
    with torch.no_grad():
        model.reader.weight[:, 4:] = 0
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    job = SearchJob(
        task=Task(data=task.data, network=shapes, make_model=Pair),
        pretrained=state,
        knobs={},
        budget=1.0,
        match="hinge",
        schedule=SearchSchedule(epochs=2, batch_size=64, lr=1e-3),
        seed=0,
        report=quiet,
    )
    half = uniform(shapes, 4).with_layer("wide", kept_filters=(0, 1, 2, 3))
    job = replace(job, budget=job.price(half))
    options = HessoOptions(bits=4, group_size=2, warmup=0.3)
    assert Hesso(options).search(job).policy == half


@pytest.mark.parametrize("changes", [{"warmup": 0.6}, {"pruned_after": 0.05}, {"periods": 0}, {"bits": 17}])
def test_options_have_bounds(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        HessoOptions.model_validate(changes)


def test_the_message_says_what_to_change() -> None:
    with pytest.raises(ValidationError, match="give a larger share of the search"):
        HessoOptions(warmup=0.7)
