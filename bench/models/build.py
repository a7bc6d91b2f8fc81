"""Builds a model by its name."""

import inspect

from torch import nn

from bench.errors import BenchError
from bench.plugins import load


def build_model(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A fresh model, initialised from PyTorch's global generator.

    Args:
        name: Of the model.
        image_shape: Channels, height and width of an image.
        num_classes: Number of logits.

    Raises:
        BenchError: The name is unknown, or what it names is no model.
    """
    make = load("models", name)
    sized = {"image_size": image_shape[1]} if "image_size" in _parameters(name, make) else {}
    try:
        model = make(image_shape[0], num_classes, **sized)
    except TypeError as error:
        raise BenchError(f"model '{name}' cannot be called with (in_channels, num_classes): {error}") from error
    if not isinstance(model, nn.Module):
        raise BenchError(f"model '{name}' returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _parameters(name: str, make: object) -> set[str]:
    if not callable(make):
        raise BenchError(f"model '{name}' is a {type(make).__name__}; it must be a function")
    try:
        return set(inspect.signature(make).parameters)
    except ValueError:  # some built-in functions have none
        return set()
