"""HESSO: searches that end inside the window, and a problem whose best groups are known."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from pydantic import ValidationError

from bench.compression.policy import Policy, uniform
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from methods.hesso import Hesso, HessoOptions

MakeJob = Callable[..., SearchJob]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]


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


def test_the_groups_that_nothing_reads_are_removed(unread: tuple[SearchJob, Policy]) -> None:
    """The best half of four groups is known; it is not that of the largest weights."""
    job, half = unread
    assert Hesso(HessoOptions(bits=4, group_size=2, warmup=0.3)).search(job).policy == half


@pytest.mark.parametrize("changes", [{"warmup": 0.6}, {"pruned_after": 0.05}, {"periods": 0}, {"bits": 17}])
def test_options_have_bounds(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        HessoOptions.model_validate(changes)


def test_the_message_says_what_to_change() -> None:
    with pytest.raises(ValidationError, match="give a larger share of the search"):
        HessoOptions(warmup=0.7)
