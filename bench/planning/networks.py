"""Shapes of the networks that tasks are about."""

from functools import cache
from pathlib import Path

from torch import nn

from bench.compression.function_check import check_function
from bench.compression.shapes import NetworkShape, trace
from bench.data.dataset import Dataset
from bench.models.build import build_model
from bench.plugins.registry import load
from bench.spec.schema import StudySpec, TaskSpec


def with_counted_classes(spec: StudySpec, data_dir: Path | None) -> StudySpec:
    """Complete a specification with the number of classes, if the data set finds it in its folder.

    A completed specification can be planned without the folder.

    Args:
        spec: Specification.
        data_dir: Folder of data sets.

    Raises:
        BenchError: The data set is unknown, or its folder does not exist.
    """
    kind: type[Dataset] = load("datasets", spec.task.dataset)
    if not kind.counts_classes or spec.task.classes is not None:
        return spec
    classes = described(spec.task, data_dir).num_classes
    return spec.model_copy(update={"task": spec.task.model_copy(update={"classes": classes})})


def described(task: TaskSpec, data_dir: Path | None = None) -> Dataset:
    """Make the data set of a task; no image is read.

    Raises:
        BenchError: The data set is unknown, does not support a value of the task, or needs its folder and lacks it.
    """
    kind: type[Dataset] = load("datasets", task.dataset)
    images = {} if task.images is None else {"images": task.images}
    return kind.described(image_size=task.image_size, classes=task.classes, data_dir=data_dir, **images)


def task_network(task: TaskSpec) -> NetworkShape:
    """Return the shapes of a task's model on its images.

    Raises:
        BenchError: A name is unknown, or the data set has no images of the requested size.
    """
    data = described(task)
    return _traced(task.model, data.image_shape, data.num_classes, task.dataset, check=True)


def task_model(task: TaskSpec) -> nn.Module:
    """Build the model of a task, initialised from PyTorch's global generator.

    Raises:
        BenchError: A name is unknown, or the data set has no images of the requested size.
    """
    data = described(task)
    return build_model(task.model, data.image_shape, data.num_classes)


def model_shape(
    model: str,
    dataset: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    data_dir: Path | None = None,
    check: bool = True,
) -> NetworkShape:
    """Return the shapes of a model on the images of a data set.

    Args:
        model: Name of the model.
        dataset: Name of the data set.
        image_size: Side of the images in pixels; the data set's own when absent.
        classes: Number of classes, for data sets that find it in their folder; looked up there when absent.
        data_dir: Folder of data sets.
        check: Whether to check that the network can be compressed. Models that come with the harness need no check to
            be priced, since its tests check them.

    Raises:
        BenchError: A name is unknown, the data set has no images of the requested size, or the network cannot be
            compressed.
    """
    kind: type[Dataset] = load("datasets", dataset)
    data = kind.described(image_size=image_size, classes=classes, data_dir=data_dir)
    return _traced(model, data.image_shape, data.num_classes, dataset, check=check)


@cache
def _traced(model: str, images: tuple[int, int, int], classes: int, dataset: str, *, check: bool) -> NetworkShape:
    """Build, trace and check a network once; every unit of a plan asks for it."""
    built = build_model(model, images, classes)
    network = trace(built, images, name=model, dataset=dataset, classes=classes)
    if check:
        check_function(built, network, images)
    return network
