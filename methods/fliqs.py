"""FLIQS (Dotzel et al. 2024, arXiv 2308.03290): one training in which a policy learns by REINFORCE which bits to draw.

Every searched tensor has one weight or input for all candidates, a clip value for each, and logits θ. In each update,
bits are drawn for all tensors from p = softmax(θ), and the network of these bits learns from a batch. Its loss on this
batch and its cost J give the reward of the draw (the "absolute" reward of TuNAS, Bender et al. 2020, arXiv 2008.06120):

    r = −L_ce − β · |J/J₀ − 1|

A running mean b of rewards is the baseline, A = r − b the advantage. The policy learns by

    −A · mean log p(drawn) + β_H(t) · mean H(p)

The entropy H is punished more and more, by a cosine from 0 to its largest weight, so that the policy ends at one choice
for each tensor. In the first part of the search, bits are drawn uniformly and the policy does not learn, since weights
have to see all candidates before they are judged. The largest logits give the found bits.

"The code" is the submission's as published in github.com/RuslanZaripov/automl-fliqs; the paper's results come in part
from code that is not public.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.api import (
    Capabilities,
    GeneratorState,
    Meter,
    SearchJob,
    Stateful,
    UniformQuantizer,
    replicas,
    sgd,
    weight_groups,
)
from methods.shared.budget import unreachable
from methods.shared.history import History
from methods.shared.networks.paths import PathNetwork, PathOptions
from methods.shared.options import ChoosesBits
from methods.shared.training import TrainingMethod

_BASELINE_SHARE, _FEWEST_UPDATES, _MOST_UPDATES = 0.04, 4, 100
"""Share of the search over which the baseline averages, and the fewest and the most updates. The most are those of the
code's decay of 0.99. With few, most of a reward would be in its own baseline."""


class FliqsOptions(PathOptions):
    """Options of FLIQS, in addition to `PathOptions`.

    Attributes:
        activations: Bits of inputs by decisions of their own ("separate"), or tied to those of the weights, as in the
            code ("tied").
        delay: Share of the search in which bits are drawn uniformly and the policy does not learn.
        cost_weight: Weight β of the distance from the budget in the reward (1 in the code).
        entropy_weight: Largest weight of the entropy, at the end of the search (0.5 in the code).
        baseline_decay: Share of the baseline that stays in each update. With "scheduled", the baseline averages over 4
            % of the search, and at most over the 100 updates of the code's 0.99.
        logit_travel: Learning rate of the logits (Adam) × number of their updates. Estimated gradients change their
            sign often, so that logits need more of it than those of a mixture to become sure.
    """

    activations: Literal["separate", "tied"] = "separate"
    logit_travel: Annotated[float, Field(gt=0)] = 15.0
    delay: Annotated[float, Field(ge=0, lt=1)] = 0.25
    cost_weight: Annotated[float, Field(gt=0)] = 1.0
    entropy_weight: Annotated[float, Field(ge=0)] = 0.5
    baseline_decay: Literal["scheduled"] | Annotated[float, Field(ge=0, lt=1)] = "scheduled"


