"""The curves of a search, which are a part of its checkpoints."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from bench.api import SearchJob


class Costed(Protocol):
    """A network that knows the cost of its present policy."""

    def actual_cost(self) -> Tensor:
        """Compute the cost of the discrete network that the search would return now, a scalar."""
        ...


class History:
    """Figures of each epoch of a search.

    Attributes:
        entries: One dictionary for each epoch; JSON-serialisable.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def end_epoch(self, job: SearchJob, network: Costed, epoch: int, figures: Mapping[str, float]) -> None:
        """Keep and report the figures of an epoch, its λ, and the cost of the network that the search would return."""
        cost = float(network.actual_cost())
        costs = {"cost": cost, "budget_share": cost / job.budget}
        self.entries.append({"epoch": epoch + 1, **figures, **job.terms.figures(), **costs})
        job.report({**self.entries[-1], "epochs": job.schedule.epochs})

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"entries": self.entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.entries = list(state["entries"])
