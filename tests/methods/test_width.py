"""The uniformly narrower network."""

from collections.abc import Callable

import pytest
import torch

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from methods.width import Width, WidthOptions

MakeJob = Callable[..., SearchJob]


def test_the_same_share_of_the_strongest_filters_stays(network: NetworkShape, make_job: MakeJob) -> None:
    job = make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})
    found = Width(WidthOptions()).search(job)
    assert found.record["bits"] == 5
    for layer in network.layers:
        kept = found.policy.layers[layer.name].kept_filters
        if not layer.prunable:
            assert kept is None
            continue
        assert kept is not None and len(kept) == max(1, round(found.record["share"] * layer.out_channels))
        weight = job.pretrained[f"{layer.name}.weight"]
        strength = torch.tensor([float(part.abs().sum()) for part in weight])
        gone = [index for index in range(layer.out_channels) if index not in kept]
        assert min(strength[list(kept)]) >= max(strength[gone])


def test_no_larger_share_fits(network: NetworkShape, make_job: MakeJob) -> None:
    budget = float(price(network, uniform(network, 4)).bops)
    found = Width(WidthOptions(bits=8)).search(make_job(budget=budget, knobs={}))
    most = max(layer.out_channels for layer in network.layers if layer.prunable)
    wider = uniform(network, 8)
    share = found.record["share"] + 1 / most
    for layer in network.layers:
        if layer.prunable:
            kept = max(1, round(share * layer.out_channels))
            if kept < layer.out_channels:
                wider = wider.with_layer(layer.name, kept_filters=tuple(range(kept)))
    assert price(network, found.policy).bops <= budget < price(network, wider).bops


def test_a_budget_above_all_keeps_everything(network: NetworkShape, make_job: MakeJob) -> None:
    found = Width(WidthOptions(bits=4)).search(make_job(budget=1e12, knobs={}))
    assert found.policy == uniform(network, 4)


def test_too_little_for_one_filter_a_layer_is_unreachable(network: NetworkShape, make_job: MakeJob) -> None:
    method = Width(WidthOptions(bits=8))
    least = price(network, method.cheapest(network)).bops
    assert method.search(make_job(budget=float(least), knobs={})).policy.layers[network.middle[0].name].kept_filters
    with pytest.raises(UnreachableBudgetError, match="one filter a layer at 8 bits costs") as caught:
        method.search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
