"""Bracketing of log λ: from the costs of completed searches to the next strength to try, for mode "lambda"."""

import math
from collections.abc import Sequence
from itertools import count, pairwise

from bench.costs.budget import Budget
from bench.matching.trial import Trial
from bench.method import Knob

REACH = 100.0
"""Factor by which a bracket may leave the knob's range on either side."""
_SLOPE = 0.8
"""Assumed decrease of log cost with log λ while one side of the window is unknown; measured slopes are 0.2 to 1.3."""
_LEAST_STEP = 0.1
"""Smallest step in log λ; searches that are closer differ by noise more than by their strength."""
_GROWTH = 1.5
"""Growth of each further step towards a window that lies on one side of all searches."""
_STRADDLE = 1.05
"""Ratio of two strengths on either side of the window below which noise decides and not the strength."""
_NEARBY = 0.02
"""Distance in log λ at which strengths are tried where noise decides."""
_GUARD = 0.2
"""Share of a bracket at either end that interpolation stays away from, so that a plateau cannot stall it."""

Point = tuple[float, float]
"""(log λ, log(cost/budget)) of a completed search."""


def points_of(trials: Sequence[Trial], budget: Budget) -> list[Point]:
    """Return strength and cost of each trial's search, before repair."""
    return [(math.log(t.knobs["strength"]), math.log(t.raw_cost / budget.limit)) for t in trials]


def bracket(points: Sequence[Point], budget: Budget) -> tuple[Point | None, Point | None]:
    """Find neighbouring points on either side of the window: too costly at the smaller λ, too cheap at the larger.

    Noise can produce several such pairs; the one at the smallest λ is taken. If all points lie on one side of the
    window, the nearest of them is returned and the other point is `None`.
    """
    cheap = [point for point in points if point[1] < math.log(1 - budget.tolerance)]
    costly = [point for point in points if point[1] > 0]
    for low, high in pairwise(sorted(cheap + costly)):
        if low[1] > 0 > high[1]:
            return low, high
    return (None, min(cheap)) if cheap else (max(costly, default=None), None)


def is_straddled(points: Sequence[Point], budget: Budget) -> bool:
    """Return whether two searches lie so close on either side of the window that none between them is worthwhile."""
    low, high = bracket(points, budget)
    return low is not None and high is not None and high[0] - low[0] < math.log(_STRADDLE)


def propose_log_strength(points: Sequence[Point], budget: Budget, knob: Knob) -> float:
    """Propose the next log λ.

    The first proposal is the middle of the range. Then the search moves outwards until the window is bracketed, and
    continues by false position within the bracket. In a bracket so narrow that noise decides, strengths near its middle
    are tried one after the other.

    Args:
        points: Completed searches, in any order.
        budget: Target of the tuning.
        knob: Range of λ.
    """
    low, high = bracket(points, budget)
    if low is not None and high is not None:
        if is_straddled(points, budget):
            return _nearest_untried((low[0] + high[0]) / 2, [point[0] for point in points])
        return _inside_bracket(low, high, budget)
    bottom, top = math.log(knob.low), math.log(knob.high)
    if low is not None:
        return min(low[0] + _step(low, len(points), budget), top + math.log(REACH))
    if high is not None:
        return max(high[0] - _step(high, len(points), budget), bottom - math.log(REACH))
    return (bottom + top) / 2


def _step(edge: Point, missed: int, budget: Budget) -> float:
    """Estimate the distance from the outermost search to the window in log λ, from the usual slope.

    The step grows with the number of searches on that side, so that a plateau is crossed in a few steps.
    """
    gap = abs(edge[1] - _target(budget))
    return max(gap / _SLOPE, _LEAST_STEP) * _GROWTH ** (missed - 1)


def _target(budget: Budget) -> float:
    """Return the middle of the window as log(cost/budget)."""
    return math.log(1 - budget.tolerance / 2)


def _inside_bracket(low: Point, high: Point, budget: Budget) -> float:
    """Interpolate between a point that is too costly and one that is too cheap, away from both ends."""
    share = (low[1] - _target(budget)) / (low[1] - high[1])
    return low[0] + min(max(share, _GUARD), 1 - _GUARD) * (high[0] - low[0])


def _nearest_untried(middle: float, tried: Sequence[float]) -> float:
    """Return the log λ nearest to a middle that is not close to one that was tried."""
    steps = (sign * _NEARBY * number for number in count() for sign in (1, -1))
    return next(middle + step for step in steps if all(abs(middle + step - x) > _NEARBY / 2 for x in tried))
