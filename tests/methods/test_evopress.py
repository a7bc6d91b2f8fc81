"""EvoPress: mutations, comparisons on growing samples, and problems whose best policy is known."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import compress
from bench.compression.policy import Policy
from bench.compression.shapes import trace
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import NonFiniteLossError, UnreachableBudgetError
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec
from methods.evopress import MOST_CHANGES, MOST_RAISED, Evopress, EvopressOptions, Mutation, Samples
from methods.shared.levels import Levels, LevelSpace
from tests.methods.untrained import clips, compressed_outputs

MakeJob = Callable[..., SearchJob]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
SHORT: dict[str, Any] = {"generations": 4, "offspring": 6, "survivors": (2, 1), "images": (8, 32), "initial": 6}


def at(job: SearchJob, share: float) -> SearchJob:
    """The job with a budget between the costs of the extremes, on a scale of ratios."""
    method, network = Evopress(), job.task.network
    low, high = job.price(method.cheapest(network)), job.price(method.costliest(network))
    return replace(job, budget=low * (high / low) ** share)


# --- mutation -----------------------------------------------------------------------------------------------------


def test_one_to_three_units_are_raised_most_often_one(make_job: MakeJob) -> None:
    job = make_job()
    mutation = Mutation(job, Evopress().space(job.task.network))
    counts = Counter(mutation._switches() for _ in range(9000))
    assert counts.keys() == {1, 2, 3}
    for switches, ninths in ((1, 5), (2, 3), (3, 1)):
        assert counts[switches] == pytest.approx(1000 * ninths, rel=0.1)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_vector_is_inside_the_window_and_near_its_parent(mobile_job: SearchJob, measure: Measure) -> None:
    job = at(replace(mobile_job, measure=measure), 0.6)
    space = Evopress().space(job.task.network, job.pretrained)
    mutation = Mutation(job, space)
    first = mutation.first(5)
    assert len(set(first)) == 5
    children = mutation.children(first[0], 12)
    assert len(set(children)) == 12 and first[0] not in children
    for levels in (*first, *children):
        assert 0.97 * job.budget <= job.price(space.policy(levels)) <= job.budget
    for child in children:
        changes = [now - before for before, now in zip(first[0], child, strict=True)]
        assert sum(map(abs, changes)) <= MOST_CHANGES and sum(change for change in changes if change > 0) <= MOST_RAISED


def test_mutations_move_bits_and_filters_up_and_down(make_job: MakeJob) -> None:
    job = at(make_job(), 0.6)
    space = Evopress().space(job.task.network, job.pretrained)
    mutation = Mutation(job, space)
    filters = [unit for unit, known in enumerate(space.units) if known.what == "filters"]
    parents = mutation.first(200)
    parent = next(levels for levels in parents if any(0 < levels[unit] < space.highest[unit] for unit in filters))
    children = mutation.children(parent, 300)
    for sign, end in ((1, space.highest), (-1, space.lowest)):
        able = {unit for unit, level in enumerate(parent) if level != end[unit]}
        moved = {unit for child in children for unit in able if sign * (child[unit] - parent[unit]) > 0}
        assert {space.units[unit].what for unit in able} == {"weight_bits", "activation_bits", "filters"}
        assert len(moved) > 0.7 * len(able)


def test_a_parent_below_the_window_rises(make_job: MakeJob) -> None:
    """No child costs less, and one that the budget allows needs no unit to go down."""
    job = at(make_job(), 0.9)
    space = Evopress().space(job.task.network, job.pretrained)
    children = Mutation(job, space).children(space.lowest, 10)
    assert children
    for child in children:
        assert job.price(space.policy(child)) > job.price(space.policy(space.lowest))


# --- comparison ---------------------------------------------------------------------------------------------------


def test_the_fitness_is_the_divergence_of_the_compressed_network(make_job: MakeJob) -> None:
    job = at(make_job(), 0.6)
    method = Evopress()
    space = method.space(job.task.network, job.pretrained)
    candidates = Mutation(job, space).first(3)
    samples = Samples(job, space, (2, 4, 8))
    before = samples.order.get_state()
    found = samples.divergences(candidates, 60)
    samples.order.set_state(before)
    images, _ = next(iter(job.task.data.training_batches(60, samples.order)))
    values, reference = clips(job), job.float_model().eval()
    for levels, divergence in zip(candidates, found, strict=True):
        total = 0.0
        for part in images.chunk(3):  # batches are of 28 images at most
            with torch.no_grad():
                p = F.softmax(reference(part).double(), 1)
                q = F.softmax(compressed_outputs(job, space.policy(levels), values, part).double(), 1)
            total += float((p * (p.log() - q.log())).sum())
        assert divergence == pytest.approx(total / 60, rel=1e-3)


class Watched(Samples):
    """Keeps the candidates and the number of images of every comparison; a vector's divergence is its sum."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.comparisons: list[tuple[list[Levels], int]] = []

    def divergences(self, candidates: Sequence[Levels], count: int) -> list[float]:
        self.comparisons.append((list(candidates), count))
        return [float(sum(levels)) for levels in candidates]


