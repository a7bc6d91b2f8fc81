"""Matching on made-up searches: nothing is trained here."""

import math
import random
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench.costs.budget import Budget
from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError
from bench.matching.bracket import bracket, propose_log_strength
from bench.matching.sampling import space_filling
from bench.matching.trial import Trial, alike
from bench.matching.tune import Tuning, largest_trials, require_storage, tune
from bench.method import Knob
from bench.planning.plan import make_plan
from bench.spec.schema import TuningSpec
from bench.spec.sources import build, parse_setting
from bench.store.outcomes import parse_retry
from tests.conftest import TINY

BUDGET = Budget(text="100M", limit=1e8, tolerance=0.03)
KNOB = Knob(low=0.02, high=2.0, log=True)
KNOBS = {"strength": KNOB}
BOTTOM, TOP = math.log(KNOB.low), math.log(KNOB.high)
SEED = 12345

Costs = Callable[[float], float]
"""From log λ to a cost as a share of the budget."""


# --- proposals ---


def staircase(seed: int, *, noise: float = 0.0, spots: int = 0) -> Costs:
    """A falling staircase with wide and narrow plateaus, one of them inside the window.

    Args:
        seed: Draws it.
        noise: Relative, different at every λ but the same each time it is asked.
        spots: Short stretches of λ where the cost is quite different.
    """
    draws = random.Random(seed)  # noqa: S311
    levels = [math.exp(draws.uniform(math.log(0.15), math.log(6))) for _ in range(draws.randint(4, 40))]
    levels = sorted([level for level in levels if not 0.9 < level < 1.1], reverse=True)
    above = sum(level > 1 for level in levels)
    levels.insert(above, draws.uniform(0.978, 0.992))
    start = draws.uniform(BOTTOM, TOP)  # of the plateau inside the window, which is at least 0.02 wide
    ups = sorted(draws.uniform(BOTTOM - 1, start) for _ in range(max(0, above - 1))) + [start] * (above > 0)
    downs = sorted(draws.uniform(start + 0.02, TOP + 1) for _ in range(len(levels) - 1 - above))
    edges = ups + downs
    bumps = [(draws.uniform(BOTTOM, TOP), draws.uniform(0.02, 0.1), draws.uniform(-0.5, 0.5)) for _ in range(spots)]

    def costs(x: float) -> float:
        level = levels[sum(edge < x for edge in edges)]
        for centre, width, height in bumps:
            level *= 1 + height * (abs(x - centre) < width)
        return level * (1 + noise * (random.Random(f"{seed} {x:.9f}").random() - 0.5))  # noqa: S311

    return costs


def searches(costs: Costs, limit: int = 40) -> tuple[int, str]:
    """How many searches it takes until one lands, or until two neighbours straddle the window."""
    points: list[tuple[float, float]] = []
    for number in range(1, limit + 1):
        x = propose_log_strength(points, BUDGET, KNOB)
        points.append((x, math.log(costs(x))))
        if BUDGET.matches(costs(x) * BUDGET.limit):
            return number, "hit"
        low, high = bracket(points, BUDGET)
        if low and high and high[0] - low[0] < math.log(1.02):
            return number, "straddled"
    return limit, "neither"


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_strength_that_exists_is_found_in_few_searches(noise: float) -> None:
    found = [searches(staircase(seed, noise=noise)) for seed in range(200)]
    assert {how for _, how in found} == {"hit"}
    numbers = [number for number, _ in found]
    assert statistics.median(numbers) <= 8
    assert max(numbers) <= 20


def test_spots_where_the_cost_does_not_fall_do_not_stall_it() -> None:
    found = [searches(staircase(seed, noise=0.02, spots=3)) for seed in range(200)]
    assert max(number for number, _ in found) <= 20
    assert sum(how == "hit" for _, how in found) >= 180
    assert "neither" not in {how for _, how in found}


@pytest.mark.parametrize("jump", [BOTTOM + 0.1, -1.2345, 0.0, TOP - 0.1])
@pytest.mark.parametrize(("above", "below"), [(1.01, 0.96), (5.0, 0.9), (1.01, 0.05)])
def test_a_jump_over_the_window_is_recognised(jump: float, above: float, below: float) -> None:
    number, how = searches(lambda x: above if x < jump else below)
    assert how == "straddled"
    assert number <= 20


