"""Check the costs of every run: its policies are priced again, and its budget is read again."""

import math
from collections.abc import Iterator

from bench.compression.policy import load_policy
from bench.compression.shapes import NetworkShape
from bench.costs.breakdown import breakdown
from bench.costs.budget import Budget, parse_budget
from bench.costs.measures import BOPS
from bench.diagnostics.submission.submission import Submission, SubmittedUnit, network_of, outcome
from bench.diagnostics.verify import CheckLine
from bench.results.tables import section

WHAT = "costs of the policies, counted again"
_ROUNDING = 1e-9


def check(submission: Submission) -> CheckLine:
    """Check the costs of all runs.

    Raises:
        NotChecked: A network cannot be built here.
        BenchError: A policy is damaged or does not fit its network.
    """
    faults = [f"{run.title}: {fault}" for run in submission.runs for fault in _faults(submission, run)]
    return outcome(WHAT, faults, f"those of {len(submission.runs)} runs are equal")


def budget_of(unit: SubmittedUnit, network: NetworkShape) -> Budget | None:
    """Return the budget of a unit, read again; `None` for none."""
    text = unit.record.get("budget")
    return None if text is None else parse_budget(str(text), network, unit.spec.tuning.tolerance, unit.spec.accelerator)


def _faults(submission: Submission, run: SubmittedUnit) -> Iterator[str]:
    network, folder = network_of(run.spec), submission.store.unit("runs", run.identity)
    policy, budget = load_policy(folder / "policy.json"), budget_of(run, network)
    measure = BOPS if budget is None else budget.measure
    cost = measure.price(network, policy)
    # On the shapes of the full network; runs count the network that is left after pruning.
    counted = {**breakdown(run.spec.accelerator, network, policy).metrics(), "cost": cost}
    if (folder / "raw_policy.json").exists():
        counted["raw_cost"] = measure.price(network, load_policy(folder / "raw_policy.json"))
    recorded = section(run.record, "metrics")
    for name, value in counted.items():
        if name in recorded and not _same(recorded[name], value):
            yield f"{name} is {value:,}, and {recorded[name]:,} is recorded" if _both(recorded[name], value) else name
    if budget is not None and not _same(run.record.get("budget_cost"), budget.limit):
        yield f"the budget is {budget.limit:,}, and {run.record.get('budget_cost')} is recorded"
    if budget is not None and run.record.get("within_budget") != budget.matches(cost):
        yield f"its cost of {cost:,} is{'' if budget.matches(cost) else ' not'} in the window of its budget"


def _both(first: object, second: object) -> bool:
    return isinstance(first, int | float) and isinstance(second, int | float)


def _same(recorded: object, counted: float | None) -> bool:
    if recorded is None or counted is None or isinstance(recorded, bool) or not isinstance(recorded, int | float):
        return recorded is counted
    return math.isclose(recorded, counted, rel_tol=_ROUNDING)
