"""Costs as differentiable functions of a search's choices, by the formulas of the counter.

A search hands over, for each searched layer, the share of every candidate width (gates make them 0 or 1, probabilities
anything between) and how many channels are left. With whole choices the result is the counter's exact figure; of
measures that are priced by a table, up to interpolation between the channel counts of the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from bench.compression.policy import EDGE_BITS, LayerPolicy, LayerSpace, Policy
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.counter import BITS_PER_KB, LayerCost, price_layer

_CHANNEL_COUNTS = 9
"""How many channel counts of a layer a table holds at most."""


LayerPrice = Callable[[LayerShape, int, int, int, int], float]
"""What a layer costs with so many bits of weights and activations, input and output channels."""


class RelaxedCost(ABC):
    """The cost of a network as a function of shares and channels; see the module.

    Args:
        network: The shapes.
        choices: By searched layer.
        device: Where the arguments will live.

    Attributes:
        layers: The searched layers; row i of every argument belongs to `layers[i]`.
        in_channels, out_channels: Full channel counts, shape (L,).
    """

    def __init__(self, network: NetworkShape, choices: Mapping[str, LayerSpace], device: torch.device | str) -> None:
        self.layers: Sequence[LayerShape] = network.middle
        self._choices = [choices[layer.name] for layer in self.layers]
        self._device = device
        self.in_channels = self._vector([layer.in_channels for layer in self.layers])
        self.out_channels = self._vector([layer.out_channels for layer in self.layers])
        self._weight_bits = self._padded([choice.weight_bits for choice in self._choices])
        self._activation_bits = self._padded([choice.activation_bits for choice in self._choices])

    def __call__(
        self,
        weight_shares: Tensor,
        activation_shares: Tensor,
        *,
        in_channels: Tensor | None = None,
        out_channels: Tensor | None = None,
    ) -> Tensor:
        """The cost, a scalar in float64.

        Args:
            weight_shares: Shape (L, K), K the largest number of candidates of a layer.
            activation_shares: The same of the inputs.
            in_channels: Shape (L,), surviving input channels; all when absent.
            out_channels: Shape (L,), surviving filters; all when absent.
        """
        return self._price(
            weight_shares,
            activation_shares,
            self.in_channels if in_channels is None else in_channels,
            self.out_channels if out_channels is None else out_channels,
        )

    def channels(self, filters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pass the filters that layers keep on to the layers that read them or are tied to them.

        Args:
            filters: Number of surviving filters by layer, scalars; a layer that is not named keeps all.

        Returns:
            `in_channels` and `out_channels` for a call, each of shape (L,).
        """
        rows = list(zip(self.layers, self.in_channels, self.out_channels, strict=True))
        inputs = [filters.get(layer.producer or "", full) for layer, full, _ in rows]
        outputs = [filters.get(layer.leader or layer.name, full) for layer, _, full in rows]
        return {"in_channels": torch.stack(inputs), "out_channels": torch.stack(outputs)}

    @abstractmethod
    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The cost of shares and channels."""

    def _vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    def _padded(self, chains: Sequence[Sequence[int]]) -> Tensor:
        """Rows of different length, filled up with zeros."""
        longest = max(map(len, chains))
        return self._vector([[*chain, *[0] * (longest - len(chain))] for chain in chains])  # type: ignore[misc]


class _RelaxedFormula(RelaxedCost):
    """A cost that has a formula in widths and channels, with first and last layer as the counter prices them.

    Args:
        network: The shapes.
        choices: By searched layer.
        device: Where the arguments will live.
        edge_bits: Bits of the first and the last layer.
    """

    def __init__(
        self,
        network: NetworkShape,
        choices: Mapping[str, LayerSpace],
        device: torch.device | str = "cpu",
        *,
        edge_bits: int = EDGE_BITS,
    ) -> None:
        super().__init__(network, choices, device)
        self._weights = _Weights(self)
        self._in_positions = self._vector([layer.in_size[0] * layer.in_size[1] for layer in self.layers])
        self._out_positions = self._vector([layer.out_size[0] * layer.out_size[1] for layer in self.layers])
        edge = LayerPolicy(weight_bits=edge_bits, activation_bits=edge_bits)
        names = [layer.name for layer in network.layers]
        policy = Policy(model=network.model, dataset=network.dataset, layers=dict.fromkeys(names, edge))
        edges = [layer for layer in network.layers if layer.position != "middle"]
        self._edge = sum(self._counted(price_layer(policy, layer)) for layer in edges)

    @staticmethod
    @abstractmethod
    def _counted(layer: LayerCost) -> int:
        """The figure of a layer that the counter has priced."""

    def _expected_bits(self, weight: Tensor, activation: Tensor) -> tuple[Tensor, Tensor]:
        return (weight * self._weight_bits).sum(1), (activation * self._activation_bits).sum(1)


class RelaxedBops(_RelaxedFormula):
    """R = R_edge + Σ_l MACs_l · b_w,l · b_x,l with the MACs of the surviving channels: the joint form of Eq. 14."""

    @staticmethod
    def _counted(layer: LayerCost) -> int:
        return layer.bops

    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        weight_bits, activation_bits = self._expected_bits(weight, activation)
        macs = self._weights(inputs, outputs) * self._out_positions
        return self._edge + (macs * weight_bits * activation_bits).sum()


class RelaxedMemory(_RelaxedFormula):
    """KB of all weights and of all inputs, each with its surviving channels and expected width."""

    @staticmethod
    def _counted(layer: LayerCost) -> int:
        return layer.memory_bits

    def _price(self, weight: Tensor, activation: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
        weight_bits, activation_bits = self._expected_bits(weight, activation)
        weights, elements = self._weights(inputs, outputs), inputs * self._in_positions
        return (self._edge + (weights * weight_bits + elements * activation_bits).sum()) / BITS_PER_KB


class _Weights:
    """The weights of every searched layer as a function of its channels: of a depthwise one in the outputs alone."""

    def __init__(self, cost: RelaxedCost) -> None:
        layers, like = cost.layers, cost.in_channels
        self._depthwise = torch.tensor([layer.depthwise for layer in layers], device=like.device)
        areas = [layer.kernel[0] * layer.kernel[1] / (1 if layer.depthwise else layer.groups) for layer in layers]
        self._areas = like.new_tensor(areas)

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Shape (L,)."""
        return self._areas * outputs * torch.where(self._depthwise, 1.0, inputs)


