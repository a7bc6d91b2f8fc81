"""Vectors of levels: their policies and their costs."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from bench.compression.policy import uniform
from bench.compression.shapes import LayerShape
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.method import SearchJob
from bench.spec.schema import AcceleratorSpec
from methods.shared.levels import FilterOrder, LevelCosts, Levels, LevelSpace, kept_groups, units_of

MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
BITS = (2, 4, 8)


def space_of(job: SearchJob, filter_levels: int = 8) -> LevelSpace:
    network = job.task.network
    return LevelSpace(network, units_of(network, BITS, 4, filter_levels), 4, job.pretrained)


def drawn(space: LevelSpace, source: torch.Generator) -> Levels:
    return tuple(int(torch.randint(len(unit.options), (), generator=source)) for unit in space.units)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_costs_layer_by_layer_are_those_of_the_whole_policy(mobile_job: SearchJob, measure: Measure) -> None:
    job = replace(mobile_job, measure=measure)
    space, source = space_of(job), torch.Generator().manual_seed(0)
    costs = LevelCosts(job, space)
    for _ in range(8):
        levels = drawn(space, source)
        assert costs(levels) == pytest.approx(job.price(space.policy(levels)), rel=1e-9)


def test_costs_of_heads_and_products_are_those_of_the_whole_policy(compact_job: SearchJob) -> None:
    space, source = space_of(compact_job), torch.Generator().manual_seed(0)
    costs = LevelCosts(compact_job, space)
    for levels in [drawn(space, source) for _ in range(8)]:
        assert costs(levels) == compact_job.price(space.policy(levels))


def test_the_ends_of_the_space(pruned_job: SearchJob) -> None:
    network, space = pruned_job.task.network, space_of(pruned_job)
    assert space.policy(space.highest) == uniform(network, 8)
    assert space.policy(space.with_bits(1)) == uniform(network, 4)
    lowest = space.policy(space.lowest)
    for layer in network.layers:
        choice = lowest.layers[layer.name]
        assert choice.weight_bits == choice.activation_bits == (2 if layer.position == "middle" else 8)
        if layer.prunable:
            assert choice.kept_filters is not None and len(choice.kept_filters) == layer.group_size(4)


def test_a_level_keeps_the_groups_of_largest_weights(make_job: Callable[..., SearchJob]) -> None:
    job = make_job()
    layer = next(layer for layer in job.task.network.layers if layer.prunable)
    weight = job.pretrained[f"{layer.name}.weight"]
    means = [float(weight[start : start + 4].abs().mean()) for start in range(0, layer.out_channels, 4)]
    strongest = sorted(range(len(means)), key=means.__getitem__)[-2:]
    expected = sorted(4 * group + filter_ for group in strongest for filter_ in range(4))
    assert FilterOrder(layer, 4, weight).strongest(2) == tuple(expected)
    assert FilterOrder(layer, 4, weight).strongest(len(means)) is None


def test_a_smaller_last_group_is_dropped_first() -> None:
    """So that the cost of a level does not depend on weights, which `cheapest` does not know."""
    layer = LayerShape(name="l", kind="conv", position="middle", in_channels=3, out_channels=10, prunable=True)
    weight = torch.ones(10, 3, 1, 1)
    weight[8:] = 5
    assert FilterOrder(layer, 4, weight).strongest(2) == tuple(range(8))
    assert FilterOrder(layer, 4, weight).strongest(3) is None


@pytest.mark.parametrize(
    ("filters", "levels", "expected"), [(16, 8, (1, 2, 3, 4)), (64, 4, (1, 6, 11, 16)), (4, 2, (1,))]
)
def test_levels_of_filters_are_evenly_spread(filters: int, levels: int, expected: tuple[int, ...]) -> None:
    layer = LayerShape(name="l", kind="conv", position="middle", in_channels=3, out_channels=filters, prunable=True)
    assert kept_groups(layer, 4, levels) == expected


def test_one_level_of_filters_keeps_them_all(pruned_job: SearchJob) -> None:
    assert {unit.what for unit in space_of(pruned_job, 1).units} == {"weight_bits", "activation_bits"}
