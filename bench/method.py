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

from bench.compression.compress import restore_state
from bench.compression.policy import FULL_PRECISION_BITS, Policy, uniform
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.costs.measures import BOPS, Measure
from bench.costs.term import CostTerm, CostTerms
from bench.data.task_data import TaskData
from bench.spec import options
from bench.spec.schema import Match, Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.checkpoints import UNINTERRUPTED, GeneratorState, Stage, Stateful
from bench.training.forward import PLAIN, Forward


class NoOptions(options.Options):
    """Options of a method that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """Abilities and needs of a method. A policy may only use abilities that the method declares.

    Attributes:
        budget: Way in which the method meets a budget. "strength": the harness brings it there by λ; "direct": the
            method is given the budget and meets it in one search; "ignored": the method has no budget (a reference).
        prunes: Whether it removes filters.
        mixed_precision: Whether it chooses bits layer by layer.
        full_precision: Whether its searches keep layers at full precision, which accelerators cannot compute.
        own_quantizer: Whether it has a quantizer of its own for `recipe = "own"`.
        one_stage: Whether its paper trains once, without separate fine-tuning. Here its network is fine-tuned like all
            others, and reports say so.
        data_parallel: Whether one search can be divided among several devices; see `bench.replicas`.
    """

    budget: Literal["strength", "direct", "ignored"]
    prunes: bool = False
    mixed_precision: bool = False
    full_precision: bool = False
    own_quantizer: bool = False
    one_stage: bool = False
    data_parallel: bool = False

    def in_words(self) -> tuple[str, ...]:
        """Describe the abilities, for `bench list methods --long`."""
        budgets = {
            "strength": "the harness brings it onto the budget by λ",
            "direct": "meets a budget in one search",
            "ignored": "a reference without a budget",
        }
        abilities = {
            "removes filters": self.prunes,
            "chooses bits layer by layer": self.mixed_precision,
            "searches at full precision": self.full_precision,
            "has a quantizer of its own (recipe = own)": self.own_quantizer,
            "trained once in its paper and fine-tuned here": self.one_stage,
            "runs on several devices": self.data_parallel,
        }
        return budgets[self.budget], *(words for words, has in abilities.items() if has)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """Range of a number that the harness tunes for a method.

    Attributes:
        low, high: Ends of the range.
        log: Whether the range is searched on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    @property
    def middle(self) -> float:
        """Middle of the range: the geometric mean on a logarithmic scale, the arithmetic mean on a linear one."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2


STRENGTH = Knob(low=1e-3, high=10.0, log=True)
"""Range of λ, the same for all methods, since λ is in units of the loss: a factor of e in cost is worth λ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One discrete choice of a search that repair may change.

    All groups of filters of a layer may be up for decision. A search must keep one of them, and repair never drops the
    last one that is left.

    Attributes:
        layer: Name of the layer.
        what: Subject of the choice: bits of weights, bits of activations, or one group of filters.
        options: Possible choices, from cheap to costly: bits; for filters `(0, 1)`, dropped or kept.
        chosen: Index of the search's choice.
        margins: Preferences of the search between neighbouring options, in the method's own unit. Entry i is between
            options i and i + 1, and positive if the search prefers i + 1. A preference against the choice is one that
            the budget overruled: repair follows it first.
        filters: Indices of the group's filters.
    """

    layer: str
    what: Literal["weight_bits", "activation_bits", "filters"]
    options: tuple[int, ...]
    chosen: int
    margins: tuple[float, ...]
    filters: tuple[int, ...] = ()


@dataclass(kw_only=True)
class SearchResult:
    """Result of a search.

    Attributes:
        policy: Policy that the search found.
        state: Weights and buffers of the full network, under the names of the float model.
        clips: Clip values by "<layer>.weight" and "<layer>.activation", for the common quantizer.
        quantizers: Learned parameters of the method's own quantizers, for `recipe = "own"`, under the names that they
            have in the compressed network: "<layer>.weight_quantizer.<parameter>", "<layer>.activation_quantizer.…".
        normalized_weights: Whether convolution weights are standardised before they are quantized.
        decisions: Decisions that repair may change; empty for none.
        record: Curves and figures of the search as JSON values; `history` is a list with one dictionary an epoch.
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
        data: Training, validation and test data.
        network: Shapes of the model.
        make_model: Function that builds a new float model on the device, initialised from PyTorch's global generator.
    """

    data: TaskData
    network: NetworkShape
    make_model: Callable[[], nn.Module]

    @property
    def device(self) -> torch.device:
        """Device of the data and the model."""
        return self.data.device

    def multiplications(self, schedule: Schedule | SearchSchedule) -> int:
        """Return the number of multiplications in the forward passes of a stage with the full network."""
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
        knobs: Values that the harness chose for the method's knobs.
        budget: Largest cost of the final policy, in the unit of `measure`; infinite for methods that ignore it.
        measure: Measure that the budget limits: bit operations, memory, latency or energy.
        tolerance: Width of the window below the budget, as a share of the budget.
        match: Mode of the cost term.
        schedule: Length and learning rates of the search.
        seed: Seed of the run; the same for every method.
        report: Function to call after each epoch with figures to show and keep.
        stage: Function that makes a stage with checkpoints, by name. By default, an interrupted search starts over.
        name: Name of the search's stage; methods that search in several stages give each its own.
        forward: Way in which networks are evaluated in training.
        terms: Cost terms that the search has made.
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
    terms: CostTerms = field(default_factory=CostTerms, init=False, compare=False, repr=False)

    def float_model(self) -> nn.Module:
        """Make a float model with the pretrained weights."""
        model = self.task.make_model()
        restore_state(model, self.pretrained)
        return model

    def price(self, policy: Policy) -> float:
        """Return the cost of a policy in the unit of the budget."""
        return self.measure.price(self.task.network, policy)

    def in_training(self, network: nn.Module) -> Callable[..., Any]:
        """Return a network in the form that the search should call in training: compiled or in another precision."""
        return self.forward.prepare(network, self.name, self.task.multiplications(self.schedule))

    def cost_term(
        self, *, strength: float | None = None, budget: float | None = None, updates: int | None = None
    ) -> CostTerm:
        """Make the cost term; by default with the tuned strength and the budget of the run.

        Checkpoints of the search keep what the term learns during it.

        Args:
            strength: λ of modes "hinge" and "lambda".
            budget: B, in the unit of `measure`.
            updates: Number of updates in which the term acts, if it is not added to the loss of every update.
        """
        chosen = None if self.match == "dual" else self.knobs["strength"] if strength is None else strength
        return self.terms.make(
            self.match,
            chosen,
            self.budget if budget is None else budget,
            tolerance=self.tolerance,
            updates=self.steps if updates is None else updates,
        )

    def order(self, purpose: str = "search") -> torch.Generator:
        """Make the generator of the order of the data; it is the same for all methods of a seed."""
        return generator("order", purpose, self.seed)

    def noise(self, purpose: str) -> torch.Generator:
        """Make a generator for a method's own random numbers."""
        return generator("noise", purpose, self.seed)

    def epochs(
        self, state: Mapping[str, Stateful] | None = None
    ) -> Iterator[tuple[int, Iterator[tuple[Tensor, Tensor]]]]:
        """Yield the search's training epochs that are left: number and batches.

        Args:
            state: Objects that change from epoch to epoch, by name, without the order of the data. After an
                interruption they are restored, and the search continues. Without them it starts over.
        """
        order = self.order()
        kept = None if state is None else {**state, "order": GeneratorState(order)}
        for epoch in self.numbered_epochs(kept):
            yield epoch, self.task.data.training_batches(self.schedule.batch_size, order)

    def numbered_epochs(self, state: Mapping[str, Stateful] | None = None) -> Iterator[int]:
        """Yield the numbers of the epochs that are left, for searches that draw their batches in their own way.

        Args:
            state: Objects that change from epoch to epoch, as for `epochs`.
        """
        stage = UNINTERRUPTED if state is None else self.stage(self.name)
        moving = {"cost terms": self.terms} if self.match == "dual" else {}
        try:
            yield from stage.epochs(self.schedule.epochs, {**(state or {}), **moving})
        finally:
            self.terms.clear()

    @property
    def steps(self) -> int:
        """Number of updates in the whole search."""
        return self.schedule.epochs * self.task.data.batches_per_epoch(self.schedule.batch_size)


