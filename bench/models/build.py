"""Build a model by its name."""

import inspect

from torch import nn

from bench.errors import BenchError, ForeignCodeError, described
from bench.models.normal_form import normal_form
from bench.plugins.registry import load


def build_model(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a model in its normal form, initialised from PyTorch's global generator.

    Args:
        name: Name of the model.
        image_shape: Channels, height and width of an image.
        num_classes: Number of logits.

    Raises:
        BenchError: The name is unknown, does not name a model, or the model cannot be built.
    """
    make = load("models", name)
    arguments = _arguments(name, make, image_shape, num_classes)
    try:
        model = make(*arguments)
    except BenchError:
        raise
    except (Exception, SystemExit) as error:
        raise ForeignCodeError(
            f"model '{name}' cannot be built for images of {image_shape[1]}×{image_shape[2]} pixels and "
            f"{image_shape[0]} channels, and {num_classes} classes: {described(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise BenchError(f"model '{name}' returned a {type(model).__name__}; it must return a torch.nn.Module")
    return normal_form(model, name)


def _arguments(name: str, make: object, image_shape: tuple[int, int, int], num_classes: int) -> tuple[int, ...]:
    """Return the arguments of a model's function.

    Raises:
        BenchError: The function does not accept them.
    """
    if not callable(make):
        raise BenchError(f"model '{name}' is a {type(make).__name__}; it must be a function")
    signature = inspect.signature(make)
    sized = (image_shape[1],) if "image_size" in signature.parameters else ()
    arguments = (image_shape[0], num_classes, *sized)
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise BenchError(f"model '{name}' cannot be called with (in_channels, num_classes): {error}") from error
    return arguments
