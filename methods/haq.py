"""HAQ: hardware-aware automated quantization (Wang et al. 2019, arXiv 1811.08886).

An agent walks through the network and says for every layer how wide its weight shall be, then how wide its input. It
sees ten numbers of the layer, answers with a number in [0, 1], and that is rounded to a width ("Action Space"):

    b = round(b_min − 0.5 + a · (b_max − b_min + 1))

What costs too much is lowered step by step until it fits the budget; the cost is that of the run's measure in the
place of the paper's lookup table. The network of these widths is calibrated, trained a little, and its accuracy on
validation images is the reward of all steps, R = λ · (accuracy − accuracy of the float network) with λ = 0.1 ("Reward
Function"). The agent is a DDPG ("Agent"; `methods.shared.agent.ddpg`): after episodes of uniform actions it follows its
actor, with noise that fades.

The search quantizes linearly, as the paper does (`methods.shared.quantizers.linear`), whatever the recipe. With
`recipe = "common"` the found policy is fine-tuned with the common quantizer like everybody's, with `recipe = "own"`
linearly.

Measured here: on small problems of known accuracies agents of 100 episodes often end at a corner of the space and do
not find the best policy; what a search returns is then the best of its random episodes (`tests/methods/test_haq.py`).

"The code" is the authors', github.com/mit-han-lab/haq; where it differs from the paper it is followed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    BatchStream,
    Capabilities,
    Decision,
    Evaluation,
    LayerShape,
    Method,
    NetworkShape,
    Options,
    Policy,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    Stateful,
    UnreachableBudgetError,
    compress,
    evaluate,
    input_quantizer,
    reestimate_norms,
    uniform,
    weight_groups,
)
from methods.shared.agent.ddpg import Agent
from methods.shared.decisions import What
from methods.shared.quantizers.linear import linear_quantizer

REWARD_SCALE = 0.1
"""λ of the reward, for accuracies in percent (the code)."""
REPLAY_PER_LAYER = 128
"""Transitions that are kept, for each layer (the code)."""
FIRST_SIGMA, NOISE_DECAY, LEARNING_EPISODES = 0.5, 0.99, 580
"""Of the noise, which fades by that factor each episode after the warm-up, and how many there are (the code)."""
MOMENTUM, WEIGHT_DECAY = 0.9, 4e-5
"""Of the fine-tuning in each episode (the code)."""

_WHAT: tuple[What, What] = ("weight_bits", "activation_bits")
_STATE_SIZE = 10

Places = tuple[int, ...]
"""Positions among the candidates: weight and input of the first searched layer, then of the next, …"""


class HaqOptions(Options):
    """Options of HAQ.

    Attributes:
        bits: Candidates for weights and activations, rising.
        episodes: Networks that are tried (600 in the code).
        warmup_episodes: The first of them, with uniform actions, from which the agent only collects (20 in the code).
        noise_decay: Factor of the noise from episode to episode; "scheduled" lets it fade over the episodes after the
            warm-up as 0.99 does over the 580 of the code.
        finetune_updates: In each episode; "scheduled" spreads the updates of the search's schedule over all episodes.
        finetune_lr: Their rate (0.001 in the code).
        reward_images: Validation images on which accuracies are read, drawn once; all where there are not so many.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1)] = (2, 4, 8)
    episodes: Annotated[int, Field(ge=1)] = 100
    warmup_episodes: Annotated[int, Field(ge=0)] = 20
    noise_decay: Literal["scheduled"] | Annotated[float, Field(gt=0, le=1)] = "scheduled"
    finetune_updates: Literal["scheduled"] | Annotated[int, Field(ge=0)] = "scheduled"
    finetune_lr: Annotated[float, Field(gt=0)] = 1e-3
    reward_images: Annotated[int, Field(ge=1)] = 1000

    @model_validator(mode="after")
    def _some_episodes_learn(self) -> Self:
        if self.warmup_episodes >= self.episodes:
            raise ValueError(
                f"warmup_episodes is {self.warmup_episodes}, so that in none of {self.episodes} episodes the "
                f"agent would act; give at most {self.episodes - 1}, or more episodes"
            )
        return self

    @model_validator(mode="after")
    def _bits_rise(self) -> Self:
        if any(high <= low for low, high in pairwise(self.bits)):
            raise ValueError(f"bits {list(self.bits)} must rise, e.g. {sorted(set(self.bits))}")
        return self


