"""Search spaces: the choices that a search has in every layer, and their cheapest and costliest policies."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from bench.api import EDGE_BITS, FULL_PRECISION_BITS, LayerPolicy, LayerShape, LayerSpace, Method, NetworkShape, Policy

SearchSpace = Mapping[str, LayerSpace]
"""The choices of every searched layer, by name."""

FULL_PRECISION = (FULL_PRECISION_BITS,)
"""The one candidate of a tensor that is not quantized."""


def edge_bits(space: SearchSpace) -> int:
    """Bits of the first and the last layer: full precision in a search that quantizes nothing."""
    full_precision = all(choice.weight_bits == FULL_PRECISION for choice in space.values())
    return FULL_PRECISION_BITS if full_precision else EDGE_BITS


def cheapest_policy(network: NetworkShape, space: SearchSpace) -> Policy:
    """Choose the lowest candidates in every layer, and one group of filters, the smallest."""
    edge = edge_bits(space)
    layers = {shape.name: LayerPolicy(weight_bits=edge, activation_bits=edge) for shape in network.layers}
    for name, choice in space.items():
        kept = _last_group(network[name], choice.group_size) if choice.group_size else choice.kept_filters
        layers[name] = LayerPolicy(
            weight_bits=choice.weight_bits[0], activation_bits=choice.activation_bits[0], kept_filters=kept
        )
    return Policy(model=network.model, dataset=network.dataset, layers=layers)


def _last_group(layer: LayerShape, group_size: int) -> tuple[int, ...]:
    """List the filters of the last group. No group is smaller, since it takes what the others leave."""
    size = layer.group_size(group_size)
    return tuple(range((layer.filters - 1) // size * size, layer.filters))


def costliest_policy(network: NetworkShape, space: SearchSpace) -> Policy:
    """Choose the highest candidates in every layer, and all filters that are not fixed."""
    highest = {
        name: replace(
            choice, weight_bits=choice.weight_bits[-1:], activation_bits=choice.activation_bits[-1:], group_size=0
        )
        for name, choice in space.items()
    }
    return cheapest_policy(network, highest)


def with_fixed_bits(space: SearchSpace, policy: Policy) -> dict[str, LayerSpace]:
    """Narrow a space to the bits of a policy."""
    return {
        name: replace(
            choice,
            weight_bits=(policy.layers[name].weight_bits,),
            activation_bits=(policy.layers[name].activation_bits,),
        )
        for name, choice in space.items()
    }


def with_fixed_filters(space: SearchSpace, policy: Policy) -> dict[str, LayerSpace]:
    """Narrow a space to the filters of a policy."""
    return {
        name: replace(choice, group_size=0, kept_filters=policy.layers[name].kept_filters)
        for name, choice in space.items()
    }


def uniform_space(
    network: NetworkShape, bits: tuple[int, ...], group_sizes: Mapping[str, int]
) -> dict[str, LayerSpace]:
    """Build a space with the same candidates in every layer.

    Args:
        network: Shapes of the model.
        bits: Candidate bits for weights and activations, rising.
        group_sizes: Size of the filter groups of each layer that is pruned, by name.
    """
    return {
        layer.name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=group_sizes.get(layer.name, 0))
        for layer in network.middle
    }


def grouped_space(network: NetworkShape, bits: tuple[int, ...], group_size: int) -> SearchSpace:
    """Build a space with the same bits everywhere, whose prunable layers lose groups of filters.

    Args:
        network: Shapes of the network.
        bits: Candidates for weights and activations.
        group_size: Number of filters of a group.
    """
    return uniform_space(network, bits, {layer.name: group_size for layer in network.middle if layer.prunable})


class ChoosesFromSpace(Method):
    """A method that chooses bits and filters from a search space."""

    @abstractmethod
    def space(self, network: NetworkShape) -> SearchSpace:
        """State the choices of every searched layer."""

    def cheapest(self, network: NetworkShape) -> Policy:
        """Take the lowest candidates in every layer, and one group of filters, the smallest, of each pruned layer."""
        return cheapest_policy(network, self.space(network))

    def costliest(self, network: NetworkShape) -> Policy:
        """Take the highest candidates in every layer, and all filters."""
        return costliest_policy(network, self.space(network))
