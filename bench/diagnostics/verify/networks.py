"""The networks of the paper's tables, each built once and without memory for its weights."""

from dataclasses import dataclass
from functools import cache

import torch

from bench.compression.shapes import NetworkShape, trace
from bench.models.build import build_model


@dataclass(frozen=True, slots=True)
class _Task:
    """Name and data set of a network in the paper's tables."""

    title: str
    dataset: str
    image: tuple[int, int, int]
    classes: int


_CIFAR = ("cifar100", (3, 32, 32), 100)
_IMAGENET = ("imagenet", (3, 224, 224), 1000)
_TASKS = {
    "resnet20": _Task("ResNet-20", *_CIFAR),
    "resnet56": _Task("ResNet-56", *_CIFAR),
    "mobilenet_v3_large": _Task("MobileNetV3", *_CIFAR),
    "resnet18": _Task("ResNet-18", *_IMAGENET),
    "resnet50": _Task("ResNet-50", *_IMAGENET),
    "mobilenet_v2": _Task("MobileNetV2", *_IMAGENET),
}

CIFAR = ("resnet20", "resnet56")
"""The networks of the paper's CIFAR tables."""
MODELS = tuple(_TASKS)


def title(model: str) -> str:
    """Return the paper's name of a network."""
    return _TASKS[model].title


@cache
def network(model: str) -> NetworkShape:
    """Return the shapes of one of the paper's networks on its data set."""
    task = _TASKS[model]
    with torch.device("meta"):
        built = build_model(model, task.image, task.classes)
    return trace(built, task.image, name=model, dataset=task.dataset)