@pytest.mark.parametrize("share", [1.02, 3.0, 0.95, 0.3])
def test_steps_towards_the_window_follow_the_slope_and_grow(share: float) -> None:
    """On a plateau every step is longer than the one before; a cost further away asks for a longer first step."""
    y = math.log(share)
    points = [((BOTTOM + TOP) / 2, y)]
    for _ in range(3):
        points.append((propose_log_strength(points, BUDGET, KNOB), y))
    steps = [later[0] - earlier[0] for earlier, later in pairwise(points)]
    assert all(step > 0 for step in steps) if share > 1 else all(step < 0 for step in steps)
    assert abs(steps[0]) == pytest.approx(max(abs(y - math.log(0.985)) / 0.8, 0.1))
    assert abs(steps[2]) > abs(steps[1]) > abs(steps[0])


def test_a_search_that_follows_the_usual_slope_lands_at_once() -> None:
    points = [((BOTTOM + TOP) / 2, math.log(2.0))]
    x = propose_log_strength(points, BUDGET, KNOB)
    assert BUDGET.matches(2.0 * math.exp(-0.8 * (x - points[0][0])) * BUDGET.limit)


@pytest.mark.parametrize("where", [BOTTOM - 4, BOTTOM - 1, TOP + 1, TOP + 4])
def test_it_looks_beyond_the_range_of_the_knob(where: float) -> None:
    number, how = searches(lambda x: math.exp(-0.3 * (x - where) - 0.015))
    assert how == "hit"
    assert number <= 20


@pytest.mark.parametrize("share", [3.0, 0.2])
def test_it_never_leaves_its_reach(share: float) -> None:
    points: list[tuple[float, float]] = []
    for _ in range(20):
        points.append((propose_log_strength(points, BUDGET, KNOB), math.log(share)))
    reached = [x for x, _ in points]
    assert min(reached) >= BOTTOM - math.log(100) - 1e-9 and max(reached) <= TOP + math.log(100) + 1e-9
    assert abs(reached[-1] - (TOP if share > 1 else BOTTOM)) == pytest.approx(math.log(100))


def test_the_first_proposal_is_the_middle_and_order_does_not_matter() -> None:
    assert propose_log_strength([], BUDGET, KNOB) == pytest.approx((BOTTOM + TOP) / 2)
    points = [(-3.0, 0.8), (-2.0, 0.4), (-1.0, -0.5), (0.0, -0.9)]
    inside = propose_log_strength(points, BUDGET, KNOB)
    assert -2.0 < inside < -1.0
    assert propose_log_strength(points[::-1], BUDGET, KNOB) == inside


def test_a_search_that_is_too_cheap_by_chance_does_not_lead_away_from_a_crossing() -> None:
    """The points of a real search: far below all that were too dear, one was too cheap."""
    points = [(-2.44, -0.06), (-2.42, 0.15), (-2.40, 0.03), (-2.39, 0.01), (-2.30, -0.06)]
    assert -2.39 < propose_log_strength(points, BUDGET, KNOB) < -2.30


# --- searches that are not there ---


def trial(number: int, knobs: Mapping[str, float], share: float, **fields: Any) -> Trial:
    """A trial that cost a share of the budget before repair; validation tells the smallest differences."""
    values = {"cost": share * BUDGET.limit, "validation_top1": 50.0, "validation_loss": 1.0}
    values |= {"repaired_gates": 0 if BUDGET.matches(share * BUDGET.limit) else 9, "validation_images": 10**6}
    values |= {"seconds": 0.5, "policy": {}, "curves": [], "record": {"history": [1.5]}} | fields
    within = BUDGET.matches(values["cost"])
    return Trial(number=number, knobs=dict(knobs), raw_cost=share * BUDGET.limit, within_budget=within, **values)


def smooth(number: int, knobs: Mapping[str, float]) -> Trial:
    """The cost falls with the strength; the accuracy has a maximum at 0.3; repair lands every trial but dear ones."""
    share = 1.2 * knobs["strength"] ** -0.4
    top1 = 60 - abs(math.log(knobs["strength"] / 0.3)) - abs(knobs.get("share", 0.5) - 0.7)
    repaired = 0.99 if share < 3 else share
    return trial(number, knobs, share, cost=repaired * BUDGET.limit, validation_top1=top1, repaired_gates=1)


def spec(match: str = "hinge", trials: int = 7, *, stop_early: bool = False, **fields: Any) -> TuningSpec:
    return TuningSpec(match=match, trials=trials, stop_early=stop_early, **fields)  # type: ignore[arg-type]


TWO_KNOBS = {**KNOBS, "share": Knob(low=0.0, high=1.0)}


def tuning(knobs: Mapping[str, Knob], chosen: TuningSpec, **fields: Any) -> Tuning:
    return Tuning(**{"name": "tests", "knobs": knobs, "budget": BUDGET, "spec": chosen, "seed": SEED, **fields})