class Haq(Method):
    """A DDPG agent that chooses widths layer by layer."""

    summary = "HAQ: an agent learns to choose widths layer by layer, rewarded by accuracy within the budget (DDPG)"
    source = (
        "Wang, Liu, Lin, Lin, Han 2019: HAQ: Hardware-Aware Automated Quantization with Mixed Precision, "
        "arXiv 1811.08886; github.com/mit-han-lab/haq"
    )
    deviations = (
        "Rewards are read on validation images that no update sees; the code fine-tunes and measures on one and the "
        "same subset of the training images.",
        "100 episodes in the place of 600, over which the noise fades as it does over 600; their updates together "
        "are those of the search's schedule, where the code trains every network for an epoch of 20,000 images.",
        "Candidates are 2, 4 and 8 bits as for every method, and the paper's rounding chooses among their positions; "
        "with bits = [2,3,4,5,6,7,8] it is the published one.",
        "The agent passes over the first and the last layer, which have 8 bits; the code asks it about them and "
        "ignores the answer.",
        "Normalisations are re-estimated before an accuracy is read, since an episode has few updates or none.",
        "Clipping ranges learn without weight decay, as everywhere here.",
        "Last layers of the agent start within 0.003, which the code states and does not apply.",
        "The warm-up has exactly warmup_episodes episodes, one less than in the code.",
        "Histograms for thresholds are of at most 65,536 elements, drawn once.",
        "Inputs that can be negative are shifted by an offset, as everywhere here; the code spends a bit on the sign.",
        "The policy that is returned is that of the highest reward and is repaired onto the budget's window; "
        "margins are those of the last actor.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True, own_quantizer=True)
    Options = HaqOptions
    options: HaqOptions

    @property
    def quantizer(self) -> QuantizerFactory:
        """Linear, with thresholds of least divergence."""
        return linear_quantizer

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, self.options.bits[0])

    def search(self, job: SearchJob) -> SearchResult:
        """Let the agent try policies, and return the one of the highest reward.

        Raises:
            UnreachableBudgetError: Even the least widths cost more than the budget.
        """
        space, options = Space(job, self.options.bits), self.options
        space.check()
        trainer, history = Trainer(job, options), History()
        agent = Agent(_STATE_SIZE, REPLAY_PER_LAYER * len(job.task.network.middle), job.noise("agent"))
        parts: dict[str, Stateful] = {"agent": agent, "batches": trainer.batches, "history": history}
        for episode in job.stage(job.name).epochs(options.episodes, parts):
            learning = episode - options.warmup_episodes
            walk = space.walk(partial(agent.explore, sigma=sigma_of(learning, options)))
            places = space.within_budget(walk.places)
            found = trainer.try_out(space.policy(places), updates_of(episode, options, job.steps))
            reward = REWARD_SCALE * (found.top1 - trainer.float_top1)
            agent.observe(walk.states, walk.actions, reward, learn=learning >= 0)
            history.end_episode(job, places, job.price(space.policy(places)), reward, found, options.episodes)
        return SearchResult(
            policy=space.policy(history.best),
            state=job.pretrained,
            decisions=space.decisions(history.best, agent.act),
            record={"float_top1": trainer.float_top1, **history.record()},
        )


def sigma_of(learning: int, options: HaqOptions) -> float | None:
    """The noise of an episode; `None` in the warm-up, when actions are uniform.

    Args:
        learning: Episodes since the warm-up; negative before its end.
        options: Of the method.
    """
    if learning < 0:
        return None
    if options.noise_decay != "scheduled":
        return FIRST_SIGMA * math.pow(options.noise_decay, learning)
    pace = LEARNING_EPISODES / (options.episodes - options.warmup_episodes)
    return FIRST_SIGMA * math.pow(NOISE_DECAY, pace * learning)


def updates_of(episode: int, options: HaqOptions, total: int) -> int:
    """Updates of an episode; scheduled ones are spread evenly and together are as many as the search's own.

    Args:
        episode: Counted from 0.
        options: Of the method.
        total: Updates of the search's schedule.
    """
    if options.finetune_updates != "scheduled":
        return options.finetune_updates
    return (episode + 1) * total // options.episodes - episode * total // options.episodes


class History:
    """What is kept of a search, episode by episode.

    Attributes:
        best: The choice of the highest reward, of equals the first.
    """

    def __init__(self) -> None:
        self.best: Places = ()
        self._best_episode = 0
        self._entries: list[dict[str, float]] = []

    def end_episode(
        self, job: SearchJob, places: Places, cost: float, reward: float, found: Evaluation, episodes: int
    ) -> None:
        """Keep and report an episode's figures."""
        number = len(self._entries) + 1
        if not self.best or reward > self._entries[self._best_episode - 1]["reward"]:
            self.best, self._best_episode = places, number
        figures = {"reward": reward, "validation_top1": found.top1, "validation_loss": found.loss}
        self._entries.append({"epoch": number, **figures, "cost": cost, "budget_share": cost / job.budget})
        job.report({**self._entries[-1], "epochs": episodes})

    def record(self) -> dict[str, Any]:
        """As it stands in a search's record."""
        return {"best_episode": self._best_episode, "history": self._entries}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"best": list(self.best), "best_episode": self._best_episode, "entries": self._entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self._best_episode = tuple(state["best"]), state["best_episode"]
        self._entries = list(state["entries"])


