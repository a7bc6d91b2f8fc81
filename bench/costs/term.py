"""The cost term of a search: the harness's part of its loss, which brings the network onto the budget.

It is λ log(R/B), where R is the differentiable cost of the network and B the budget (Eq. 13 of the SBS paper). The
modes differ in λ. In mode "lambda" it is constant, as in the paper. In mode "hinge" it is constant while the network
that the search would return costs more than B, and 0 otherwise. In mode "dual" it moves during the search, like a
Lagrange multiplier: see `Multiplier`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.spec.schema import Match

_PATH = 0.5
"""Share of the updates in which the reference moves from the first cost to the target."""
_BEND = 2
"""Power of the path in the share that is left: above 1 it ends slowly, since λ cannot fall to 0 at once."""
_FIRST = 0.1
"""Share of the updates whose highest cost is the start of the path; some searches start from a tie of all choices."""
_GAIN = 8.0
"""Change of u for an error of 1 in log cost."""
_SETTLING = 0.5
"""Share of the updates in which an error that lasts adds as much again."""
_UNWINDING = 4.0
"""Factor by which the sum falls faster than it grew, once the error has the other sign."""
_LARGEST_PROPORTIONAL = 3.0
"""Largest part of u that follows the present error; larger values of λ need errors that last."""
_LAG = 5
"""Updates over which the trend of the cost is taken."""
_UNIT = 0.1
"""c: λ for small u is c·u."""
_LARGEST = 100.0
"""Largest |λ|."""


class Multiplier:
    """λ of mode "dual": a controller that brings the cost of a search onto a budget in one search.

    The target is the middle of the budget's window, in log cost. The reference moves to it from the first cost over the
    first half of the updates, at first faster than later, and stays there. The error e is the distance of the log cost
    above the reference, and 0 inside the window once the reference has arrived. The trend d is the distance of the log
    cost above its mean over about the last five updates: it shows where momentum carries the search. Then, with T
    updates,

        u = min(max(k (e + d), −3), 3) + s,    s = Σ 2 k e/T,    λ = c sinh(u)

    so λ is linear in u where it is small and exponential where it is large: it finds its size by itself. It is negative
    where the network is too cheap, which brings a search back that momentum has carried too far. Where e and s differ
    in sign, s changes four times as fast. Both s and u are bounded, so that s does not grow while λ is at its bound.

    Since λ has both signs, the constraint is an equality. The law is a controller with a proportional, an integral and
    a derivative part. Platt and Barr 1987 (Constrained Differential Optimization) give the integral part and the
    damping by a proportional one; c sinh(u), the reference and the constants are this project's. The constants were
    chosen on simulated searches and on digits with ResNet-8 (`docs/tuning.md`).

    All is computed on the device of the cost, without waiting for it, in float64.

    Args:
        target: Cost to reach.
        band: Distance from the target, in log cost, that counts as no error.
        updates: Number of updates in which λ acts.
    """

    def __init__(self, target: float, band: float, updates: int) -> None:
        self._target, self._band, self._updates = target, band, max(1, updates)
        self._count = 0
        self._start = self._mean = self._sum = torch.zeros((), dtype=torch.float64)

    def advance(self, actual: Tensor) -> Tensor:
        """Move λ by one update.

        Args:
            actual: Cost of the discrete network that the search would return now, a scalar.

        Returns:
            λ, a scalar in float64 on the device of `actual`.
        """
        position = torch.log(actual.detach().double() / self._target)
        if self._count == 0:
            self._start = self._mean = position
        start, mean, total = (value.to(position.device) for value in (self._start, self._mean, self._sum))
        if self._count < _FIRST * self._updates:
            start = torch.maximum(start, position)
        error = self._error(position, start)
        trend = position - mean
        largest = math.asinh(_LARGEST / _UNIT)
        step = _GAIN / (_SETTLING * self._updates) * error
        step = torch.where(error * total < 0, _UNWINDING * step, step)
        total = (total + step).clamp(-largest, largest)
        proportional = (_GAIN * (error + trend)).clamp(-_LARGEST_PROPORTIONAL, _LARGEST_PROPORTIONAL)
        self._start, self._mean, self._sum = start, mean + trend / _LAG, total
        self._count += 1
        weight: Tensor = _UNIT * torch.sinh((proportional + total).clamp(-largest, largest))
        return weight

    def _error(self, position: Tensor, start: Tensor) -> Tensor:
        """Return the distance above the reference; a position inside the window is none once the path has ended."""
        left = max(0.0, 1 - self._count / (_PATH * self._updates))
        if left > 0:
            return position - left**_BEND * start
        return torch.where(position.abs() <= self._band, torch.zeros_like(position), position)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"count": self._count, "start": self._start, "mean": self._mean, "sum": self._sum}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._count = state_dict["count"]
        self._start, self._mean, self._sum = (state_dict[name] for name in ("start", "mean", "sum"))


@dataclass(slots=True)
class CostTerm:
    """Cost term of the harness, which a search adds to its task loss.

    Attributes:
        mode: Mode.
        strength: Constant λ; `None` in mode "dual".
        budget: B, in the unit of the budget's measure.
        multiplier: Moving λ of mode "dual"; `None` in other modes.
    """

    mode: Match
    strength: float | None
    budget: float
    multiplier: Multiplier | None = field(default=None, compare=False, repr=False)
    _weights: list[Tensor] = field(default_factory=list, init=False, compare=False, repr=False)

    def __call__(self, relaxed: Tensor, actual: Tensor) -> Tensor:
        """Compute the term without waiting for the device. It is called once for each update in which it acts.

        Args:
            relaxed: Differentiable cost, a scalar.
            actual: Cost of the discrete network that the search would return now, a scalar.

        Returns:
            A scalar.
        """
        return self.weight(actual) * self.log_ratio(relaxed)

    def log_ratio(self, relaxed: Tensor) -> Tensor:
        """Compute log(R/B), a scalar."""
        return torch.log(relaxed / self.budget)

    def weight(self, actual: Tensor) -> Tensor:
        """Return λ of this update, for methods that have a penalty of their own; called in place of the term itself.

        Args:
            actual: Cost of the discrete network that the search would return now, a scalar.

        Returns:
            A scalar of the type of `actual`; in mode "dual" it may be negative.
        """
        weight = self._weight(actual).to(actual.dtype)
        self._weights.append(weight)
        return weight

    def _weight(self, actual: Tensor) -> Tensor:
        if self.multiplier is not None:
            return self.multiplier.advance(actual)
        constant = torch.full_like(actual, self.strength or 0.0, requires_grad=False)
        return constant * (actual > self.budget) if self.mode == "hinge" else constant

    def figures(self) -> dict[str, float]:
        """Return the mean λ of the updates since the last call, for the record of an epoch; nothing without updates."""
        weights, self._weights = self._weights, []
        return {"strength": float(torch.stack(weights).mean())} if weights else {}


class CostTerms:
    """The cost terms that a search has made, in order; in mode "dual" a part of its checkpoints."""

    def __init__(self) -> None:
        self._terms: dict[tuple[Any, ...], CostTerm] = {}
        self._restored: list[Mapping[str, Any]] = []

    def make(self, mode: Match, strength: float | None, budget: float, *, tolerance: float, updates: int) -> CostTerm:
        """Make a term; the same one for the same arguments, so that it goes on if a search asks for it repeatedly.

        Args:
            mode: Mode.
            strength: Constant λ; not used in mode "dual".
            budget: B.
            tolerance: Width of the window below the budget, as a share of it.
            updates: Number of updates in which the term acts.
        """
        key = (mode, strength, budget, tolerance, updates)
        if key not in self._terms:
            self._terms[key] = self._made(mode, strength, budget, tolerance, updates)
        return self._terms[key]

    def _made(self, mode: Match, strength: float | None, budget: float, tolerance: float, updates: int) -> CostTerm:
        if mode != "dual":
            return CostTerm(mode, strength, budget)
        multiplier = Multiplier(budget * math.sqrt(1 - tolerance), -math.log(1 - tolerance) / 2, updates)
        if len(self._terms) < len(self._restored):
            multiplier.load_state_dict(self._restored[len(self._terms)])
        return CostTerm(mode, None, budget, multiplier)

    def clear(self) -> None:
        """Forget all terms, so that another search of the same job makes new ones."""
        self._terms, self._restored = {}, []

    def figures(self) -> dict[str, float]:
        """Return the figures of the term that was made last, as `CostTerm.figures`."""
        return list(self._terms.values())[-1].figures() if self._terms else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all multipliers."""
        multipliers = [term.multiplier for term in self._terms.values() if term.multiplier is not None]
        return {"multipliers": [multiplier.state_dict() for multiplier in multipliers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the multipliers, including those of terms that are not made yet."""
        self._restored = state_dict["multipliers"]
        for term, state in zip(self._terms.values(), self._restored, strict=False):
            if term.multiplier is not None:
                term.multiplier.load_state_dict(state)
