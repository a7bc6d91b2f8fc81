"""Changes of torchvision's networks: the number of an image's channels, and what the harness reads from a model."""

from collections.abc import Callable

from torch import nn


def kaiming(stem: nn.Conv2d) -> None:
    """Draw weights as torchvision's convolutional networks do."""
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")


def with_inputs(conv: nn.Conv2d, in_channels: int, initialise: Callable[[nn.Conv2d], None] = kaiming) -> nn.Conv2d:
    """Return the stem of a network for a number of input channels.

    Args:
        conv: Stem for three channels; it is returned if they are wanted.
        in_channels: Channels of an image.
        initialise: Function that draws the weights of a new stem.
    """
    if conv.in_channels == in_channels:
        return conv
    stem = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    initialise(stem)
    return stem


def stating(model: nn.Module, **statements: object) -> nn.Module:
    """Set attributes of a model that `bench.compression.shapes.trace` reads."""
    for name, value in statements.items():
        setattr(model, name, value)
    return model
