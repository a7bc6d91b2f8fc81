"""Checks of how a method meets budgets: within reach, out of reach, and at the ends of its knobs' ranges."""

import math

from bench.diagnostics.validation.outcome import check_finite, valid_policy
from bench.diagnostics.validation.subject import TOLERANCE, MethodUnderTest, NotApplicable, Violation
from bench.errors import UnreachableBudgetError
from bench.method import Knob, SearchResult
from bench.spec.schema import Match

_IMPOSSIBLE = 0.5
"""Of what the cheapest policy costs."""
_TIGHT = 1 + TOLERANCE / 3
"""A budget so much above the cheapest policy's cost has that policy in its window."""
_CLOSE = 1e-6


def within_reach(subject: MethodUnderTest) -> str:
    """After the harness's repair a policy costs no more than the budget."""
    result, limit = subject.plain, subject.budget()
    if subject.ignores_budgets:
        raise NotApplicable("budget='ignored': there is none to meet")
    policy, moved = subject.repaired(result, limit)
    share = subject.price(policy) / limit
    if moved is None and subject.strength_is_tuned:
        raise NotApplicable(
            f"no decisions: tuning alone must land in the window; the plain search ends at {share:.2f} of the budget"
        )
    if share > 1:
        how = (
            "there are no decisions that repair could move" if moved is None else "its decisions reach no further down"
        )
        raise Violation(f"the policy costs {share:.2f} × a budget that is within reach; {how}")
    steps = "" if moved is None else f" after {moved.moved} decisions were moved by repair"
    outside = "" if share >= 1 - TOLERANCE else f", below the window, which begins at {1 - TOLERANCE:.2f}"
    return f"{share:.3f} of the budget{steps}{outside}"


def cheapest(subject: MethodUnderTest) -> str:
    """The cheapest policy is valid, can be reached, and none that is found is cheaper."""
    _, stated = subject.plain, subject.method.cheapest(subject.ground.task.network)
    if stated is None:
        what = (
            "budget='ignored'"
            if subject.ignores_budgets
            else "cheapest() is not defined: a budget out of reach takes trials"
        )
        raise NotApplicable(what)
    valid_policy(subject, stated)
    least = subject.price(stated)
    for words, policy in subject.found:
        if subject.price(policy) < least:
            raise Violation(
                f"the {words} search found a policy of {subject.price(policy):,.0f} BOPs, but cheapest() says that "
                f"none costs less than {least:,.0f}; budgets in between would be refused"
            )
    return f"{least:,.0f} BOPs, {_reached(subject, least)}"


def _reached(subject: MethodUnderTest, least: float) -> str:
    """Whether a search for what the cheapest policy costs ends there."""
    limit = least * _TIGHT
    try:
        result = subject.search("tight", subject.job(budget=limit))
    except UnreachableBudgetError as error:
        raise Violation(
            f"cheapest() costs {least:,.0f} BOPs, but a budget of {limit:,.0f} is called out of reach"
        ) from error
    policy, moved = subject.repaired(result, limit)
    cost = subject.price(policy)
    if cost <= limit:
        return "and reached"
    if subject.strength_is_tuned and (moved is None or len(subject.method.knobs("hinge")) > 1):
        return f"; the search ends at {cost:,.0f} with its knobs in the middle, only tuning tells whether it is reached"
    raise Violation(
        f"cheapest() costs {least:,.0f} BOPs, but with a budget of {limit:,.0f} the search ends at {cost:,.0f}"
    )


def out_of_reach(subject: MethodUnderTest) -> str:
    """An impossible budget is told as such, with the cost of the cheapest policy, in finite time."""
    if subject.ignores_budgets:
        raise NotApplicable("budget='ignored': none is impossible")
    _ = subject.plain
    stated = subject.cheapest()
    least = None if stated is None else subject.price(stated)
    limit = _IMPOSSIBLE * (subject.budget() / 1e6 if least is None else least)
    try:
        subject.search("impossible", subject.job(budget=limit))
    except UnreachableBudgetError as error:
        _check_nearest(error, limit, least)
        return f"a budget of {limit:,.0f} BOPs is out of reach, the nearest cost is {error.nearest:,.0f}"
    if not subject.strength_is_tuned:
        raise Violation(f"a budget of {limit:,.0f} BOPs, which nothing meets, ends without UnreachableBudgetError")
    told = "by cheapest(), before any search" if least is not None else "after all trials: define cheapest()"
    return f"a budget of {limit:,.0f} BOPs is out of reach; the harness tells {told}"


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


def extremes(subject: MethodUnderTest) -> str:
    """At both ends of every knob's range a search ends with a valid policy and finite weights."""
    if not subject.strength_is_tuned:
        raise NotApplicable(f"budget='{subject.method.capabilities.budget}': nothing is tuned")
    _ = subject.plain
    for name in subject.method.knobs("hinge"):
        for end in ("low", "high"):
            result = at_end(subject, name, end)
            valid_policy(subject, result.policy)
            check_finite(result)
    return f"{', '.join(subject.method.knobs('hinge'))}: valid and finite at both ends"


def strength(subject: MethodUnderTest) -> str:
    """With plain λ log R a high strength gives no dearer network than a low one."""
    if not subject.strength_is_tuned:
        raise NotApplicable(f"budget='{subject.method.capabilities.budget}': there is no strength")
    _ = subject.plain
    low, high = (subject.price(at_end(subject, "strength", end).policy) for end in ("low", "high"))
    if high > low:
        raise Violation(
            f"at the highest strength the network costs {high:,.0f} BOPs, at the lowest {low:,.0f}; a larger strength "
            "must mean a cheaper network, since the harness brackets it so"
        )
    return f"{low:,.0f} BOPs at the lowest strength, {high:,.0f} at the highest"


def at_end(subject: MethodUnderTest, name: str, end: str) -> SearchResult:
    """A search with a knob at an end of its range, the others in the middle; by plain λ log R where it has the knob."""
    if (name, end) not in subject.extremes:
        match: Match = "lambda" if name in subject.method.knobs("lambda") else "hinge"
        ranges = subject.method.knobs(match)
        values = {other: knob.middle for other, knob in ranges.items()} | {name: _end(ranges[name], end)}
        words = f"{end}est {name}" if end == "high" else f"lowest {name}"
        result = subject.search(words, subject.job(match=match, knobs=values))
        subject.extremes[name, end] = result
    return subject.extremes[name, end]


def _end(knob: Knob, end: str) -> float:
    return knob.low if end == "low" else knob.high
