"""The contract of a compression method: given a task, knobs and a budget, return a policy and trained weights.

The harness owns pretraining, splits, tuning of the knobs, repair onto the budget, fine-tuning, evaluation and
logging. A method is a class registered in the entry-point group `bench.methods`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bench.compression.policy import FULL_PRECISION_BITS, Policy, uniform
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import BOPS, Measure
from bench.data.task_data import TaskData
from bench.spec import options
from bench.spec.schema import Match, Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.checkpoints import UNINTERRUPTED, GeneratorState, Stage, Stateful
from bench.training.forward import PLAIN, Forward


class NoOptions(options.Options):
    """For methods without options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a method needs and can do.

    Attributes:
        budget: "strength": a knob λ is tuned onto the budget; "direct": the method is handed the budget and
            answers it in one search; "ignored": it has none (a reference).
        prunes: It removes filters.
        mixed_precision: It chooses bits layer by layer.
        full_precision: Its searches hold networks at full precision, which accelerators cannot compute.
        own_quantizer: It has a quantizer of its own for `recipe = "own"`.
        one_stage: Its paper trains once and has no separate fine-tuning; here its network is fine-tuned like all
            others, and reports say so.
        data_parallel: One search of it can be divided among several devices; see `bench.replicas`.
    """

    budget: Literal["strength", "direct", "ignored"]
    prunes: bool = False
    mixed_precision: bool = False
    full_precision: bool = False
    own_quantizer: bool = False
    one_stage: bool = False
    data_parallel: bool = False

    def in_words(self) -> tuple[str, ...]:
        """For `bench list methods --long`."""
        budgets = {
            "strength": "a strength is tuned onto the budget",
            "direct": "answers a budget in one search",
            "ignored": "a reference without a budget",
        }
        abilities = {
            "removes filters": self.prunes,
            "chooses widths layer by layer": self.mixed_precision,
            "searches at full precision": self.full_precision,
            "has a quantizer of its own (recipe = own)": self.own_quantizer,
            "trained once in its paper, fine-tuned here": self.one_stage,
            "runs on several devices": self.data_parallel,
        }
        return budgets[self.budget], *(words for words, has in abilities.items() if has)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """The range of one number that the harness tunes for a method."""

    low: float
    high: float
    log: bool = False

    @property
    def middle(self) -> float:
        """The middle of the range: the geometric mean on a logarithmic scale, the arithmetic mean on a linear one."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class CostTerm:
    """The harness's cost term: what a search adds to its task loss (Eq. 13).

    mode "lambda": λ log R, as the paper. mode "hinge": λ log(R/B) while the network that the search stands for
    costs more than the budget B, and nothing below it.
    """

    mode: Match
    strength: float
    budget: float

    def __call__(self, relaxed: Tensor, actual: Tensor) -> Tensor:
        """The term, a scalar; computed without waiting for the device.

        Args:
            relaxed: The differentiable cost.
            actual: The cost of the discrete network that the search would return now.
        """
        return self.strength * torch.log(relaxed / self.budget) * self.is_active(actual)

    def is_active(self, actual: Tensor) -> Tensor:
        """1 while a cost term acts, 0 otherwise; for methods that have a term of their own in the place of λ log R.

        Args:
            actual: The cost of the discrete network that the search would return now.
        """
        above = (actual > self.budget).to(actual.dtype)
        return above if self.mode == "hinge" else torch.ones_like(above)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One discrete choice of a search that repair may move.

    Attributes:
        layer: The layer's name.
        what: Bits of weights, bits of activations, or one group of filters.
        options: What can be chosen, from cheap to dear: widths in bits; for filters `(0, 1)`, dropped or kept.
        chosen: Index of the search's choice.
        margins: For each neighbouring pair of options how clearly the search preferred one side, in the
            method's own unit: entry i stands between options i and i + 1, positive towards i + 1.
        filters: The filters of the group.
    """

    layer: str
    what: Literal["weight_bits", "activation_bits", "filters"]
    options: tuple[int, ...]
    chosen: int
    margins: tuple[float, ...]
    filters: tuple[int, ...] = ()


@dataclass(kw_only=True)
class SearchResult:
    """What a search returns.

    Attributes:
        policy: The result.
        state: Weights and buffers under the names of the float model, unreduced.
        clips: Clip values by "<layer>.weight" and "<layer>.activation", for the common quantizer.
        quantizers: Learned parameters of the method's own quantizers, for `recipe = "own"`, under the names that they
            have in the compressed network: "<layer>.weight_quantizer.<parameter>", "<layer>.activation_quantizer.…".
        normalized_weights: Whether convolution weights are standardised before they are quantized.
        decisions: What repair may move; empty when nothing may.
        record: Curves and figures of the search, JSON-serialisable; `history` is a list of one dict an epoch.
    """

    policy: Policy
    state: Mapping[str, Tensor]
    clips: Mapping[str, float] = field(default_factory=dict)
    quantizers: Mapping[str, Tensor] = field(default_factory=dict)
    normalized_weights: bool = True
    decisions: Sequence[Decision] = ()
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set and a model, on the device where training happens.

    Attributes:
        data: The three parts of the data.
        network: The shapes of the model.
        make_model: Builds a fresh float model on the device, initialised from PyTorch's global generator.
    """

    data: TaskData
    network: NetworkShape
    make_model: Callable[[], nn.Module]

    @property
    def device(self) -> torch.device:
        """Where the data and the model live."""
        return self.data.device

    def multiplications(self, schedule: Schedule | SearchSchedule) -> int:
        """Of the forward passes of a stage, with the full network."""
        macs = price(self.network, uniform(self.network, FULL_PRECISION_BITS)).macs
        return macs * schedule.epochs * self.data.batches_per_epoch(schedule.batch_size) * schedule.batch_size


