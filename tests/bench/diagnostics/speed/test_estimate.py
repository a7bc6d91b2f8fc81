from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bench.diagnostics.speed import estimate as module
from bench.diagnostics.speed.estimate import Estimate, StepTime, _limited, _measure, estimate
from bench.execution.task_loader import TaskLoader
from bench.planning.plan import make_plan

SEARCH, TRAINING, FINETUNING = StepTime(step=3, once=10), StepTime(step=1, once=5), StepTime(step=2, once=7)
STEPS = 3
"""Updates in one epoch of the tiny study."""


@pytest.fixture
def loader(tiny: SimpleNamespace) -> Callable[..., TaskLoader]:
    def made(*changes: Mapping[str, Any]) -> TaskLoader:
        return TaskLoader(tiny.spec(*changes), None)

    return made


def known(loader: TaskLoader) -> Estimate:
    """An estimate from made-up step times."""
    searches = {"sbs": SEARCH}
    return Estimate(searches=searches, training=TRAINING, finetuning=FINETUNING, data=loader.task.data)


def test_the_time_of_every_kind_of_unit(loader: Callable[..., TaskLoader]) -> None:
    epochs = {"pretrain": {"epochs": 4}, "search": {"epochs": 5}, "finetune": {"epochs": 6}}
    working = loader({**epochs, "tuning": {"trials": 2, "finetune_epochs": 1}, "methods": ["sbs", "fixed"]})
    plan = make_plan(working.spec)
    guess = known(working)
    assert working.task.data.batches_per_epoch(32) == STEPS
    search, finetuning = 10 + 5 * STEPS * 3, 7 + 6 * STEPS * 2
    runs = {unit.method: guess.seconds(unit) for unit in plan.runs}
    made_up = 5 * STEPS * 2  # fine-tuning of fixed is longer by the epochs of a search
    assert runs == {"sbs": search + finetuning, "fixed": finetuning + made_up}
    assert guess.seconds(plan.tunings[0]) == 2 * (search + 7 + STEPS * 2)
    assert guess.seconds(plan.pretrainings[0]) == 5 + 4 * STEPS * 1


def test_no_time_for_a_pretraining_that_is_not_needed(loader: Callable[..., TaskLoader]) -> None:
    working = loader({"task": {"init": "scratch"}, "methods": ["fixed"]})
    plan = make_plan(working.spec)
    assert known(working).seconds(plan.pretrainings[0]) == TRAINING.once


@pytest.mark.parametrize(
    ("once", "step", "expected"),
    [(4.0, 2.0, (2.0, 4.0)), (0.0, 1.0, (1.0, 0.0)), (100.0, 0.0, (2.5, 90.0))],
)
def test_step_and_offset_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, once: float, step: float, expected: tuple[float, float]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def work(batches: int, seen: int) -> None:
        now[0] += once + step * batches + 0.01 * (seen - 64)

    found = _measure(work)
    assert (found.step, found.once) == pytest.approx(expected)  # a step takes some time, whatever was measured
    later = _measure(work, 1064)
    assert (later.step, later.once) == pytest.approx((expected[0], expected[1] + 10))


def test_measuring_uses_a_few_images_and_leaves_the_data_alone(loader: Callable[..., TaskLoader]) -> None:
    data = loader().task.data
    count = len(data.train)
    limited = _limited(data, 64)
    assert (len(limited.train), len(data.train)) == (64, count)
    assert len(_limited(data, 64, 5).validation) == 5 < len(data.validation)


@pytest.mark.parametrize("match", ["dual", "hinge"])
def test_every_kind_of_work_is_measured(loader: Callable[..., TaskLoader], match: str) -> None:
    """Also searches of methods that are not tuned."""
    working = loader({"methods": ["sbs", "fixed"], "tuning": {"match": match}})
    told: list[str] = []
    guess = estimate(make_plan(working.spec).runs, working, lambda name, _: told.append(name))
    assert told == ["training", "fine-tuning", "sbs"]
    assert guess.searches.keys() == {"sbs"}
    times = (*guess.searches.values(), guess.training, guess.finetuning)
    assert all(0 < time.step < 60 and 0 <= time.once < 60 for time in times)