# --- what the agent sees and does ---------------------------------------------------------------------------------


def place_of(action: float, bits: Sequence[int]) -> int:
    """The position among the candidates that an action means ("Action Space").

    For candidates without gaps this is the published width, b_min + position, but that an action of exactly 0 or 1
    never rounds to a width beyond the ends. Halves are rounded to even widths, as there.

    Args:
        action: In [0, 1].
        bits: The candidates, rising.
    """
    published = round(bits[0] - 0.5 + action * len(bits))
    return min(max(published - bits[0], 0), len(bits) - 1)


def layer_states(layers: Sequence[LayerShape]) -> Tensor:
    """What the agent sees of layers apart from its own actions, (layers, 8), columns between 0 and 1.

    Whether it is depthwise, channels in and out, stride, kernel, weights, pixels of the input, number. A column in
    which all layers are alike is 0.
    """
    rows = torch.tensor([_row(layer, number) for number, layer in enumerate(layers)], dtype=torch.float64)
    low, high = rows.amin(0), rows.amax(0)
    return ((rows - low) / (high - low).clamp_min(1)).float()


def _row(layer: LayerShape, number: int) -> list[float]:
    """The numbers of a layer; stride 0 marks a linear one (the code)."""
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
    """One way through the network.

    Attributes:
        states: What was seen, (2 · layers, 10).
        actions: What was done.
        places: What that means.
    """

    states: Tensor
    actions: Sequence[float]
    places: Places