def _uninterrupted(_: str) -> Stage:
    return UNINTERRUPTED


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """Everything that one search is given.

    Attributes:
        task: Data and model.
        pretrained: State of the pretrained float model.
        knobs: The values that the harness chose for the method's knobs.
        budget: What the final policy may cost, in the unit of `measure`; infinite for methods that ignore it.
        measure: What the budget limits: bit operations, memory, latency or energy.
        tolerance: Share of the budget below it that still counts as matched.
        match: How the cost term works.
        schedule: Length and rates of the search.
        seed: Seed of the run; the same for every method.
        report: Called after each epoch with figures to show and keep.
        stage: Makes a stage that keeps checkpoints, by name; without it an interrupted search begins anew.
        name: Of the search's stage; methods that search in several stages give each its own.
        forward: How networks are carried out.
    """

    task: Task
    pretrained: Mapping[str, Tensor]
    knobs: Mapping[str, float]
    budget: float
    match: Match
    schedule: SearchSchedule
    seed: int
    report: Callable[[Mapping[str, float]], None]
    measure: Measure = BOPS
    tolerance: float = 0.03
    stage: Callable[[str], Stage] = _uninterrupted
    name: str = "search"
    forward: Forward = PLAIN

    def float_model(self) -> nn.Module:
        """A float model with the pretrained weights."""
        model = self.task.make_model()
        model.load_state_dict(dict(self.pretrained))
        return model

    def price(self, policy: Policy) -> float:
        """What a policy costs in the unit of the budget."""
        return self.measure.price(self.task.network, policy)

    def in_training(self, network: nn.Module) -> Callable[..., Any]:
        """The network as the search should call it in training: compiled, or in another precision, as asked for."""
        return self.forward.prepare(network, self.name, self.task.multiplications(self.schedule))

    def cost_term(self, *, strength: float | None = None, budget: float | None = None) -> CostTerm:
        """The cost term at the tuned strength and the budget of the run, or at others given."""
        chosen = self.knobs["strength"] if strength is None else strength
        return CostTerm(self.match, chosen, self.budget if budget is None else budget)

    def order(self, purpose: str = "search") -> torch.Generator:
        """The generator of the data's order: the same for all methods of a seed."""
        return generator("order", purpose, self.seed)

    def noise(self, purpose: str) -> torch.Generator:
        """A generator for a method's own random draws."""
        return generator("noise", purpose, self.seed)

    def epochs(
        self, parts: Mapping[str, Stateful] | None = None
    ) -> Iterator[tuple[int, Iterator[tuple[Tensor, Tensor]]]]:
        """The search's training epochs that are still to do: number and batches.

        Args:
            parts: All that the search carries over from epoch to epoch besides the order of the data; after an
                interruption they are set to where the search was. Without them it begins anew.
        """
        order = self.order()
        carried = None if parts is None else {**parts, "order": GeneratorState(order)}
        for epoch in self.numbered_epochs(carried):
            yield epoch, self.task.data.training_batches(self.schedule.batch_size, order)

    def numbered_epochs(self, parts: Mapping[str, Stateful] | None = None) -> Iterator[int]:
        """The same for searches that draw their batches otherwise: the numbers alone."""
        stage = UNINTERRUPTED if parts is None else self.stage(self.name)
        yield from stage.epochs(self.schedule.epochs, parts or {})

    @property
    def steps(self) -> int:
        """Updates in the whole search."""
        return self.schedule.epochs * self.task.data.batches_per_epoch(self.schedule.batch_size)


class Method(ABC):
    """A way to find a policy.

    Attributes:
        summary: One line for `bench list methods`.
        source: The paper, or whose definition it is, for `bench list methods --long`.
        deviations: What differs from the source, one sentence each; shown there too.
        capabilities: What it needs and can do.
        Options: Its options.
    """

    summary: ClassVar[str]
    source: ClassVar[str] = ""
    deviations: ClassVar[tuple[str, ...]] = ()
    capabilities: ClassVar[Capabilities]
    Options: ClassVar[type[options.Options]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """The options as JSON, defaults that depend on the network filled in; a part of what identifies a run."""
        stated: dict[str, Any] = self.options.model_dump(mode="json")
        return stated

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """The numbers that the harness tunes; "strength" is the one that is bracketed in mode "lambda"."""
        return {}

    def cheapest(self, network: NetworkShape) -> Policy | None:
        """The cheapest policy that the method can express; `None` when it ignores budgets."""
        return None

    @property
    def quantizer(self) -> QuantizerFactory:
        """The quantizer of the method's paper, used in fine-tuning with `recipe = "own"`."""
        return UniformQuantizer

    @abstractmethod
    def search(self, job: SearchJob) -> SearchResult:
        """Find a policy.

        Raises:
            UnreachableBudgetError: No policy of this method fits the budget.
            NonFiniteLossError: Training diverged.
        """
