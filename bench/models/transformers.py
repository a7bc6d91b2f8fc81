"""Vision transformers and ConvNeXt, as torchvision builds them.

Each has a form for small images. A vision transformer has smaller patches, so that it reads about 64 of them. Swin and
ConvNeXt have patches of 2 instead of 4, and Swin has windows of 4 instead of 7, which would be mostly padding.
"""

import math

import torchvision.models
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from bench.errors import BenchError
from bench.models.stem import stating, with_inputs

_GROUP = 16
_SMALL_IMAGE = 64
"""Images with a smaller height are small for Swin and ConvNeXt."""
_SMALL_PATCH = 2
_SMALL_WINDOW = 4
_LARGEST_PATCH = 16
_PATCHES = 8
"""Largest number of patches on one side of an image, for patches smaller than 16."""

# Outputs of torchvision's functions, whose patches and windows are not arguments.
_SWIN_WIDTH = 96
_SWIN_DEPTHS = [2, 2, 6, 2]
_SWIN_HEADS = [3, 6, 12, 24]
_SWIN_STOCHASTIC_DEPTH = 0.2


def vit_b_16(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build ViT-B/16, in which the heads and the hidden units of each block can be pruned; DeiT-B is the same network.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image, a multiple of 16.
    """
    return _vit("vit_b_16", in_channels, num_classes, image_size, _LARGEST_PATCH, width=768, heads=12)


def vit_tiny(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build a vision transformer of 12 blocks and 3 heads, 192 wide: for patches of 16, DeiT-Ti (Touvron et al. 2021).

    A patch is the smallest that makes at most 64 patches of an image, and at most 16 pixels high.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image.
    """
    fitting = (patch for patch in range(1, image_size + 1) if image_size % patch == 0)
    patch = next(patch for patch in fitting if image_size // patch <= _PATCHES)
    return _vit("vit_tiny", in_channels, num_classes, image_size, min(patch, _LARGEST_PATCH), width=192, heads=3)


def _vit(
    name: str, in_channels: int, num_classes: int, image_size: int, patch: int, *, width: int, heads: int
) -> nn.Module:
    if image_size % patch:
        raise BenchError(f"{name} cannot read images {image_size} pixels high; allowed: multiples of {patch}")
    model = VisionTransformer(
        image_size, patch, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width, num_classes=num_classes
    )
    stem = model.conv_proj
    if isinstance(stem, nn.Conv2d):
        model.conv_proj = with_inputs(stem, in_channels, _initialise_patches)
    return stating(model, group_size=_GROUP)


def _initialise_patches(stem: nn.Conv2d) -> None:
    """Draw weights of the patch embedding as torchvision does for three channels."""
    nn.init.trunc_normal_(stem.weight, std=math.sqrt(1 / stem.weight[0].numel()))
    _zero_bias(stem)


def _zero_bias(stem: nn.Conv2d) -> None:
    if stem.bias is not None:
        nn.init.zeros_(stem.bias)


def swin_t(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build Swin-T, in which the heads and the hidden units of each block can be pruned.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image; below 64 the network has the form for small images.
    """
    if image_size < _SMALL_IMAGE:
        model = SwinTransformer(
            [_SMALL_PATCH] * 2,
            _SWIN_WIDTH,
            _SWIN_DEPTHS,
            _SWIN_HEADS,
            [_SMALL_WINDOW] * 2,
            stochastic_depth_prob=_SWIN_STOCHASTIC_DEPTH,
            num_classes=num_classes,
        )
    else:
        model = torchvision.models.swin_t(num_classes=num_classes)
    patches = model.features[0]
    patches[0] = with_inputs(patches[0], in_channels, lambda _: None)  # torchvision keeps PyTorch's own initialisation
    return stating(model, group_size=_GROUP)


def convnext_tiny(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build ConvNeXt-T, in which the hidden units of each block can be pruned.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image; below 64 the network has the form for small images.
    """
    model = torchvision.models.convnext_tiny(num_classes=num_classes)
    stem = model.features[0]
    if image_size < _SMALL_IMAGE:
        stem[0] = nn.Conv2d(in_channels, stem[0].out_channels, _SMALL_PATCH, stride=_SMALL_PATCH)
        _initialise_convnext(stem[0])
    else:
        stem[0] = with_inputs(stem[0], in_channels, _initialise_convnext)
    return stating(model, group_size=_GROUP)


def _initialise_convnext(stem: nn.Conv2d) -> None:
    nn.init.trunc_normal_(stem.weight, std=0.02)
    _zero_bias(stem)
