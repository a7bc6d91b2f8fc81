"""Layers that read the same tensor: in integer arithmetic its one quantized form has one number of bits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.api import SearchJob


@torch.no_grad()
def readers(job: SearchJob) -> list[tuple[str, ...]]:
    """List the searched layers by the tensor that they read, in order of execution.

    Such are the first convolution of a residual block and that of its shortcut. Most tensors have one reader.

    Args:
        job: Model and data; one pass of one image shows who reads what.
    """
    model = job.float_model().eval()
    # The tensors are kept, so that none is freed and its identity given to another one.
    read: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: read.append((name, inputs[0]))

    for layer in job.task.network.middle:
        model.get_submodule(layer.name).register_forward_pre_hook(note(layer.name))
    model(torch.zeros(1, *job.task.data.image_shape, device=job.task.device))
    groups: dict[int, list[str]] = {}
    for name, tensor in read:
        groups.setdefault(id(tensor), []).append(name)
    return [tuple(names) for names in groups.values()]
