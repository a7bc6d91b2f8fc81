"""Deep deterministic policy gradient for one action in [0, 1] (Lillicrap et al. 2016, arXiv 1509.02971), as in HAQ.

An actor μ(s) chooses an action in a state, and a critic Q(s, a) predicts the reward. From replayed transitions
(s, a, r, s′) the critic learns by its squared distance to

    y = r − B + γ · Q′(s′, μ′(s′))        (without the last term at the end of an episode; HAQ, "Agent")

with B a moving average of rewards. The actor learns by ascending Q(s, μ(s)). Targets Q′ and μ′ follow Q and μ slowly:
θ′ ← τθ + (1 − τ)θ′. Actions are explored by normal noise that is truncated to [0, 1].

The networks are tiny, so everything is computed on the CPU. All random draws come from one generator.
"""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 300
"""Number of units of both hidden layers (HAQ's code; 400 and 300 in Lillicrap et al., Section 7)."""
FINAL_INIT = 3e-3
"""Bound of the last layers' uniform initialisation, so that first outputs are near 0 (Lillicrap et al., Section 7)."""
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
"""Learning rates of Adam (HAQ's code; Lillicrap et al., Section 7)."""
BATCH = 64
"""Number of transitions in an update (HAQ's code; Lillicrap et al., Section 7)."""
TAU = 0.01
"""Rate τ at which targets follow (HAQ's code; 0.001 in Lillicrap et al.)."""
DISCOUNT = 1.0
"""Discount γ: the reward at the end counts in full for every step (HAQ, "Agent")."""
BASELINE_RATE = 0.5
"""Rate of the moving average of mean rewards of batches (HAQ's code)."""

_LEAST_PROBABILITY = 1e-300
_MOST_PROBABILITY = 1 - 2.0**-53


def truncated_normal(mean: float, sigma: float, source: torch.Generator) -> float:
    """Draw from a normal distribution that is truncated to [0, 1], by inversion.

    Args:
        mean: Mean of the normal distribution, in [0, 1].
        sigma: Standard deviation of the normal distribution, positive.
        source: Generator, of which one number is drawn.
    """
    normal = NormalDist(mean, sigma)
    low, high = normal.cdf(0.0), normal.cdf(1.0)
    probability = low + (high - low) * uniform_action(source)
    inside = min(max(probability, _LEAST_PROBABILITY), _MOST_PROBABILITY)
    return min(max(normal.inv_cdf(inside), 0.0), 1.0)


def uniform_action(source: torch.Generator) -> float:
    """Draw uniformly from [0, 1)."""
    return float(torch.rand((), generator=source, dtype=torch.float64))


def linear(inputs: int, outputs: int, source: torch.Generator, bound: float | None = None) -> nn.Linear:
    """Make a linear layer, initialised uniformly in ±bound; ±1/√inputs when absent (Lillicrap et al., Section 7)."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    limit = inputs**-0.5 if bound is None else bound
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -limit, limit, generator=source)
    return layer


class Actor(nn.Module):
    """μ: states (N, S) ↦ actions (N, 1) in (0, 1)."""

    def __init__(self, state_size: int, source: torch.Generator) -> None:
        super().__init__()
        self.first = linear(state_size, HIDDEN, source)
        self.second = linear(HIDDEN, HIDDEN, source)
        self.last = linear(HIDDEN, 1, source, FINAL_INIT)

    def forward(self, states: Tensor) -> Tensor:
        """Compute the actions for states."""
        return torch.sigmoid(self.last(F.relu(self.second(F.relu(self.first(states))))))


class Critic(nn.Module):
    """Q: states (N, S) and actions (N, 1) ↦ values (N, 1)."""

    def __init__(self, state_size: int, source: torch.Generator) -> None:
        super().__init__()
        self.of_states = linear(state_size, HIDDEN, source)
        self.of_actions = linear(1, HIDDEN, source)
        self.second = linear(HIDDEN, HIDDEN, source)
        self.last = linear(HIDDEN, 1, source, FINAL_INIT)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Compute the values of actions in states."""
        hidden = F.relu(self.of_states(states) + self.of_actions(actions))
        values: Tensor = self.last(F.relu(self.second(hidden)))
        return values


class Replay:
    """The latest transitions, in a ring.

    Args:
        capacity: Number of transitions that are kept.
        state_size: Size S of a state.
    """

    def __init__(self, capacity: int, state_size: int) -> None:
        self._rows = torch.zeros(capacity, 2 * state_size + 3)
        self._sizes = [state_size, 1, 1, state_size, 1]
        self._stored = 0

    def __len__(self) -> int:
        return min(self._stored, len(self._rows))

    def add(self, state: Tensor, action: float, reward: float, following: Tensor, *, last: bool) -> None:
        """Store one transition; when the ring is full, it replaces the oldest.

        Args:
            state: State s, shape (S,).
            action: Action a.
            reward: Reward r.
            following: Next state s′, shape (S,); after the last step of an episode it is not used.
            last: Whether the episode ended.
        """
        numbers = torch.tensor([action, reward]), torch.tensor([float(last)])
        self._rows[self._stored % len(self._rows)] = torch.cat([state, numbers[0], following, numbers[1]])
        self._stored += 1

    def sample(self, count: int, source: torch.Generator) -> Sequence[Tensor]:
        """Draw different transitions; all, where there are fewer.

        Returns:
            States s (N, S), actions a (N, 1), rewards r (N, 1), next states s′ (N, S), and (N, 1) with 1 where an
            episode ended.
        """
        chosen = torch.randperm(len(self), generator=source)[:count]
        return torch.split(self._rows[chosen], self._sizes, dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"rows": self._rows[: len(self)].clone(), "stored": self._stored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._stored = int(state["stored"])
        self._rows[: len(self)] = state["rows"]


class Agent:
    """Actor and critic, their slow targets, and the replayed transitions.

    Args:
        state_size: Size S of a state.
        capacity: Number of transitions that are kept for replay.
        source: Generator of all random draws; its state is a part of the agent's state.

    Attributes:
        baseline: Moving average B of rewards; `None` before the first update.
        updates: Number of updates so far.
    """

    def __init__(self, state_size: int, capacity: int, source: torch.Generator) -> None:
        self._source = source
        self.actor, self.critic = Actor(state_size, source), Critic(state_size, source)
        self.slow_actor, self.slow_critic = Actor(state_size, source), Critic(state_size, source)
        self.slow_actor.load_state_dict(self.actor.state_dict())
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self.replay = Replay(capacity, state_size)
        self.baseline: float | None = None
        self.updates = 0
        self._of_actor = torch.optim.Adam(self.actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._of_critic = torch.optim.Adam(self.critic.parameters(), lr=CRITIC_RATE, fused=True)

    @torch.no_grad()
    def act(self, state: Tensor) -> float:
        """Compute μ(s) for a state of shape (S,)."""
        return float(self.actor(state.unsqueeze(0)))

    def explore(self, state: Tensor, sigma: float | None) -> float:
        """Compute μ(s) with truncated normal noise; without a sigma, draw an action uniformly."""
        return uniform_action(self._source) if sigma is None else truncated_normal(self.act(state), sigma, self._source)

    def observe(self, states: Tensor, actions: Sequence[float], reward: float, *, learn: bool) -> None:
        """Store an episode, every step with the reward of its end, and make one update after each step.

        Args:
            states: States of the steps, shape (steps, S).
            actions: Actions of the steps.
            reward: Reward of the episode.
            learn: Whether updates are made.
        """
        for step, action in enumerate(actions):
            last = step == len(actions) - 1
            self.replay.add(states[step], action, reward, states[step if last else step + 1], last=last)
            if learn:
                self.update()

    def update(self) -> None:
        """Make one step of critic and actor on a batch of the replay, then one of their targets."""
        states, actions, rewards, following, last = self.replay.sample(BATCH, self._source)
        targets = self.targets(self._centred(rewards), following, last)
        _descend(self._of_critic, F.mse_loss(self.critic(states, actions), targets))
        _descend(self._of_actor, -self.critic(states, self.actor(states)).mean())
        follow(self.slow_actor, self.actor)
        follow(self.slow_critic, self.critic)
        self.updates += 1

    def _centred(self, rewards: Tensor) -> Tensor:
        """Move B towards the mean of these rewards, then return r − B."""
        mean = float(rewards.mean())
        self.baseline = mean if self.baseline is None else self.baseline + BASELINE_RATE * (mean - self.baseline)
        return rewards - self.baseline

    @torch.no_grad()
    def targets(self, rewards: Tensor, following: Tensor, last: Tensor) -> Tensor:
        """Compute y from r − B and from s′ and the ends of episodes as `Replay.sample` returns them."""
        values: Tensor = self.slow_critic(following, self.slow_actor(following))
        return rewards + DISCOUNT * (1 - last) * values

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "baseline": self.baseline, "updates": self.updates, "source": self._source.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.baseline, self.updates = state["baseline"], state["updates"]
        self._source.set_state(state["source"])

    def _parts(self) -> dict[str, Any]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "slow_actor": self.slow_actor,
            "slow_critic": self.slow_critic,
            "of_actor": self._of_actor,
            "of_critic": self._of_critic,
            "replay": self.replay,
        }


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step on the parameters of an optimizer; others get no gradient."""
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=own)  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module) -> None:
    """Move targets: θ′ ← τθ + (1 − τ)θ′."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, TAU)
