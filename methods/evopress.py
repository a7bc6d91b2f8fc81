"""EvoPress: evolutionary search by level switches (Sieberling et al. 2025, arXiv 2410.14649).

A policy is a vector of levels (`methods.shared.levels`): the bits of every tensor, and how many filter groups a layer
keeps. One parent has λ children in each generation, and the best of them and of the parent is the next parent.

*Mutation.* k units go up by one level, k = min of two draws from {1, 2, 3}. Then units drawn at random go down by one
level until the cost fits the budget: a switch, which keeps the budget. A child with more than ten changes of level, or
below the window of the budget, is refused and drawn again, and so is one that exists already.

*Selection.* All children are compared on a few images, the best of them on more, and the best of these on many. The
parent joins the last comparison. All candidates of a comparison see the same images, and no two comparisons do.

*Fitness.* KL divergence of the compressed network's predictions from those of the float network, without labels, by
forward passes alone (`methods.shared.networks.leveled`). Nothing is trained.

"The code" is that of the authors, github.com/IST-DASLab/EvoPress.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from bench.api import (
    Capabilities,
    GeneratorState,
    Method,
    NetworkShape,
    NonFiniteLossError,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    Stateful,
)
from methods.shared.budget import unreachable
from methods.shared.levels import LevelCosts, Levels, LevelSpace, units_of
from methods.shared.networks.leveled import LeveledNetwork
from methods.shared.options import RISING

MOST_RAISED = 3
"""Largest number of units that a mutation raises (the code)."""
MOST_CHANGES = 10
"""Largest number of changes of level of a child (the code)."""
_ATTEMPTS = 100
"""Largest number of draws for each vector that is wanted."""

Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class EvopressOptions(Options):
    """Options of EvoPress.

    Attributes:
        bits: Candidate bits for weights and activations, rising.
        filter_levels: Largest number of levels of a layer's filters; with 1, no filters are removed.
        group_size: Number of filters of a group; as the model states when absent.
        generations: Number of generations (150 in the code, for quantization).
        offspring: Number of children in each generation, λ (128 in the code).
        survivors: Number of candidates that each comparison of a generation leaves; the last leaves one (16, 4 and 1
            in the code).
        images: Number of training images of each comparison (2,048, 16,384 and 131,072 tokens in the code).
        initial: Number of vectors of which the first parent is the best, on the images of a first comparison.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1), RISING] = (2, 4, 8)
    filter_levels: Annotated[int, Field(ge=1)] = 8
    group_size: Annotated[int, Field(ge=1)] | None = None
    generations: Annotated[int, Field(ge=1)] = 100
    offspring: Annotated[int, Field(ge=1)] = 32
    survivors: Counts = (8, 2, 1)
    images: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)] = (16, 128, 1024)
    initial: Annotated[int, Field(ge=1)] = 128

    @model_validator(mode="after")
    def _comparisons_leave_one(self) -> Self:
        if len(self.survivors) != len(self.images):
            raise ValueError(
                f"survivors {list(self.survivors)} and images {list(self.images)} must be equally many: one of each "
                "for every comparison"
            )
        if self.survivors[-1] != 1 or any(after > before for before, after in pairwise(self.survivors)):
            raise ValueError(f"survivors {list(self.survivors)} must fall to 1, e.g. [8, 2, 1]")
        if any(after < before for before, after in pairwise(self.images)):
            raise ValueError(f"images {list(self.images)} must not fall, e.g. [16, 128, 1024]")
        return self


