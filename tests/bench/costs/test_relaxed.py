"""Differentiable costs between discrete choices: shares, tabulated channel counts, slopes."""

from itertools import pairwise, product
from random import Random

import pytest
import torch
from torch import Tensor

from bench.compression.policy import LayerSpace
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.relaxed import RelaxedBops, RelaxedMemory, RelaxedTable, channel_counts


def layer(name: str, inputs: int, outputs: int, **others: object) -> LayerShape:
    plain = {"kind": "conv", "position": "middle", "in_size": (4, 4), "out_size": (4, 4)}
    return LayerShape(name=name, in_channels=inputs, out_channels=outputs, **{**plain, **others})  # type: ignore[arg-type]


# A prunable layer of 20 filters, a depthwise one that follows, their reader; two layers that nothing happens to.
NETWORK = NetworkShape(
    model="net",
    dataset="none",
    layers=(
        layer("stem", 3, 6, position="first", kernel=(3, 3)),
        layer("wide", 6, 20, prunable=True),
        layer("depthwise", 20, 20, groups=20, kernel=(5, 5), producer="wide", leader="wide", out_size=(2, 2)),
        layer("narrow", 20, 5, producer="wide", in_size=(2, 2), out_size=(2, 2)),
        layer("grouped", 6, 4, groups=2, kernel=(3, 3)),
        layer("fc", 4, 2, position="last", kind="linear", in_size=(1, 1), out_size=(1, 1)),
    ),
)
CHOICES = {
    "wide": LayerSpace(weight_bits=(2, 4, 8), activation_bits=(2, 8), group_size=1),
    "depthwise": LayerSpace(weight_bits=(4,), activation_bits=(2, 4, 8)),
    "narrow": LayerSpace(weight_bits=(2, 4), activation_bits=(8,)),
    "grouped": LayerSpace(weight_bits=(8,), activation_bits=(3,)),
}
EDGE = 1000.0


def dear(shape: LayerShape, weight: int, activation: int, inputs: int, outputs: int) -> float:
    """A price that is not linear in anything."""
    return float(weight**1.5 * activation**0.5 * (7 + inputs) ** 1.2 * outputs**0.8 + len(shape.name))


@pytest.fixture(scope="module")
def table() -> RelaxedTable:
    return RelaxedTable(NETWORK, CHOICES, dear, EDGE)


def one_hot(chosen: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), 3).double()


def counts(filters: float) -> dict[str, Tensor]:
    """Channels of the four layers when `wide` has so many filters."""
    return {
        "in_channels": torch.tensor([6.0, filters, filters, 6.0], dtype=torch.float64),
        "out_channels": torch.tensor([20.0, filters, 5.0, 4.0], dtype=torch.float64).index_fill(
            0, torch.tensor(0), filters
        ),
    }


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 16, 20, 64, 100, 960, 2048])
def test_channel_counts_are_spread_over_all(channels: int) -> None:
    found = channel_counts(channels)
    assert found[0] == 1 and found[-1] == channels
    assert found == sorted(set(found)) and len(found) <= 9
    if channels > 8:
        assert len(found) >= 8
        assert all(abs(high - low - channels / 8) < 2 for low, high in pairwise(found))
    else:
        assert found == list(range(1, channels + 1))


