"""HAQ: hardware-aware automated quantization (Wang et al. 2019, arXiv 1811.08886).

An agent goes through the network and chooses for every layer the bits of the weight, then those of the input. It sees
ten numbers of the layer and answers with an action a in [0, 1], which is rounded to bits ("Action Space";
`methods.shared.agent.walk`):

    b = round(b_min − 0.5 + a · (b_max − b_min + 1))

A policy that costs too much is lowered step by step until it fits the budget (the action wall). Costs are those of the
run's measure, which replaces the paper's lookup table. The network of this policy is calibrated and trained a little.
Its accuracy on validation images gives the reward of all steps ("Reward Function"):

    R = λ · (accuracy − accuracy of the float network),  λ = 0.1

The agent is a DDPG ("Agent"; `methods.shared.agent.ddpg`). In the first episodes, its actions are uniform. Then it
follows its actor, with noise that becomes weaker.

The search quantizes linearly, as in the paper (`methods.shared.quantizers.linear`), with every recipe. With
`recipe = "common"` the found policy is fine-tuned with the common quantizer, as for all methods; with `recipe = "own"`,
with the linear one.

Measured here: on small problems with known accuracies, agents of 100 episodes often end at a corner of the space and do
not find the best policy. The search then returns the best of its random episodes (`tests/methods/test_haq.py`).

"The code" is that of the authors, github.com/mit-han-lab/haq. Where it differs from the paper, it is followed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    BatchStream,
    Capabilities,
    Evaluation,
    LayerShape,
    Options,
    Policy,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    Stateful,
    compress,
    evaluate,
    quantized_layer,
    reestimate_norms,
    weight_groups,
)
from methods.shared.agent.ddpg import Agent
from methods.shared.agent.walk import STATE_SIZE, WHAT, ActionSpace, Choices
from methods.shared.decisions import What
from methods.shared.options import RISING, ChoosesBits
from methods.shared.quantizers.linear import linear_quantizer

REWARD_SCALE = 0.1
"""λ of the reward, for accuracies in percent (the code)."""
REPLAY_PER_LAYER = 128
"""Transitions that are kept for each layer (the code)."""
FIRST_SIGMA, NOISE_DECAY, LEARNING_EPISODES = 0.5, 0.99, 580
"""First width of the noise, its factor in each episode after the warm-up, and the number of these (the code)."""
MOMENTUM, WEIGHT_DECAY = 0.9, 4e-5
"""Momentum and weight decay of the training in each episode (the code)."""


class HaqOptions(Options):
    """Options of HAQ.

    Attributes:
        bits: Candidate bits for weights and activations, rising.
        episodes: Number of networks that are tried (600 in the code).
        warmup_episodes: Number of first episodes with uniform actions, in which the agent only collects (20 in the
            code).
        noise_decay: Factor of the noise from episode to episode. With "scheduled", the noise becomes weaker over the
            episodes after the warm-up as it does with 0.99 over the 580 of the code.
        finetune_updates: Number of updates in each episode. With "scheduled", the updates of the search's schedule are
            spread over all episodes.
        finetune_lr: Learning rate of these updates (0.001 in the code).
        reward_images: Number of validation images on which accuracies are measured, drawn once; all, where there are
            fewer.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), RISING] = (2, 4, 8)
    episodes: Annotated[int, Field(ge=1)] = 100
    warmup_episodes: Annotated[int, Field(ge=0)] = 20
    noise_decay: Literal["scheduled"] | Annotated[float, Field(gt=0, le=1)] = "scheduled"
    finetune_updates: Literal["scheduled"] | Annotated[int, Field(ge=0)] = "scheduled"
    finetune_lr: Annotated[float, Field(gt=0)] = 1e-3
    reward_images: Annotated[int, Field(ge=1)] = 5000

    @model_validator(mode="after")
    def _some_episodes_learn(self) -> Self:
        if self.warmup_episodes >= self.episodes:
            raise ValueError(
                f"warmup_episodes is {self.warmup_episodes}, which leaves none of the {self.episodes} episodes to the "
                f"agent; give at most {self.episodes - 1}, or more episodes"
            )
        return self


