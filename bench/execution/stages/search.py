"""Search: the method finds a policy, and repair moves it into the window of the budget."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import replicas
from bench.compression.policy import Policy, check, policy_from_json
from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget
from bench.costs.measures import BOPS, Measure
from bench.errors import BenchError, UnreachableBudgetError, place_of
from bench.execution.context import UnitContext
from bench.execution.records import plain
from bench.execution.stages.allowance import handed_on, updates_of_weights
from bench.matching.repair import Repair, repair
from bench.method import Decision, Method, SearchJob, SearchResult
from bench.spec.seeds import derive, start_process_deterministically
from bench.store.machine import peak_memory
from bench.training.checkpoints import INTERVAL_SECONDS


@dataclass(frozen=True, kw_only=True)
class MatchedSearch:
    """A search whose policy was repaired onto the budget.

    Attributes:
        result: Result of the method.
        policy: Policy after repair.
        repaired: Outcome of the repair; `None` when nothing was to be repaired.
        raw_cost: Cost of the method's own policy, in the unit of the budget's measure.
        updates: Updates of the search that the weights of the result have seen.
    """

    result: SearchResult
    policy: Policy
    repaired: Repair | None
    raw_cost: float
    updates: int

    @property
    def repaired_gates(self) -> int:
        """Number of decisions that repair changed, with those that a search of several stages repaired between them."""
        between = int(self.result.record.get("repaired_in_search", 0))
        return between + (0 if self.repaired is None else self.repaired.moved)

    def kept_quantizers(self) -> dict[str, torch.Tensor]:
        """Return the parameters of the method's own quantizers, without those of layers whose bits repair changed."""
        kept = {}
        for key, value in self.result.quantizers.items():
            layer = key.partition("_quantizer.")[0].rpartition(".")[0]
            before, after = self.result.policy.layers[layer], self.policy.layers[layer]
            if (before.weight_bits, before.activation_bits) == (after.weight_bits, after.activation_bits):
                kept[key] = value
        return kept


def matched_search(
    context: UnitContext,
    method: Method,
    budget: Budget | None,
    knobs: Mapping[str, float],
    pretrained: Mapping[str, torch.Tensor],
) -> MatchedSearch:
    """Search for a policy at given knobs and repair it onto the budget.

    Args:
        context: Context of the trial or run.
        method: Method that searches.
        budget: Target; `None` for methods that ignore it.
        knobs: Values of the method's knobs.
        pretrained: State of the pretrained network.
    """
    result = handed_on(context, _search(context, method, budget, knobs, pretrained), pretrained)
    if replicas.count() > 1:
        _check_replicas(type(method).__name__, result)
    repaired = None
    if context.spec.tuning.repair and budget is not None and result.decisions:
        repaired = repair(context.network, result.policy, result.decisions, budget)
    return MatchedSearch(
        result=result,
        policy=result.policy if repaired is None else repaired.policy,
        repaired=repaired,
        raw_cost=measure_of(budget).price(context.network, result.policy),
        updates=updates_of_weights(context, result, pretrained),
    )


def check_reachable(network: NetworkShape, method: Method, name: str, budget: Budget) -> None:
    """Make sure that the method's cheapest policy does not cost more than the budget, so that searches make sense.

    Raises:
        UnreachableBudgetError: It does.
    """
    cheapest = method.cheapest(network) if budget.measure.rises_with_bits else None
    if cheapest is None:
        return
    cost = budget.price(network, cheapest)
    if cost > budget.limit:
        raise UnreachableBudgetError(
            f"the cheapest policy of {name} costs {cost / budget.limit:.2f} × the budget", cost
        )


def measure_of(budget: Budget | None) -> Measure:
    """Return the measure that a budget limits; bit operations for no budget."""
    return BOPS if budget is None else budget.measure


def _search(
    context: UnitContext,
    method: Method,
    budget: Budget | None,
    knobs: Mapping[str, float],
    pretrained: Mapping[str, torch.Tensor],
) -> SearchResult:
    """Run the method's search, or take its result from a checkpoint when an earlier attempt finished it."""
    spec, seed = context.spec, context.unit.seed
    finished = _FinishedSearch()
    if context.checkpoints.restore("searched", {"searched": finished}) is None:
        start_process_deterministically(derive("search", seed), spec.threads)
        job = SearchJob(
            task=context.task,
            pretrained=pretrained,
            knobs=knobs,
            budget=math.inf if budget is None else budget.limit,
            measure=measure_of(budget),
            tolerance=spec.tuning.tolerance,
            match=spec.tuning.match,
            schedule=spec.search,
            seed=seed,
            report=context.curves.reporter("search"),
            stage=context.checkpoints.stage,
            forward=context.forward,
        )
        with context.phase("search"), peak_memory(context.device) as peak:
            finished.result = _checked(context.network, method, method.search(job))
            if context.device.type == "cuda":
                torch.cuda.synchronize(context.device)
        finished.peak_memory_mb = peak.megabytes
        if context.clock.seconds("search") > INTERVAL_SECONDS:
            context.checkpoints.write("searched", 1, {"searched": finished})
    if finished.result is None:
        raise ValueError("the checkpoint of the finished search holds no result")
    context.record["peak_memory_mb"] = finished.peak_memory_mb
    return finished.result


def _checked(network: NetworkShape, method: Method, result: Any) -> SearchResult:
    """Return what a search returned, after a check of its policy; nothing of it has been priced or stored yet.

    Raises:
        BenchError: It is no result, or its policy does not fit the network.
    """
    try:
        if not isinstance(result, SearchResult):
            raise BenchError(f"it is a {type(result).__name__}; expected a bench.api.SearchResult")
        check(network, result.policy)
    except BenchError as error:
        name, where = type(method).__name__, place_of(type(method).search)
        raise BenchError(f"the search of {name} ({where}) returned what is not valid: {error}") from error
    return result


@dataclass(kw_only=True)
class _FinishedSearch:
    """Result of a search, in a form that checkpoints can hold.

    Attributes:
        result: Result of the method.
        peak_memory_mb: Peak memory of the search.
    """

    result: SearchResult | None = None
    peak_memory_mb: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors as they are, and everything else as JSON."""
        if self.result is None:
            raise ValueError("the search has no result yet")
        document = {
            "policy": self.result.policy.to_json(),
            "clips": dict(self.result.clips),
            "normalized_weights": self.result.normalized_weights,
            "decisions": [asdict(decision) for decision in self.result.decisions],
            "record": self.result.record,
            "peak_memory_mb": self.peak_memory_mb,
        }
        return {
            "state": dict(self.result.state),
            "quantizers": dict(self.result.quantizers),
            "document": json.dumps(plain(document)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a result from a checkpoint."""
        document = json.loads(state["document"])
        self.peak_memory_mb = document.pop("peak_memory_mb")
        document["policy"] = policy_from_json(document["policy"])
        document["decisions"] = [decision_from_json(fields) for fields in document["decisions"]]
        self.result = SearchResult(state=state["state"], quantizers=state.get("quantizers", {}), **document)


def decision_from_json(fields: Mapping[str, Any]) -> Decision:
    """Make a decision from its fields as JSON has them."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Decision(**values)


def _check_replicas(method: str, result: SearchResult) -> None:
    """Make sure that all replicas found the same; a search that forgets to average gradients is noticed here.

    Raises:
        RuntimeError: They did not.
    """
    decisions = [(decision.layer, decision.what, decision.chosen) for decision in result.decisions]
    choice = json.dumps(plain([result.policy.to_json(), decisions]))
    replicas.check_alike(method, choice, result.state.values())
