"""Mode "dual": one search of any method that chooses bits ends near its budget, from wherever it starts."""

from collections.abc import Callable

import pytest

from bench.costs.budget import Budget, parse_budget
from bench.matching.repair import Repair, repair
from bench.method import Method, SearchJob, SearchResult, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from methods.bayesian_bits import BayesianBits
from methods.djpq import Djpq
from methods.dnas import Dnas
from methods.dq import Dq
from methods.edmips import Edmips
from methods.multi_path import MultiPath
from methods.sbs import CostOnly, CostOnlyQ, Sbs, SbsQ

MakeJob = Callable[..., SearchJob]
ONE_STAGE: tuple[type[Method], ...] = (
    *(Sbs, SbsQ, CostOnly, CostOnlyQ, BayesianBits, Djpq, Dnas, Dq, Edmips, MultiPath),
)
LONG = SearchSchedule(epochs=15, batch_size=56)
"""75 updates on 320 digits."""


def searched(method: Method, job: SearchJob) -> tuple[SearchResult, Repair]:
    """A search, and what repair does to its policy."""
    found = method.search(job)
    budget = Budget(text="test", limit=job.budget, tolerance=job.tolerance)
    return found, repair(job.task.network, found.policy, found.decisions, budget)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["3bit", "4bit"])
@pytest.mark.parametrize("method", ONE_STAGE, ids=lambda method: method.__name__)
def test_one_search_ends_near_its_budget(make_job: MakeJob, task: Task, method: type[Method], budget: str) -> None:
    """From seven times the budget or from a fifth of it; a gate of this network is a tenth of the cost."""
    limit = parse_budget(budget, task.network, 0.03, AcceleratorSpec()).limit
    assert method().knobs("dual") == {}
    found, repaired = searched(method(), make_job(match="dual", knobs={}, budget=limit, schedule=LONG))
    # Without the task's gradient the gates of tensors that are alike move together; so do those of Bayesian Bits.
    assert repaired.moved <= (3 if method in (CostOnly, CostOnlyQ, BayesianBits) else 2)
    assert 0.97 * limit <= repaired.cost <= limit
    strengths = [entry["strength"] for entry in found.record["history"] if "strength" in entry]
    assert len(set(strengths)) > 10  # the warm-up of some methods has no cost term


def test_another_budget_is_another_course(make_job: MakeJob) -> None:
    """λ follows the budget, and nothing that a job has learned passes on to the next search."""
    job = make_job(match="dual", knobs={})
    first, again = Sbs().search(job), Sbs().search(job)
    other = Sbs().search(make_job(match="dual", knobs={}, budget=0.7 * job.budget))
    assert first.record == again.record
    assert first.record["history"] != other.record["history"]
