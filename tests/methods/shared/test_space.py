"""Search spaces, and their cheapest and costliest policies."""

from bench.compression.policy import LayerSpace, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from methods.shared.space import (
    FULL_PRECISION,
    cheapest_policy,
    costliest_policy,
    edge_bits,
    with_fixed_bits,
    with_fixed_filters,
)

BITS = (2, 4, 8)


def space_of(network: NetworkShape, bits: tuple[int, ...] = BITS) -> dict[str, LayerSpace]:
    """The same candidates everywhere, and groups of four filters."""
    return {
        layer.name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=4 if layer.prunable else 0)
        for layer in network.middle
    }


def test_the_ends_of_a_space(network: NetworkShape) -> None:
    space = space_of(network)
    cheapest, costliest = cheapest_policy(network, space), costliest_policy(network, space)
    assert costliest == uniform(network, 8)
    for layer in network.middle:
        choice = cheapest.layers[layer.name]
        assert (choice.weight_bits, choice.activation_bits) == (2, 2)
        assert (choice.kept_filters is not None and len(choice.kept_filters) == 4) == layer.prunable
    assert price(network, cheapest).bops < price(network, uniform(network, 2)).bops


def test_edges_have_full_precision_only_where_nothing_is_quantized(network: NetworkShape) -> None:
    assert edge_bits(space_of(network)) == 8
    assert edge_bits(space_of(network, FULL_PRECISION)) == 32
    cheapest = cheapest_policy(network, space_of(network, FULL_PRECISION))
    assert {choice.weight_bits for choice in cheapest.layers.values()} == {32}


def test_a_space_is_narrowed_to_a_policy(network: NetworkShape) -> None:
    space, policy = space_of(network), cheapest_policy(network, space_of(network))
    for name, choice in with_fixed_bits(space, policy).items():
        assert choice.weight_bits == choice.activation_bits == (2,)
        assert choice.group_size == space[name].group_size
    for name, choice in with_fixed_filters(space, policy).items():
        assert choice.weight_bits == BITS
        assert (choice.group_size, choice.kept_filters) == (0, policy.layers[name].kept_filters)
        assert choice.pruned == (policy.layers[name].kept_filters is not None)
