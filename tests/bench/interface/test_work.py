"""The work of a study: epochs of units, trials while they run, and the time left."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bench.interface import work as module
from bench.interface.work import Work
from bench.planning.plan import Plan, make_plan, phases
from bench.planning.units import Unit, kind_of, planned_epochs
from bench.store.leases import Holder, LeaseView

SEARCH, FINETUNE, SHORT, PRETRAIN = 6, 4, 2, 5
"""Epochs of a search, a fine-tuning, that of a trial, and a pretraining."""


@pytest.fixture
def plan(tiny: SimpleNamespace) -> Plan:
    lengths: dict[str, Any] = {
        "pretrain": {"epochs": PRETRAIN},
        "search": {"epochs": SEARCH},
        "finetune": {"epochs": FINETUNE},
        "tuning": {"finetune_epochs": SHORT},
    }
    return make_plan(tiny.spec(lengths, {"methods": ["sbs", "dnas"], "seeds": [0, 1]}))


@pytest.fixture
def work(plan: Plan) -> Work:
    return Work([units for _, units in phases(plan)])


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def running(unit: Unit, *, trial: int | None = None, **progress: Any) -> LeaseView:
    """The lease of a running unit, or of a trial of a tuning."""
    name = f"{kind_of(unit)}-{unit.identity}" if trial is None else f"trials-{unit.identity}-{trial}"
    holder = Holder(host="here", boot="1", pid=1, start_time="1")
    return LeaseView(name=name, token="1", holder=holder, beat=1, time="", title=name, progress=progress)  # noqa: S106


def test_the_epochs_of_all_units_are_counted(plan: Plan, work: Work) -> None:
    runs, tunings = 4 * (SEARCH + FINETUNE), 2 * 2 * (SEARCH + SHORT)
    assert work.epochs == 3 * PRETRAIN + tunings + runs
    assert (work.done, work.units, work.stored) == (0, 3 + 2 + 4, 0)
    for units in (plan.pretrainings, plan.tunings, plan.runs):
        for unit in units:
            work.ended(unit, finished=True)
    assert work.done == work.epochs


def test_results_that_are_there_count_as_done_and_say_nothing_of_the_time(
    plan: Plan, wait: Callable[[float], None]
) -> None:
    work = Work([units for _, units in phases(plan)], {unit.identity for unit in plan.pretrainings})
    assert (work.done, work.stored) == (3 * PRETRAIN, 3)
    wait(10)
    work.ended(plan.pretrainings[0], finished=True)
    assert (work.done, work.seconds_left()) == (3 * PRETRAIN, None)


def test_the_epochs_of_trials_count_while_they_run(plan: Plan, work: Work) -> None:
    tuning = plan.tunings[0]
    first = running(tuning, phase="trial", epoch=1, epochs=2)
    work.look([first])
    assert work.done == 0
    work.look([first, running(tuning, trial=0, phase="search", epoch=3, epochs=SEARCH, done=3)])
    assert work.done == 3
    work.look([first, running(tuning, trial=0, phase="finetune", epoch=1, epochs=SHORT, done=1)])
    assert work.done == SEARCH + 1
    second = running(tuning, phase="trial", epoch=2, epochs=2)
    work.look([second])  # between two trials
    assert work.done == SEARCH + SHORT
    work.look([second, running(tuning, trial=1, phase="search", epoch=2, epochs=SEARCH, done=2)])
    assert work.done == SEARCH + SHORT + 2


@pytest.mark.parametrize(
    ("progress", "done"),
    [
        ({}, 0),
        ({"phase": "search", "epoch": 2, "epochs": SEARCH, "done": 2}, 2),
        ({"phase": "search", "epoch": 5, "epochs": SEARCH, "done": 1}, 5),  # continued after an interruption
        ({"phase": "search", "epoch": 1, "epochs": SEARCH // 2, "done": 4}, 4),  # the second of two stages
        ({"phase": "search", "epoch": 300, "epochs": 600, "done": 300}, SEARCH // 2),  # an agent's episodes
        ({"phase": "finetune", "epoch": 3, "epochs": FINETUNE, "done": 3}, SEARCH + 3),
        ({"phase": "search", "epoch": 9, "epochs": 0}, SEARCH),
        ({"phase": "finetune"}, SEARCH),
    ],
)
def test_a_run_is_as_far_as_its_phase_says(plan: Plan, work: Work, progress: dict[str, Any], done: int) -> None:
    work.look([running(plan.runs[0], **progress)])
    assert work.done == done


def test_a_fine_tuning_that_is_longer_than_planned_adds_to_the_epochs(plan: Plan, work: Work) -> None:
    before = work.epochs
    dnas = [run for run in plan.runs if run.method == "dnas"]
    work.look([running(dnas[0], phase="finetune", epoch=1, epochs=FINETUNE + 1, done=1)])
    assert work.epochs == before + len(dnas)  # the other run of the method is as long
    work.look([running(dnas[0], phase="finetune", epoch=FINETUNE + 1, epochs=FINETUNE + 1)])
    assert work.done == SEARCH + FINETUNE + 1


def test_units_of_other_studies_and_those_that_have_ended_are_left_alone(plan: Plan, work: Work) -> None:
    (run, *_), start = plan.runs, plan.pretrainings[0]
    work.ended(start, finished=True)
    work.ended(start, finished=True)  # once is enough
    work.look([running(start, phase="pretrain", epoch=2), running(run)])
    assert work.done == PRETRAIN
    stranger = SimpleNamespace(name="runs-stranger", progress={"phase": "search", "epoch": 1}, tuning="")
    work.look([stranger])  # type: ignore[list-item]
    assert work.done == PRETRAIN


# --- the time left ---


def test_no_time_is_stated_before_units_of_the_same_kind_are_known(
    plan: Plan, work: Work, wait: Callable[[float], None]
) -> None:
    assert work.seconds_left() is None
    for start in plan.pretrainings:
        work.look([running(start)])
        wait(5 * PRETRAIN)
        work.ended(start, finished=True)
    assert work.seconds_left() is None  # nothing is known of searches


def test_the_time_left_follows_from_the_pace_of_each_method(
    plan: Plan, work: Work, wait: Callable[[float], None]
) -> None:
    for start in plan.pretrainings:
        work.look([running(start)])
        wait(1 * PRETRAIN)
        work.ended(start, finished=True)
    pace = {"sbs": 2.0, "dnas": 7.0}
    for tuning in plan.tunings:
        work.look([running(tuning)])
        wait(pace[tuning.method] * planned_epochs(tuning))
        work.ended(tuning, finished=True)
    # Of runs nothing is known yet, but those of a method are as fast as its trials.
    assert work.seconds_left() == pytest.approx(2 * (SEARCH + FINETUNE) * (2 + 7))
    run = plan.runs[0]
    work.look([running(run)])
    wait(2 * SEARCH)
    work.look([running(run, phase="search", epoch=SEARCH, epochs=SEARCH, done=SEARCH)])
    assert work.seconds_left() == pytest.approx(2 * (2 * FINETUNE + SEARCH) + 2 * 7 * (SEARCH + FINETUNE), rel=0.1)


def test_units_at_the_same_time_share_the_time_left(plan: Plan, work: Work, wait: Callable[[float], None]) -> None:
    for units in (plan.pretrainings, plan.tunings):
        work.look([running(unit) for unit in units[:2]])
        wait(10)
        for unit in units:
            work.ended(unit, finished=True)
    work.look([running(unit) for unit in plan.tunings])
    alone = 10 / planned_epochs(plan.tunings[0]) * (SEARCH + FINETUNE)
    assert work.seconds_left() == pytest.approx(len(plan.runs) * alone / 2)


def test_the_last_unit_takes_its_own_time_however_many_run_at_once(
    plan: Plan, work: Work, wait: Callable[[float], None]
) -> None:
    for units in (plan.pretrainings, plan.tunings):
        work.look([running(unit) for unit in units])
        wait(10)
        for unit in units:
            work.ended(unit, finished=True)
    for unit in plan.runs[:-1]:
        work.ended(unit, finished=False)
    assert work.seconds_left() == pytest.approx(10 / planned_epochs(plan.tunings[0]) * (SEARCH + FINETUNE))


def test_failed_units_say_nothing_of_the_time(plan: Plan, work: Work, wait: Callable[[float], None]) -> None:
    for unit in (*plan.pretrainings, *plan.tunings):
        work.look([running(unit)])
        wait(1)
        work.ended(unit, finished=False)
    assert work.seconds_left() is None


def test_what_was_done_before_the_command_began_does_not_make_it_faster(
    plan: Plan, work: Work, wait: Callable[[float], None]
) -> None:
    for unit in (*plan.pretrainings, *plan.tunings, *plan.runs[1:]):
        work.ended(unit, finished=False)
    run = plan.runs[0]
    work.look([running(run, phase="finetune", epoch=1, epochs=FINETUNE, done=1)])
    wait(30)
    work.look([running(run, phase="finetune", epoch=3, epochs=FINETUNE, done=3)])
    assert work.seconds_left() == pytest.approx(10)  # 3 epochs in 30 s, of which one before the first look
