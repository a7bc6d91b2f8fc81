"""Checkpoints that studies start from: read, fitted to their model, and checked before anything begins."""

import logging
from pathlib import Path

from torch import nn

from bench.compression.compress import restore_state
from bench.errors import BenchError
from bench.models.fitting import fit
from bench.models.safetensors import SUFFIX, read_safetensors
from bench.models.weights import checkpoint_of
from bench.planning.networks import task_model
from bench.planning.variants import variants
from bench.spec.schema import StudySpec
from bench.store.files import load_state

_log = logging.getLogger(__name__)


def load_checkpoint(model: nn.Module, path: Path, name: str) -> str:
    """Load a user's checkpoint into a model.

    Args:
        model: Model to load into.
        path: Path of the checkpoint: a file of PyTorch, or a safetensors file.
        name: Name of the model, for the message.

    Returns:
        What was mapped, converted and left out, in one line; empty if nothing was.

    Raises:
        BenchError: The file cannot be read, is not a checkpoint, is that of another model, or has unusable numbers.
    """
    document = read_safetensors(path) if path.suffix.lower() == SUFFIX else load_state(path)
    try:
        fitted = fit(document, model, name)
    except BenchError as error:
        raise BenchError(f"the checkpoint '{path}' {error}") from error
    restore_state(model, fitted.state)
    return fitted.note


def check_checkpoints(spec: StudySpec) -> None:
    """Check every checkpoint of a study, with all its models and ablations, and say once what is mapped.

    Raises:
        BenchError: A checkpoint cannot be used.
    """
    places = ((variant.spec.task, checkpoint_of(variant.spec.task)) for variant in variants(spec))
    tasks = {(path, task.model): task for task, path in places if path is not None}
    for (path, name), task in tasks.items():
        note = load_checkpoint(task_model(task), path, name)
        if note:
            _log.warning("checkpoint '%s' for %s: %s", path, name, note)