@pytest.fixture(scope="module")
def uninterrupted() -> Callable[[str], tuple[Trial, list[Trial]]]:
    """Tuning by `smooth` without any trouble."""
    found = {}
    for match in ("hinge", "lambda"):
        chosen, trials = tune(tuning(TWO_KNOBS, spec(match)), smooth)
        found[match] = (chosen, list(trials))
    return found.__getitem__


# --- mode hinge ---


def test_hinge_chooses_by_validation_accuracy_among_trials_in_the_window() -> None:
    outcomes = [(1.5, 90.0), (0.98, 60.0), (0.99, 70.0), (0.5, 95.0), (1.0, 65.0)]

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share, top1 = outcomes[number]
        return trial(number, knobs, share, validation_top1=top1)

    chosen, trials = tune(tuning(KNOBS, spec(trials=5)), search)
    assert [t.number for t in trials] == [0, 1, 2, 3, 4]
    assert chosen.number == 2


def test_hinge_breaks_ties_by_validation_loss() -> None:
    chosen, _ = tune(tuning(KNOBS, spec(trials=3)), lambda n, k: trial(n, k, 0.99, validation_loss=[2.0, 0.5, 1.0][n]))
    assert chosen.number == 1


@pytest.mark.parametrize(("shares", "expected"), [((0.5, 0.9, 0.7), 1), ((1.2, 0.4, 3.0), 1), ((1.001, 0.969, 1.5), 1)])
def test_without_a_trial_in_the_window_the_dearest_allowed_one_is_taken(
    shares: tuple[float, ...], expected: int
) -> None:
    chosen, _ = tune(tuning(KNOBS, spec(trials=3)), lambda n, k: trial(n, k, shares[n]))
    assert chosen.number == expected
    assert not chosen.within_budget


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_an_unreachable_budget_names_the_nearest_cost(match: str) -> None:
    with pytest.raises(UnreachableBudgetError, match=r"none of 3 trials .* the nearest costs 1\.250 of it") as caught:
        tune(tuning(KNOBS, spec(match, 3)), lambda n, k: trial(n, k, [2.0, 1.25, 1.5][n]))
    assert caught.value.nearest == pytest.approx(1.25e8)


def test_hinge_uses_all_its_trials_and_the_later_ones_learn() -> None:
    _, trials = tune(tuning(KNOBS, spec(trials=16)), smooth)
    assert len(trials) == 16
    assert all(KNOB.low <= t.knobs["strength"] <= KNOB.high for t in trials)
    assert len({t.knobs["strength"] for t in trials}) == 16

    def distance(some: list[Trial]) -> float:
        return statistics.mean(abs(math.log(t.knobs["strength"] / 0.3)) for t in some)

    low, high = math.log(0.3 / KNOB.low), math.log(KNOB.high / 0.3)
    assert distance(list(trials[8:])) < 0.8 * (low**2 + high**2) / (low + high) / 2  # the mean of even draws


def test_trials_outside_the_window_are_told_apart_from_those_inside() -> None:
    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        inside = knobs["strength"] < 0.2
        return trial(number, knobs, 0.99 if inside else 0.3, validation_top1=20.0 if inside else 99.0)

    chosen, trials = tune(tuning(KNOBS, spec(trials=20)), search)
    assert chosen.within_budget
    late = [t.knobs["strength"] < 0.2 for t in trials[10:]]
    assert sum(late) > len(late) / 2  # though accuracy alone would have led the other way


@pytest.mark.parametrize(
    ("images", "chosen"),
    [(200, 2), (5_000, 0)],  # two standard errors of a difference between 90 and 94 % are 5.4 points and 1.1
)
def test_hinge_prefers_searches_that_came_to_the_budget_as_long_as_that_costs_no_accuracy(
    images: int, chosen: int
) -> None:
    outcomes = [(2.9, 28, 94.0), (1.03, 2, 60.0), (1.02, 1, 90.0), (1.2, 3, 93.0)]

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share, gates, top1 = outcomes[number]
        made = trial(number, knobs, share, cost=0.98 * BUDGET.limit, repaired_gates=gates, validation_top1=top1)
        return replace(made, validation_images=images)

    assert tune(tuning(KNOBS, spec(trials=4)), search)[0].number == chosen
    assert tune(tuning(KNOBS, spec(trials=1)), search)[0].number == 0


def landing(number: int, knobs: Mapping[str, float]) -> Trial:
    """Searches land where the cost before repair is near the budget: strengths from 0.44 to 0.57."""
    share = 1.02 * (knobs["strength"] / 0.5) ** -0.8
    return trial(number, knobs, share, cost=0.98 * BUDGET.limit, repaired_gates=round(20 * abs(math.log(share))))


