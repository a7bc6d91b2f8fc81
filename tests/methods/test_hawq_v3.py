"""HAWQ-V3: the authors' nine configurations, ties, and the search."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.costs.counter import price
from bench.costs.measures import BOPS, Bops, Measure
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob, Task
from bench.models.imagenet import resnet18
from methods.hawq_v3 import HawqV3, HawqV3Options, of_weights, values
from methods.shared.allocation import Group, allocate, tied
from methods.shared.decisions import What
from methods.shared.hessian import LossGraph, loss_graph
from methods.shared.readers import readers

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)

# --- the nine configurations of ResNet-18 that the authors ship (`bit_config.py`), from the figures of `ILP.ipynb` ---

TRACES = (
    *(0.06857826, 0.03162379, 0.03298575, 0.01205663, 0.02222431, 0.00596336, 0.06931772, 0.00807129, 0.00372905),
    *(0.00530698, 0.00209011, 0.00737569, 0.00210454, 0.00151197, 0.00158041, 0.00078146, 0.00451841, 0.00098745),
    0.00072944,
)
"""Traces of the Hessian over the number of weights, layer by layer: in each block, convolutions, then the shortcut."""
ERRORS_8 = (
    *(0.0235, 0.0125, 0.0102, 0.0082, 0.0145, 0.0344, 0.0023, 0.0287, 0.0148, 0.0333, 0.0682, 0.0027, 0.0448, 0.0336),
    *(0.0576, 0.1130, 0.0102, 0.0947, 0.0532),
)
"""Squared errors at 8 bits."""
ERRORS_4 = (
    *(6.7430, 3.9691, 3.3281, 2.6796, 4.7277, 10.5966, 0.6827, 9.0942, 4.8857, 10.7599, 21.7546, 0.8603, 14.5324),
    *(10.9651, 18.7706, 36.4044, 3.1572, 29.6994, 17.4016),
)
"""Squared errors at 4 bits."""
LATENCY_4 = (
    *(0.21094404, 0.21092674, 0.21104113, 0.21086851, 0.13642465, 0.19167506, 0.02532183, 0.19148203, 0.19142914),
    *(0.11395316, 0.20556011, 0.01917474, 0.20566918, 0.20566509, 0.13185102, 0.22287786, 0.01790088, 0.22304611),
    0.22286099,
)
"""Times at 4 bits, measured on a T4."""
LATENCY_8 = (
    *(0.36189111, 0.36211718, 0.31141909, 0.30454471, 0.19184896, 0.38948934, 0.0334169, 0.38904905, 0.3892859),
    *(0.19134735, 0.34307431, 0.02802354, 0.34313329, 0.34310756, 0.21117103, 0.37376585, 0.02896843, 0.37398187),
    0.37405185,
)
"""Times at 8 bits."""


@dataclass(frozen=True)
class WeightSize(Bops):
    """Bytes of the weights of the searched layers."""

    def price(self, network: NetworkShape, policy: Policy) -> float:
        return sum(self.price_layer(policy, layer) for layer in network.middle)

    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        return policy.layers[layer.name].weight_bits / 8 * layer.right_elements(layer.in_channels, layer.out_channels)


@dataclass(frozen=True)
class LatencyTable(WeightSize):
    """The authors' times."""

    names: tuple[str, ...] = ()

    def price_layer(self, policy: Policy, layer: LayerShape) -> float:
        table = {4: LATENCY_4, 8: LATENCY_8}[policy.layers[layer.name].weight_bits]
        return table[self.names.index(layer.name)]


@pytest.fixture(scope="module")
def resnet(small_task: Task) -> Task:
    """ResNet-18 on ImageNet, without its images."""
    shapes = trace(resnet18(3, 1000), (3, 224, 224), name="resnet18", dataset="imagenet")
    return replace(small_task, network=shapes)


SHORTCUTS = ("layer2.0", "layer3.0", "layer4.0")


def published_values(network: NetworkShape) -> dict[tuple[str, ...], list[float]]:
    """Ω at 4 and 8 bits from the authors' figures, with their ties."""
    names = [layer.name for layer in network.middle]
    omega: dict[tuple[str, What], list[float]] = {
        (name, "weight_bits"): [t * four, t * eight]
        for name, t, four, eight in zip(names, TRACES, ERRORS_4, ERRORS_8, strict=True)
    }
    ends = {f"{block}.downsample.0" for block in SHORTCUTS}
    groups = [
        (name, f"{name.removesuffix('.conv1')}.downsample.0") if name.removesuffix(".conv1") in SHORTCUTS else (name,)
        for name in names
        if name not in ends
    ]
    return values(groups, omega)


