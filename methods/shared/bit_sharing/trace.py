"""The record of a bit-sharing search: figures of each epoch, the cost of each update, and the last thresholds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import CostTerm
from methods.shared.bit_sharing.network import SharedNetwork

_DECIDING_SHARE = 0.1
"""Part of the search, at its end, over which the majority of each gate is taken."""


class Trace:
    """Keeps what a search has done; a part of its checkpoints.

    Args:
        network: Network of the search.
        steps: Number of updates of the search.

    Attributes:
        history: Figures of each epoch.
        costs: Cost R before each update.
        bits: Widths of weight and input, and number of filters, of each layer after each epoch.
        step: Number of updates so far.
    """

    def __init__(self, network: SharedNetwork, steps: int) -> None:
        self._network = network
        self._deciding_from = steps - max(1, round(_DECIDING_SHARE * steps))
        self._thresholds: list[list[Tensor]] = []
        self._recent_costs: list[Tensor] = []
        self.history: list[dict[str, float]] = []
        self.costs: list[float] = []
        self.bits: list[dict[str, list[float]]] = []
        self.step = 0

    def add(self, cost: Tensor) -> None:
        """Keep the cost of one update, and in the last part of the search the thresholds after it."""
        self._recent_costs.append(cost.detach())
        if self.step >= self._deciding_from:
            self._thresholds.append([threshold.detach().clone() for threshold in _thresholds(self._network)])
        self.step += 1

    def end_epoch(self, epoch: int, figures: Mapping[str, float], term: CostTerm) -> dict[str, float]:
        """Keep and return the figures of one epoch."""
        self.costs += torch.stack(self._recent_costs).tolist()
        self._recent_costs = []
        cost = self.costs[-1]
        costs = {"cost": cost, "budget_share": cost / term.budget}
        self.history.append({"epoch": epoch + 1, **figures, **term.figures(), **costs})
        self.bits.append({name: layer.choices() for name, layer in self._network.layers.items()})
        return self.history[-1]

    @torch.no_grad()
    def restore_median(self) -> None:
        """Set each threshold to its median over the last part: a gate is then its majority on a fixed metric."""
        for threshold, values in zip(_thresholds(self._network), zip(*self._thresholds, strict=True), strict=True):
            threshold.copy_(torch.stack(values).median(0).values)

    def record(self) -> dict[str, Any]:
        """Return the curves for the record of the search."""
        return {"history": self.history, "cost_per_step": self.costs, "bits_per_epoch": self.bits}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which is written between epochs."""
        return {
            "thresholds": self._thresholds,
            "history": self.history,
            "costs": self.costs,
            "bits": self.bits,
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        device = next(self._network.model.parameters()).device
        self._thresholds = [[threshold.to(device) for threshold in kept] for kept in state["thresholds"]]
        self.history, self.costs, self.bits = state["history"], state["costs"], state["bits"]
        self.step = state["step"]


def _thresholds(network: SharedNetwork) -> list[nn.Parameter]:
    return [*network.weight_thresholds(), *network.activation_thresholds()]