@pytest.mark.parametrize("low", [1e-3, 1e-2, 0.3])
def test_hinge_brackets_the_strength_until_a_search_lands(low: float) -> None:
    """So a wide range costs a few trials more and not a tuning in which nothing lands."""
    wide = {"strength": Knob(low=low, high=10.0, log=True), "share": Knob(low=0.0, high=1.0)}
    _, trials = tune(tuning(wide, spec(trials=5)), landing)
    first = next(t.number for t in trials if t.landed)
    assert first <= 5
    assert {t.knobs["share"] for t in trials[: first + 1]} == {0.5}
    points: list[tuple[float, float]] = []
    for t in trials[: first + 1]:
        assert math.log(t.knobs["strength"]) == pytest.approx(propose_log_strength(points, BUDGET, wide["strength"]))
        points.append((math.log(t.knobs["strength"]), math.log(t.raw_cost / BUDGET.limit)))
    around = trials[first].knobs["strength"]
    assert all(around / 3 < t.knobs["strength"] < around * 3 for t in trials[first + 1 : first + 5])
    assert len({t.knobs["share"] for t in trials[first:]}) == len(trials) - first


def test_a_strength_at_which_the_loss_diverged_counts_as_too_strong() -> None:
    wide = {"strength": Knob(low=0.1, high=10.0, log=True)}

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        return None if knobs["strength"] > 0.9 else landing(number, knobs)

    _, trials = tune(tuning(wide, spec(trials=6)), search)
    assert trials[0].number == 1  # the middle of the range, 1, had diverged
    assert trials[0].knobs["strength"] < 0.9
    assert any(t.landed for t in trials)


def test_hinge_repeats_no_search_at_an_end_of_the_range() -> None:
    _, trials = tune(tuning(KNOBS, spec(trials=8)), lambda n, k: trial(n, k, 3.0, cost=0.98e8))
    assert len({t.knobs["strength"] for t in trials}) == 8


@pytest.mark.parametrize(("match", "knobs", "largest"), [("hinge", 1, 7), ("hinge", 2, 14), ("dual", 2, 14)])
def test_trials_are_counted_for_each_knob(match: str, knobs: int, largest: int) -> None:
    chosen = dict(list(TWO_KNOBS.items())[:knobs])

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        return None if number == 3 else trial(number, knobs, 1.5 - 0.01 * number, cost=0.98e8)

    _, trials = tune(tuning(chosen, spec(match)), search)
    assert largest_trials(spec(match), chosen) == largest
    assert len(trials) == largest - 1  # the one that diverged counts
    assert largest_trials(spec("lambda"), chosen) == 7  # it tunes the strength alone


# --- mode dual ---


def test_dual_chooses_what_is_left_by_accuracy() -> None:
    """There is no strength to bracket: points fill the range, then accuracy decides."""
    shares = {"share": Knob(low=0.0, high=1.0)}

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        return trial(number, knobs, 0.99, validation_top1=60 - abs(knobs["share"] - 0.7))

    chosen, trials = tune(tuning(shares, spec("dual", 12)), search)
    assert len(trials) == 12
    assert [t.knobs["share"] for t in trials[:4]] == [0.5, 0.25, 0.75, 0.125]
    assert chosen is max(trials, key=lambda t: t.validation_top1)
    assert abs(chosen.knobs["share"] - 0.7) < 0.06


# --- mode lambda ---


@pytest.mark.parametrize("seed", range(3))
def test_lambda_stops_at_the_first_hit_and_chooses_it(seed: int) -> None:
    costs = staircase(seed)
    expected, _ = searches(costs)

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share = costs(math.log(knobs["strength"]))
        # Repair brings every search into the window, and the misses train better.
        top1 = 10.0 if BUDGET.matches(share * BUDGET.limit) else 90.0
        return trial(number, knobs, share, cost=0.99 * BUDGET.limit, validation_top1=top1)

    chosen, trials = tune(tuning(KNOBS, spec("lambda", 20)), search)
    assert chosen is trials[-1]
    assert BUDGET.matches(chosen.raw_cost)
    assert len(trials) == expected


def test_lambda_prefers_a_hit_to_a_nearer_miss_that_was_repaired() -> None:
    shares = [1.004, 0.971]
    chosen, trials = tune(tuning(KNOBS, spec("lambda", 9)), lambda n, k: trial(n, k, shares[n], cost=0.99e8))
    assert [t.raw_cost / BUDGET.limit for t in trials] == pytest.approx(shares)
    assert chosen.number == 1


def test_lambda_without_a_hit_takes_the_nearest_that_repair_brought_inside() -> None:
    shares = [2.0, 1.3, 1.1]
    bops = [1.5e8, 0.99e8, 0.98e8]
    chosen, _ = tune(tuning(KNOBS, spec("lambda", 3)), lambda n, k: trial(n, k, shares[n], cost=bops[n]))
    assert chosen.number == 2


