"""Checks of how a method meets budgets: within and out of reach, and at the ends of its knobs' ranges."""

import math
import operator
from collections.abc import Callable

from bench.compression.policy import Policy
from bench.diagnostics.validation.results import check_finite, valid_policy
from bench.diagnostics.validation.under_test import TOLERANCE, MethodUnderTest
from bench.diagnostics.validation.verdicts import NotApplicable, Violation
from bench.errors import UnreachableBudgetError
from bench.method import Knob, SearchResult
from bench.spec.schema import Match

_IMPOSSIBLE = 0.5
"""Budget that nothing meets, relative to the cost of the cheapest policy."""
_TIGHT = 1 + TOLERANCE / 3
"""Budget with the cheapest policy in its window, relative to the cost of that policy."""
_CLOSE = 1e-6


def within_reach(under_test: MethodUnderTest) -> str:
    """Check that a policy costs no more than the budget after the harness's repair."""
    result, limit = under_test.plain, under_test.budget()
    if under_test.ignores_budgets:
        raise NotApplicable("budget='ignored': there is no budget to meet")
    policy, moved = under_test.repaired(result, limit)
    share = under_test.price(policy) / limit
    if moved is None and under_test.strength_is_tuned:
        raise NotApplicable(
            f"no decisions: tuning alone must meet the budget; the plain search ends at {share:.2f} of it"
        )
    if share > 1:
        reason = "there are no decisions for repair to change" if moved is None else "its decisions allow no lower cost"
        raise Violation(f"the policy costs {share:.2f} × a budget that is within reach; {reason}")
    steps = "" if moved is None else f" after repair changed {moved.moved} decisions"
    outside = "" if share >= 1 - TOLERANCE else f", below the window, which begins at {1 - TOLERANCE:.2f}"
    return f"{share:.3f} of the budget{steps}{outside}"


def cheapest(under_test: MethodUnderTest) -> str:
    """Check that the cheapest policy is valid and can be reached, and that no search found a cheaper one."""
    _, stated = under_test.plain, under_test.method.cheapest(under_test.network)
    if stated is None:
        undefined = "cheapest() is not defined: only trials show that a budget is out of reach"
        raise NotApplicable("budget='ignored'" if under_test.ignores_budgets else undefined)
    least = _bound(under_test, stated, "cheapest", operator.lt)
    return f"{least:,.0f} BOPs, {_reached(under_test, least)}"


def costliest(under_test: MethodUnderTest) -> str:
    """Check that the costliest policy is valid, and that no search found a costlier one."""
    _, stated = under_test.plain, under_test.method.costliest(under_test.network)
    if stated is None:
        undefined = "costliest() is not defined: a budget above all that it finds is only noticed afterwards"
        raise NotApplicable("budget='ignored'" if under_test.ignores_budgets else undefined)
    return f"{_bound(under_test, stated, 'costliest', operator.gt):,.0f} BOPs"


def _bound(under_test: MethodUnderTest, stated: Policy, name: str, beyond: Callable[[float, float], bool]) -> float:
    """Return the cost of the policy that a method states as an extreme; no search may have found one beyond it."""
    valid_policy(under_test, stated)
    bound = under_test.price(stated)
    for words, policy in under_test.policies:
        if beyond(under_test.price(policy), bound):
            raise Violation(
                f"the {words} search found a policy of {under_test.price(policy):,.0f} BOPs, but {name}() says that "
                f"none costs {'less' if beyond is operator.lt else 'more'} than {bound:,.0f}; budgets in between would "
                "be called out of reach"
            )
    return bound


def _reached(under_test: MethodUnderTest, least: float) -> str:
    """Check that a search with a budget just above the cost of the cheapest policy meets it."""
    limit = least * _TIGHT
    try:
        result = under_test.search("tight", under_test.job(budget=limit))
    except UnreachableBudgetError as error:
        raise Violation(
            f"cheapest() costs {least:,.0f} BOPs, but a budget of {limit:,.0f} is called out of reach"
        ) from error
    policy, moved = under_test.repaired(result, limit)
    cost = under_test.price(policy)
    if cost <= limit:
        return "and reached"
    if under_test.strength_is_tuned and (moved is None or len(under_test.method.knobs("hinge")) > 1):
        return f"; with knobs in the middle the search ends at {cost:,.0f}, only tuning can tell whether it is reached"
    raise Violation(
        f"cheapest() costs {least:,.0f} BOPs, but with a budget of {limit:,.0f} the search ends at {cost:,.0f}"
    )