@pytest.mark.parametrize(
    ("limited", "share", "expected"),
    [
        ("bops", 0.25, "8884848444444444444"),
        ("bops", 0.5, "8884888848884444444"),
        ("bops", 0.75, "8888888848888484884"),
        ("size", 0.25, "8888888888888844444"),
        ("size", 0.5, "8888888888888884844"),
        ("size", 0.75, "8888888888888488884"),
        ("latency", 0.25, "8884848444444444444"),
        ("latency", 0.5, "8888848848884484844"),
        ("latency", 0.75, "8888888848888484884"),
    ],
)
def test_the_authors_configurations_are_found(
    resnet: Task, make_job: MakeJob, limited: str, share: float, expected: str
) -> None:
    """Their limits lie at a share of the way from 4 to 8 bits everywhere."""
    names = tuple(layer.name for layer in resnet.network.middle)
    measure: Measure = {"bops": BOPS, "size": WeightSize(), "latency": LatencyTable(names=names)}[limited]
    four, eight = (measure.price(resnet.network, uniform(resnet.network, bits)) for bits in (4, 8))
    job = make_job(resnet, budget=four + share * (eight - four), measure=measure)
    found = allocate(job, published_values(resnet.network), tied((4, 8)), in_window=False)
    assert "".join(str(found.layers[name].weight_bits) for name in names) == expected
    assert all(found.layers[name].activation_bits == found.layers[name].weight_bits for name in names)


# --- the search -------------------------------------------------------------------------------------------------------


def test_traces_of_weights_are_those_that_hawq_takes(make_job: MakeJob) -> None:
    graph = loss_graph(make_job(), 16)
    found = of_weights(graph)
    assert all(what == "weight_bits" for _, what in found.tensors)
    everything = dict(zip(graph.tensors, graph.gradients, strict=True))
    assert isinstance(found, LossGraph) and len(found.tensors) == len(everything) // 2
    for key, gradient in zip(found.tensors, found.gradients, strict=True):
        assert found.tensors[key] is graph.tensors[key] and gradient is everything[key]


def test_a_search_gives_inputs_the_bits_of_weights_and_ties_readers(network: NetworkShape, make_job: MakeJob) -> None:
    job = make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})
    found = HawqV3(HawqV3Options(draws=3, images=32)).search(job)
    assert (1 - job.tolerance) * job.budget <= job.price(found.policy) <= job.budget
    assert found.decisions == () and found.record["effort"] == "3 Hessian-vector products on 32 images"
    choices = found.policy.layers
    assert all(choices[layer.name].weight_bits == choices[layer.name].activation_bits for layer in network.middle)
    assert len(found.record["same_bits"]) == 2
    for first, shortcut in found.record["same_bits"]:
        assert choices[first] == choices[shortcut]
    assert set(found.record["traces"]) == {layer.name for layer in network.middle}


def test_the_idle_layer_has_the_lowest_bits(known_best: tuple[SearchJob, Policy]) -> None:
    """Of two layers that read one tensor, apart: the ties would give both the same bits."""
    job, best = known_best
    assert [set(group) for group in readers(job)] == [{"idle", "busy"}]
    found = HawqV3(HawqV3Options(bits=(2, 4), draws=5, images=64)).search(job)
    assert found.record["sensitivity"]["idle"] == pytest.approx([0, 0], abs=1e-9)
    assert found.record["sensitivity"]["busy"][0] > 1e-3
    assert found.policy == uniform(job.task.network, 2)  # 4 bits for both cost more than the budget
    values_apart: dict[Group, list[float]] = {(name,): found.record["sensitivity"][name] for name in ("idle", "busy")}
    assert allocate(job, values_apart, tied((2, 4))) == best


def test_too_small_a_budget_is_unreachable(network: NetworkShape, make_job: MakeJob) -> None:
    least = price(network, uniform(network, 2)).bops
    with pytest.raises(UnreachableBudgetError, match="even uniform 2 bit costs") as caught:
        HawqV3(HawqV3Options(draws=2, images=32)).search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