@pytest.mark.parametrize("filters", channel_counts(20))
def test_a_table_is_exact_at_its_counts(table: RelaxedTable, filters: int) -> None:
    draw = Random(filters)  # noqa: S311
    chosen = [
        [draw.randrange(len(choice.weight_bits)) for choice in CHOICES.values()],
        [draw.randrange(len(choice.activation_bits)) for choice in CHOICES.values()],
    ]
    found = table(one_hot(chosen[0]), one_hot(chosen[1]), **counts(filters))
    channels = {"wide": (6, filters), "depthwise": (filters, filters), "narrow": (filters, 5), "grouped": (6, 4)}
    expected = EDGE + sum(
        dear(NETWORK[name], choice.weight_bits[weight], choice.activation_bits[activation], *channels[name])
        for (name, choice), weight, activation in zip(CHOICES.items(), *chosen, strict=True)
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_without_channels_a_table_takes_all_of_them(table: RelaxedTable) -> None:
    shares = one_hot([0, 0, 0, 0])
    assert torch.equal(table(shares, shares), table(shares, shares, **counts(20)))


def test_a_table_is_the_mean_over_shares(table: RelaxedTable) -> None:
    """Bits of weights and inputs are chosen independently; candidates that a layer lacks have no share."""
    shares = [torch.zeros(4, 3, dtype=torch.float64) for _ in range(2)]
    draws = torch.Generator().manual_seed(0)
    for row, choice in enumerate(CHOICES.values()):
        for table_of, chain in zip(shares, (choice.weight_bits, choice.activation_bits), strict=True):
            drawn = torch.rand(len(chain), generator=draws, dtype=torch.float64)
            table_of[row, : len(chain)] = drawn / drawn.sum()
    expected = EDGE
    for row, (name, choice) in enumerate(CHOICES.items()):
        shape = NETWORK[name]
        for (i, weight), (j, activation) in product(enumerate(choice.weight_bits), enumerate(choice.activation_bits)):
            price = dear(shape, weight, activation, shape.in_channels, shape.out_channels)
            expected += float(shares[0][row, i] * shares[1][row, j]) * price
    assert float(table(*shares)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("low", "high"), list(pairwise(channel_counts(20))))
def test_between_two_counts_a_table_is_linear(table: RelaxedTable, low: int, high: int) -> None:
    """The cost is linear in the filters of one layer and in the inputs of another, whose product does not occur."""
    shares = one_hot([1, 0, 1, 0]), one_hot([1, 2, 0, 0])
    ends = [float(table(*shares, **counts(count))) for count in (low, high)]
    for share in (0.25, 0.5, 0.9):
        count = low + share * (high - low)
        assert float(table(*shares, **counts(count))) == pytest.approx(ends[0] + share * (ends[1] - ends[0]))


@pytest.mark.parametrize("filters", [*channel_counts(20)[1:], 3.3, 11.5, 19.75])
def test_slope_of_a_table_is_what_the_next_filter_saves(table: RelaxedTable, filters: float) -> None:
    """This includes the tabulated counts and all filters, where searches begin."""
    shares = one_hot([2, 0, 0, 0]), one_hot([0, 1, 0, 0])
    arguments = {name: value.requires_grad_() for name, value in counts(filters).items()}
    gradients = torch.autograd.grad(table(*shares, **arguments), list(arguments.values()))
    step = 1e-3
    for (name, value), gradient in zip(arguments.items(), gradients, strict=True):
        for index in range(len(value)):
            less = value.detach().clone()
            less[index] -= step
            with torch.no_grad():
                saved = table(*shares, **arguments) - table(*shares, **{**arguments, name: less})
            assert float(gradient[index]) == pytest.approx(float(saved) / step, rel=1e-6, abs=1e-6)
    # The prices rise with filters: so must the slopes of the prunable layer and of those that go along.
    assert gradients[1][0] > 0 and gradients[1][1] > 0 and gradients[0][2] > 0
    # A depthwise layer has one count, its outputs; what is fixed has no slope.
    assert gradients[0][1] == gradients[0][0] == gradients[1][2] == gradients[0][3] == gradients[1][3] == 0


def test_bops_and_memory_by_hand() -> None:
    weight, activation = one_hot([2, 0, 1, 0]), one_hot([0, 2, 0, 0])  # 8, 4, 4, 8 and 2, 8, 8, 3 bits
    filters = counts(7)
    bops = RelaxedBops(NETWORK, CHOICES)(weight, activation, **filters)
    edges = 64 * (3 * 6 * 9 * 16 + 4 * 2)
    wide, depthwise, narrow, grouped = 6 * 7 * 16 * 8 * 2, 7 * 25 * 4 * 4 * 8, 7 * 5 * 4 * 4 * 8, 3 * 4 * 9 * 16 * 8 * 3
    assert float(bops) == edges + wide + depthwise + narrow + grouped
    memory = RelaxedMemory(NETWORK, CHOICES)(weight, activation, **filters)
    edges = 8 * (3 * 6 * 9 + 3 * 16 + 4 * 2 + 4)
    wide, depthwise = 6 * 7 * 8 + 6 * 16 * 2, 7 * 25 * 4 + 7 * 16 * 8
    narrow, grouped = 7 * 5 * 4 + 7 * 4 * 8, 3 * 4 * 9 * 8 + 6 * 16 * 3
    assert float(memory) == (edges + wide + depthwise + narrow + grouped) / 8000


def test_filters_that_a_layer_keeps_are_channels_of_those_that_read_it() -> None:
    relaxed = RelaxedBops(NETWORK, CHOICES)
    channels = relaxed.channels({"wide": torch.tensor(7.0)})
    names = [layer.name for layer in relaxed.layers]
    assert dict(zip(names, channels["in_channels"].tolist(), strict=True)) == {
        "wide": 6,
        "depthwise": 7,
        "narrow": 7,
        "grouped": 6,
    }
    assert dict(zip(names, channels["out_channels"].tolist(), strict=True)) == {
        "wide": 7,
        "depthwise": 7,
        "narrow": 5,
        "grouped": 4,
    }