class Fliqs(TrainingMethod["DrawnNetwork"], ChoosesBits):
    """FLIQS with the common quantizer."""

    summary = "FLIQS: one training in which a policy learns by REINFORCE, rewarded near the budget, which bits to draw"
    family = "reinforcement learning"
    source = (
        "Dotzel et al. 2024, FLIQS: One-Shot Mixed-Precision Floating-Point and Integer Quantization Search, "
        "AutoML 2024, arXiv 2308.03290; github.com/RuslanZaripov/automl-fliqs"
    )
    deviations = (
        "The text of the paper was not at hand; the algorithm is that of the submission's code.",
        "Bits of weights and inputs are decided apart, so that FLIQS chooses among the same policies as most methods "
        "here; in the code they are the same (activations = 'tied'). Repair may untie them.",
        "The common quantizer with one learned clip value for each candidate replaces the code's ranges, which are the "
        "largest values of the present tensor.",
        "The cost is that of the run's measure, and the target J₀ the middle of the budget's window; the code counts "
        "weights times the squared mean of the two widths.",
        "The search starts from pretrained weights; the paper trains from the start, once, and does not retrain. Here "
        "its network is fine-tuned like all others.",
        "The policy waits for a quarter of the search; the code waits for 2,500 updates of a number that it leaves "
        "open.",
        "Logits learn by Adam with a rate that follows from the length of the search, and the baseline averages over "
        "4 % of it; the code has 0.005 and a decay of 0.99.",
        "There are integer formats only, and no search of the architecture.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True, one_stage=True, data_parallel=True)
    Options = FliqsOptions
    options: FliqsOptions

    def network(self, job: SearchJob) -> "DrawnNetwork":
        """Build a network in which all candidates of a layer share one weight.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        least = job.price(self.cheapest(job.task.network))
        if least > job.budget:
            raise unreachable(job, f"uniform {min(self.options.bits)} bit", least)
        return DrawnNetwork(job, self.options.bits, tied=self.options.activations == "tied")

    def train(self, job: SearchJob, network: "DrawnNetwork") -> History:
        """Train weights by the task, and the policy by rewards, in the same updates."""
        options, history, noise, baseline = self.options, History(), job.noise("formats"), Baseline(self._decay(job))
        delay, logits = round(options.delay * job.steps), network.logits()
        of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
        of_logits = torch.optim.Adam(logits, lr=options.logit_travel / max(1, job.steps - delay))
        target = job.budget * math.sqrt(1 - job.tolerance)
        network.model.train()
        forward = job.in_training(network.model)
        state: dict[str, Stateful] = {"model": network.model, "history": history, "noise": GeneratorState(noise)}
        state |= {"of_weights": of_weights, "of_logits": of_logits, "baseline": baseline}
        per_epoch = job.task.data.batches_per_epoch(job.schedule.batch_size)
        for epoch, batches in job.epochs(state):
            meter = Meter(job.task.device)
            for step, (images, labels) in enumerate(batches, epoch * per_epoch):
                network.draw_bits(noise, uniform=step < delay)
                outputs = forward(images)
                loss = F.cross_entropy(outputs, labels)
                network.model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                replicas.average_gradients(network.model.parameters())
                of_weights.step()
                quality = -replicas.mean(loss.detach())
                reward = absolute_reward(quality, network.expected_cost(), target, options.cost_weight)
                advantage = baseline.advantage(reward)
                if step >= delay:
                    weight = entropy_weight(step, delay, job.steps, options.entropy_weight)
                    network.learn(of_logits, advantage, weight)
                meter.add(loss, outputs, labels)
            figures = {
                **meter.figures(),
                "reward": float(baseline.mean),
                "entropy": float(entropy(network.table().detach())),
            }
            history.end_epoch(job, network, epoch, figures)
        return history

    def _decay(self, job: SearchJob) -> float:
        """Return the share of the baseline that stays in each update."""
        if self.options.baseline_decay != "scheduled":
            return self.options.baseline_decay
        return 1 - 1 / min(_MOST_UPDATES, max(_FEWEST_UPDATES, _BASELINE_SHARE * job.steps))


class DrawnNetwork(PathNetwork):
    """A model whose searched layers have the bits that were drawn last, and one weight for all candidates.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits, K of them.
        tied: Whether both tensors of a layer have the same bits.

    Attributes:
        drawn: Indices of the candidates that were drawn last, shape (D,).
    """

    def __init__(self, job: SearchJob, bits: tuple[int, ...], *, tied: bool) -> None:
        super().__init__(job, bits, UniformQuantizer, shared=True)
        self.tied = tied
        self.drawn = torch.zeros(0, dtype=torch.int64, device=job.task.device)

    def table(self) -> Tensor:
        """Stack the logits of all decisions, shape (D, K): of weights, then of inputs unless they are tied."""
        both = torch.stack(list(self.logits()), dim=1)
        return (both[:1] if self.tied else both).flatten(0, 1)

    def draw_bits(self, noise: torch.Generator, *, uniform: bool) -> None:
        """Draw bits for all tensors by the policy, or uniformly."""
        odds = torch.softmax(self.table().detach(), 1).cpu()
        odds = torch.full_like(odds, 1 / len(self.bits)) if uniform else odds
        self.drawn = torch.multinomial(odds, 1, generator=noise).flatten().to(self.drawn.device)
        shares = F.one_hot(self.drawn, len(self.bits)).float().view(-1, len(self.layers), len(self.bits))
        for layer, of_layer in zip(self.layers.values(), shares.expand(2, -1, -1).unbind(1), strict=True):
            layer.probabilities = of_layer

    def learn(self, optimizer: torch.optim.Optimizer, advantage: Tensor, weight: float) -> None:
        """Update the policy by what was drawn last.

        Args:
            optimizer: Optimizer of the logits.
            advantage: Advantage of the draw, a scalar.
            weight: Weight of the entropy.
        """
        optimizer.zero_grad(set_to_none=True)
        objective(self.table(), self.drawn, advantage, weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if self.tied:
            with torch.no_grad():
                for logits in self.logits():
                    logits[1].copy_(logits[0])


class Baseline:
    """The running mean of rewards.

    Args:
        decay: Share of the mean that stays in each update.

    Attributes:
        mean: Present mean, a scalar; NaN before the first reward.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.mean = torch.tensor(math.nan, dtype=torch.float64)

    def advantage(self, reward: Tensor) -> Tensor:
        """Add a reward to the mean, and return how much it exceeds the mean; the code adds it first, too."""
        before = torch.where(self.mean.isnan(), reward, self.mean.to(reward))
        self.mean = self._decay * before + (1 - self._decay) * reward
        return reward - self.mean

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.mean = state["mean"]


def absolute_reward(quality: Tensor, cost: Tensor, target: float, weight: float) -> Tensor:
    """Compute Q − β · |J/J₀ − 1|, a scalar without gradient in float64.

    Args:
        quality: Quality Q of the draw.
        cost: Cost J of the draw.
        target: Wanted cost J₀.
        weight: Weight β.
    """
    return quality.detach().double() - weight * (cost.detach().double() / target - 1).abs()


def entropy_weight(step: int, delay: int, steps: int, most: float) -> float:
    """Compute β_H(t), which rises from 0 at the delay to its largest value at the end, by half a cosine."""
    return most * (1 - math.cos(math.pi * (step - delay) / (steps - delay))) / 2


def entropy(table: Tensor) -> Tensor:
    """Compute the mean entropy of the decisions, a scalar in nats, from their logits, shape (D, K)."""
    log_p = F.log_softmax(table, 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def objective(table: Tensor, drawn: Tensor, advantage: Tensor, weight: float) -> Tensor:
    """Compute −A · mean log p(drawn) + β_H · mean H(p), a scalar.

    Args:
        table: Logits of all decisions, shape (D, K).
        drawn: Indices of the candidates that were drawn, shape (D,).
        advantage: A, a scalar.
        weight: β_H.
    """
    likelihood = F.log_softmax(table, 1).gather(1, drawn.unsqueeze(1)).mean()
    return -advantage.to(table) * likelihood + weight * entropy(table)
