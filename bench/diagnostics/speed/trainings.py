"""The trainings that `bench speed` measures, on random images."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import uniform
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.costs.counter import price
from bench.data.dataset import Arrays, Dataset
from bench.data.task_data import TaskData
from bench.diagnostics.speed.config import Candidate, SpeedConfig, What
from bench.diagnostics.speed.interleave import StepObserver, WatchedData, WatchedForward
from bench.execution.task_loader import on_device
from bench.method import Method, SearchJob, Task
from bench.models.build import build_model
from bench.planning.networks import model_shape
from bench.plugins.registry import load
from bench.spec.schema import Precision, Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.forward import Forward
from bench.training.loop import fit

EPOCHS = 2
"""Epochs of every training; a method with two stages divides them."""
_BITS = 4
_LEAST_BATCHES = 10
"""Smallest number of training batches, so that a method that trains on a fifth of the data gets whole batches."""
_RATE = 1e-3


def candidates(methods: Mapping[str, Method], modes: Sequence[bool], precision: Precision) -> list[Candidate]:
    """List the float network, the search of each method, and fine-tuning with the common and each own quantizer.

    Args:
        methods: Methods by name.
        modes: Values of `compiled`; every training is listed once for each.
        precision: Precision of all trainings.
    """
    own = [(name, method) for name, method in methods.items() if method.capabilities.own_quantizer]
    wanted: list[tuple[str, What, Method | None]] = [("float", "training", None)]
    wanted += [(name, "search", method) for name, method in methods.items()]
    wanted += [(f"{_BITS} bit", "fine-tuning", None)]
    wanted += [(f"{_BITS} bit as {name}", "fine-tuning", method) for name, method in own]
    return [
        Candidate(name=name, what=what, method=method, compiled=compiled, precision=precision)
        for name, what, method in wanted
        for compiled in modes
    ]


def random_task(config: SpeedConfig, batches: int) -> Task:
    """Make random images of the data set's shape, and the model on them.

    Args:
        config: Settings, with names, batch size and device.
        batches: Smallest number of training batches.
    """
    kind: type[Dataset] = load("datasets", config.dataset)
    dataset = kind.described()
    draws = generator("speed")
    count = max(batches, _LEAST_BATCHES) * config.batch_size

    def images(number: int) -> torch.Tensor:
        return torch.randint(0, 256, (number, *dataset.image_shape), dtype=torch.uint8, generator=draws)

    def labels(number: int) -> torch.Tensor:
        return torch.randint(0, dataset.num_classes, (number,), generator=draws)

    arrays = Arrays(
        train_images=images(count), train_labels=labels(count),
        test_images=images(config.batch_size), test_labels=labels(config.batch_size),
    )  # fmt: skip
    data = TaskData(dataset, arrays, validation_fraction=0.5, device=config.device)
    data.train = arrays.parts(dataset)[0].on(config.device, workers=0)
    data.validation = data.test

    def make_model() -> nn.Module:
        model = build_model(config.model, dataset.image_shape, dataset.num_classes)
        return on_device(model, config.device)

    return Task(data=data, network=model_shape(config.model, config.dataset), make_model=make_model)


def watched_training(
    candidate: Candidate, task: Task, observer: StepObserver, epoch: int, batch_size: int
) -> tuple[Callable[[], object], Forward]:
    """Make a function that runs a candidate's whole training, with the preparation of its networks.

    Args:
        candidate: Training to run.
        task: Data and model.
        observer: Observer of every step.
        epoch: Number of batches of an epoch; there are two epochs.
        batch_size: Images per step.
    """
    forward = WatchedForward("on" if candidate.compiled else "off", candidate.precision, task.device)
    forward.observer = observer
    data = WatchedData.watching(task.data, observer, epoch)
    watched = Task(data=data, network=task.network, make_model=task.make_model)
    if candidate.what == "search" and candidate.method is not None:
        return _search(candidate.method, watched, forward, batch_size), forward
    return _fit(candidate, watched, forward, batch_size), forward


def _search(method: Method, task: Task, forward: Forward, batch_size: int) -> Callable[[], object]:
    cheapest = method.cheapest(task.network)
    least = 0 if cheapest is None else price(task.network, cheapest).bops
    job = SearchJob(
        task=task,
        pretrained=task.make_model().state_dict(),
        knobs={name: knob.middle for name, knob in method.knobs("hinge").items()},
        budget=max(least, price(task.network, uniform(task.network, _BITS)).bops),
        match="hinge",
        schedule=SearchSchedule(epochs=EPOCHS, batch_size=batch_size, lr=_RATE),
        seed=0,
        report=ignore,
        forward=forward,
    )
    return lambda: method.search(job)


def _fit(candidate: Candidate, task: Task, forward: Forward, batch_size: int) -> Callable[[], object]:
    schedule = Schedule(epochs=EPOCHS, batch_size=batch_size, lr=_RATE)

    def train() -> None:
        model = task.make_model()
        if candidate.what == "fine-tuning":
            quantizer: QuantizerFactory = UniformQuantizer if candidate.method is None else candidate.method.quantizer
            model = compress(model, task.network, uniform(task.network, _BITS), quantizer=quantizer)
            calibrate(model, task.data.calibration_batches(1, batch_size)[0])
        call = forward.prepare(model, candidate.what, 1.0)
        fit(model, task.data, schedule, generator("speed", "order"), ignore, call=call)

    return train


def ignore(_: Mapping[str, float]) -> None:
    """Drop the figures of an epoch; measured trainings report nothing."""