def test_lambda_stops_when_two_strengths_straddle_the_window() -> None:
    chosen, trials = tune(tuning(KNOBS, spec("lambda", 50, stop_early=True)), jump)
    assert len(trials) <= 12
    assert chosen.raw_cost == pytest.approx(0.8e8)
    strengths = sorted(t.knobs["strength"] for t in trials)
    below = max(s for s in strengths if s < 0.77)
    assert min(s for s in strengths if s >= 0.77) / below < 1.05


def test_lambda_goes_on_close_to_the_window_when_it_must_not_stop_early() -> None:
    _, trials = tune(tuning(KNOBS, spec("lambda", 20)), jump)
    strengths = [t.knobs["strength"] for t in trials]
    assert len(strengths) == 20
    assert all(high / low > 1.009 for low, high in pairwise(sorted(strengths)))
    assert all(0.77 / 1.3 < strength < 0.77 * 1.3 for strength in strengths[10:])


def jump(number: int, knobs: Mapping[str, float]) -> Trial:
    """The cost jumps over the window."""
    return trial(number, knobs, 1.3 if knobs["strength"] < 0.77 else 0.8)


@pytest.mark.filterwarnings("error::UserWarning")  # Optuna's, on a value outside its range
@pytest.mark.parametrize("share", [3.0, 0.2])
def test_lambda_repeats_no_search_at_the_end_of_its_reach(share: float) -> None:
    numbers = count()

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        next(numbers)
        return trial(number, knobs, share, cost=min(share, 0.5) * BUDGET.limit)

    _, trials = tune(tuning(KNOBS, spec("lambda", 30)), search)
    strengths = [t.knobs["strength"] for t in trials]
    assert len(set(strengths)) == len(strengths) == next(numbers) < 20


def test_lambda_leaves_other_knobs_in_the_middle() -> None:
    _, trials = tune(tuning(TWO_KNOBS, spec("lambda", 6)), lambda n, k: trial(n, k, 2.0 - 0.1 * n, cost=0.98e8))
    assert {t.knobs["share"] for t in trials} == {0.5}


# --- the end of a tuning before its last trial ---


@pytest.mark.parametrize(
    ("gates", "repaired", "made"), [(0, 0.98, 1), (2, 0.98, 1), (3, 0.98, 4), (2, 0.9, 4), (0, 0.9, 4)]
)
def test_lambda_stops_where_repair_has_few_gates_to_move(gates: int, repaired: float, made: int) -> None:
    """Not when it moves more, nor when they do not suffice."""

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        return trial(number, knobs, 1.1 - 0.01 * number, cost=repaired * BUDGET.limit, repaired_gates=gates)

    assert len(tune(tuning(KNOBS, spec("lambda", 4, stop_early=True)), search)[1]) == made


def test_lambda_asks_for_a_hit_before_repair_when_it_must_not_stop_early() -> None:
    shares = [1.1, 0.9, 0.98, 0.99]

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        return trial(number, knobs, shares[number], cost=0.98 * BUDGET.limit, repaired_gates=1)

    assert len(tune(tuning(KNOBS, spec("lambda", 4, stop_early=True)), search)[1]) == 1
    chosen, trials = tune(tuning(KNOBS, spec("lambda", 4)), search)
    assert (chosen.number, len(trials)) == (2, 3)


@pytest.mark.parametrize(
    ("top1", "images", "expected"),
    [
        ((94.0, 95.0, 96.0), 143, True),  # one image is 0.7 points
        ((94.0, 95.0, 96.0), 5_000, False),  # a standard error of a difference is 0.4 points
        ((95.0, 95.3, 95.6), 5_000, True),
        ((95.0, 95.3, 95.6, 97.0), 5_000, False),
        ((95.0, 95.0), 143, False),  # two tell nothing of the range
        ((100.0, 100.0, 100.0), 143, True),
        ((100.0, 100.0, 0.0), 143, False),
    ],
)
def test_trials_are_alike_when_validation_cannot_tell_them_apart(
    top1: tuple[float, ...], images: int, expected: bool
) -> None:
    trials = [trial(0, {"strength": 1.0}, 0.98, validation_top1=value, validation_images=images) for value in top1]
    assert alike(trials) is expected
    assert alike(trials[::-1]) is expected