def test_comparisons_grow_and_the_parent_joins_the_last_and_wins_ties(make_job: MakeJob) -> None:
    job = make_job()
    space = Evopress().space(job.task.network, job.pretrained)
    watched, base = Watched(job, space, (2, 4, 8)), (1,) * (len(space.units) - 1)
    children = [(first, *base) for first in (2, 0, 1, 2)] + [(0, *base[:-1], 2)]
    parent = (1, *base[:-1], 0)
    assert watched.best(children, [parent], (3, 2, 1), (4, 8, 16)) == (parent, float(sum(parent)))
    ranked = sorted(children, key=sum)
    assert watched.comparisons == [(children, 4), (ranked[:3], 8), ([parent, *ranked[:2]], 16)]


def test_every_comparison_has_one_fresh_sample_for_all_its_candidates(make_job: MakeJob) -> None:
    job = at(make_job(), 0.6)
    space = Evopress().space(job.task.network, job.pretrained)
    candidates = Mutation(job, space).first(4)
    samples, drawn = Samples(job, space, (2, 4, 8)), job.task.data.drawn
    before = drawn["calibration_images"]
    first = samples.divergences([*candidates, candidates[0]], 20)
    assert drawn["calibration_images"] - before == 20
    assert first[0] == first[-1]
    assert samples.divergences(candidates[:1], 20) != first[:1]
    assert samples.effort()["evaluations"] == 6 and samples.effort()["image_passes"] == 120


def test_a_network_that_computes_nothing_finite_is_an_error(make_job: MakeJob) -> None:
    job = make_job()
    broken = {
        name: value * float("nan") if value.is_floating_point() else value for name, value in job.pretrained.items()
    }
    with pytest.raises(NonFiniteLossError, match="the divergence from the float network is"):
        Evopress(EvopressOptions(**SHORT)).search(at(replace(job, pretrained=broken), 0.6))


# --- known answers ------------------------------------------------------------------------------------------------


def test_the_best_policy_of_a_small_network_is_found(known_best: tuple[SearchJob, Policy]) -> None:
    job, best = known_best
    options = EvopressOptions(bits=(2, 4), filter_levels=1, generations=12, offspring=8, initial=4)
    assert Evopress(options).search(job).policy == best


