"""Costs as differentiable functions of a search's choices, by the formulas of the counter.

For each searched layer a search passes the share of every candidate of bits, and the number of channels that are left.
Gates make shares 0 or 1, probabilities anything between. For shares of 0 and 1 the result is the counter's exact cost.
Measures that are priced by a table are exact at the channel counts of the table and interpolated between them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from bench.compression.policy import EDGE_BITS, LayerPolicy, LayerSpace, Policy
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.counter import BITS_PER_KB, LayerCost, price_layer, price_unquantized

_CHANNEL_COUNTS = 9
"""Largest number of channel counts of a layer in a table."""


LayerPrice = Callable[[LayerShape, int, int, int, int], float]
"""Function that prices a layer, given weight bits, activation bits, input channels and output channels."""


class RelaxedCost(ABC):
    """Cost of a network as a differentiable function of shares and channels.

    Args:
        network: Shapes of the network.
        spaces: Search space of each searched layer, by name.
        device: Device of the arguments.

    Attributes:
        layers: The L searched layers; row i of every argument belongs to `layers[i]`.
        in_channels, out_channels: Channels of the full network, shape (L,).
    """

    def __init__(self, network: NetworkShape, spaces: Mapping[str, LayerSpace], device: torch.device | str) -> None:
        self.layers: Sequence[LayerShape] = network.middle
        own = [spaces[layer.name] for layer in self.layers]
        self._device = device
        self.in_channels = self._vector([layer.in_channels for layer in self.layers])
        self.out_channels = self._vector([layer.out_channels for layer in self.layers])
        self._weight_bits = self._padded([space.weight_bits for space in own])
        self._activation_bits = self._padded([space.activation_bits for space in own])

    def __call__(
        self,
        weight_shares: Tensor,
        activation_shares: Tensor,
        *,
        in_channels: Tensor | None = None,
        out_channels: Tensor | None = None,
    ) -> Tensor:
        """Compute the cost, a scalar in float64.

        Args:
            weight_shares: Shares of the candidates for weights, shape (L, K); K is the largest number of candidates
                of a layer.
            activation_shares: Shares of the candidates for layer inputs, shape (L, K).
            in_channels: Input channels that are left, shape (L,); all by default.
            out_channels: Filters that are left, shape (L,); all by default.
        """
        return self._price(
            weight_shares,
            activation_shares,
            self.in_channels if in_channels is None else in_channels,
            self.out_channels if out_channels is None else out_channels,
        )

    def channels(self, filters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the channels of all layers: kept filters are inputs of the layers that read them.

        Args:
            filters: Number of kept filters by layer, scalars; other layers keep all.

        Returns:
            `in_channels` and `out_channels` for a call, each of shape (L,).
        """
        inputs, outputs = [], []
        for layer, all_inputs, all_outputs in zip(self.layers, self.in_channels, self.out_channels, strict=True):
            read, made = filters.get(layer.producer or ""), filters.get(layer.leader or layer.name)
            inputs.append(all_inputs if read is None else read * layer.inputs_per_filter)
            outputs.append(all_outputs if made is None else made * layer.outputs_per_filter)
        return {"in_channels": torch.stack(inputs), "out_channels": torch.stack(outputs)}

    @abstractmethod
    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Compute the cost; all arguments are given."""

    def _vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Make a matrix from rows of different lengths, filled up with zeros."""
        longest = max(map(len, rows))
        return self._vector([[*row, *[0] * (longest - len(row))] for row in rows])  # type: ignore[misc]


