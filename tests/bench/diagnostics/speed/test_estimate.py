from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.diagnostics.speed import estimate as module
from bench.diagnostics.speed.estimate import Estimate, StepTime, _limited, _measure, estimate, units_with_status
from bench.execution.stages import Workbench
from bench.planning.plan import make_plan
from bench.store.files import Store

SEARCH, TRAINING, FINETUNING = StepTime(step=3, once=10), StepTime(step=1, once=5), StepTime(step=2, once=7)
STEPS = 3
"""Updates in one epoch of the tiny study."""


@pytest.fixture
def bench(tiny: SimpleNamespace, tmp_path: Path) -> Callable[..., Workbench]:
    def made(*changes: Mapping[str, Any], store: Path = tmp_path / "store") -> Workbench:
        spec = tiny.spec(*changes)
        return Workbench(spec, Store(store), None, make_plan(spec).network)

    return made


def known(bench: Workbench) -> Estimate:
    """An estimate from made-up step times."""
    searches = {"sbs": SEARCH}
    return Estimate(searches=searches, training=TRAINING, finetuning=FINETUNING, data=bench.task.data)


def test_the_time_of_every_kind_of_unit(bench: Callable[..., Workbench]) -> None:
    epochs = {"pretrain": {"epochs": 4}, "search": {"epochs": 5}, "finetune": {"epochs": 6}}
    working = bench({**epochs, "tuning": {"trials": 2, "finetune_epochs": 1}, "methods": ["sbs", "fixed"]})
    plan = make_plan(working.spec)
    guess = known(working)
    assert working.task.data.batches_per_epoch(32) == STEPS
    search, finetuning = 10 + 5 * STEPS * 3, 7 + 6 * STEPS * 2
    runs = {unit.method: guess.seconds(unit) for unit in plan.runs}
    assert runs == {"sbs": search + finetuning, "fixed": finetuning}
    assert guess.seconds(plan.tunings[0]) == 2 * (search + 7 + STEPS * 2)
    assert guess.seconds(plan.pretrainings[0]) == 5 + 4 * STEPS * 1


def test_no_time_for_a_pretraining_that_is_not_needed(bench: Callable[..., Workbench]) -> None:
    working = bench({"task": {"init": "scratch"}, "methods": ["fixed"]})
    plan = make_plan(working.spec)
    assert known(working).seconds(plan.pretrainings[0]) == TRAINING.once


@pytest.mark.parametrize(
    ("once", "step", "expected"),
    [(4.0, 2.0, (2.0, 4.0)), (0.0, 1.0, (1.0, 0.0)), (100.0, 0.0, (2.0, 90.0))],
)
def test_step_and_offset_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, once: float, step: float, expected: tuple[float, float]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def work(batches: int) -> None:
        now[0] += once + step * batches

    found = _measure(work)
    assert (found.step, found.once) == pytest.approx(expected)  # a step takes some time, whatever was measured


def test_measuring_uses_a_few_images_and_leaves_the_data_alone(bench: Callable[..., Workbench]) -> None:
    data = bench().task.data
    count = len(data.train)
    limited = _limited(data, 64)
    assert (len(limited.train), len(data.train)) == (64, count)
    assert limited.validation is data.validation


def test_every_kind_of_work_is_measured_and_nothing_is_written(bench: Callable[..., Workbench], tmp_path: Path) -> None:
    working = bench({"methods": ["sbs", "fixed"]})
    guess = estimate(make_plan(working.spec).tunings, working)
    assert guess.searches.keys() == {"sbs"}
    times = (*guess.searches.values(), guess.training, guess.finetuning)
    assert all(0 < time.step < 60 and 0 <= time.once < 60 for time in times)
    assert not (tmp_path / "store").exists()


def test_states_are_those_of_the_store(bench: Callable[..., Workbench], copied: Path) -> None:
    working = bench({"seeds": [0, 2]}, store=copied)
    plan = make_plan(working.spec)
    states = {unit.identity: state for _, unit, state in units_with_status(plan, working.store)}
    assert len(states) == len(plan.pretrainings) + len(plan.tunings) + len(plan.runs)
    assert {states[unit.identity] for unit in plan.tunings} == {"done"}
    assert {(unit.seed, states[unit.identity]) for unit in plan.runs} == {(0, "done"), (2, "to do")}
