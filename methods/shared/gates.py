"""Binary gates: the step function with its surrogate gradient, and the gates of filter groups (Eqs. 10–12)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.api import LayerShape


def surrogate_slope(excess: Tensor) -> Tensor:
    """Compute S(1 − S) at Â − α, the slope that replaces the step function's (Eq. 12); any shape."""
    share = torch.sigmoid(excess)
    return share * (1 - share)


class _Gate(torch.autograd.Function):
    """g = H(Â − α), H(0) = 1; dg/dα = −S(1 − S), and no gradient through the metric."""

    @staticmethod
    def forward(ctx: Any, metric: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(metric - threshold)
        ctx.threshold_shape = threshold.shape
        return (metric >= threshold).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor]:
        (excess,) = ctx.saved_tensors
        return None, (-grads[0] * surrogate_slope(excess)).sum_to_size(ctx.threshold_shape)


def gate(metric: Tensor, threshold: Tensor) -> Tensor:
    """Open a gate (1) where the metric reaches its threshold, and shut it (0) elsewhere (Eqs. 10 to 12).

    Args:
        metric: Â, any shape; without gradient.
        threshold: α, broadcastable to `metric`. The gradient of a shared threshold is the sum over its gates.
    """
    result: Tensor = _Gate.apply(metric, threshold)
    return result


def opened(values: Sequence[int] | Tensor, gates: Tensor) -> Tensor:
    """Compute a_1 + g_2(a_2 − a_1 + g_3(a_3 − a_2 + …)), the value that nested gates choose (Eqs. 10 and 14).

    With the bits of the candidates these are the bits as a function of the gates.

    Args:
        values: Values of the candidates, K of them.
        gates: Shape (K − 1,).

    Returns:
        A scalar, differentiable.
    """
    rest = gates.new_zeros(())
    for index in reversed(range(1, len(values))):
        rest = gates[index - 1] * (values[index] - values[index - 1] + rest)
    return values[0] + rest


def shares(gates: Sequence[Tensor]) -> Tensor:
    """Compute the share of every candidate: 1 for the one that the nested gates of a layer choose, 0 for the others.

    Σ share · bits are the bits as a function of the gates (Eq. 14).

    Args:
        gates: Gates of each layer, shape (K_l − 1,).

    Returns:
        Shape (L, K), differentiable; K is the largest K_l.
    """
    longest = max(map(len, gates))
    table = torch.stack([F.pad(row, (0, longest - len(row))) for row in gates])
    reached = [table.new_ones(len(gates))]
    for column in table.unbind(1):
        reached.append(reached[-1] * column)
    left = torch.stack([*reached[1:], torch.zeros_like(reached[0])], dim=1)
    return torch.stack(reached, dim=1) - left


class FilterGroups:
    """The division of a layer's filters into consecutive groups (Section 3.2.2).

    Args:
        filters: Number of filters, or of heads.
        group_size: Number of filters of a group.
        device: Device of the gates.
        parts: Number of equal parts in which the rows of a head lie; see `LayerShape`.

    Attributes:
        members: Filters of each group, G of them.
        sizes: Number of filters of each group, shape (G,).
        owner: Group of each filter, shape (filters,).
    """

    def __init__(self, filters: int, group_size: int, device: torch.device, *, parts: int = 1) -> None:
        starts = range(0, filters, group_size)
        self.members = [tuple(range(start, min(start + group_size, filters))) for start in starts]
        self.sizes = torch.tensor([float(len(group)) for group in self.members], device=device)
        self.owner = torch.arange(filters, device=device) // group_size
        self.rows = (parts, filters, -1)

    def metric(self, weight: Tensor) -> Tensor:
        """Average the absolute weights of each group, shape (G,), without gradient (Eq. 11, Section 3.2.3)."""
        per_filter = weight.detach().abs().flatten(1).mean(1).view(self.rows).mean((0, 2))
        sums = torch.zeros_like(self.sizes).to(per_filter.dtype).index_add(0, self.owner, per_filter)
        return sums / self.sizes

    def gates(self, metric: Tensor, threshold: Tensor) -> Tensor:
        """Compute one gate a group, shape (G,); the strongest never closes, since a layer needs filters (Eq. 11)."""
        strongest = F.one_hot(metric.argmax(), len(metric)).to(metric.dtype)
        opened = gate(metric, threshold)
        return opened + strongest * (1 - opened.detach())

    def spread(self, gates: Tensor) -> Tensor:
        """Repeat the gate of each group for its filters, shape (filters,)."""
        return gates[self.owner]


def filter_groups(shape: LayerShape, group_size: int, device: torch.device) -> FilterGroups:
    """Divide the filters of a layer; a head is a group of its own, whatever the size of other groups."""
    return FilterGroups(shape.filters, shape.group_size(group_size), device, parts=shape.parts)


def of_outputs(filters: Tensor, shape: LayerShape) -> Tensor:
    """Repeat the gate of each filter of a layer for all outputs that the filter makes, shape (out_channels,)."""
    own = shape.outputs_per_filter // shape.parts
    return filters if shape.outputs_per_filter == 1 else filters.repeat_interleave(own).repeat(shape.parts)


def of_inputs(filters: Tensor, shape: LayerShape) -> Tensor:
    """Repeat the gate of each filter of a layer's producer for all inputs that it makes, shape (in_channels,)."""
    return filters if shape.inputs_per_filter == 1 else filters.repeat_interleave(shape.inputs_per_filter)


class FilterGates(nn.Module):
    """The pruning gates of one layer (Eq. 11).

    Args:
        weight: Weight of the layer.
        shape: Shape of the layer.
        group_size: B, number of filters of a group.

    Attributes:
        groups: Groups of filters, G of them.
        threshold: α_b1, a scalar for the layer; 0 at the start.
        gates: g_{c,b1} of the latest forward pass, shape (G,), differentiable.
        metric: Â of these gates, shape (G,), without gradient.
    """

    def __init__(self, weight: Tensor, shape: LayerShape, group_size: int) -> None:
        super().__init__()
        self.groups = filter_groups(shape, group_size, weight.device)
        self.threshold = nn.Parameter(weight.new_zeros(()))
        self.gates = self.metric = weight.new_zeros(0)

    def forward(self, weight: Tensor) -> Tensor:
        """Compute the gate of each filter, shape (filters,)."""
        self.metric = self.groups.metric(weight)
        self.gates = self.groups.gates(self.metric, self.threshold)
        return self.groups.spread(self.gates)

    def count(self) -> Tensor:
        """Count the filters that survive, a scalar, differentiable."""
        return (self.gates * self.groups.sizes).sum()
