"""Margins of all methods: positive towards the next option, so that repair can tell a wish from reluctance."""

from collections.abc import Callable

import pytest

from bench.method import SearchJob
from bench.planning.methods import make_method

MakeJob = Callable[..., SearchJob]
STRENGTHS = {
    "sbs": 0.3,
    "multi_path": 0.1,
    "dnas": 0.1,
    "edmips": 0.1,
    "dq": 30.0,
    "djpq": 0.1,
    "bayesian_bits": 0.03,
    "fliqs": 0.1,
    "joint_mps": 0.1,
}
ON_BUDGET = {"greedy": {"batches": 1}, "hawq": {"draws": 3, "images": 32}}
"""Methods that fill a budget: they prefer more bits than it allows. Margins of `haq` are in its own tests."""


@pytest.mark.parametrize("name", sorted(STRENGTHS))
def test_a_search_by_gates_or_logits_prefers_its_own_choice(name: str, make_job: MakeJob) -> None:
    """At the borders of the choice; a gate further on may be open behind a shut one."""
    found = make_method(name, {}).search(make_job(knobs={"strength": STRENGTHS[name]}))
    assert found.decisions
    for decision in found.decisions:
        assert len(decision.margins) == len(decision.options) - 1
        if decision.chosen:
            assert decision.margins[decision.chosen - 1] >= 0
        if decision.chosen < len(decision.margins):
            assert decision.margins[decision.chosen] <= 0


@pytest.mark.parametrize("name", sorted(ON_BUDGET))
def test_a_search_that_the_budget_limits_states_the_gain_of_a_step(name: str, make_job: MakeJob) -> None:
    """By how much the measured loss or Ω falls from a candidate to the next one, whatever is chosen."""
    found = make_method(name, ON_BUDGET[name]).search(make_job(knobs={}))
    assert found.decisions
    for decision in found.decisions:
        low, middle, high = found.record["sensitivity"][f"{decision.layer}.{decision.what}"]
        assert decision.margins == (low - middle, middle - high)