@pytest.mark.parametrize(("stop_early", "made"), [(True, 4), (False, 6)])
def test_hinge_stops_at_three_trials_in_the_window_that_are_alike(stop_early: bool, made: int) -> None:
    outcomes = [(0.99, 95.0), (1.5, 40.0), (0.98, 96.0), (0.97, 95.5), (0.99, 95.0), (0.99, 99.0)]

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share, top1 = outcomes[number]
        return trial(number, knobs, share, validation_top1=top1, validation_images=143)

    _, trials = tune(tuning(KNOBS, spec(trials=6, stop_early=stop_early)), search)
    assert len(trials) == made


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_stopping_early_changes_no_trial_that_is_made(match: str) -> None:
    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        made = smooth(number, knobs)
        gates = round(20 * abs(math.log(made.raw_cost / BUDGET.limit)))
        return replace(made, validation_images=20, repaired_gates=gates)

    knobs = {**TWO_KNOBS, "strength": Knob(low=0.2, high=10.0, log=True)}
    _, early = tune(tuning(knobs, spec(match, 12, stop_early=True)), search)
    _, every = tune(tuning(knobs, spec(match, 12)), search)
    assert len(early) < len(every)
    assert every[: len(early)] == early


RECORDED = {
    ("resnet20", "sbs"): [
        *((0.0265, 2.976, 28), (0.0581, 1.940, 26), (0.0655, 1.515, 13), (0.0709, 1.307, 6), (0.1, 1.042, 1)),
        *((0.106, 1.048, 1), (0.108, 1.062, 2), (0.109, 0.851, 4), (0.11, 0.933, 1), (0.111, 0.955, 1)),
        *((0.112, 1.010, 1), (0.113, 1.048, 1), (0.115, 0.947, 1), (0.117, 0.926, 1), (0.119, 1.019, 1)),
        *((0.12, 0.962, 1), (0.188, 0.775, 4), (0.306, 0.759, 4), (0.412, 0.589, 11), (3.91, 0.053, 48)),
    ],
    ("resnet20", "sbs_q"): [
        *((0.0265, 3.378, 31), (0.0547, 1.940, 18), (0.0617, 1.595, 12), (0.0629, 1.422, 9), (0.0635, 1.480, 10)),
        *((0.0709, 1.163, 4), (0.0994, 1.005, 1), (0.103, 1.048, 1), (0.108, 1.077, 2), (0.109, 0.962, 1)),
        *((0.125, 0.933, 1), (0.188, 0.875, 2), (0.306, 0.690, 7), (0.392, 0.586, 12), (3.91, 0.266, 17)),
    ],
    ("resnet8", "dnas"): [
        *((0.0178, 1.635, 5), (0.0213, 1.360, 4), (0.0281, 1.654, 8), (0.0317, 1.445, 4), (0.0505, 0.934, 2)),
        *((0.0521, 1.123, 2), (0.0542, 1.019, 1), (0.0553, 0.848, 3), (0.0564, 0.976, 0), (0.0587, 0.934, 2)),
        *((0.0604, 0.848, 3), (0.0642, 0.825, 1), (0.0791, 0.678, 4), (0.0874, 0.583, 5), (0.1, 0.583, 5)),
    ],
}
"""Searches by `tests.scale.tuning_cost`: λ, cost as a share of what uniform 4 bit costs, gates that repair moves."""