class _RelaxedFormula(RelaxedCost):
    """A cost with a formula in bits and channels. The counter prices the first and the last layer.

    Args:
        network: Shapes of the network.
        spaces: Search space of each searched layer, by name.
        device: Device of the arguments.
        edge_bits: Bits of the first and the last layer.
    """

    def __init__(
        self,
        network: NetworkShape,
        spaces: Mapping[str, LayerSpace],
        device: torch.device | str = "cpu",
        *,
        edge_bits: int = EDGE_BITS,
    ) -> None:
        super().__init__(network, spaces, device)
        self._weights = _Weights(self)
        self._in_positions = self._vector([layer.in_size[0] * layer.in_size[1] for layer in self.layers])
        self._out_positions = self._vector([layer.out_size[0] * layer.out_size[1] for layer in self.layers])
        edge = LayerPolicy(weight_bits=edge_bits, activation_bits=edge_bits)
        names = [layer.name for layer in network.layers]
        policy = Policy(model=network.model, dataset=network.dataset, layers=dict.fromkeys(names, edge))
        edges = [layer for layer in network.layers if layer.position != "middle"]
        self._edge = sum(self._counted(price_layer(policy, layer)) for layer in edges) + self._constant(network)

    @staticmethod
    def _constant(network: NetworkShape) -> int:
        """Return the figure of what no policy reaches."""
        return 0

    @staticmethod
    @abstractmethod
    def _counted(layer: LayerCost) -> int:
        """Return the figure of a layer that the counter has priced."""

    def _expected_bits(self, weight: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        return (weight * self._weight_bits).sum(1), (activation * self._activation_bits).sum(1)


class RelaxedBops(_RelaxedFormula):
    """BOPs: R = R_edge + Σ_l MACs_l · b_w,l · b_x,l with the MACs of the kept channels, the joint form of Eq. 14.

    What is multiplied outside of the layers is part of R_edge.
    """

    @staticmethod
    def _constant(network: NetworkShape) -> int:
        return sum(operation.bops for operation in price_unquantized(network))

    @staticmethod
    def _counted(layer: LayerCost) -> int:
        return layer.bops

    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        weight_bits, activation_bits = self._expected_bits(weight, activation)
        macs = self._weights(inputs, outputs) * self._out_positions
        return self._edge + (macs * weight_bits * activation_bits).sum()


class RelaxedMemory(_RelaxedFormula):
    """Memory in KB: all weights and all layer inputs, each with its kept channels and expected bits."""

    @staticmethod
    def _counted(layer: LayerCost) -> int:
        return layer.memory_bits

    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        weight_bits, activation_bits = self._expected_bits(weight, activation)
        weights, elements = self._weights(inputs, outputs), inputs * self._in_positions
        return (self._edge + (weights * weight_bits + elements * activation_bits).sum()) / BITS_PER_KB


class _Weights:
    """Number of weights of every searched layer, as a function of its channels."""

    def __init__(self, cost: RelaxedCost) -> None:
        layers, like = cost.layers, cost.in_channels
        self._grouped = torch.tensor([layer.groups > 1 for layer in layers], device=like.device)
        self._all_inputs = like
        self._areas = like.new_tensor([layer.kernel[0] * layer.kernel[1] / layer.groups for layer in layers])

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the numbers of weights, shape (L,); those of a layer of several groups depend on its outputs only."""
        return self._areas * outputs * torch.where(self._grouped, self._all_inputs, inputs)


class RelaxedTable(RelaxedCost):
    """A cost from a table: averaged over the shares of bits, linear between tabulated channel counts.

    Args:
        network: Shapes of the network.
        spaces: Search space of each searched layer, by name.
        price: Function that prices a layer.
        edge: Cost of the first and the last layer together.
        device: Device of the arguments.
    """

    def __init__(
        self,
        network: NetworkShape,
        spaces: Mapping[str, LayerSpace],
        price: LayerPrice,
        edge: float,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(network, spaces, device)
        self._edge = edge
        pruned = {name for name, space in spaces.items() if space.pruned}
        tables = [_LayerTable.priced(layer, spaces[layer.name], pruned, price) for layer in self.layers]
        shape = [max(sizes) for sizes in zip(*(table.prices.shape for table in tables), strict=True)]
        self._prices = torch.zeros(len(tables), *shape, dtype=torch.float64, device=device)
        for row, table in zip(self._prices, tables, strict=True):
            row[tuple(slice(size) for size in table.prices.shape)] = table.prices
        self._inputs = Interpolation([table.inputs for table in tables], shape[2], self.in_channels)
        self._outputs = Interpolation([table.outputs for table in tables], shape[3], self.in_channels)

    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        parts = (weight.double(), activation.double(), self._inputs(inputs), self._outputs(outputs))
        return self._edge + torch.einsum("lwaio,lw,la,li,lo->", self._prices, *parts)


@dataclass(frozen=True)
class _LayerTable:
    """Prices of one layer, shape (K_w, K_a, I, O): bits of weights and of inputs, input and output channels.

    Inputs and outputs of a depthwise layer are the same channels; its table lists them as outputs.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    prices: Tensor

    @classmethod
    def priced(cls, layer: LayerShape, space: LayerSpace, pruned: set[str], price: LayerPrice) -> "_LayerTable":
        """Price a layer at all pairs of bits, and at some channel counts if it can lose channels."""
        free_inputs = layer.producer in pruned and not layer.depthwise
        inputs = channel_counts(layer.in_channels) if free_inputs else [layer.in_channels]
        free_outputs = layer.name in pruned or layer.leader in pruned
        outputs = channel_counts(layer.out_channels) if free_outputs else [layer.out_channels]
        axes = (space.weight_bits, space.activation_bits, inputs, outputs)
        prices = [
            price(layer, weight, activation, count_out if layer.depthwise else count_in, count_out)
            for weight, activation, count_in, count_out in product(*axes)
        ]
        return cls(inputs, outputs, torch.tensor(prices, dtype=torch.float64).reshape([len(axis) for axis in axes]))


def channel_counts(channels: int, most: int = _CHANNEL_COUNTS) -> list[int]:
    """List channel counts at which a layer is priced: at most so many, evenly spread, including 1 and all."""
    steps = most - 1
    return sorted({max(1, round(channels * step / steps)) for step in range(steps + 1)})


class Interpolation:
    """Weights of linear interpolation between tabulated numbers, such as channel counts or bits.

    At a tabulated number, where almost all searches are, the slope is that of the segment below: the saving of the
    next filter that is pruned. At the lowest number the slope is 0, or that of the first segment. Outside it is 0.

    Args:
        rows: Tabulated numbers of each of the L layers, rising.
        columns: Number of columns of the result.
        like: Tensor that gives type and device.
        slope_at_lowest: Whether the slope at the lowest number is that of the first segment.
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], columns: int, like: Tensor, *, slope_at_lowest: bool = False
    ) -> None:
        # Rows are filled up with segments that no count reaches.
        self._low, self._high = (like.new_full((len(rows), columns - 1), torch.inf) for _ in range(2))
        for index, segments in enumerate(list(pairwise(counts)) for counts in rows):
            if segments:
                used = slice(len(segments))
                self._low[index, used], self._high[index, used] = like.new_tensor(segments).T
        self._lengths = torch.where(self._low.isinf(), 1, self._high - self._low)
        self._below = self._low.clone()
        if slope_at_lowest:
            self._below[:, :1] -= 1  # no number is lower, so this includes the lowest only

    def __call__(self, counts: Tensor) -> Tensor:
        """Return the weights, shape (L, columns); those of two neighbours add up to 1, all others are 0."""
        count = counts.double().unsqueeze(1)
        inside = (count > self._below) & (count >= self._low) & (count <= self._high)
        # Selected before the division: the gradient of the other branch would be infinite times zero.
        fraction = torch.where(inside, count - self._low, 0) / self._lengths
        passed = torch.where(inside, fraction, (count > self._high).to(fraction.dtype))
        beyond = torch.cat([passed.new_ones(len(passed), 1), passed], dim=1)
        short = torch.cat([passed, passed.new_zeros(len(passed), 1)], dim=1)
        return beyond - short
