"""The way of HAQ's agent through a network: what it sees of a layer, what its answers mean, and the action wall.

The agent goes from layer to layer and chooses the bits of the weight, then those of the input. It sees ten numbers of
the layer and answers with an action in [0, 1] (Wang et al. 2019, arXiv 1811.08886, "Observation (State Space)" and
"Action Space"). "The code" is that of the authors, github.com/mit-han-lab/haq.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.api import EDGE_BITS, Decision, LayerShape, Policy, SearchJob, uniform
from methods.shared.budget import unreachable
from methods.shared.decisions import What

WHAT: tuple[What, What] = ("weight_bits", "activation_bits")
"""Order in which the bits of a layer are chosen."""
STATE_SIZE = 10
"""Numbers that the agent sees before a step."""

Choices = tuple[int, ...]
"""Indices of the chosen candidates: weight and input of the first searched layer, then of the next, …"""


def index_of(action: float, bits: Sequence[int]) -> int:
    """Compute the index of the candidate that an action means ("Action Space").

    For candidates without gaps this is the published number of bits, b = round(b_min − 0.5 + a · (b_max − b_min + 1)),
    less b_min. An action of exactly 0 or 1 never leaves the candidates. Halves are rounded to even bits (the code).

    Args:
        action: Action a in [0, 1].
        bits: Candidate bits, rising.
    """
    published = round(bits[0] - 0.5 + action * len(bits))
    return min(max(published - bits[0], 0), len(bits) - 1)


def layer_states(layers: Sequence[LayerShape]) -> Tensor:
    """Compute what the agent sees of layers apart from its own actions.

    Returns:
        Shape (layers, 8), each column between 0 and 1: depthwise or not, channels in and out, stride, kernel, weights,
        pixels of the input, number. A column in which all layers are equal is 0.
    """
    rows = torch.tensor([_row(layer, number) for number, layer in enumerate(layers)], dtype=torch.float64)
    low, high = rows.amin(0), rows.amax(0)
    return ((rows - low) / (high - low).clamp_min(1)).float()


def _row(layer: LayerShape, number: int) -> list[float]:
    """List the numbers of a layer; stride 0 marks a linear layer (the code)."""
    kernel = layer.kernel[0] * layer.kernel[1]
    return [
        float(layer.depthwise),
        layer.in_channels,
        layer.out_channels,
        layer.stride[0] if layer.kind == "conv" else 0,
        layer.kernel[0],
        layer.out_channels * layer.in_channels // layer.groups * kernel,
        layer.in_size[0] * layer.in_size[1],
        number,
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """One way of the agent through the network.

    Attributes:
        states: States before each step, shape (2 · layers, 10).
        actions: Actions of the agent.
        choices: Candidates that the actions mean.
    """

    states: Tensor
    actions: Sequence[float]
    choices: Choices


class ActionSpace:
    """All policies that the agent can choose.

    Args:
        job: Task and budget.
        bits: Candidate bits, rising.
    """

    def __init__(self, job: SearchJob, bits: tuple[int, ...]) -> None:
        self._job, self._bits = job, bits
        self._layers = job.task.network.middle
        self._layer_states = layer_states(self._layers)
        self._base = uniform(job.task.network, EDGE_BITS)

    def check(self) -> None:
        """Refuse a budget below the cost of the lowest candidates.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        least = self._cost((0,) * self._steps)
        if least > self._job.budget:
            raise unreachable(self._job, f"uniform {self._bits[0]} bit", least)

    @property
    def _steps(self) -> int:
        return 2 * len(self._layers)

    def _cost(self, choices: Choices) -> float:
        return self._job.price(self.policy(choices))

    def policy(self, choices: Choices) -> Policy:
        """Build the policy of these choices; the first and the last layer have 8 bits."""
        changed = {
            layer.name: replace(
                self._base.layers[layer.name],
                weight_bits=self._bits[choices[2 * number]],
                activation_bits=self._bits[choices[2 * number + 1]],
            )
            for number, layer in enumerate(self._layers)
        }
        return replace(self._base, layers={**self._base.layers, **changed})

    def state(self, step: int, before: int | None) -> Tensor:
        """Compute what the agent sees before a step, shape (10,): the layer, its last choice, and weight or input.

        Args:
            step: Number of the step, even for weights and odd for inputs.
            before: Index chosen in the step before; `None` at the start, which counts as the highest candidate.
        """
        last = 1.0 if before is None else self._bits[before] / self._bits[-1]
        return torch.cat([self._layer_states[step // 2], torch.tensor([last, float(step % 2 == 0)])])

    def walk(self, act: Callable[[Tensor], float]) -> Walk:
        """Let the agent choose the bits of every layer.

        Args:
            act: Policy of the agent: returns an action for a state.
        """
        states: list[Tensor] = []
        actions: list[float] = []
        choices: list[int] = []
        for step in range(self._steps):
            states.append(self.state(step, choices[-1] if choices else None))
            actions.append(act(states[-1]))
            choices.append(index_of(actions[-1], self._bits))
        return Walk(states=torch.stack(states), actions=actions, choices=tuple(choices))

    def within_budget(self, choices: Choices) -> Choices:
        """Apply the action wall: lower choices one by one, by one candidate each, until the budget is met.

        It goes from the last layer backwards, first the input and then the weight, and starts again at the last layer.
        """
        lowered = list(choices)
        steps = self._lowerable(lowered)
        while self._cost(tuple(lowered)) > self._job.budget:
            lowered[next(steps)] -= 1
        return tuple(lowered)

    def _lowerable(self, choices: Sequence[int]) -> Iterator[int]:
        """Yield the steps whose choice is lowered next, as long as one is above the lowest candidate."""
        while any(choices):
            for step in reversed(range(len(choices))):
                if choices[step]:
                    yield step

    def decisions(self, choices: Choices, act: Callable[[Tensor], float]) -> list[Decision]:
        """List every choice; margins are distances of the actor's action from the borders between candidates.

        The actor may prefer another side of a border than the choice, which the action wall or noise has changed. The
        sign of the margin says so, and repair moves this choice first.

        Args:
            choices: Choices of the returned policy.
            act: Actor, without noise; it is asked along these choices.
        """
        decisions = []
        for step, chosen in enumerate(choices):
            action = act(self.state(step, choices[step - 1] if step else None))
            margins = [action - border / len(self._bits) for border in range(1, len(self._bits))]
            decisions.append(
                Decision(
                    layer=self._layers[step // 2].name,
                    what=WHAT[step % 2],
                    options=self._bits,
                    chosen=chosen,
                    margins=tuple(margins),
                )
            )
        return decisions
