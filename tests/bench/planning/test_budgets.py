"""Budgets that methods cannot use up, or cannot meet: what is said, and what is refused, before anything runs."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.budget import parse_budget
from bench.costs.counter import price
from bench.costs.measures import Latency
from bench.errors import BenchError
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.planning.budgets import budget_notes
from bench.planning.methods import make_method
from bench.planning.plan import make_plan
from bench.plugins.entry_points import available
from bench.spec.schema import AcceleratorSpec


def planned(tiny: SimpleNamespace, **changes: Any) -> Any:
    return make_plan(tiny.spec({"methods": ["sbs", "fixed", "full_precision"], "seeds": [0], **changes}))


def test_the_costs_that_methods_can_have(tiny: SimpleNamespace) -> None:
    plan = planned(tiny, budgets=["4bit", "60KB"])
    found = {(reach.method, reach.budget.text): reach for reach in plan.reaches}
    assert found.keys() == {(method, budget) for method in ("sbs", "fixed") for budget in ("4bit", "60KB")}
    eight, sixteen = (price(plan.network, uniform(plan.network, bits)) for bits in (8, 16))
    assert found["sbs", "4bit"].costliest == eight.bops
    assert found["sbs", "60KB"].costliest == eight.memory_kb
    assert found["fixed", "60KB"].costliest == sixteen.memory_kb
    assert not any(reach.below or reach.above for reach in plan.reaches)


def test_a_budget_that_no_method_can_use_is_refused(tiny: SimpleNamespace) -> None:
    """At 300KB every network of these methods fits, so nothing would be compared."""
    network = planned(tiny).network
    most = price(network, uniform(network, 16)).memory_kb
    assert most < 0.97 * 300 < 300 < price(network, uniform(network, 32)).memory_kb
    with pytest.raises(BenchError) as caught:
        planned(tiny, budgets=["4bit", "300KB"])
    message = str(caught.value)
    assert message.startswith(
        "budget '300KB' is 300.000 KB, more than any network that the study's methods can find on"
    )
    assert f"the costliest is that of fixed, {most:.3f} KB; give that much or less with --budget" in message
    assert planned(tiny, budgets=[f"{most:.3f}KB"]).reaches
    assert planned(tiny, budgets=["300KB"], methods=["full_precision"]).runs


def test_a_budget_that_some_methods_cannot_use_is_told(tiny: SimpleNamespace) -> None:
    plan = planned(tiny, budgets=["10bit"])
    (line,) = budget_notes(plan.reaches)
    limit, most = (price(plan.network, uniform(plan.network, bits)).bops for bits in (10, 8))
    assert line == (
        f"budget 10bit on resnet8 ({limit:,} BOPs) is above the costliest network of sbs ({most:,} BOPs): what they "
        "find is not matched to it, and is compared with nothing"
    )


def test_a_budget_that_a_method_cannot_meet_is_told_and_stays_a_result(tiny: SimpleNamespace) -> None:
    plan = planned(tiny, budgets=["0.002x"], methods=["fixed"])
    (line,) = budget_notes(plan.reaches)
    least = price(plan.network, uniform(plan.network, 1)).bops
    assert line.endswith(f"is below the cheapest network of fixed ({least:,} BOPs): out of their reach")
    assert len(plan.runs) == 1


def test_the_window_of_a_budget_just_above_the_costliest_network_contains_it(tiny: SimpleNamespace) -> None:
    network = planned(tiny).network
    most = price(network, uniform(network, 8)).memory_kb
    assert planned(tiny, methods=["sbs"], budgets=[f"{1.02 * most:.2f}KB"]).runs
    with pytest.raises(BenchError, match="more than any network"):
        planned(tiny, methods=["sbs"], budgets=[f"{1.04 * most:.2f}KB"])


def test_on_the_accelerator_nothing_has_more_bits_than_it_computes(tiny: SimpleNamespace) -> None:
    plan = planned(tiny, budgets=["6bit:ms"])
    most = Latency(AcceleratorSpec()).price(plan.network, uniform(plan.network, 8))
    assert {reach.costliest for reach in plan.reaches} == {most}


def test_an_ablated_option_that_cannot_use_the_budget_is_told(tiny: SimpleNamespace) -> None:
    plan = planned(tiny, methods=["sbs"], budgets=["7bit"], ablate={"bits": [[2, 4]]})
    (line,) = budget_notes(plan.reaches)
    assert "above the costliest network of sbs[bits=2+4]" in line


class Mute(Method):
    """States no costs, or fails to."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")

    def cheapest(self, network: NetworkShape) -> Policy:
        raise ValueError("not here")

    def search(self, job: SearchJob) -> SearchResult:
        raise NotImplementedError


def test_what_a_method_does_not_say_is_not_held_against_a_budget(tiny: SimpleNamespace, plugin: Any) -> None:
    plugin("methods", "mute", Mute)
    plan = planned(tiny, methods=["mute", "sbs"], budgets=["300KB"])
    assert [(reach.method, reach.cheapest is None, reach.costliest is None) for reach in plan.reaches] == [
        ("mute", True, True),
        ("sbs", False, False),
    ]
    (line,) = budget_notes(plan.reaches)
    assert "above the costliest network of sbs (" in line and "mute" not in line


def _options(name: str) -> Mapping[str, Any]:
    return {} if name in ("fixed", "width", "hesso", "sbs_p") else {"bits": [2, 4]}


@pytest.mark.parametrize("name", sorted(set(available("methods")) - {"full_precision"}))
def test_every_method_says_what_it_can_cost(tiny: SimpleNamespace, name: str) -> None:
    """The costliest network of methods that choose among 2 and 4 bit is the uniform one of 4 bit, unpruned."""
    network = planned(tiny).network
    method = make_method(name, _options(name))
    cheapest, costliest = method.cheapest(network), method.costliest(network)
    assert cheapest is not None and costliest is not None
    expected = {"fixed": 16, "width": 16, "hesso": 16, "sbs_p": 32}.get(name, 4)
    assert price(network, costliest) == price(network, uniform(network, expected))
    assert price(network, cheapest).bops < price(network, costliest).bops
    assert parse_budget(f"{expected}bit", network, 0.0).matches(price(network, costliest).bops)