class Haq(ChoosesBits):
    """A DDPG agent that chooses bits layer by layer."""

    summary = "HAQ: an agent learns to choose bits layer by layer, rewarded by the accuracy within the budget (DDPG)"
    family = "reinforcement learning"
    source = (
        "Wang, Liu, Lin, Lin, Han 2019: HAQ: Hardware-Aware Automated Quantization with Mixed Precision, "
        "arXiv 1811.08886; github.com/mit-han-lab/haq"
    )
    deviations = (
        "Budgets are in the run's measure, such as bit operations; the code has a table of measured latencies.",
        "Rewards are accuracies on validation images that no update sees; the code fine-tunes and measures on one and "
        "the same subset of the training images.",
        "By default there are 100 episodes and not 600, so the agent has a seventh of its updates; the noise decays "
        "over them as it does over 600. The record states the effort.",
        "All networks together have as many updates as the search's schedule; the code trains each for an epoch of "
        "20,000 images. Rewards are read on 5,000 images, and on these 20,000 in the code.",
        "Candidates are by default 2, 4 and 8 bits, as for most methods here, and the paper's rounding chooses "
        "among their indices; with bits = [2,3,4,5,6,7,8] it is the published one.",
        "The agent skips the first and the last layer, which have 8 bits; the code asks it about them and ignores the "
        "answer.",
        "Normalisations are re-estimated before an accuracy is measured, since an episode has few updates or none.",
        "Clipping ranges learn without weight decay, as in all methods here.",
        "The last layers of the agent start within 0.003, which the code states and does not apply.",
        "The warm-up has exactly warmup_episodes episodes, one less than in the code.",
        "Histograms for thresholds are of at most 65,536 elements, drawn once.",
        "Inputs that can be negative are shifted by an offset, as in all methods here; the code spends a bit on the "
        "sign.",
        "The search returns the policy of the highest reward, which is repaired onto the budget's window; margins are "
        "those of the last actor.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True, own_quantizer=True)
    Options = HaqOptions
    options: HaqOptions

    @property
    def quantizer(self) -> QuantizerFactory:
        """The linear quantizer, with thresholds of least divergence."""
        return linear_quantizer

    def search(self, job: SearchJob) -> SearchResult:
        """Let the agent try policies, and return the one of the highest reward.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        space, options = ActionSpace(job, self.options.bits), self.options
        space.check()
        trainer, history = Trainer(job, options), EpisodeHistory()
        agent = Agent(STATE_SIZE, REPLAY_PER_LAYER * len(job.task.network.middle), job.noise("agent"))
        state: dict[str, Stateful] = {"agent": agent, "batches": trainer.batches, "history": history}
        for episode in job.stage(job.name).epochs(options.episodes, state):
            learning = episode - options.warmup_episodes
            walk = space.walk(partial(agent.explore, sigma=sigma_of(learning, options)))
            choices = space.within_budget(walk.choices)
            policy = space.policy(choices)
            evaluation = trainer.try_policy(policy, updates_of(episode, options, job.steps))
            reward = REWARD_SCALE * (evaluation.top1 - trainer.float_top1)
            agent.observe(walk.states, walk.actions, reward, learn=learning >= 0)
            history.end_episode(job, choices, job.price(policy), reward, evaluation, options.episodes)
        return SearchResult(
            policy=space.policy(history.best),
            state=job.pretrained,
            decisions=space.decisions(history.best, agent.act),
            record={**self._effort(job, trainer, agent), "float_top1": trainer.float_top1, **history.record()},
        )

    def _effort(self, job: SearchJob, trainer: "Trainer", agent: Agent) -> dict[str, Any]:
        """State what the search has cost, in numbers and in a few words."""
        episodes, images = self.options.episodes, trainer.reward_images
        updates = sum(updates_of(episode, self.options, job.steps) for episode in range(episodes))
        return {
            "effort": f"{episodes} episodes with rewards on {images:,} images; {agent.updates:,} updates of the agent, "
            f"{updates:,} of networks",
            "episodes": episodes,
            "reward_images": images,
            "agent_updates": agent.updates,
            "network_updates": updates,
        }


def sigma_of(learning: int, options: HaqOptions) -> float | None:
    """Compute the width of the noise in an episode; `None` in the warm-up, when actions are uniform.

    Args:
        learning: Number of episodes since the warm-up; negative before its end.
        options: Options of the method.
    """
    if learning < 0:
        return None
    if options.noise_decay != "scheduled":
        return FIRST_SIGMA * math.pow(options.noise_decay, learning)
    pace = LEARNING_EPISODES / (options.episodes - options.warmup_episodes)
    return FIRST_SIGMA * math.pow(NOISE_DECAY, pace * learning)


def updates_of(episode: int, options: HaqOptions, total: int) -> int:
    """Compute the number of updates in an episode; scheduled ones are spread evenly over all episodes.

    Args:
        episode: Number of the episode, from 0 on.
        options: Options of the method.
        total: Number of updates in the search's schedule.
    """
    if options.finetune_updates != "scheduled":
        return options.finetune_updates
    return (episode + 1) * total // options.episodes - episode * total // options.episodes


class EpisodeHistory:
    """The figures of a search, episode by episode; a part of its checkpoints.

    Attributes:
        best: Choices of the highest reward; of equal ones, the first.
    """

    def __init__(self) -> None:
        self.best: Choices = ()
        self._best_episode = 0
        self._entries: list[dict[str, float]] = []

    def end_episode(
        self, job: SearchJob, choices: Choices, cost: float, reward: float, evaluation: Evaluation, episodes: int
    ) -> None:
        """Keep and report the figures of an episode."""
        number = len(self._entries) + 1
        if not self.best or reward > self._entries[self._best_episode - 1]["reward"]:
            self.best, self._best_episode = choices, number
        figures = {"reward": reward, "validation_top1": evaluation.top1, "validation_loss": evaluation.loss}
        self._entries.append({"epoch": number, **figures, "cost": cost, "budget_share": cost / job.budget})
        job.report({**self._entries[-1], "epochs": episodes})

    def record(self) -> dict[str, Any]:
        """Return the figures for the search's record."""
        return {"best_episode": self._best_episode, "history": self._entries}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"best": list(self.best), "best_episode": self._best_episode, "entries": self._entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.best, self._best_episode = tuple(state["best"]), state["best_episode"]
        self._entries = list(state["entries"])


class Trainer:
    """Trains compressed networks a little and measures their accuracy.

    Args:
        job: Task, weights and schedule.
        options: Options of the method.

    Attributes:
        batches: Endless training batches; each episode goes on where the one before stopped.
        float_top1: Accuracy of the pretrained network on the images of the rewards, in percent.
        reward_images: Number of these images.
    """

    def __init__(self, job: SearchJob, options: HaqOptions) -> None:
        self._job, self._rate = job, options.finetune_lr
        data = job.task.data
        self.batches = BatchStream(data, job.schedule.batch_size, job.order(), data.train)
        drawn = torch.randperm(len(data.validation), generator=job.noise("reward images"))[: options.reward_images]
        self._images = data.validation.take(drawn.sort().values)
        self.reward_images = len(self._images)
        self.float_top1 = evaluate(job.float_model(), data, self._images).top1
        self._quantizers = calibrated(job, options.bits)

    def try_policy(self, policy: Policy, updates: int) -> Evaluation:
        """Train the pretrained network under a policy for some updates, and measure its accuracy."""
        data, network = self._job.task.data, self._compressed(policy)
        self._train(network, updates)
        reestimate_norms(network, data, self._job.schedule.batch_size)
        return evaluate(network, data, self._images)

    def _compressed(self, policy: Policy) -> nn.Module:
        """Quantize the pretrained network with calibrated thresholds."""
        network = compress(self._job.float_model(), self._job.task.network, policy, quantizer=linear_quantizer)
        for name, layer in policy.layers.items():
            module = network.get_submodule(name)
            for what, quantizer in zip(WHAT, (module.weight_quantizer, module.activation_quantizer), strict=True):
                quantizer.load_state_dict(self._quantizers[name, what, getattr(layer, what)])  # type: ignore[union-attr]
        return network

    def _train(self, network: nn.Module, updates: int) -> None:
        """Train weights and clipping ranges by cross-entropy."""
        if not updates:
            return
        optimizer = torch.optim.SGD(
            [dict(group) for group in weight_groups(network)],
            lr=self._rate,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        # Every episode has another network, each for a few updates: compiling them would take longer than they do.
        forward = self._job.forward.prepare(network.train(), self._job.name, None)
        for _ in range(updates):
            images, labels = next(self.batches)
            loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


Calibrated = Mapping[tuple[str, What, int], Mapping[str, Tensor]]
"""States of calibrated quantizers, by layer, tensor and bits."""


@torch.no_grad()
def calibrated(job: SearchJob, bits: Sequence[int]) -> Calibrated:
    """Calibrate all quantizers that an episode can need, on one batch (the code).

    They depend on the float network alone: on its weights, and on its activations without quantization.
    """
    model, network = job.float_model().eval(), job.task.network
    states: dict[tuple[str, What, int], Mapping[str, Tensor]] = {}

    def keep(layer: LayerShape) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for candidate in bits if layer.position == "middle" else [EDGE_BITS]:
                own = quantized_layer(module, layer, (candidate, candidate), linear_quantizer, normalized=False)
                own.to(inputs[0].device).calibrate(*inputs)
                for what, quantizer in zip(WHAT, (own.weight_quantizer, own.activation_quantizer), strict=True):
                    states[layer.name, what, candidate] = quantizer.state_dict()

        return hook

    for layer in network.layers:
        model.get_submodule(layer.name).register_forward_pre_hook(keep(layer))
    model(job.task.data.calibration_batches(1, job.schedule.batch_size)[0])
    return states
