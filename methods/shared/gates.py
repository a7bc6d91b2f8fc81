"""Binary gates: the step function with its surrogate, and the gates of filter groups (Eqs. 10–12)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def surrogate_slope(excess: Tensor) -> Tensor:
    """S(1 − S) at Â − α: the slope that stands in for the step function's (Eq. 12)."""
    share = torch.sigmoid(excess)
    return share * (1 - share)


class _Gate(torch.autograd.Function):
    """g = H(Â − α), H(0) = 1; dg/dα = −S(1 − S), and no gradient through the metric."""

    @staticmethod
    def forward(ctx: Any, metric: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(metric - threshold)
        ctx.threshold_shape = threshold.shape
        return (metric >= threshold).to(metric.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, Tensor]:
        (excess,) = ctx.saved_tensors
        return None, (-grads[0] * surrogate_slope(excess)).sum_to_size(ctx.threshold_shape)


def gate(metric: Tensor, threshold: Tensor) -> Tensor:
    """Open (1) where the metric reaches its threshold, shut (0) elsewhere.

    Args:
        metric: Any shape; without gradient.
        threshold: Broadcastable to `metric`; its gradient is summed over what it is shared by.
    """
    result: Tensor = _Gate.apply(metric, threshold)  # type: ignore[no-untyped-call]
    return result


def opened(values: Sequence[int] | Tensor, gates: Tensor) -> Tensor:
    """What the gates choose from a chain: a_1 + g_2(a_2 − a_1 + g_3(a_3 − a_2 + …)), a scalar (Eqs. 10 and 14).

    With the widths of the candidates it is the width as a function of the gates.

    Args:
        values: One for each candidate, K of them.
        gates: Shape (K − 1,).
    """
    rest = gates.new_zeros(())
    for index in reversed(range(1, len(values))):
        rest = gates[index - 1] * (values[index] - values[index - 1] + rest)
    return values[0] + rest


def shares(gates: Sequence[Tensor]) -> Tensor:
    """The share of every candidate of each layer, shape (L, K): 1 for the one that the nested gates choose.

    Differentiable: Σ share · width is the width as a function of the gates (Eq. 14).

    Args:
        gates: Of each layer, shape (K_l − 1,); K is the largest K_l.
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

    Attributes:
        members: The filters of each group.
        sizes: Filters a group, shape (G,).
        owner: The group of each filter, shape (filters,).
    """

    def __init__(self, filters: int, group_size: int, device: torch.device) -> None:
        starts = range(0, filters, group_size)
        self.members = [tuple(range(start, min(start + group_size, filters))) for start in starts]
        self.sizes = torch.tensor([float(len(group)) for group in self.members], device=device)
        self.owner = torch.arange(filters, device=device) // group_size

    def metric(self, weight: Tensor) -> Tensor:
        """Mean absolute weight of each group, shape (G,), without gradient (Eq. 11, Section 3.2.3)."""
        per_filter = weight.detach().abs().flatten(1).mean(1)
        sums = torch.zeros_like(self.sizes).to(per_filter.dtype).index_add(0, self.owner, per_filter)
        return sums / self.sizes

    def gates(self, metric: Tensor, threshold: Tensor) -> Tensor:
        """One gate a group; the strongest group never closes, since a layer without filters is no layer."""
        strongest = F.one_hot(metric.argmax(), len(metric)).to(metric.dtype)
        opened = gate(metric, threshold)
        return opened + strongest * (1 - opened.detach())

    def spread(self, gates: Tensor) -> Tensor:
        """The gate of each filter, shape (filters,)."""
        return gates[self.owner]
