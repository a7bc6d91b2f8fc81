"""Geometry of layers: how a convolution or a linear layer applies a weight to its input; and products of activations.

Quantized and searched layers hold the weight and the bias of a layer, and its geometry in place of the layer itself.

A network computes products of two activations, such as those of attention, by calling a module `MatMul` for each. So
they have names, are counted, and can be quantized.
"""

import copy
from dataclasses import dataclass
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class MatMul(nn.Module):
    """The matrix product of two activations; it has no parameters."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply (…, rows, contraction) by (…, contraction, columns)."""
        return left @ right


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """Stride, padding, dilation and groups of a convolution.

    Attributes:
        edges: Padding of the sides (left, right, top, bottom) that the padding mode fills; unused with zeros.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str = "zeros"
    edges: tuple[int, ...] = ()

    @classmethod
    def from_layer(cls, conv: nn.Conv2d) -> Self:
        """Read the geometry of a layer."""
        edges = tuple(conv._reversed_padding_repeated_twice)
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode, edges)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (N, C, H, W) with a weight (out, in/groups, kh, kw)."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.edges, mode=self.padding_mode), (0, 0)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


@dataclass(frozen=True, slots=True)
class LinearGeometry:
    """Geometry of a linear layer, which has no settings."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply (N, in) by a weight (out, in)."""
        return F.linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class OwnGeometry:
    """Geometry of a subclass with a forward pass of its own, which is called with another weight.

    Attributes:
        template: The layer without values: its parameters have shapes only, and cannot be used by mistake.
    """

    template: nn.Module

    @classmethod
    def from_layer(cls, module: nn.Module) -> Self:
        """Copy a layer without its values."""
        return cls(copy.deepcopy(module).to("meta"))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Call the layer's own forward pass with a weight and a bias."""
        parameters = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        result: Tensor = functional_call(self.template, parameters, (x,))
        return result


Geometry = ConvGeometry | LinearGeometry | OwnGeometry

_COMPUTE = ("__call__", "forward", "_conv_forward")
"""Methods that decide what a layer computes."""


def has_own_forward(module: nn.Conv2d | nn.Linear) -> bool:
    """Whether a subclass of a convolution or a linear layer changes what the layer computes."""
    plain = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    return any(getattr(type(module), name, None) is not getattr(plain, name, None) for name in _COMPUTE)


def geometry_of(module: nn.Module) -> Geometry:
    """Return the geometry of a convolution or a linear layer.

    Raises:
        TypeError: The module is neither.
    """
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"cannot quantize a {type(module).__name__}")
    if has_own_forward(module):
        return OwnGeometry.from_layer(module)
    return ConvGeometry.from_layer(module) if isinstance(module, nn.Conv2d) else LinearGeometry()
