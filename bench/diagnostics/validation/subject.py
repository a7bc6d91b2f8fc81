"""A method on trial: a small task, and searches on it that checks share."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.compression.policy import FULL_PRECISION_BITS, Policy, check, uniform
from bench.compression.shapes import trace
from bench.costs.budget import Budget
from bench.costs.measures import BOPS
from bench.data.dataset import Dataset
from bench.data.task_data import TaskData
from bench.diagnostics.validation.watching import WatchedData
from bench.errors import BenchError
from bench.matching.repair import Repair, repair
from bench.method import Method, SearchJob, SearchResult, Task
from bench.models.build import build_model
from bench.planning.plan import make_method
from bench.plugins.registry import load
from bench.spec.schema import Schedule, SearchSchedule
from bench.spec.seeds import generator, start_process_deterministically
from bench.training.loop import fit

TOLERANCE = 0.03
"""Width of the window below a budget, the harness's default."""

_IMAGES = 96
_VALIDATION_IMAGES = 100
_SCHEDULE = SearchSchedule(epochs=2, batch_size=32)
"""Two epochs of three updates: enough to be interrupted in between."""
_PRETRAINING = Schedule(epochs=4, batch_size=32, lr=0.05)
_GLOBAL_SEED = 17


class Violation(Exception):  # noqa: N818  (what a check found, not an error of the program)
    """The method does not keep the contract; the message says how, for its author."""


class NotApplicable(Exception):  # noqa: N818
    """A check says nothing of this method; the message says why."""


class EndlessError(Exception):
    """A search took many times longer than the method's plain one."""


@dataclass(frozen=True, kw_only=True)
class SmallTask:
    """What methods are tried on.

    Attributes:
        task: A small task.
        pretrained: State of a float model that has learned a little.
        patience: Seconds that a search may take in any case.
    """

    task: Task
    pretrained: Mapping[str, Tensor]
    patience: float = 60.0


def make_ground(model: str = "resnet8", dataset: str = "digits", data_dir: Path | None = None) -> SmallTask:
    """A few images of a data set, and a network that has been trained on them for some updates.

    Args:
        model: Its name.
        dataset: Its name.
        data_dir: Where data sets are looked for.

    Raises:
        BenchError: A name is unknown, or the data are missing.
    """
    kind: type[Dataset] = load("datasets", dataset)
    described = kind.described(data_dir=data_dir)
    start_process_deterministically(_GLOBAL_SEED, torch.get_num_threads())
    data = TaskData(
        described,
        described.load(data_dir),
        validation_fraction=0.1,
        device=torch.device("cpu"),
        train_images=max(_IMAGES, described.num_classes),
    )
    few = generator("validation images")
    data.validation = data.validation.take(torch.randperm(len(data.validation), generator=few)[:_VALIDATION_IMAGES])
    shape, classes = described.image_shape, described.num_classes
    network = trace(build_model(model, shape, classes), shape, name=model, dataset=dataset)
    task = Task(data=data, network=network, make_model=lambda: build_model(model, shape, classes))
    trained = task.make_model()
    fit(trained, data, _PRETRAINING, generator("pretraining"), _unheard)
    return SmallTask(
        task=task, pretrained={name: value.detach().clone() for name, value in trained.state_dict().items()}
    )


