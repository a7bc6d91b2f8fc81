"""Budgets that a method cannot meet."""

from bench.api import SearchJob, UnreachableBudgetError


def unreachable(job: SearchJob, policy: str, cost: float) -> UnreachableBudgetError:
    """Make the error for a budget below the cost of the cheapest policy.

    Args:
        job: The search.
        policy: Name of the cheapest policy, in the singular, e.g. "uniform 2 bit".
        cost: Cost of that policy.
    """
    words = job.measure.in_words
    return UnreachableBudgetError(f"even {policy} costs {words(cost)}; the budget is {words(job.budget)}", cost)