class Space:
    """All policies, as an agent walks among them.

    Args:
        job: Task and budget.
        bits: The candidates, rising.
    """

    def __init__(self, job: SearchJob, bits: tuple[int, ...]) -> None:
        self._job, self._bits = job, bits
        self._layers = job.task.network.middle
        self._seen = layer_states(self._layers)
        self._base = uniform(job.task.network, EDGE_BITS)

    def check(self) -> None:
        """Refuse a budget that no choice meets.

        Raises:
            UnreachableBudgetError: Even the least widths cost more.
        """
        least = self._cost((0,) * self._steps)
        if least > self._job.budget:
            raise UnreachableBudgetError(f"the least widths cost {least / self._job.budget:.2f} × the budget", least)

    @property
    def _steps(self) -> int:
        return 2 * len(self._layers)

    def _cost(self, places: Places) -> float:
        return self._job.price(self.policy(places))

    def policy(self, places: Places) -> Policy:
        """The policy of a choice; first and last layer have 8 bits."""
        changed = {
            layer.name: replace(
                self._base.layers[layer.name],
                weight_bits=self._bits[places[2 * number]],
                activation_bits=self._bits[places[2 * number + 1]],
            )
            for number, layer in enumerate(self._layers)
        }
        return replace(self._base, layers={**self._base.layers, **changed})

    def state(self, step: int, before: int | None) -> Tensor:
        """What the agent sees before a step, shape (10,): the layer, its last width, and what it is asked about.

        Args:
            step: Even for weights, odd for inputs.
            before: Position of the width chosen in the step before; `None` at the start, which counts as the widest.
        """
        width = 1.0 if before is None else self._bits[before] / self._bits[-1]
        return torch.cat([self._seen[step // 2], torch.tensor([width, float(step % 2 == 0)])])

    def walk(self, act: Callable[[Tensor], float]) -> Walk:
        """One way through the network.

        Args:
            act: Answers a state with an action.
        """
        states: list[Tensor] = []
        actions: list[float] = []
        places: list[int] = []
        for step in range(self._steps):
            states.append(self.state(step, places[-1] if places else None))
            actions.append(act(states[-1]))
            places.append(place_of(actions[-1], self._bits))
        return Walk(states=torch.stack(states), actions=actions, places=tuple(places))

    def within_budget(self, places: Places) -> Places:
        """The action wall: widths one step lower in turn until the budget is met.

        Turns go from the last layer backwards, first its input, then its weight.

        Args:
            places: What the agent chose.
        """
        lowered = list(places)
        turns = self._turns(lowered)
        while self._cost(tuple(lowered)) > self._job.budget:
            lowered[next(turns)] -= 1
        return tuple(lowered)

    def _turns(self, places: Sequence[int]) -> Iterator[int]:
        """Whose turn it is to be lowered, as long as something can be."""
        while any(places):
            for step in reversed(range(len(places))):
                if places[step]:
                    yield step

    def decisions(self, places: Places, act: Callable[[Tensor], float]) -> list[Decision]:
        """Every width of a choice; margins are how far the actor's answer lies beyond where it would round over.

        Where the actor prefers another side than the choice, which the action wall or noise has made, nothing speaks
        against moving there: that margin is 0, and repair takes it first.

        Args:
            places: The choice.
            act: The actor, without noise; it is asked along the choice.
        """
        found = []
        for step, place in enumerate(places):
            action = act(self.state(step, places[step - 1] if step else None))
            excess = [action - boundary / len(self._bits) for boundary in range(1, len(self._bits))]
            margins = [max(over, 0.0) if below < place else min(over, 0.0) for below, over in enumerate(excess)]
            found.append(
                Decision(
                    layer=self._layers[step // 2].name,
                    what=_WHAT[step % 2],
                    options=self._bits,
                    chosen=place,
                    margins=tuple(margins),
                )
            )
        return found


# --- what a policy is worth ------------------------------------------------------------------------------------------


class Trainer:
    """Trains compressed networks a little and reads their accuracy.

    Attributes:
        batches: Training batches without end; each episode goes on where the one before stopped.
        float_top1: Accuracy of the pretrained network on the same images as rewards, in percent.
    """

    def __init__(self, job: SearchJob, options: HaqOptions) -> None:
        self._job, self._rate = job, options.finetune_lr
        data = job.task.data
        self.batches = BatchStream(data, job.schedule.batch_size, job.order(), data.train)
        drawn = torch.randperm(len(data.validation), generator=job.noise("reward images"))[: options.reward_images]
        self._images = data.validation.take(drawn.sort().values)
        self.float_top1 = evaluate(job.float_model(), data, self._images).top1
        self._quantizers = calibrated(job, options.bits)

    def try_out(self, policy: Policy, updates: int) -> Evaluation:
        """Accuracy of the pretrained network under a policy after so many updates."""
        data, network = self._job.task.data, self._compressed(policy)
        self._train(network, updates)
        reestimate_norms(network, data, self._job.schedule.batch_size)
        return evaluate(network, data, self._images)

    def _compressed(self, policy: Policy) -> nn.Module:
        """The pretrained network, quantized with calibrated thresholds."""
        network = compress(self._job.float_model(), self._job.task.network, policy, quantizer=linear_quantizer)
        for name, layer in policy.layers.items():
            module = network.get_submodule(name)
            for what, part in zip(_WHAT, (module.weight_quantizer, module.activation_quantizer), strict=True):
                part.load_state_dict(self._quantizers[name, what, getattr(layer, what)])  # type: ignore[union-attr]
        return network

    def _train(self, network: nn.Module, updates: int) -> None:
        """By cross-entropy; the clipping ranges learn too, without decay as everywhere here."""
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
        forward = self._job.forward.of(network.train(), self._job.name, None)
        for _ in range(updates):
            images, labels = next(self.batches)
            loss = F.cross_entropy(forward(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


Calibrated = Mapping[tuple[str, What, int], Mapping[str, Tensor]]
"""By layer, tensor and width: the state of its quantizer."""


@torch.no_grad()
def calibrated(job: SearchJob, bits: Sequence[int]) -> Calibrated:
    """All quantizers that an episode can need, set once from the pretrained network on one batch (the code).

    Both depend on the float network alone: its weights, and its activations as they are without quantization.
    """
    model, network = job.float_model().eval(), job.task.network
    found: dict[tuple[str, What, int], Mapping[str, Tensor]] = {}

    def keep(layer: LayerShape) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weight: Tensor = module.weight  # type: ignore[assignment]
            for width in bits if layer.position == "middle" else [EDGE_BITS]:
                of_weight = linear_quantizer(bits=width, kind="weight", normalized=False)
                of_input = input_quantizer(layer, width, linear_quantizer)
                found[layer.name, "weight_bits", width] = _calibrated_on(of_weight, weight)
                found[layer.name, "activation_bits", width] = _calibrated_on(of_input, inputs[0])

        return hook

    for layer in network.layers:
        model.get_submodule(layer.name).register_forward_pre_hook(keep(layer))
    model(job.task.data.calibration_batches(1, job.schedule.batch_size)[0])
    return found


def _calibrated_on(quantizer: nn.Module, x: Tensor) -> Mapping[str, Tensor]:
    quantizer = quantizer.to(x.device)
    if not isinstance(quantizer, nn.Identity):
        quantizer.calibrate(x)  # type: ignore[operator]
    return quantizer.state_dict()