class Evopress(Method):
    """(1 + λ) evolution of bits and filters."""

    summary = "EvoPress: evolution by level switches within the budget, compared by KL divergence on growing samples"
    family = "evolution"
    source = (
        "Sieberling, Kuznedelev, Kurtic, Alistarh 2025: EvoPress: Accurate Dynamic Model Compression via Evolutionary "
        "Search, ICML 2025, arXiv 2410.14649; github.com/IST-DASLab/EvoPress"
    )
    deviations = (
        "The authors compress language models; there is no published result on images.",
        "Units are tensors, with bits for weights and for inputs, and filters of layers; the code has one for each "
        "matrix of weights. Filter groups of least mean absolute weight are dropped first.",
        "A step is one to the neighbouring candidate, such as from 4 to 8 bits; in the code it is one bit.",
        "Budgets are in the run's measure, such as bit operations, where the cost of a step depends on other units of "
        "the layer. So switches are those of the code's rule across sizes (group_rule = none), whose limit of 0.8 on "
        "bits added by bits removed is replaced by the budget's window.",
        "The common quantizer, calibrated on the float network, replaces GPTQ.",
        "Divergences are taken with batch statistics of normalisations, on augmented training images.",
        "By default there are 100 generations of 32 children on 16, 128 and 1,024 images, 0.46 million forward passes "
        "of an image; the code has 150 of 128, on samples in the same ratios. The record states the effort.",
        "The code starts from uniform bits where the budget is that of a candidate. Here the first parent is always "
        "drawn as in its other case: from uniform bits above the budget, by random steps down.",
        "A mutation ends after a hundred draws for each wanted child, so that small spaces have an end.",
    )
    capabilities = Capabilities(budget="direct", prunes=True, mixed_precision=True)
    Options = EvopressOptions
    options: EvopressOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options, with the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self._group_size(network)}

    def cheapest(self, network: NetworkShape) -> Policy:
        """Take the lowest level of every unit."""
        space = self.space(network)
        return space.policy(space.lowest)

    def costliest(self, network: NetworkShape) -> Policy:
        """Take the highest candidate of every tensor, and all filters."""
        space = self.space(network)
        return space.policy(space.highest)

    def space(self, network: NetworkShape, state: Mapping[str, Tensor] | None = None) -> LevelSpace:
        """Build the space of levels; filters are in the order of their indices without the weights in `state`."""
        size = self._group_size(network)
        units = units_of(network, self.options.bits, size, self.options.filter_levels)
        return LevelSpace(network, units, size, state)

    def _group_size(self, network: NetworkShape) -> int:
        return self.options.group_size or network.group_size

    def search(self, job: SearchJob) -> SearchResult:
        """Draw a first parent, and let it evolve.

        Raises:
            UnreachableBudgetError: Even the lowest levels cost more than the budget.
        """
        options, lineage = self.options, Lineage()
        space = self.space(job.task.network, job.pretrained)
        mutation, samples = Mutation(job, space), Samples(job, space, options.bits)
        lineage.parent = samples.best(mutation.first(options.initial), [], (1,), options.images[:1])[0]
        state: dict[str, Stateful] = {
            "lineage": lineage,
            "samples": samples,
            "mutation": GeneratorState(mutation.noise),
            "order": GeneratorState(samples.order),
        }
        for _ in job.stage(job.name).epochs(options.generations, state):
            children = mutation.children(lineage.parent, options.offspring)
            parent, divergence = samples.best(children, [lineage.parent], options.survivors, options.images)
            lineage.end_generation(job, parent, divergence, space, options.generations)
        return SearchResult(
            policy=space.policy(lineage.parent),
            state=job.pretrained,
            record={**samples.effort(), "history": lineage.entries},
        )


class Lineage:
    """The present parent, and the figures of all generations; a part of a search's checkpoints.

    Attributes:
        parent: Levels of the present parent.
        entries: One dictionary for each generation; JSON-serialisable.
    """

    def __init__(self) -> None:
        self.parent: Levels = ()
        self.entries: list[dict[str, float]] = []

    def end_generation(
        self, job: SearchJob, parent: Levels, divergence: float, space: LevelSpace, generations: int
    ) -> None:
        """Make a candidate the next parent, and report the figures of the generation."""
        moved = sum(before != after for before, after in zip(self.parent, parent, strict=True))
        cost = job.price(space.policy(parent))
        self.parent = parent
        figures = {"divergence": divergence, "moved": moved, "cost": cost, "budget_share": cost / job.budget}
        self.entries.append({"epoch": len(self.entries) + 1, **figures})
        job.report({**self.entries[-1], "epochs": generations})

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"parent": list(self.parent), "entries": self.entries}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.parent, self.entries = tuple(state["parent"]), list(state["entries"])


class Mutation:
    """Draws vectors of levels inside the window of the budget.

    Args:
        job: Budget, measure and tolerance.
        space: Policies.

    Attributes:
        noise: Generator of all draws.
    """

    def __init__(self, job: SearchJob, space: LevelSpace) -> None:
        self._job, self._space = job, space
        self._costs, self._tops = LevelCosts(job, space), space.highest
        self._low = (1 - job.tolerance) * job.budget
        self.noise = job.noise("mutations")

    def first(self, count: int) -> list[Levels]:
        """Draw different vectors for the first parent: from uniform bits above the budget, by random steps down.

        Those inside the window are returned, up to so many; if there is none, the costliest vector below it.

        Raises:
            UnreachableBudgetError: Even the lowest levels cost more than the budget.
        """
        space, budget = self._space, self._job.budget
        least = self._price(space.lowest)
        if least > budget:
            raise unreachable(self._job, "the policy of the lowest levels", least)
        uniform = [space.with_bits(level) for level in range(len(space.units[0].options))]
        above = [levels for levels in uniform if self._price(levels) > budget]
        if not above:
            return [space.highest]
        inside, below = dict[Levels, None](), (least, space.lowest)
        for _ in range(_ATTEMPTS * count):
            levels, _ = self._lowered(above[0])
            cost = self._price(levels)
            if self._low <= cost <= budget:
                inside[levels] = None
            elif cost <= budget:
                below = max(below, (cost, levels))
            if len(inside) == count:
                break
        return list(inside) or [below[1]]

    def children(self, parent: Levels, count: int) -> list[Levels]:
        """Draw different children of a parent, as many as wanted or as draws give.

        They are inside the window; if the parent lies below it, they cost at least as much as the parent.
        """
        low = min(self._low, self._price(parent))
        found = dict[Levels, None]()
        for _ in range(_ATTEMPTS * count):
            raised, ups = self._raised(parent, self._switches())
            child, downs = self._lowered(raised)
            if ups + downs > MOST_CHANGES or child == parent or child in found:
                continue
            if low <= self._price(child) <= self._job.budget:
                found[child] = None
            if len(found) == count:
                break
        return list(found)

    def _switches(self) -> int:
        """Draw k, the smaller of two draws from {1, 2, 3}: 1, 2 or 3 with probabilities 5/9, 3/9 and 1/9."""
        return 1 + int(torch.randint(MOST_RAISED, (2,), generator=self.noise).min())

    def _raised(self, levels: Levels, steps: int) -> tuple[Levels, int]:
        """Raise units by one level, drawn among those that can be raised; return also how many were."""
        for step in range(steps):
            able = [unit for unit, level in enumerate(levels) if level < self._tops[unit]]
            if not able:
                return levels, step
            levels = self._moved(levels, able, 1)
        return levels, steps

    def _lowered(self, levels: Levels) -> tuple[Levels, int]:
        """Lower units by one level, drawn among those that can be, until the cost fits; return also how often."""
        steps = 0
        while self._costs(levels) > self._job.budget:
            able = [unit for unit, level in enumerate(levels) if level > 0]
            if not able:
                break
            levels, steps = self._moved(levels, able, -1), steps + 1
        return levels, steps

    def _moved(self, levels: Levels, able: Sequence[int], step: int) -> Levels:
        unit = able[int(torch.randint(len(able), (), generator=self.noise))]
        return (*levels[:unit], levels[unit] + step, *levels[unit + 1 :])

    def _price(self, levels: Levels) -> float:
        """Return the exact cost; that of `LevelCosts` may be off by rounding."""
        return self._job.price(self._space.policy(levels))


