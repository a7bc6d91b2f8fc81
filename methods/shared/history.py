"""The curves of a search, as a part of its checkpoints."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from bench.api import SearchJob


class Costed(Protocol):
    """A network that knows what it stands for."""

    def actual_cost(self) -> Tensor:
        """The cost of the discrete network that the search would return now, a scalar."""
        ...


class History:
    """What is kept of a search, epoch by epoch."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def end_epoch(self, job: SearchJob, network: Costed, epoch: int, figures: Mapping[str, float]) -> None:
        """Keep and report an epoch's figures, with what the network costs that the search would return now."""
        cost = float(network.actual_cost())
        self.entries.append({"epoch": epoch + 1, **figures, "cost": cost, "budget_share": cost / job.budget})
        job.report({**self.entries[-1], "epochs": job.schedule.epochs})

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"entries": self.entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.entries = list(state["entries"])