class Method(ABC):
    """A way to find a policy.

    Attributes:
        summary: One line for `bench list methods`.
        family: Kind of search in a word or two, e.g. "learned gates", by which the leaderboard filters.
        source: Paper or other origin of the definition, for `bench list methods --long`.
        deviations: Differences from the source, one sentence each, for the same command.
        capabilities: Abilities and needs.
        Options: Class of the options.
    """

    summary: ClassVar[str]
    family: ClassVar[str] = "other"
    source: ClassVar[str] = ""
    deviations: ClassVar[tuple[str, ...]] = ()
    capabilities: ClassVar[Capabilities]
    Options: ClassVar[type[options.Options]] = NoOptions

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options as JSON values, with defaults that depend on the network; they are part of a run's id."""
        stated: dict[str, Any] = self.options.model_dump(mode="json")
        return stated

    def knobs(self, match: Match) -> Mapping[str, Knob]:
        """Return the numbers that the harness tunes.

        Modes "lambda" and "hinge" bring "strength" onto the budget. In mode "dual" λ moves during the search, so that
        methods with a cost term have no strength to tune. By default there is no other knob.
        """
        return {"strength": STRENGTH} if self.capabilities.budget == "strength" and match != "dual" else {}

    def cheapest(self, network: NetworkShape) -> Policy | None:
        """Return the cheapest policy that the method can find; `None` when it ignores budgets."""
        return None

    def costliest(self, network: NetworkShape) -> Policy | None:
        """Return the costliest policy that the method can find; `None` when it ignores budgets, or when not known.

        Bits above those that a budget's measure can price are lowered to these.
        """
        return None

    @property
    def quantizer(self) -> QuantizerFactory:
        """Quantizer of the method's paper, used in fine-tuning with `recipe = "own"`."""
        return UniformQuantizer

    @abstractmethod
    def search(self, job: SearchJob) -> SearchResult:
        """Find a policy.

        Raises:
            UnreachableBudgetError: No policy of this method fits the budget.
            NonFiniteLossError: Training diverged.
        """