class Samples:
    """Compares vectors of levels on training images.

    Args:
        job: Network, weights and images.
        space: Policies.
        bits: Candidate bits.

    Attributes:
        order: Generator that draws the images.
    """

    def __init__(self, job: SearchJob, space: LevelSpace, bits: Sequence[int]) -> None:
        self._job, self._space = job, space
        self._float, self._network = job.float_model().eval(), LeveledNetwork(job, bits)
        self.order = job.order("comparisons")
        self._compared = self._passes = 0

    def best(
        self, children: Sequence[Levels], parents: Sequence[Levels], survivors: Sequence[int], images: Sequence[int]
    ) -> tuple[Levels, float]:
        """Compare candidates on growing samples, and return the best one with its divergence on the last sample.

        Args:
            children: Candidates of the first comparison.
            parents: Candidates that join the last comparison; they win ties.
            survivors: Number of candidates that each comparison leaves.
            images: Number of images of each comparison.
        """
        candidates, last = list(children), len(images) - 1
        for comparison, (left, count) in enumerate(zip(survivors, images, strict=True)):
            if comparison == last:
                candidates = [*parents, *(child for child in candidates if child not in parents)]
            divergences = self.divergences(candidates, count)
            ranked = sorted(range(len(candidates)), key=divergences.__getitem__)[:left]
            candidates = [candidates[index] for index in ranked]
        return candidates[0], divergences[ranked[0]]

    @torch.no_grad()
    def divergences(self, candidates: Sequence[Levels], count: int) -> list[float]:
        """Compute the mean KL divergence of each candidate from the float network, on one fresh sample of images.

        Raises:
            NonFiniteLossError: A divergence is infinite or NaN.
        """
        if not candidates:
            return []
        data = self._job.task.data
        images, _ = next(iter(data.training_batches(count, self.order, purpose="calibration")))
        # Neighbours in this order agree in their first layers, which are then computed once.
        order = sorted(range(len(candidates)), key=candidates.__getitem__)
        policies = [self._space.policy(candidates[index]) for index in order]
        sums = torch.zeros(len(candidates), dtype=torch.float64, device=images.device)
        for part in images.chunk(math.ceil(len(images) / self._job.schedule.batch_size)):
            expected = F.log_softmax(self._float(part), 1)
            for index, logits in zip(order, self._network.outputs(policies, part), strict=True):
                sums[index] += F.kl_div(F.log_softmax(logits, 1), expected, log_target=True, reduction="sum")
        self._compared += len(candidates)
        self._passes += len(candidates) * len(images)
        divergences: list[float] = (sums / len(images)).tolist()
        for divergence in divergences:
            if not math.isfinite(divergence):
                raise NonFiniteLossError(f"the divergence from the float network is {divergence}")
        return divergences

    def effort(self) -> dict[str, Any]:
        """State what the comparisons have cost, in numbers and in a few words."""
        return {
            "effort": f"{self._compared:,} evaluations, {self._passes:,} forward passes of an image",
            "evaluations": self._compared,
            "image_passes": self._passes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts for a checkpoint."""
        return {"compared": self._compared, "passes": self._passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts of a checkpoint."""
        self._compared, self._passes = state["compared"], state["passes"]
