"""Loading of a study's task: data and model on the device where they are used."""

from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from bench import replicas
from bench.data.image_decoding import loading_workers
from bench.data.task_data import TaskData
from bench.errors import BenchError
from bench.method import Task
from bench.models.build import build_model
from bench.planning.networks import described, task_network
from bench.spec.schema import StudySpec
from bench.training.synced_norm import synchronise_norms


class TaskLoader:
    """Loads a study's task when it is first needed.

    Args:
        spec: Specification of the study, with a resolved device.
        data_dir: Folder of data sets.
        device: Device to use instead of the specification's.

    Attributes:
        network: Shapes of the study's model.
    """

    def __init__(self, spec: StudySpec, data_dir: Path | None, device: torch.device | None = None) -> None:
        self.spec = spec
        self.network = task_network(spec.task)  # at once: it draws random numbers, and stages seed the generators
        self.device = torch.device(spec.device) if device is None else device
        self._data_dir = data_dir

    @cached_property
    def task(self) -> Task:
        """The study's task; loading it reads the data set.

        Raises:
            BenchError: The data set is missing, or a part of it has no images.
        """
        asked = self.spec.task
        dataset = described(asked, self._data_dir)
        data = TaskData(
            dataset,
            dataset.load(self._data_dir),
            validation_fraction=asked.validation_fraction,
            device=self.device,
            train_images=asked.train_images,
            workers=loading_workers(self.spec.threads, self.device),
        )
        for part, images in (("training", data.train), ("validation", data.validation)):
            if not len(images):
                raise BenchError(
                    f"no {part} images of {asked.dataset} are left with task.validation_fraction = "
                    f"{asked.validation_fraction}; change it with --set task.validation_fraction=…"
                )
        return Task(data=data, network=self.network, make_model=self._make_model)

    def _make_model(self) -> nn.Module:
        data = self.task.data
        model = build_model(self.spec.task.model, data.image_shape, data.num_classes)
        if replicas.count() > 1:
            model = synchronise_norms(model)
        return on_device(model, self.device)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, in the memory order in which convolutions are fastest."""
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved
