"""The agent: truncated noise, replay, critic targets, updates, and what it carries over an interruption."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.shared.agent.ddpg import Actor, Agent, Critic, Replay, follow, truncated_normal

Vector = NDArray[np.float64]
STATE = 4


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agent(seed: int = 0, capacity: int = 200) -> Agent:
    """One whose last layers are not near 0, so that values and actions differ from state to state."""
    made = Agent(STATE, capacity, source(seed))
    draws = source(seed + 1)
    with torch.no_grad():
        for network in (made.actor, made.critic, made.slow_actor, made.slow_critic):
            nn.init.normal_(network.last.weight, 0, 0.3, generator=draws)
    return made


def fill(made: Agent, episodes: int = 20, steps: int = 5, seed: int = 9) -> None:
    draws = source(seed)
    for _ in range(episodes):
        states, actions = torch.rand(steps, STATE, generator=draws), torch.rand(steps, generator=draws).tolist()
        made.observe(states, actions, float(torch.randn((), generator=draws)), learn=False)


# --- exploration --------------------------------------------------------------------------------------------------


def moments(mean: float, sigma: float) -> tuple[float, float]:
    """Of the truncated distribution, by adding up its density."""
    x = (np.arange(100_000) + 0.5) / 100_000
    density = np.exp(-(((x - mean) / sigma) ** 2) / 2)
    density /= density.sum()
    centre = float((x * density).sum())
    return centre, float(np.sqrt(((x - centre) ** 2 * density).sum()))


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.2, 0.5])
def test_noise_is_a_normal_distribution_cut_off_at_the_ends(mean: float, sigma: float) -> None:
    draws, count = source(), 3000
    found = np.array([truncated_normal(mean, sigma, draws) for _ in range(count)])
    assert found.min() >= 0
    assert found.max() <= 1
    assert len(np.unique(found)) == count  # a clipped one would pile up at the ends
    centre, spread = moments(mean, sigma)
    assert found.mean() == pytest.approx(centre, abs=4 * spread / np.sqrt(count))
    assert found.std() == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0])
def test_noise_that_has_faded_is_the_actors_answer(mean: float) -> None:
    assert truncated_normal(mean, 1e-9, source()) == pytest.approx(mean, abs=1e-7)


def test_without_a_sigma_actions_are_uniform_and_the_actor_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = agent()
    monkeypatch.setattr(made, "act", lambda state: pytest.fail("asked"))
    found = np.array([made.explore(torch.zeros(STATE), None) for _ in range(2000)])
    assert np.histogram(found, bins=10, range=(0, 1))[0] == pytest.approx(np.full(10, 200), abs=60)


# --- networks -----------------------------------------------------------------------------------------------------


def test_networks_are_initialised_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = Agent(STATE, 8, source(1)), Agent(STATE, 8, source(1)), Agent(STATE, 8, source(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.actor.first.weight, same.actor.first.weight)
    assert not torch.equal(one.actor.first.weight, other.actor.first.weight)


def test_initial_bounds_and_sizes() -> None:
    made = Agent(STATE, 8, source())
    for layer, bound in (
        (made.actor.first, STATE**-0.5),
        (made.critic.of_actions, 1.0),
        (made.critic.second, 300**-0.5),
        (made.actor.last, 0.003),
        (made.critic.last, 0.003),
    ):
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
    assert made.actor.second.weight.shape == made.critic.second.weight.shape == (300, 300)
    assert made.act(torch.rand(STATE, generator=source())) == pytest.approx(0.5, abs=0.02)
    for slow, fast in ((made.slow_actor, made.actor), (made.slow_critic, made.critic)):
        for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
            assert torch.equal(one, other)


def numbers(layer: nn.Linear, x: Vector) -> Vector:
    return np.asarray(x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy())


def actor_by_hand(network: Actor, states: Vector) -> Vector:
    hidden = np.maximum(numbers(network.second, np.maximum(numbers(network.first, states), 0)), 0)
    return np.asarray(1 / (1 + np.exp(-numbers(network.last, hidden))))


def critic_by_hand(network: Critic, states: Vector, actions: Vector) -> Vector:
    first = np.maximum(numbers(network.of_states, states) + numbers(network.of_actions, actions), 0)
    return numbers(network.last, np.maximum(numbers(network.second, first), 0))


def test_the_critic_is_to_say_the_reward_and_what_follows_but_after_the_end() -> None:
    made = agent()
    following, rewards = torch.rand(6, STATE, generator=source(3)), torch.randn(6, 1, generator=source(4))
    last = torch.tensor([0.0, 1, 0, 0, 1, 0]).unsqueeze(1)
    states = following.double().numpy()
    values = critic_by_hand(made.slow_critic, states, actor_by_hand(made.slow_actor, states))
    expected = rewards.numpy() + np.where(last.numpy() == 1, 0, values)  # with a discount of 1
    assert np.abs(values).min() > 1e-3
    assert made.targets(rewards, following, last).numpy() == pytest.approx(expected, abs=1e-5)


def test_targets_follow_slowly() -> None:
    target, fast = Actor(STATE, source(1)), Actor(STATE, source(2))
    before = [parameter.clone() for parameter in target.parameters()]
    follow(target, fast)
    for found, old, new in zip(target.parameters(), before, fast.parameters(), strict=True):
        assert torch.allclose(found, 0.99 * old + 0.01 * new, atol=1e-7)
        assert not torch.equal(found, old)


# --- replay -------------------------------------------------------------------------------------------------------


def numbered(replay: Replay, numbers: range) -> None:
    for number in numbers:
        state = torch.full((STATE,), float(number))
        replay.add(state, number / 100, -float(number), state + 1, last=number % 3 == 2)


def test_replay_keeps_the_latest_and_returns_each_once() -> None:
    replay = Replay(10, STATE)
    numbered(replay, range(4))
    assert len(replay) == 4
    assert sorted(replay.sample(64, source())[0][:, 0].tolist()) == [0, 1, 2, 3]
    numbered(replay, range(4, 27))
    states, actions, rewards, following, last = replay.sample(10, source())
    number = states[:, :1]
    assert sorted(number.flatten().tolist()) == list(range(17, 27))
    assert torch.equal(states, number.expand(10, STATE))
    assert torch.allclose(actions, number / 100)
    assert torch.equal(rewards, -number)
    assert torch.equal(following, states + 1)
    assert torch.equal(last, (number % 3 == 2).float())


def test_what_replay_returns_is_drawn_from_the_generator() -> None:
    replay = Replay(50, STATE)
    numbered(replay, range(50))
    one, same, other = (replay.sample(20, source(seed))[2] for seed in (1, 1, 2))
    assert len(one.unique()) == 20
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_step_of_an_episode_has_the_reward_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made, updates = agent(), []
    monkeypatch.setattr(made, "update", lambda: updates.append(len(made.replay)))
    states = torch.rand(3, STATE, generator=source())
    made.observe(states, [0.1, 0.2, 0.3], 7.0, learn=False)
    assert updates == []
    made.observe(states, [0.4, 0.5, 0.6], 8.0, learn=True)
    assert updates == [4, 5, 6]  # one for every stored step
    found = made.replay.sample(6, source())
    order = found[1].flatten().argsort()
    stored = [part[order] for part in found]
    assert torch.equal(stored[0], torch.cat([states, states]))
    assert stored[2].flatten().tolist() == [7, 7, 7, 8, 8, 8]
    assert torch.equal(stored[3][[0, 1, 3, 4]], states[[1, 2, 1, 2]])
    assert stored[4].flatten().tolist() == [0, 0, 1, 0, 0, 1]


# --- updates ------------------------------------------------------------------------------------------------------


def first_adam_step(network: nn.Module, loss: Callable[[nn.Module], Tensor], rate: float) -> list[Tensor]:
    """By its formula: at the first step both moments are those of the gradient itself."""
    changed = copy.deepcopy(network)
    gradients = torch.autograd.grad(loss(changed), list(changed.parameters()))
    pairs = zip(changed.parameters(), gradients, strict=True)
    return [parameter.detach() - rate * gradient / (gradient.abs() + 1e-8) for parameter, gradient in pairs]


def test_an_update_is_one_step_of_the_critic_then_of_the_actor_then_of_targets() -> None:
    made = agent()
    fill(made)
    old = copy.deepcopy(made)
    made.update()
    states, actions, rewards, following, last = old.replay.sample(64, old._source)
    targets = old.targets(rewards - rewards.mean(), following, last)  # the first baseline is the first mean
    critic = first_adam_step(old.critic, lambda q: F.mse_loss(q(states, actions), targets), rate=1e-3)
    for found, expected in zip(made.critic.parameters(), critic, strict=True):
        assert torch.allclose(found, expected, atol=2e-6)
    actor = first_adam_step(old.actor, lambda mu: -made.critic(states, mu(states)).mean(), rate=1e-4)
    for found, expected in zip(made.actor.parameters(), actor, strict=True):
        assert torch.allclose(found, expected, atol=2e-6)
    for slow, before, now in (
        (made.slow_actor, old.slow_actor, made.actor),
        (made.slow_critic, old.slow_critic, made.critic),
    ):
        for found, one, other in zip(slow.parameters(), before.parameters(), now.parameters(), strict=True):
            assert torch.allclose(found, 0.99 * one + 0.01 * other, atol=1e-7)


def test_the_baseline_moves_half_way_to_the_mean_reward_of_each_batch() -> None:
    made = agent()
    fill(made)
    twin, expected = copy.deepcopy(made), None
    for _ in range(3):
        mean = float(twin.replay.sample(64, twin._source)[2].mean())
        expected = mean if expected is None else 0.5 * expected + 0.5 * mean
        made.update()
        assert made.baseline == pytest.approx(expected, abs=1e-6)


def test_an_agent_goes_on_from_its_state_bit_for_bit() -> None:
    made, other = agent(seed=0), agent(seed=5)
    fill(made)
    made.update()
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    state = torch.rand(STATE, generator=source())
    for one in (made, other):
        one.observe(torch.rand(4, STATE, generator=source(2)), [0.1, 0.5, 0.6, 0.9], 1.5, learn=True)
    assert made.explore(state, 0.3) == other.explore(state, 0.3)
    assert made.baseline == other.baseline
    for left, right in ((made.slow_critic, other.slow_critic), (made.actor, other.actor)):
        for a, b in zip(left.parameters(), right.parameters(), strict=True):
            assert torch.equal(a, b)


def test_the_actor_learns_which_actions_are_rewarded() -> None:
    """Two states in turn, of which one wants a small action and the other a large one."""
    made, wanted = Agent(2, 400, source(3)), (0.15, 0.85)
    states = torch.eye(2)
    for episode in range(100):
        sigma = None if episode < 30 else 0.3
        actions = [made.explore(state, sigma) for state in states]
        reward = -20 * sum((action - best) ** 2 for action, best in zip(actions, wanted, strict=True))
        made.observe(states, actions, reward, learn=episode >= 30)
    assert [made.act(state) for state in states] == pytest.approx(wanted, abs=0.25)
