"""The checkpoint that a task starts from: a file of the user, or torchvision's published weights.

Weights are never downloaded; they must be in torchvision's cache folder.
"""

from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.spec.schema import PUBLISHED_WEIGHTS, TaskSpec

_VERSION = "IMAGENET1K_V1"
"""Version of the weights in the paper's full-precision rows, for models with several."""


def checkpoint_of(task: TaskSpec) -> Path | None:
    """Return the file of a task's pretrained weights; `None` if the network is to be pretrained.

    Raises:
        BenchError: There are no published weights of the model, or their file is missing.
    """
    if task.checkpoint is None:
        return None
    return _published(task.model) if task.checkpoint == PUBLISHED_WEIGHTS else Path(task.checkpoint)


def _published(model: str) -> Path:
    import torch
    from torchvision.models import get_model_weights

    try:
        weights: Any = get_model_weights(model)[_VERSION]
    except (ValueError, KeyError) as error:
        raise BenchError(
            f"torchvision publishes no weights {_VERSION} of model '{model}'; give a file with "
            "--set task.checkpoint=FILE, or leave task.checkpoint out to pretrain here"
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / str(weights.url).rpartition("/")[2]
    if not path.is_file():
        raise BenchError(
            f"torchvision's weights of {model} are missing: {path} does not exist; put the file there, give another "
            "with --set task.checkpoint=FILE, or leave task.checkpoint out to pretrain here"
        )
    return path