@pytest.mark.parametrize("start", [0.02, 0.07, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("searched", RECORDED, ids=" ".join)
def test_recorded_searches_are_tuned_in_five_trials(searched: tuple[str, str], start: float) -> None:
    """Each asks for the nearest recorded strength; `start` is where the range has its middle."""

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        _, share, gates = min(RECORDED[searched], key=lambda row: abs(math.log(row[0] / knobs["strength"])))
        return trial(number, knobs, share, cost=0.99 * BUDGET.limit, repaired_gates=gates)

    knobs = {"strength": Knob(low=start / 7, high=start * 7, log=True)}
    chosen, trials = tune(tuning(knobs, spec("lambda", 16, stop_early=True)), search)
    assert len(trials) <= 5
    assert chosen.repaired_gates <= 2


# --- space filling ---


def test_space_filling_starts_in_the_middle_and_fills_the_space() -> None:
    assert space_filling(KNOBS, 0)["strength"] == pytest.approx(math.sqrt(KNOB.low * KNOB.high))
    points = [space_filling(TWO_KNOBS, index) for index in range(63)]
    assert points[:5] == [space_filling(TWO_KNOBS, index) for index in range(5)]
    logs = [(math.log(p["strength"]) - BOTTOM) / (TOP - BOTTOM) for p in points]
    for axis in (logs, [p["share"] for p in points]):
        assert all(0 <= value <= 1 for value in axis)
        assert {int(8 * value) for value in axis} == set(range(8))
    quarters = {(int(4 * a), int(4 * p["share"])) for a, p in zip(logs, points, strict=True)}
    assert len(quarters) == 16


# --- interruptions ---


class Killed(BaseException):
    """What the tests put in place of a process that is gone: nothing may catch it."""


class Shelf:
    """A store of trials that `tune` is given for its searches; it fails at one of its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.trials: dict[int, Trial] = {}
        self.error = error
        self.searched: list[int] = []
        self.fails_at = -1

    def __call__(self, number: int, knobs: Mapping[str, float]) -> Trial:
        if number not in self.trials:
            if len(self.searched) == self.fails_at and self.error is not None:
                raise self.error
            self.searched.append(number)
            self.trials[number] = smooth(number, knobs)
        assert self.trials[number].knobs == knobs  # to the last bit: it is the very trial that was stored
        return self.trials[number]


@pytest.fixture(params=["memory", "database"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.mark.parametrize("match", ["hinge", "lambda"])
@pytest.mark.parametrize("error", [RuntimeError("a loss"), KeyboardInterrupt(), Killed()], ids=repr)
def test_an_interrupted_tuning_goes_on_as_if_nothing_had_been(
    uninterrupted: Callable[[str], Any], match: str, error: BaseException
) -> None:
    expected = uninterrupted(match)
    for when in range(len(expected[1])):
        shelf = Shelf(error)
        shelf.fails_at = when
        with pytest.raises(type(error)):
            tune(tuning(TWO_KNOBS, spec(match)), shelf)
        shelf.fails_at = -1
        assert tune(tuning(TWO_KNOBS, spec(match)), shelf) == expected
        assert shelf.searched == list(range(len(expected[1])))  # no trial was repeated


def test_interruptions_one_after_the_other(uninterrupted: Callable[[str], Any], storage: str | None) -> None:
    shelf = Shelf(KeyboardInterrupt())
    for done in (0, 1, 2, 5):
        shelf.fails_at = done
        with pytest.raises(KeyboardInterrupt):
            tune(tuning(TWO_KNOBS, spec(), storage=storage), shelf)
    shelf.fails_at = -1
    assert tune(tuning(TWO_KNOBS, spec(), storage=storage), shelf) == uninterrupted("hinge")
    assert shelf.searched == list(range(14))


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_a_process_killed_between_a_trial_and_its_being_told(
    uninterrupted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, match: str, storage: str | None
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    shelf = Shelf()
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", kill)
        with pytest.raises(Killed):
            tune(tuning(TWO_KNOBS, spec(match), storage=storage), shelf)
    assert shelf.searched == [0]
    assert tune(tuning(TWO_KNOBS, spec(match), storage=storage), shelf) == uninterrupted(match)
    assert shelf.searched == list(range(len(shelf.trials)))


@pytest.mark.parametrize("match", ["hinge", "lambda"])
@pytest.mark.parametrize("lost", [[1], [0, 2]])
def test_a_lost_trial_is_made_again_at_the_same_knobs(
    uninterrupted: Callable[[str], Any], match: str, lost: list[int]
) -> None:
    shelf = Shelf()
    tune(tuning(TWO_KNOBS, spec(match)), shelf)
    for number in lost:
        shelf.trials.pop(number, None)
    shelf.searched.clear()
    assert tune(tuning(TWO_KNOBS, spec(match)), shelf) == uninterrupted(match)
    assert shelf.searched == [number for number in lost if number in shelf.trials]


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_a_finished_tuning_searches_no_more(uninterrupted: Callable[[str], Any], match: str) -> None:
    shelf = Shelf()
    tune(tuning(TWO_KNOBS, spec(match)), shelf)
    shelf.searched.clear()
    assert tune(tuning(TWO_KNOBS, spec(match)), shelf) == uninterrupted(match)
    assert shelf.searched == []


def test_more_trials_go_on_from_those_that_are_there(uninterrupted: Callable[[str], Any]) -> None:
    shelf = Shelf()
    tune(tuning(TWO_KNOBS, spec(trials=5)), shelf)
    assert tune(tuning(TWO_KNOBS, spec()), shelf) == uninterrupted("hinge")
    assert shelf.searched == list(range(14))


def test_the_seed_matters_to_the_sampler_only(uninterrupted: Callable[[str], Any]) -> None:
    _, expected = uninterrupted("hinge")
    _, trials = tune(tuning(TWO_KNOBS, spec(), seed=SEED + 1), smooth)
    assert [t.knobs for t in trials[:4]] == [t.knobs for t in expected[:4]]
    assert [t.knobs for t in trials[4:]] != [t.knobs for t in expected[4:]]


def test_threads_that_tune_at_once_do_not_disturb_each_other(uninterrupted: Callable[[str], Any]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda match: tune(tuning(TWO_KNOBS, spec(match)), smooth), ["hinge", "lambda"] * 4))
    assert found == [uninterrupted("hinge"), uninterrupted("lambda")] * 4


# --- trials that diverge ---


def test_a_trial_that_diverges_is_left_out_and_counts() -> None:
    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        return None if number % 2 else trial(number, knobs, 0.98 + number / 1000)

    chosen, trials = tune(tuning(KNOBS, spec(trials=5)), search)
    assert [t.number for t in trials] == [0, 2, 4]
    assert chosen.number == 0
    assert tune(tuning(KNOBS, spec(trials=5)), search) == (chosen, trials)


def test_lambda_does_not_search_again_where_it_diverged() -> None:
    asked = []

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        asked.append(knobs["strength"])
        return None if number else trial(number, knobs, 0.5)

    chosen, trials = tune(tuning(KNOBS, spec("lambda", 6)), search)
    assert (chosen.number, len(trials)) == (0, 1)
    assert len(set(asked)) == len(asked) == 2


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_without_any_trial_that_stays_finite_the_tuning_diverges(match: str) -> None:
    tried = []

    def search(number: int, knobs: Mapping[str, float]) -> None:
        tried.append(knobs["strength"])

    with pytest.raises(NonFiniteLossError, match=r"trials? diverged: .* became infinite or NaN; limit"):
        tune(tuning(KNOBS, spec(match, 4)), search)
    assert len(set(tried)) == len(tried)  # none at a strength that has diverged before
    assert len(tried) == (4 if match == "hinge" else 1)


@pytest.mark.parametrize(("present", "limit"), [(None, 5.0), (5.0, 2.5), (0.1, 0.05)])
def test_the_advice_after_divergence_changes_the_tuning(present: float | None, limit: float) -> None:
    """What it says to type asks for another tuning than the one that diverged."""
    with pytest.raises(NonFiniteLossError) as caught:
        tune(tuning(KNOBS, spec(trials=2), max_grad_norm=present), lambda *_: None)
    words = str(caught.value).split()
    assert words[-2:] == ["--retry", "diverged"] and parse_retry(words[-1]) == {"diverged"}
    setting = parse_setting(words[words.index("--set") + 1])
    assert setting == {"search": {"max_grad_norm": limit}}
    before = {} if present is None else {"search": {"max_grad_norm": present}}
    plans = [make_plan(build([TINY, before, *change])) for change in ([], [setting])]
    tunings = [{unit.identity for unit in plan.tunings} for plan in plans]
    assert tunings[0] and not tunings[0] & tunings[1]


# --- Optuna's storage ---


def test_a_database_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/none/o.db", f"sqlite:///{tmp_path}"):
        with pytest.raises(BenchError, match=r"--optuna-storage 'sqlite.*' cannot be used: .*; start the database"):
            require_storage(uri)
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(BenchError, match="cannot be used"):
        require_storage(f"sqlite:///{tmp_path}/text.db")
    require_storage(f"sqlite:///{tmp_path}/new.db")


def test_a_database_shows_every_trial_as_it_ended(uninterrupted: Callable[[str], Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"

    def search(number: int, knobs: Mapping[str, float]) -> Trial | None:
        return None if number == 2 else smooth(number, knobs)

    for _ in range(2):  # the second replaces the first
        tune(tuning(TWO_KNOBS, spec(trials=2), storage=url), search)
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    assert name == "tests"
    assert [found.state.name for found in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[0].params == uninterrupted("hinge")[1][0].knobs
    assert study.trials[0].value == uninterrupted("hinge")[1][0].validation_top1


def test_a_database_changes_no_number(uninterrupted: Callable[[str], Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    for match in ("hinge", "lambda"):
        assert tune(tuning(TWO_KNOBS, spec(match), storage=url), smooth) == uninterrupted(match)


@pytest.mark.parametrize("call", ["create_study", "tell"])
def test_a_database_that_goes_away_stops_no_tuning(
    uninterrupted: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, caplog: Any
) -> None:
    url, calls, shelf = f"sqlite:///{tmp_path / 'optuna.db'}", count(), Shelf()
    owner = optuna if call == "create_study" else optuna.Study
    original, fails_at = getattr(owner, call), 0 if call == "create_study" else 3

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(calls) == fails_at:
            raise optuna.exceptions.StorageInternalError("the server is gone")
        return original(*arguments, **named)

    monkeypatch.setattr(owner, call, failing)
    assert tune(tuning(TWO_KNOBS, spec(), storage=url), shelf) == uninterrupted("hinge")
    assert shelf.searched == list(range(14))
    assert f"Optuna's storage {url} is not up to date: the server is gone" in caplog.text