class RelaxedTable(RelaxedCost):
    """Costs that only a table knows: the mean over the shares of widths, linear between tabulated channel counts.

    Args:
        network: The shapes.
        choices: By searched layer.
        price: What a layer costs.
        edge: What first and last layer cost.
        device: Where the arguments will live.
    """

    def __init__(
        self,
        network: NetworkShape,
        choices: Mapping[str, LayerSpace],
        price: LayerPrice,
        edge: float,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(network, choices, device)
        self._edge = edge
        pruned = {name for name, choice in choices.items() if choice.pruned}
        tables = [_LayerTable.of(layer, choices[layer.name], pruned, price) for layer in self.layers]
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
    """Prices of one layer, shape (K_w, K_a, I, O), at input counts I and output counts O.

    Inputs and outputs of a depthwise layer are the same channels: they are tabulated as its outputs.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    prices: Tensor

    @classmethod
    def of(cls, layer: LayerShape, choice: LayerSpace, pruned: set[str], price: LayerPrice) -> "_LayerTable":
        """Price a layer at every pair of widths and at some channel counts, where channels may go."""
        free_inputs = layer.producer in pruned and not layer.depthwise
        inputs = channel_counts(layer.in_channels) if free_inputs else [layer.in_channels]
        free_outputs = layer.name in pruned or layer.leader in pruned
        outputs = channel_counts(layer.out_channels) if free_outputs else [layer.out_channels]
        axes = (choice.weight_bits, choice.activation_bits, inputs, outputs)
        prices = [
            price(layer, weight, activation, count_out if layer.depthwise else count_in, count_out)
            for weight, activation, count_in, count_out in product(*axes)
        ]
        return cls(inputs, outputs, torch.tensor(prices, dtype=torch.float64).reshape([len(axis) for axis in axes]))


def channel_counts(channels: int) -> list[int]:
    """The channel counts at which a layer is priced: at most nine, evenly spread, 1 and all among them."""
    steps = _CHANNEL_COUNTS - 1
    return sorted({max(1, round(channels * step / steps)) for step in range(steps + 1)})


class Interpolation:
    """Weights with which tabulated numbers, such as channel counts or widths, stand for a number between them.

    At a tabulated number, where almost all searches are, the slope is that of the segment below: what a filter saves
    that goes next. At the lowest one the slope is 0, or what the first step up costs; outside it is 0.

    Args:
        rows: The numbers of each layer, rising.
        width: Columns of the result.
        like: Gives type and device.
        slope_at_lowest: Whether there is one.
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], width: int, like: Tensor, *, slope_at_lowest: bool = False
    ) -> None:
        segments = [list(pairwise(counts)) for counts in rows]
        longest = width - 1
        # Rows are filled up with segments that no count reaches.
        self._low, self._high = (like.new_full((len(rows), longest), torch.inf) for _ in range(2))
        for index, found in enumerate(segments):
            if found:
                self._low[index, : len(found)], self._high[index, : len(found)] = like.new_tensor(found).T
        self._widths = torch.where(self._low.isinf(), 1, self._high - self._low)
        self._below = self._low.clone()
        if slope_at_lowest:
            self._below[:, :1] -= 1  # no number is lower, so that this lets in the lowest alone

    def __call__(self, counts: Tensor) -> Tensor:
        """Shape (L, width); in each row two neighbours share 1."""
        count = counts.double().unsqueeze(1)
        inside = (count > self._below) & (count >= self._low) & (count <= self._high)
        # Chosen before the division: a gradient of the other branch would be infinite times zero.
        way = torch.where(inside, count - self._low, 0) / self._widths
        passed = torch.where(inside, way, (count > self._high).to(way.dtype))
        beyond = torch.cat([passed.new_ones(len(passed), 1), passed], dim=1)
        short = torch.cat([passed, passed.new_zeros(len(passed), 1)], dim=1)
        return beyond - short
