"""Estimate how long a study takes, from a few measured steps of every kind of work in it."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import uniform
from bench.data.task_data import TaskData
from bench.diagnostics.speed.trainings import ignore
from bench.execution.task_loader import TaskLoader
from bench.method import SearchJob, Task
from bench.planning.methods import method_of_study
from bench.planning.units import RunUnit, TuningUnit, Unit, finetuning_epochs
from bench.spec.schema import Schedule
from bench.spec.seeds import generator, start_process_deterministically
from bench.training.loop import fit

_FEW, _MORE = 1, 4
"""Numbers of steps of the two trainings whose times are compared."""
_SEEN, _MORE_SEEN = 64, 256
"""Numbers of validation images that they evaluate; a search may evaluate all images of a large data set."""
_FINETUNE_BITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Duration of a training.

    Attributes:
        step: Seconds of one step.
        once: Seconds that do not depend on the number of steps.
    """

    step: float
    once: float

    def seconds(self, steps: int) -> float:
        """Return the seconds of a training with so many steps."""
        return self.once + steps * self.step


Report = Callable[[str, StepTime], None]
"""Function of the name of a kind of work and its step time."""


def ignore_step(_: str, __: StepTime) -> None:
    """Do nothing with a step time."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Measured step times of one model.

    Attributes:
        searches: Step times of searches, by the label of their run.
        training: Step time of the float network.
        finetuning: Step time of a uniformly quantized network.
        data: Data that units train on.
    """

    searches: Mapping[str, StepTime]
    training: StepTime
    finetuning: StepTime
    data: TaskData

    def seconds(self, unit: Unit) -> float:
        """Estimate the seconds of a unit."""
        spec = unit.spec
        per_epoch = self.data.batches_per_epoch
        if isinstance(unit, TuningUnit | RunUnit):
            search = self.searches.get(unit.label)
            steps = spec.search.epochs * per_epoch(spec.search.batch_size)
            searching = 0.0 if search is None else search.seconds(steps)
            epochs = spec.tuning.finetune_epochs if isinstance(unit, TuningUnit) else finetuning_epochs(unit)
            finetuning = self.finetuning.seconds(epochs * per_epoch(spec.finetune.batch_size))
            return (searching + finetuning) * (unit.trials if isinstance(unit, TuningUnit) else 1)
        steps = spec.pretrain.epochs * per_epoch(spec.pretrain.batch_size) if "schedule" in unit.document else 0
        return self.training.seconds(steps)


def estimate(runs: Sequence[RunUnit], loader: TaskLoader, report: Report = ignore_step) -> Estimate:
    """Measure a few steps of each kind of work on one model.

    Args:
        runs: Runs on that model.
        loader: Loader of the task with that model.
        report: Function that is told of every kind of work as soon as it is measured.
    """
    spec, task = loader.spec, loader.task
    start_process_deterministically(0, spec.threads)
    float_model = task.make_model()
    quantized = compress(float_model, task.network, uniform(task.network, _FINETUNE_BITS))
    calibrate(quantized, task.data.calibration_batches(1, spec.finetune.batch_size)[0])

    def training(name: str, model: nn.Module, schedule: Schedule) -> StepTime:
        def work(batches: int, _: int) -> None:
            short = schedule.model_copy(update={"epochs": 1, "decay": "cosine", "milestones": ()})
            few = _limited(task.data, batches * schedule.batch_size)
            fit(model, few, short, generator("estimate"), ignore)

        return told(name, _measure(work))

    def told(name: str, time: StepTime) -> StepTime:
        report(name, time)
        return time

    trained = training("training", float_model, spec.pretrain)
    finetuned = training("fine-tuning", quantized, spec.finetune)
    searching = {unit.label: unit for unit in runs if unit.search_trains}
    searches = {label: told(label, _search_time(unit, task)) for label, unit in searching.items()}
    return Estimate(searches=searches, training=trained, finetuning=finetuned, data=task.data)


def _search_time(unit: RunUnit, task: Task) -> StepTime:
    schedule, match, budget = unit.spec.search, unit.spec.tuning.match, unit.budget
    if budget is None:
        raise TypeError(f"{unit} has no budget")
    method = method_of_study(unit.spec, unit.method)
    knobs = {name: knob.middle for name, knob in method.knobs(match).items()}
    state = task.make_model().state_dict()

    def work(batches: int, seen: int) -> None:
        data = _limited(task.data, batches * schedule.batch_size, seen)
        method.search(
            SearchJob(
                task=Task(data=data, network=task.network, make_model=task.make_model),
                pretrained=state,
                knobs=knobs,
                budget=budget.limit,
                measure=budget.measure,
                match=match,
                schedule=schedule.model_copy(update={"epochs": 1}),
                seed=0,
                report=ignore,
            )
        )

    return _measure(work, len(task.data.validation))


def _measure(work: Callable[[int, int], None], validation: int = 0) -> StepTime:
    """Compute step time and offset from the times of few and of more steps, and of few and of more validation images.

    Args:
        work: Function that does so many steps, and evaluates so many validation images at most.
        validation: Number of validation images that the work evaluates later; 0 when it evaluates none.
    """

    def seconds(batches: int, seen: int) -> float:
        began = time.perf_counter()
        work(batches, seen)
        return time.perf_counter() - began

    work(1, _SEEN)  # what happens once in a process, e.g. compilation
    few, more = seconds(_FEW, _SEEN), seconds(_MORE, _SEEN)
    step = max((more - few) / (_MORE - _FEW), more / _MORE / 10)
    once = max(0.0, more - _MORE * step)
    if validation > _SEEN:
        seen = min(validation, _MORE_SEEN)
        once += max(0.0, seconds(_FEW, seen) - few) / (seen - _SEEN) * (validation - _SEEN)
    return StepTime(step=step, once=once)


def _limited(data: TaskData, images: int, seen: int = _SEEN) -> TaskData:
    """Return the same data with fewer training images, and with fewer validation images."""
    limited = copy.copy(data)
    limited.train = data.train.take(torch.arange(min(images, len(data.train))))
    limited.validation = data.validation.take(torch.arange(min(seen, len(data.validation))))
    return limited
