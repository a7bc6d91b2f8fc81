from collections.abc import Mapping
from decimal import Decimal
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.compression.compress import reduce
from bench.compression.policy import LayerPolicy, LayerSpace, Policy, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import LayerCost, price
from bench.costs.relaxed import RelaxedBops
from bench.errors import BenchError
from bench.models.resnet import resnet8, resnet20, resnet56

MODELS = {"resnet8": resnet8, "resnet20": resnet20, "resnet56": resnet56}

# BOPs in M and memory in KB of 1,000 bytes; uniform k bits, first and last layer at 8 (at 32: at 32).
BOPS = {
    "resnet20": {
        2: "190.201856",
        3: "392.052736",
        4: "674.643968",
        5: "1037.975552",
        6: "1482.047488",
        8: "2612.412416",
        32: "41798.598656",
    },
    "resnet56": {
        2: "529.940480",
        3: "1156.464640",
        4: "2033.598464",
        5: "3161.341952",
        6: "4539.695104",
        8: "8048.230400",
        32: "128771.686400",
    },
}
MEMORY = {
    "resnet20": {2: "129.648", 3: "189.488", 4: "249.328", 6: "369.008", 8: "488.688", 32: "1954.752"},
    "resnet56": {2: "360.816", 3: "536.240", 4: "711.664", 6: "1062.512", 8: "1413.360", 32: "5653.440"},
}


@cache
def shape_of(model: str) -> NetworkShape:
    return trace(MODELS[model](3, 100), (3, 32, 32), name=model, dataset="cifar100")


def cases(table: Mapping[str, Mapping[int, str]]) -> list[tuple[str, int, str]]:
    return [(model, bits, value) for model, row in table.items() for bits, value in row.items()]


@pytest.mark.parametrize(("model", "bits", "millions"), cases(BOPS))
def test_bops_of_uniform_policies_are_exact(model: str, bits: int, millions: str) -> None:
    assert price(shape_of(model), uniform(shape_of(model), bits)).bops == Decimal(millions) * 10**6


@pytest.mark.parametrize(("model", "bits", "kilobytes"), cases(MEMORY))
def test_memory_of_uniform_policies_is_exact(model: str, bits: int, kilobytes: str) -> None:
    cost = price(shape_of(model), uniform(shape_of(model), bits))
    assert cost.memory_bits == Decimal(kilobytes) * 8000
    assert cost.memory_kb == float(kilobytes)


@pytest.mark.parametrize(
    ("model", "macs", "weights", "inputs"),
    [("resnet20", 40_818_944, 276_656, 212_032), ("resnet56", 125_753_600, 857_264, 556_096)],
)
def test_macs_weights_and_input_elements(model: str, macs: int, weights: int, inputs: int) -> None:
    cost = price(shape_of(model), uniform(shape_of(model), 32))
    assert (cost.macs, cost.parameters) == (macs, weights)
    assert cost.memory_bits == 32 * (weights + inputs)