def out_of_reach(under_test: MethodUnderTest) -> str:
    """Check that an impossible budget is reported in finite time, with the cost of the cheapest policy."""
    if under_test.ignores_budgets:
        raise NotApplicable("budget='ignored': no budget is impossible")
    _ = under_test.plain
    stated = under_test.cheapest()
    least = None if stated is None else under_test.price(stated)
    limit = _IMPOSSIBLE * (under_test.budget() / 1e6 if least is None else least)
    try:
        under_test.search("impossible", under_test.job(budget=limit))
    except UnreachableBudgetError as error:
        _check_nearest(error, limit, least)
        return f"a budget of {limit:,.0f} BOPs is out of reach, the nearest cost is {error.nearest:,.0f}"
    if not under_test.strength_is_tuned:
        raise Violation(f"a budget of {limit:,.0f} BOPs, which nothing meets, ends without UnreachableBudgetError")
    when = "by cheapest(), before any search" if least is not None else "after all trials: define cheapest()"
    return f"a budget of {limit:,.0f} BOPs is out of reach; the harness knows this {when}"


def _check_nearest(error: UnreachableBudgetError, limit: float, least: float | None) -> None:
    nearest = error.nearest
    if not math.isfinite(nearest) or nearest <= limit:
        raise Violation(
            f"UnreachableBudgetError names {nearest:,.0f} as the nearest cost, with a budget of {limit:,.0f}"
        )
    if least is not None and not math.isclose(nearest, least, rel_tol=_CLOSE):
        raise Violation(
            f"UnreachableBudgetError names {nearest:,.0f} as the nearest cost, cheapest() costs {least:,.0f}"
        )


def extremes(under_test: MethodUnderTest) -> str:
    """Check that searches at both ends of every knob's range give a valid policy and finite weights."""
    if not under_test.strength_is_tuned:
        raise NotApplicable(f"budget='{under_test.method.capabilities.budget}': nothing is tuned")
    _ = under_test.plain
    for name in under_test.method.knobs("hinge"):
        for end in ("low", "high"):
            result = at_end(under_test, name, end)
            valid_policy(under_test, result.policy)
            check_finite(result)
    return f"{', '.join(under_test.method.knobs('hinge'))}: valid and finite at both ends"


def strength(under_test: MethodUnderTest) -> str:
    """Check that with the cost term λ log R a high strength does not give a costlier network than a low one."""
    if not under_test.strength_is_tuned:
        raise NotApplicable(f"budget='{under_test.method.capabilities.budget}': there is no strength")
    _ = under_test.plain
    low, high = (under_test.price(at_end(under_test, "strength", end).policy) for end in ("low", "high"))
    if high > low:
        raise Violation(
            f"at the highest strength the network costs {high:,.0f} BOPs, at the lowest {low:,.0f}; a larger strength "
            "must mean a cheaper network, since the harness brackets the budget on this assumption"
        )
    return f"{low:,.0f} BOPs at the lowest strength, {high:,.0f} at the highest"


def at_end(under_test: MethodUnderTest, name: str, end: str) -> SearchResult:
    """Search with a knob at an end of its range and the others in the middle.

    The cost term is λ log R if the method has the knob in that mode.
    """
    if (name, end) not in under_test.extremes:
        match: Match = "lambda" if name in under_test.method.knobs("lambda") else "hinge"
        ranges = under_test.method.knobs(match)
        values = {other: knob.middle for other, knob in ranges.items()} | {name: _end(ranges[name], end)}
        words = f"{end}est {name}" if end == "high" else f"lowest {name}"
        result = under_test.search(words, under_test.job(match=match, knobs=values))
        under_test.extremes[name, end] = result
    return under_test.extremes[name, end]


def _end(knob: Knob, end: str) -> float:
    return knob.low if end == "low" else knob.high
