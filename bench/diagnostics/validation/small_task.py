"""A small task on which methods are checked within seconds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.compression.shapes import trace
from bench.data.dataset import Dataset
from bench.data.task_data import TaskData
from bench.method import Task
from bench.models.build import build_model
from bench.plugins.registry import load
from bench.spec.schema import Schedule
from bench.spec.seeds import generator, start_process_deterministically
from bench.training.loop import fit

GLOBAL_SEED = 17
"""Seed of the global generators before every search."""
_IMAGES = 96
_VALIDATION_IMAGES = 100
_PRETRAINING = Schedule(epochs=4, batch_size=32, lr=0.05)


@dataclass(frozen=True, kw_only=True)
class SmallTask:
    """A small task with a pretrained network.

    Attributes:
        task: Data and model.
        pretrained: State of the float model after a few updates.
        patience: Seconds that every search may take at least.
    """

    task: Task
    pretrained: Mapping[str, Tensor]
    patience: float = 60.0


def make_small_task(model: str = "resnet8", dataset: str = "digits", data_dir: Path | None = None) -> SmallTask:
    """Take a few images of a data set, and train a network on them for a few updates.

    Args:
        model: Name of the model.
        dataset: Name of the data set.
        data_dir: Folder in which data sets are looked for.

    Raises:
        BenchError: A name is unknown, or the data are missing.
    """
    kind: type[Dataset] = load("datasets", dataset)
    described = kind.described(data_dir=data_dir)
    start_process_deterministically(GLOBAL_SEED, torch.get_num_threads())
    data = TaskData(
        described,
        described.load(data_dir),
        validation_fraction=0.1,
        device=torch.device("cpu"),
        train_images=max(_IMAGES, described.num_classes),
    )
    draws = generator("validation images")
    data.validation = data.validation.take(torch.randperm(len(data.validation), generator=draws)[:_VALIDATION_IMAGES])
    shape, classes = described.image_shape, described.num_classes
    return task_of(data, lambda: build_model(model, shape, classes), model, dataset)


def task_of(data: TaskData, make_model: Callable[[], nn.Module], model: str, dataset: str = "digits") -> SmallTask:
    """Train a network for a few updates.

    Args:
        data: Images to train on.
        make_model: Function that builds the model.
        model: Name of the model.
        dataset: Name of the data set.
    """
    network = trace(make_model(), data.image_shape, name=model, dataset=dataset)
    task = Task(data=data, network=network, make_model=make_model)
    trained = task.make_model()
    fit(trained, data, _PRETRAINING, generator("pretraining"), ignore)
    state = {name: value.detach().clone() for name, value in trained.state_dict().items()}
    return SmallTask(task=task, pretrained=state)


def ignore(_: Mapping[str, float]) -> None:
    """Drop the figures of an epoch."""
