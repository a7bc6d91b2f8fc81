"""Matching on made-up searches: nothing is trained here."""

import math
import random
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench import matching
from bench.budget import Budget
from bench.errors import UnreachableBudgetError
from bench.matching import Trial, bracket_sampler, propose_log_strength, space_filling, tune
from bench.method import Knob
from bench.spec import TuningSpec

BUDGET = Budget(text="100M", bops=1e8, tolerance=0.03)
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
        if BUDGET.matches(costs(x) * BUDGET.bops):
            return number, "hit"
        low, high = matching._bracket(points, BUDGET)
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


# --- searches that are not there ---


def trial(number: int, knobs: Mapping[str, float], share: float, **fields: Any) -> Trial:
    """A trial that cost a share of the budget before repair."""
    values = {"bops": share * BUDGET.bops, "repaired_gates": 0, "validation_top1": 50.0, "validation_loss": 1.0}
    values |= {"seconds": 0.5, "policy": {}, "curves": [], "record": {"history": [1.5]}} | fields
    within = BUDGET.matches(values["bops"])
    return Trial(number=number, knobs=dict(knobs), raw_bops=share * BUDGET.bops, within_budget=within, **values)


def smooth(number: int, knobs: Mapping[str, float]) -> Trial:
    """The cost falls with the strength; the accuracy has a maximum at 0.3; repair lands every trial but dear ones."""
    share = 1.2 * knobs["strength"] ** -0.4
    top1 = 60 - abs(math.log(knobs["strength"] / 0.3)) - abs(knobs.get("share", 0.5) - 0.7)
    repaired = 0.99 if share < 3 else share
    return trial(number, knobs, share, bops=repaired * BUDGET.bops, validation_top1=top1)


def spec(match: str = "hinge", trials: int = 7, **fields: Any) -> TuningSpec:
    return TuningSpec(match=match, trials=trials, **fields)  # type: ignore[arg-type]


TWO_KNOBS = {**KNOBS, "share": Knob(low=0.0, high=1.0)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Trial, list[Trial]]]:
    """Tuning by `smooth` without any trouble."""
    found = {}
    for match in ("hinge", "lambda"):
        folder = tmp_path_factory.mktemp(match)
        chosen, trials = tune(TWO_KNOBS, BUDGET, spec(match), folder, smooth, SEED)
        found[match] = (chosen, list(trials))
    return found.__getitem__