@dataclass(kw_only=True)
class MethodUnderTest:
    """A method and what its searches found so far.

    Attributes:
        name: Of the method.
        ground: What it is tried on.
        options: Its options.
        place: `/path/file.py:Class` of a method in a file.
        found: Policies of all searches so far, after "what it was searched with".
        seconds: Of the plain search.
        extremes: Of searches with a knob at an end of its range, by knob and end.
        varied: What a search found with everything changed that must not matter.
    """

    name: str
    ground: SmallTask
    options: Mapping[str, Any] = field(default_factory=dict)
    place: str | None = None
    found: list[tuple[str, Policy]] = field(default_factory=list)
    seconds: float = 0.0
    varied: SearchResult | None = None
    extremes: dict[tuple[str, str], SearchResult] = field(default_factory=dict)
    _plain: SearchResult | None = None
    _watched: WatchedData | None = None

    def __post_init__(self) -> None:
        self.method = self.fresh()

    def fresh(self) -> Method:
        """The method anew, as every run makes it."""
        return make_method(self.name, self.options, self.place)

    @property
    def strength_is_tuned(self) -> bool:
        """Whether the harness tunes the method's knobs onto a budget."""
        return self.method.capabilities.budget == "strength"

    @property
    def ignores_budgets(self) -> bool:
        """Whether it is a reference."""
        return self.method.capabilities.budget == "ignored"

    def price(self, policy: Policy) -> float:
        """BOPs of a policy."""
        return BOPS.price(self.ground.task.network, policy)

    def cheapest(self) -> Policy | None:
        """What the method says that its cheapest policy is; `None` also for one that does not fit the network."""
        stated = self.method.cheapest(self.ground.task.network)
        return stated if stated is not None and self.fits(stated) else None

    def fits(self, policy: Policy) -> bool:
        """Whether a policy can be priced and carried out."""
        try:
            check(self.ground.task.network, policy)
        except (BenchError, AttributeError, TypeError):
            return False
        return True

    def budget(self) -> float:
        """A budget well inside what the method can express: halfway, in factors, between cheapest and dearest."""
        network = self.ground.task.network
        if self.ignores_budgets:
            return math.inf
        cheapest = self.cheapest()
        if cheapest is None:
            return self.price(uniform(network, 4))
        low, high = self.price(cheapest), self.price(uniform(network, 8))
        return math.sqrt(low * (high if low < high else self.price(uniform(network, FULL_PRECISION_BITS))))

    def knobs(self, **changed: float) -> dict[str, float]:
        """Every knob in the middle of its range, but for those given; nothing where none is tuned."""
        return {**{name: knob.middle for name, knob in self.method.knobs("hinge").items()}, **changed}

    def job(self, **changes: Any) -> SearchJob:
        """A search for the budget in the middle of all knobs' ranges; every call has tensors of its own."""
        values: dict[str, Any] = {
            "task": self.ground.task,
            "pretrained": {name: value.clone() for name, value in self.ground.pretrained.items()},
            "knobs": self.knobs() if self.strength_is_tuned else {},
            "match": "hinge",
            "schedule": _SCHEDULE,
            "seed": 0,
            "report": _unheard,
            "tolerance": TOLERANCE,
            **changes,
        }
        return SearchJob(**{"budget": self.budget() if "budget" not in values else 0.0, **values})

    def search(
        self, words: str, job: SearchJob, *, method: Method | None = None, global_seed: int = _GLOBAL_SEED
    ) -> SearchResult:
        """A search as a run of its own would make it.

        Args:
            words: What is special about it.
            job: What to do.
            method: Another instance than a fresh one.
            global_seed: Of PyTorch's, NumPy's and Python's generators.

        Raises:
            EndlessError: It takes far longer than the plain search.
            Violation: It returns something else than a result.
        """
        start_process_deterministically(global_seed, torch.get_num_threads())
        with at_most(self.ground.patience + 20 * self.seconds):
            result = (method or self.fresh()).search(job)
        if not isinstance(result, SearchResult):
            raise Violation(f"search returned {type(result).__name__}, not a bench.method.SearchResult")
        self.found.append((words, result.policy))
        return result

    def search_plainly(self) -> SearchResult:
        """The search that most checks look at, made once, on data that note who reads the test part."""
        if self._plain is None:
            self._watched = WatchedData(self.ground.task.data)
            job = self.job(task=self._watched.task(self.ground.task))
            self._watched.pretrained = job.pretrained
            began = time.perf_counter()
            self._plain = self.search("plain", job)
            self.seconds = time.perf_counter() - began
        return self._plain

    @property
    def searched(self) -> SearchResult:
        """The plain search's result.

        Raises:
            NotApplicable: It failed, which is a check's business of its own.
        """
        if self._plain is None:
            raise NotApplicable("the search failed: see 'search'")
        return self._plain

    @property
    def plain(self) -> SearchResult:
        """The same, with a policy that can be priced.

        Raises:
            NotApplicable: It cannot, or the search failed; both are a check's business of its own.
        """
        if not self.fits(self.searched.policy):
            raise NotApplicable("the policy does not fit the network: see 'policy'")
        return self.searched

    @property
    def watched(self) -> WatchedData:
        """What the plain search did with the data."""
        if self._plain is None or self._watched is None:
            raise NotApplicable("the search failed: see 'search'")
        return self._watched

    def repaired(self, result: SearchResult, limit: float) -> tuple[Policy, Repair | None]:
        """What the harness makes of a result for a budget."""
        if not result.decisions:
            return result.policy, None
        budget = Budget(text="validation", limit=limit, tolerance=TOLERANCE)
        moved = repair(self.ground.task.network, result.policy, result.decisions, budget)
        return moved.policy, moved


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End the block by an exception when it takes longer; only where signals arrive, in the main thread.

    Raises:
        EndlessError: It took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: Any) -> None:
        raise EndlessError(f"it was not done after {seconds:.0f} s, many times as long as a search usually takes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of several names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _unheard(_: Mapping[str, float]) -> None:
    """A report that nobody reads."""
