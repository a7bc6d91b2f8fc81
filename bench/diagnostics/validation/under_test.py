"""The method under test, and its searches on the small task, which checks share."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.compression.policy import FULL_PRECISION_BITS, Policy, check, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget
from bench.costs.measures import BOPS
from bench.diagnostics.validation.observation import ObservedData
from bench.diagnostics.validation.small_task import GLOBAL_SEED, SmallTask, ignore
from bench.diagnostics.validation.verdicts import EndlessError, NotApplicable, Violation
from bench.errors import BenchError
from bench.matching.repair import Repair, repair
from bench.method import Method, SearchJob, SearchResult, Task
from bench.planning.methods import make_method
from bench.spec.schema import SearchSchedule
from bench.spec.seeds import start_process_deterministically

TOLERANCE = 0.03
"""Relative size of the window below a budget, the harness's default."""

_SCHEDULE = SearchSchedule(epochs=2, batch_size=32)
"""Two epochs of three updates, so that a search can be interrupted between epochs."""


@dataclass(kw_only=True)
class MethodUnderTest:
    """A method, and the results of its searches so far.

    Attributes:
        name: Name of the method.
        small_task: Task to search on.
        options: Options of the method.
        location: Location of a method in a file, `/path/file.py:Class`.
        policies: Policies of all searches so far, each with the description of its search.
        seconds: Duration of the plain search.
        extremes: Results of searches with a knob at an end of its range, by knob and end.
        varied: Result of the search in which everything was changed that must not matter.
    """

    name: str
    small_task: SmallTask
    options: Mapping[str, Any] = field(default_factory=dict)
    location: str | None = None
    policies: list[tuple[str, Policy]] = field(default_factory=list)
    seconds: float = 0.0
    varied: SearchResult | None = None
    extremes: dict[tuple[str, str], SearchResult] = field(default_factory=dict)
    _plain: SearchResult | None = None
    _observed: ObservedData | None = None

    def __post_init__(self) -> None:
        self.method = self.fresh()

    def fresh(self) -> Method:
        """Make a new instance of the method, as every run does."""
        return make_method(self.name, self.options, self.location)

    @property
    def task(self) -> Task:
        """Data and model of the small task."""
        return self.small_task.task

    @property
    def network(self) -> NetworkShape:
        """Shapes of the small task's network."""
        return self.task.network

    @property
    def strength_is_tuned(self) -> bool:
        """Whether the harness tunes the method's knobs to meet a budget."""
        return self.method.capabilities.budget == "strength"

    @property
    def ignores_budgets(self) -> bool:
        """Whether the method is a reference without a budget."""
        return self.method.capabilities.budget == "ignored"

    def price(self, policy: Policy) -> float:
        """Compute the BOPs of a policy."""
        return BOPS.price(self.network, policy)

    def cheapest(self) -> Policy | None:
        """Return the method's cheapest policy; `None` if it states none, or one that does not fit the network."""
        stated = self.method.cheapest(self.network)
        return stated if stated is not None and self.fits(stated) else None

    def fits(self, policy: Policy) -> bool:
        """Whether a policy fits the network."""
        try:
            check(self.network, policy)
        except (BenchError, AttributeError, TypeError):
            return False
        return True

    def budget(self) -> float:
        """Return a budget within the method's reach: the geometric mean of its lowest cost and that of 8 bits."""
        if self.ignores_budgets:
            return math.inf
        cheapest = self.cheapest()
        if cheapest is None:
            return self.price(uniform(self.network, 4))
        low, high = self.price(cheapest), self.price(uniform(self.network, 8))
        return math.sqrt(low * (high if low < high else self.price(uniform(self.network, FULL_PRECISION_BITS))))

    def knobs(self, **changed: float) -> dict[str, float]:
        """Set every knob of the default mode to the middle of its range, except those given."""
        return {**{name: knob.middle for name, knob in self.method.knobs("dual").items()}, **changed}

    def job(self, **changes: Any) -> SearchJob:
        """Make a search job with all knobs in the middle of their ranges; every job has tensors of its own."""
        values: dict[str, Any] = {
            "task": self.task,
            "pretrained": {name: value.clone() for name, value in self.small_task.pretrained.items()},
            "knobs": self.knobs() if self.strength_is_tuned else {},
            "match": "dual",
            "schedule": _SCHEDULE,
            "seed": 0,
            "report": ignore,
            "tolerance": TOLERANCE,
            **changes,
        }
        return SearchJob(**{"budget": self.budget() if "budget" not in values else 0.0, **values})

    def search(
        self, words: str, job: SearchJob, *, method: Method | None = None, global_seed: int = GLOBAL_SEED
    ) -> SearchResult:
        """Run a search as if it were alone in its process.

        Args:
            words: Description of the search, e.g. "repeated".
            job: Search job.
            method: Instance of the method; a new one by default.
            global_seed: Seed of the global generators of PyTorch, NumPy and Python.

        Raises:
            EndlessError: The search takes far longer than the plain one.
            Violation: The search does not return a `SearchResult`.
        """
        start_process_deterministically(global_seed, torch.get_num_threads())
        with at_most(self.small_task.patience + 20 * self.seconds):
            result = (method or self.fresh()).search(job)
        if not isinstance(result, SearchResult):
            raise Violation(f"search returned {type(result).__name__}, not a bench.method.SearchResult")
        self.policies.append((words, result.policy))
        return result

    def search_plainly(self) -> SearchResult:
        """Run the search that most checks look at, on observed data; it is run only once."""
        if self._plain is None:
            self._observed = ObservedData(self.task.data)
            job = self.job(task=self._observed.task(self.task))
            self._observed.pretrained = job.pretrained
            began = time.perf_counter()
            self._plain = self.search("plain", job)
            self.seconds = time.perf_counter() - began
        return self._plain

    @property
    def searched(self) -> SearchResult:
        """Result of the plain search.

        Raises:
            NotApplicable: The search failed, which another check reports.
        """
        if self._plain is None:
            raise NotApplicable("the search failed: see 'search'")
        return self._plain

    @property
    def plain(self) -> SearchResult:
        """Result of the plain search, if its policy fits the network.

        Raises:
            NotApplicable: The search failed, or its policy does not fit, which other checks report.
        """
        if not self.fits(self.searched.policy):
            raise NotApplicable("the policy does not fit the network: see 'policy'")
        return self.searched

    @property
    def observed(self) -> ObservedData:
        """Data of the plain search, with the observations of its use.

        Raises:
            NotApplicable: The search failed, which another check reports.
        """
        if self._plain is None or self._observed is None:
            raise NotApplicable("the search failed: see 'search'")
        return self._observed

    def repaired(self, result: SearchResult, limit: float) -> tuple[Policy, Repair | None]:
        """Repair a result for a budget, as the harness does; without decisions the policy is unchanged."""
        if not result.decisions:
            return result.policy, None
        budget = Budget(text="validation", limit=limit, tolerance=TOLERANCE)
        moved = repair(self.network, result.policy, result.decisions, budget)
        return moved.policy, moved


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the block by an exception when it takes too long. Signals limit this to the main thread.

    Raises:
        EndlessError: The block took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_: int, __: Any) -> None:
        raise EndlessError(f"it had not ended after {seconds:.0f} s, many times the duration of a plain search")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
