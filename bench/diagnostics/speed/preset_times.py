"""Rough estimates of how long presets take, without data and without measurements.

The estimates use figures of ResNet-20 on two cores (docs/performance.md): multiplications per second in plain training,
time per layer, and factors for searches and for quantized networks. `bench run --dry-run` measures instead.
"""

from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.counter import price
from bench.data.dataset import Dataset
from bench.planning.plan import make_plan
from bench.planning.units import RunUnit, TuningUnit, Unit, finetuning_epochs
from bench.plugins.registry import load
from bench.spec.schema import Schedule, SearchSchedule, StudySpec

_RATE = 2.5e10
"""Multiplications of the forward pass per second of plain training: 612 images of 41 million each."""
_LAYER_SECONDS = 4e-4
"""Time of a step per layer, independent of the size of images."""
_PROCESS_SECONDS = 4.0
"""Time to start the process of a unit or trial, and to read data."""
_SEARCH, _FINETUNE = 1.8, 1.4
"""Time of uncompiled searches and fine-tuning relative to plain training."""


def seconds(spec: StudySpec) -> float | None:
    """Estimate the seconds of a study, unit after unit; `None` if the number of training images is unknown."""
    dataset: type[Dataset] = load("datasets", spec.task.dataset)
    images = spec.task.train_images or dataset.training_images
    if images is None:
        return None
    plan = make_plan(_without_weights(spec.model_copy(update={"device": "cpu"})))
    kept = images * (1 - spec.task.validation_fraction)
    return sum(_unit_seconds(unit, kept) for units in (plan.pretrainings, plan.tunings, plan.runs) for unit in units)


def _without_weights(spec: StudySpec) -> StudySpec:
    """Replace pretrained weights by random ones: the study takes equally long, and the file may be missing."""
    if spec.task.checkpoint is None:
        return spec
    return spec.model_copy(update={"task": spec.task.model_copy(update={"checkpoint": None, "init": "scratch"})})


def _unit_seconds(unit: Unit, images: float) -> float:
    spec, network = unit.spec, unit.network
    search = _SEARCH * _training_seconds(network, spec.search, images)
    finetune = _FINETUNE * _training_seconds(network, spec.finetune, images)
    if isinstance(unit, TuningUnit):
        short = finetune * spec.tuning.finetune_epochs / spec.finetune.epochs
        return unit.trials * (_PROCESS_SECONDS + search + short)
    if isinstance(unit, RunUnit):
        longer = finetune * finetuning_epochs(unit) / spec.finetune.epochs
        return _PROCESS_SECONDS + longer + (search if unit.search_trains else 0.0)
    return _PROCESS_SECONDS + (
        _training_seconds(network, spec.pretrain, images) if "schedule" in unit.document else 0.0
    )


def _training_seconds(network: NetworkShape, schedule: Schedule | SearchSchedule, images: float) -> float:
    macs = price(network, uniform(network, FULL_PRECISION_BITS)).macs
    step = schedule.batch_size * macs / _RATE + _LAYER_SECONDS * len(network.layers)
    return schedule.epochs * images / schedule.batch_size * step