class Chain(nn.Module):
    """Five equal layers between the first and the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.chain = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5)))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.chain(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def chain_job(small_task: Task, make_job: MakeJob) -> SearchJob:
    torch.manual_seed(0)
    shapes = trace(Chain(), (1, 8, 8), name="chain", dataset="digits")
    return make_job(replace(small_task, network=shapes, make_model=Chain), state=Chain().state_dict())


def additive(space: LevelSpace) -> Mapping[tuple[int, int], float]:
    """An error for each unit and level that falls with the level."""
    source = torch.Generator().manual_seed(1)
    return {
        (unit, level): float(error)
        for unit, known in enumerate(space.units)
        for level, error in enumerate(torch.rand(len(known.options), generator=source).sort(descending=True).values)
    }


@pytest.mark.parametrize("bonus", [0.0, 3.0], ids=["additive", "pair"])
def test_the_optimum_of_a_table_is_found(chain_job: SearchJob, monkeypatch: pytest.MonkeyPatch, bonus: float) -> None:
    """Of 59,049 policies. With the bonus, two units are good at the lowest level together, and bad alone."""
    options = EvopressOptions(
        bits=(2, 3, 4), filter_levels=1, generations=80, offspring=16, survivors=(1,), images=(2,), initial=8
    )
    method = Evopress(options)
    space = method.space(chain_job.task.network)
    errors = additive(space)
    job = replace(chain_job, budget=chain_job.price(space.policy(space.with_bits(1))))
    pair = sorted(range(10), key=lambda unit: errors[unit, 1] - errors[unit, 0])[:2]

    def error(levels: Levels) -> float:
        rewarded = bonus if all(levels[unit] == 0 for unit in pair) else 0.0
        return sum(errors[unit, level] for unit, level in enumerate(levels)) - rewarded

    monkeypatch.setattr(Samples, "divergences", lambda _, candidates, count: [error(levels) for levels in candidates])
    result = method.search(job)
    macs = next(layer.macs for layer in job.task.network.middle)
    rest = job.budget - 5 * 9 * macs
    best = min(
        error(levels)
        for levels in product(range(3), repeat=10)
        if 0.97 * job.budget
        <= rest + macs * sum((2 + w) * (2 + a) for w, a in zip(levels[::2], levels[1::2], strict=True))
        <= job.budget
    )
    divergences = [entry["divergence"] for entry in result.record["history"]]
    assert divergences == sorted(divergences, reverse=True)  # one comparison on everything: never worse
    assert divergences[-1] == pytest.approx(best)


# --- the search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_search_ends_inside_the_window(make_job: MakeJob, measure: Measure) -> None:
    job = at(make_job(measure=measure), 0.5)
    result = Evopress(EvopressOptions(**SHORT)).search(job)
    assert 0.97 * job.budget <= job.price(result.policy) <= job.budget
    assert all(torch.equal(result.state[name], value) for name, value in job.pretrained.items())
    compress(job.float_model(), job.task.network, result.policy)


def test_the_record_states_the_effort(make_job: MakeJob) -> None:
    record = Evopress(EvopressOptions(**SHORT)).search(at(make_job(), 0.5)).record
    assert [entry["epoch"] for entry in record["history"]] == [1, 2, 3, 4]
    assert record["evaluations"] == 6 + 4 * (6 + 3)
    assert record["image_passes"] == 6 * 8 + 4 * (6 * 8 + 3 * 32)
    assert record["effort"] == "42 evaluations, 624 forward passes of an image"


def test_a_budget_above_everything_gives_the_costliest_policy(make_job: MakeJob) -> None:
    job = make_job(budget=1e12)
    assert Evopress(EvopressOptions(**SHORT)).search(job).policy == Evopress().costliest(job.task.network)


def test_too_small_a_budget_is_unreachable(make_job: MakeJob) -> None:
    job = make_job()
    least = job.price(Evopress().cheapest(job.task.network))
    with pytest.raises(UnreachableBudgetError, match="even the policy of the lowest levels costs") as caught:
        Evopress(EvopressOptions(**SHORT)).search(replace(job, budget=least - 1))
    assert caught.value.nearest == least


def test_the_group_size_of_the_model_is_stated(make_job: MakeJob) -> None:
    network = make_job().task.network
    assert Evopress().stated_options(network)["group_size"] == network.group_size
    assert Evopress(EvopressOptions(group_size=2)).stated_options(network)["group_size"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"survivors": (2, 1)}, "must be equally many"),
        ({"survivors": (8, 2, 2)}, "must fall to 1"),
        ({"survivors": (2, 8, 1)}, "must fall to 1"),
        ({"images": (128, 16, 1024)}, "must not fall"),
        ({"bits": (4, 2)}, "must rise"),
    ],
)
def test_comparisons_must_make_sense(changes: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvopressOptions(**changes)