def states(folder: Path) -> list[str]:
    """What the journal says of each trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
        study = optuna.load_study(study_name="tuning", storage=optuna.storages.JournalStorage(backend))
    return [found.state.name for found in study.get_trials(deepcopy=False)]


# --- mode hinge ---


def test_hinge_chooses_by_validation_accuracy_among_trials_in_the_window(tmp_path: Path) -> None:
    outcomes = [(1.5, 90.0), (0.98, 60.0), (0.99, 70.0), (0.5, 95.0), (1.0, 65.0)]

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share, top1 = outcomes[number]
        return trial(number, knobs, share, validation_top1=top1)

    chosen, trials = tune(KNOBS, BUDGET, spec(trials=5), tmp_path, search, SEED)
    assert [t.number for t in trials] == [0, 1, 2, 3, 4]
    assert chosen.number == 2


def test_hinge_breaks_ties_by_validation_loss(tmp_path: Path) -> None:
    chosen, _ = tune(
        KNOBS,
        BUDGET,
        spec(trials=3),
        tmp_path,
        lambda n, k: trial(n, k, 0.99, validation_loss=[2.0, 0.5, 1.0][n]),
        SEED,
    )
    assert chosen.number == 1


@pytest.mark.parametrize(("shares", "expected"), [((0.5, 0.9, 0.7), 1), ((1.2, 0.4, 3.0), 1), ((1.001, 0.969, 1.5), 1)])
def test_without_a_trial_in_the_window_the_dearest_allowed_one_is_taken(
    tmp_path: Path, shares: tuple[float, ...], expected: int
) -> None:
    chosen, _ = tune(KNOBS, BUDGET, spec(trials=3), tmp_path, lambda n, k: trial(n, k, shares[n]), SEED)
    assert chosen.number == expected
    assert not chosen.within_budget


@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_an_unreachable_budget_names_the_nearest_cost(tmp_path: Path, match: str) -> None:
    with pytest.raises(UnreachableBudgetError, match=r"none of 3 trials .* the nearest costs 1\.250 of it") as caught:
        tune(KNOBS, BUDGET, spec(match, 3), tmp_path, lambda n, k: trial(n, k, [2.0, 1.25, 1.5][n]), SEED)
    assert caught.value.nearest == pytest.approx(1.25e8)


def test_hinge_uses_all_its_trials_and_the_later_ones_learn(tmp_path: Path) -> None:
    _, trials = tune(KNOBS, BUDGET, spec(trials=16), tmp_path, smooth, SEED)
    assert len(trials) == 16
    assert all(KNOB.low <= t.knobs["strength"] <= KNOB.high for t in trials)
    assert len({t.knobs["strength"] for t in trials}) == 16

    def distance(some: list[Trial]) -> float:
        return statistics.mean(abs(math.log(t.knobs["strength"] / 0.3)) for t in some)

    assert distance(list(trials[8:])) < distance(list(trials[:4]))


def test_trials_outside_the_window_are_told_apart_from_those_inside(tmp_path: Path) -> None:
    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        inside = knobs["strength"] < 0.2
        return trial(number, knobs, 0.99 if inside else 0.3, validation_top1=20.0 if inside else 99.0)

    chosen, trials = tune(KNOBS, BUDGET, spec(trials=20), tmp_path, search, SEED)
    assert chosen.within_budget
    late = [t.knobs["strength"] < 0.2 for t in trials[10:]]
    assert sum(late) > len(late) / 2  # though accuracy alone would have led the other way


# --- mode lambda ---


@pytest.mark.parametrize("seed", range(3))
def test_lambda_stops_at_the_first_hit_and_chooses_it(tmp_path: Path, seed: int) -> None:
    costs = staircase(seed)
    expected, _ = searches(costs)

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        share = costs(math.log(knobs["strength"]))
        # Repair brings every search into the window, and the misses train better.
        top1 = 10.0 if BUDGET.matches(share * BUDGET.bops) else 90.0
        return trial(number, knobs, share, bops=0.99 * BUDGET.bops, validation_top1=top1)

    chosen, trials = tune(KNOBS, BUDGET, spec("lambda", 20), tmp_path, search, SEED)
    assert chosen is trials[-1]
    assert BUDGET.matches(chosen.raw_bops)
    assert len(trials) == expected


def test_lambda_prefers_a_hit_to_a_nearer_miss_that_was_repaired(tmp_path: Path) -> None:
    shares = [1.004, 0.971]
    chosen, trials = tune(
        KNOBS, BUDGET, spec("lambda", 9), tmp_path, lambda n, k: trial(n, k, shares[n], bops=0.99e8), SEED
    )
    assert [t.raw_bops / BUDGET.bops for t in trials] == pytest.approx(shares)
    assert chosen.number == 1


def test_lambda_without_a_hit_takes_the_nearest_that_repair_brought_inside(tmp_path: Path) -> None:
    shares = [2.0, 1.3, 1.1]
    bops = [1.5e8, 0.99e8, 0.98e8]
    chosen, _ = tune(
        KNOBS, BUDGET, spec("lambda", 3), tmp_path, lambda n, k: trial(n, k, shares[n], bops=bops[n]), SEED
    )
    assert chosen.number == 2


def test_lambda_stops_when_two_strengths_straddle_the_window(tmp_path: Path) -> None:
    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        return trial(number, knobs, 1.3 if knobs["strength"] < 0.77 else 0.8)

    chosen, trials = tune(KNOBS, BUDGET, spec("lambda", 50), tmp_path, search, SEED)
    assert len(trials) <= 20
    assert chosen.raw_bops == pytest.approx(0.8e8)
    strengths = sorted(t.knobs["strength"] for t in trials)
    below = max(s for s in strengths if s < 0.77)
    assert min(s for s in strengths if s >= 0.77) / below < 1.02


@pytest.mark.filterwarnings("error::UserWarning")  # Optuna's, on a value outside its range
@pytest.mark.parametrize("share", [3.0, 0.2])
def test_lambda_repeats_no_search_at_the_end_of_its_reach(tmp_path: Path, share: float) -> None:
    numbers = count()

    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        next(numbers)
        return trial(number, knobs, share, bops=min(share, 0.5) * BUDGET.bops)

    _, trials = tune(KNOBS, BUDGET, spec("lambda", 30), tmp_path, search, SEED)
    strengths = [t.knobs["strength"] for t in trials]
    assert len(set(strengths)) == len(strengths) == next(numbers) < 20


def test_other_knobs_stay_the_same_for_a_whole_bracket() -> None:
    def others(completed: int) -> float:
        done = [trial(n, {"strength": 0.2 + n, "share": 0.1}, 2.0) for n in range(completed)]
        return float(bracket_sampler(TWO_KNOBS, BUDGET, 4, done)._fixed_params["share"])  # type: ignore[attr-defined]

    assert others(0) == others(3) != others(4)


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


def failing_at(calls: Iterator[int], when: int, error: BaseException) -> Callable[[int, Mapping[str, float]], Trial]:
    def search(number: int, knobs: Mapping[str, float]) -> Trial:
        if next(calls) == when:
            raise error
        return smooth(number, knobs)

    return search


def without_times(outcome: tuple[Trial, Any]) -> tuple[Trial, list[Trial]]:
    chosen, trials = outcome
    return replace(chosen, seconds=0), [replace(t, seconds=0) for t in trials]


@pytest.mark.parametrize("match", ["hinge", "lambda"])
@pytest.mark.parametrize("error", [RuntimeError("a loss"), KeyboardInterrupt(), Killed()], ids=repr)
def test_an_interrupted_tuning_goes_on_as_if_nothing_had_been(
    tmp_path: Path, uninterrupted: Callable[[str], Any], match: str, error: BaseException
) -> None:
    expected = uninterrupted(match)
    for when in range(len(expected[1])):
        folder = tmp_path / str(when)
        with pytest.raises(type(error)):
            tune(TWO_KNOBS, BUDGET, spec(match), folder, failing_at(count(), when, error), SEED)
        calls = count()
        outcome = tune(TWO_KNOBS, BUDGET, spec(match), folder, failing_at(calls, -1, error), SEED)
        assert without_times(outcome) == without_times(expected)
        assert next(calls) == len(expected[1]) - when  # completed trials were not repeated
        assert states(folder).count("RUNNING") == 0
        assert states(folder).count("FAIL") == 1


def test_interruptions_one_after_the_other(tmp_path: Path, uninterrupted: Callable[[str], Any]) -> None:
    for _ in range(6):
        with pytest.raises(KeyboardInterrupt):
            tune(TWO_KNOBS, BUDGET, spec(), tmp_path, failing_at(count(), 1, KeyboardInterrupt()), SEED)
    outcome = tune(TWO_KNOBS, BUDGET, spec(), tmp_path, smooth, SEED)
    assert without_times(outcome) == without_times(uninterrupted("hinge"))


@pytest.mark.parametrize("match", ["hinge", "lambda"])
@pytest.mark.parametrize("place", ["before the file", "between file and journal"])
def test_a_process_killed_around_the_end_of_a_trial(
    tmp_path: Path, uninterrupted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, match: str, place: str
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((matching, "write_json") if place == "before the file" else (optuna.Study, "tell")), kill)
        with pytest.raises(Killed):
            tune(TWO_KNOBS, BUDGET, spec(match), tmp_path, smooth, SEED)
    assert (tmp_path / "trials" / "0.json").exists() == (place != "before the file")
    assert states(tmp_path) == ["RUNNING"]
    calls = count()
    outcome = tune(TWO_KNOBS, BUDGET, spec(match), tmp_path, failing_at(calls, -1, Killed()), SEED)
    assert without_times(outcome) == without_times(uninterrupted(match))
    assert next(calls) == len(outcome[1])


@pytest.mark.parametrize("match", ["hinge", "lambda"])
@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_lost_trial_file_is_made_again(
    tmp_path: Path, uninterrupted: Callable[[str], Any], match: str, damage: str
) -> None:
    expected = uninterrupted(match)
    tune(TWO_KNOBS, BUDGET, spec(match), tmp_path, smooth, SEED)
    file = tmp_path / "trials" / "1.json"
    content = file.read_text()
    file.unlink() if damage == "missing" else file.write_text(content[:40])
    outcome = tune(TWO_KNOBS, BUDGET, spec(match), tmp_path, smooth, SEED)
    assert [t.number for t in outcome[1]] == list(range(len(outcome[1])))
    assert without_times(outcome)[1][:4] == without_times(expected)[1][:4]
    assert file.read_text() == content


def test_a_lost_journal_repeats_trials_rather_than_trusting_files_alone(
    tmp_path: Path, uninterrupted: Callable[[str], Any]
) -> None:
    tune(TWO_KNOBS, BUDGET, spec(), tmp_path, smooth, SEED)
    (tmp_path / "journal.log").unlink()
    calls = count()
    outcome = tune(TWO_KNOBS, BUDGET, spec(), tmp_path, failing_at(calls, -1, Killed()), SEED)
    assert next(calls) == 7
    assert without_times(outcome) == without_times(uninterrupted("hinge"))


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_journal_that_was_cut_off_repeats_its_last_trial_at_most(
    tmp_path: Path, uninterrupted: Callable[[str], Any], cut: int
) -> None:
    tune(TWO_KNOBS, BUDGET, spec(trials=5), tmp_path, smooth, SEED)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-cut])
    calls = count()
    outcome = tune(TWO_KNOBS, BUDGET, spec(), tmp_path, failing_at(calls, -1, Killed()), SEED)
    assert next(calls) == 3
    assert without_times(outcome) == without_times(uninterrupted("hinge"))


def test_a_finished_tuning_searches_no_more(tmp_path: Path) -> None:
    for match in ("hinge", "lambda"):
        first = tune(KNOBS, BUDGET, spec(match), tmp_path / match, smooth, SEED)
        calls = count()
        again = tune(KNOBS, BUDGET, spec(match), tmp_path / match, failing_at(calls, -1, Killed()), SEED)
        assert next(calls) == 0
        assert again == (first[0], list(first[1]))


def test_the_seed_matters_to_the_sampler_only(tmp_path: Path, uninterrupted: Callable[[str], Any]) -> None:
    _, expected = uninterrupted("hinge")
    _, trials = tune(TWO_KNOBS, BUDGET, spec(), tmp_path, smooth, SEED + 1)
    assert [t.knobs for t in trials[:4]] == [t.knobs for t in expected[:4]]
    assert [t.knobs for t in trials[4:]] != [t.knobs for t in expected[4:]]