class Tiny(nn.Module):
    """A stem, a prunable convolution with its reader, a grouped convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.narrow = nn.Conv2d(6, 4, 1)
        self.grouped = nn.Conv2d(4, 8, (3, 1), groups=2, padding=(1, 0))
        self.fc = nn.Linear(8, 5)
        self.prunable: tuple[str, ...] = ("wide",)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.norm(self.wide(self.stem(x))).relu())
        return self.fc(self.grouped(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def tiny() -> NetworkShape:
    return trace(Tiny(), (3, 6, 4), name="tiny", dataset="none")


def by_name(network: NetworkShape, policy: Policy) -> dict[str, LayerCost]:
    return {layer.name: layer for layer in price(network, policy).layers}


def test_tiny_network_by_hand(tiny: NetworkShape) -> None:
    cost = by_name(tiny, uniform(tiny, 4))
    assert list(cost) == ["stem", "wide", "narrow", "grouped", "fc"]
    assert [layer.parameters for layer in cost.values()] == [108, 216, 24, 48, 40]
    assert [layer.macs for layer in cost.values()] == [108 * 24, 216 * 6, 24 * 6, 48 * 6, 40]
    assert cost["stem"].bops == 108 * 24 * 64
    assert cost["stem"].memory_bits == 108 * 8 + 3 * 24 * 8
    assert cost["wide"].bops == 216 * 6 * 16
    assert cost["wide"].memory_bits == 216 * 4 + 4 * 24 * 4
    assert cost["grouped"].bops == (4 // 2) * 8 * 3 * 6 * 16
    assert cost["grouped"].memory_bits == 48 * 4 + 4 * 6 * 4
    assert cost["fc"].memory_bits == 40 * 8 + 8 * 8


def test_pruned_tiny_network_by_hand(tiny: NetworkShape) -> None:
    policy = uniform(tiny, 4).with_layer("wide", weight_bits=2, activation_bits=8, kept_filters=(1, 4))
    cost = by_name(tiny, policy)
    assert (cost["wide"].in_channels, cost["wide"].out_channels) == (4, 2)
    assert cost["wide"].macs == 4 * 2 * 9 * 6
    assert cost["wide"].bops == 4 * 2 * 9 * 6 * 2 * 8
    assert cost["wide"].memory_bits == 72 * 2 + 4 * 24 * 8
    assert (cost["narrow"].in_channels, cost["narrow"].out_channels) == (2, 4)
    assert cost["narrow"].macs == 2 * 4 * 6
    assert cost["narrow"].memory_bits == 8 * 4 + 2 * 6 * 4
    assert cost["grouped"] == by_name(tiny, uniform(tiny, 4))["grouped"]


def test_totals_and_document_are_sums_of_layers(tiny: NetworkShape) -> None:
    cost = price(tiny, uniform(tiny, 3))
    document = cost.to_json()
    for total in ("macs", "bops", "memory_bits", "parameters"):
        assert document[total] == sum(layer[total] for layer in document["layers"]) == getattr(cost, total)
    assert document["memory_kb"] == document["memory_bits"] / 8000
    assert (document["model"], document["dataset"]) == ("tiny", "none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remove": "narrow"}, "has no entry for layer 'narrow'"),
        ({"add": "narow"}, "did you mean 'narrow'"),
        ({"layer": "stem", "kept_filters": (0,)}, "cannot be pruned"),
        ({"layer": "wide", "kept_filters": ()}, "one or more of 0 to 5"),
        ({"layer": "wide", "kept_filters": (-1, 2)}, "one or more of 0 to 5"),
        ({"layer": "wide", "kept_filters": (2, 6)}, "one or more of 0 to 5"),
        ({"layer": "wide", "kept_filters": (3, 9, 2)}, "in rising order"),
        ({"layer": "wide", "kept_filters": (3, 3)}, "in rising order"),
    ],
)
def test_policy_that_does_not_fit_is_refused(
    tiny: NetworkShape, changes: dict[str, str | tuple[int, ...]], message: str
) -> None:
    policy = uniform(tiny, 4)
    layers = dict(policy.layers)
    if "remove" in changes:
        del layers[str(changes["remove"])]
    if "add" in changes:
        layers[str(changes["add"])] = LayerPolicy(weight_bits=4, activation_bits=4)
    policy = Policy(model="tiny", dataset="none", layers=layers)
    if "layer" in changes:
        policy = policy.with_layer(str(changes["layer"]), kept_filters=changes["kept_filters"])
    with pytest.raises(BenchError, match=message):
        price(tiny, policy)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("narrow", "'grouped' is a convolution in 2 groups"),
        ("grouped", "'grouped' is a convolution in 2 groups"),
        ("fc", "it is the last layer"),
        ("norm", "it is no layer with filters of its own"),
        ("nowhere", "it is no layer with filters of its own"),
    ],
)
def test_pruning_that_the_counter_cannot_price_is_refused(stated: str, reason: str) -> None:
    model = Tiny()
    model.prunable = ("wide", stated)
    with pytest.raises(BenchError, match=f"'{stated}' in `prunable`, but {reason}"):
        trace(model, (3, 6, 4), name="tiny", dataset="none")


@pytest.mark.parametrize("stated", [("wide",), ()])
def test_what_a_model_states_is_all_that_may_go(stated: tuple[str, ...]) -> None:
    model = Tiny()
    model.prunable = stated
    network = trace(model, (3, 6, 4), name="tiny", dataset="none")
    assert tuple(layer.name for layer in network.layers if layer.prunable) == stated
    assert [layer.producer for layer in network.layers if layer.name == "narrow"] == [*stated, None][:1]
    assert network.norms == (("norm", "wide"),) * len(stated)


def choices(network: NetworkShape, *bits: int) -> dict[str, LayerSpace]:
    return {layer.name: LayerSpace(weight_bits=bits, activation_bits=bits) for layer in network.middle}


def arguments(network: NetworkShape, seed: int) -> dict[str, Tensor]:
    """Random shares of three numbers of bits, and random channel counts."""
    source = torch.Generator().manual_seed(seed)
    count = len(network.middle)
    full = RelaxedBops(network, choices(network, 2, 4, 8))

    def shares() -> Tensor:
        return torch.rand(count, 3, generator=source, dtype=torch.float64).softmax(1)

    def counts(high: Tensor) -> Tensor:
        return 1 + (high - 1) * torch.rand(count, generator=source, dtype=torch.float64)

    return {
        "weight_shares": shares(),
        "activation_shares": shares(),
        "in_channels": counts(full.in_channels),
        "out_channels": counts(full.out_channels),
    }


@pytest.mark.parametrize("model", ["resnet8", "resnet20"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_relaxed_cost_of_full_channels_is_the_uniform_cost(model: str, bits: int) -> None:
    network = shape_of(model)
    shares = torch.tensor([[float(bits == candidate) for candidate in (2, 4, 8)]] * len(network.middle))
    relaxed = RelaxedBops(network, choices(network, 2, 4, 8))
    assert float(relaxed(shares, shares)) == price(network, uniform(network, bits)).bops


def test_relaxed_cost_with_full_precision_edges() -> None:
    network = shape_of("resnet20")
    relaxed = RelaxedBops(network, choices(network, 32), edge_bits=32)
    all_of_it = torch.ones(len(network.middle), 1)
    assert float(relaxed(all_of_it, all_of_it)) == price(network, uniform(network, 32)).bops


def test_relaxed_cost_has_the_gradient_of_finite_differences(tiny: NetworkShape) -> None:
    relaxed = RelaxedBops(tiny, choices(tiny, 2, 4, 8))
    values = {name: value.requires_grad_() for name, value in arguments(tiny, seed=3).items()}
    gradients = torch.autograd.grad(relaxed(**values), list(values.values()))
    for (name, value), gradient in zip(values.items(), gradients, strict=True):
        for index in range(value.numel()):
            step = torch.zeros_like(value)
            step.view(-1)[index] = 1e-3
            with torch.no_grad():
                above = relaxed(**{**values, name: value + step})
                below = relaxed(**{**values, name: value - step})
            assert float((above - below) / 2e-3) == pytest.approx(float(gradient.reshape(-1)[index]), rel=1e-8)


@cache
def float_network() -> tuple[nn.Module, NetworkShape]:
    torch.manual_seed(0)
    model = resnet8(3, 10)
    return model, trace(model, (3, 8, 8), name="resnet8", dataset="none")


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    _, network = float_network()
    policy = uniform(network, 4)
    bits = st.integers(1, 32)
    for layer in network.layers:
        kept = None
        if layer.prunable and draw(st.booleans()):
            filters = st.sets(st.integers(0, layer.out_channels - 1), min_size=1)
            kept = tuple(sorted(draw(filters)))
        policy = policy.with_layer(layer.name, weight_bits=draw(bits), activation_bits=draw(bits), kept_filters=kept)
    return policy


@settings(max_examples=25, deadline=None)
@given(policies())
def test_price_is_the_cost_of_the_physically_reduced_network(policy: Policy) -> None:
    model, network = float_network()
    small = trace(reduce(model, network, policy), (3, 8, 8), name="resnet8", dataset="none")
    unpruned = policy
    for layer in network.layers:
        unpruned = unpruned.with_layer(layer.name, kept_filters=None)
    assert price(network, policy) == price(small, unpruned)
