"""The networks of the paper's ImageNet tables, as torchvision builds them.

MobileNetV3 has a second form for small images, whose costs the paper's Table I prints. In it the stem and the first of
the four blocks of stride 2 have stride 1, and the hidden layer of a squeeze-excite gate has exactly a quarter of the
gate's channels, not rounded to a multiple of 8. Of all variants that we tried, only this one has both printed costs.
"""

from collections.abc import Sequence
from functools import partial

import torchvision.models
from torch import nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops import SqueezeExcitation

from bench.models.stem import stating, with_inputs

_RESNET_GROUP = 16
_MOBILENET_GROUP = 8
_SMALL_IMAGE = 64
"""Images with a smaller height are small."""

# Inputs, kernel, expansion, outputs, squeeze-excite, activation, stride (Howard et al. 2019, Table 1).
_V3_LARGE: Sequence[tuple[int, int, int, int, bool, str, int]] = (
    (16, 3, 16, 16, False, "RE", 1),
    (16, 3, 64, 24, False, "RE", 2),
    (24, 3, 72, 24, False, "RE", 1),
    (24, 5, 72, 40, True, "RE", 2),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 5, 120, 40, True, "RE", 1),
    (40, 3, 240, 80, False, "HS", 2),
    (80, 3, 200, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 184, 80, False, "HS", 1),
    (80, 3, 480, 112, True, "HS", 1),
    (112, 3, 672, 112, True, "HS", 1),
    (112, 5, 672, 160, True, "HS", 2),
    (160, 5, 960, 160, True, "HS", 1),
    (160, 5, 960, 160, True, "HS", 1),
)
_V3_HEAD = 1280


def resnet18(in_channels: int, num_classes: int) -> nn.Module:
    """Build ResNet-18, in which the first convolution of each block can be pruned."""
    return _resnet(torchvision.models.resnet18(num_classes=num_classes), in_channels)


def resnet50(in_channels: int, num_classes: int) -> nn.Module:
    """Build ResNet-50, with strides on 3×3 convolutions; the first two convolutions of each block can be pruned."""
    return _resnet(torchvision.models.resnet50(num_classes=num_classes), in_channels)


def _resnet(model: torchvision.models.ResNet, in_channels: int) -> nn.Module:
    model.conv1 = with_inputs(model.conv1, in_channels)
    return stating(model, group_size=_RESNET_GROUP)


def mobilenet_v2(in_channels: int, num_classes: int) -> nn.Module:
    """Build MobileNetV2, in which expansions can be pruned, and with them the depthwise convolutions that follow."""
    model = torchvision.models.mobilenet_v2(num_classes=num_classes)
    stem = model.features[0]
    stem[0] = with_inputs(stem[0], in_channels)
    return _mobilenet(model, expansion="conv.0.0")


def mobilenet_v3_large(in_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """Build MobileNetV3-Large, in which expansions can be pruned, and with them depthwise convolutions and gates.

    Args:
        in_channels: Channels of an image.
        num_classes: Number of logits.
        image_size: Height of an image; below 64 the network has the form for small images.
    """
    small = image_size < _SMALL_IMAGE
    model: MobileNetV3 = (
        _small_v3(num_classes) if small else torchvision.models.mobilenet_v3_large(num_classes=num_classes)
    )
    stem = model.features[0]
    stem[0] = with_inputs(stem[0], in_channels)
    return _mobilenet(model, expansion="block.0.0")


def _small_v3(num_classes: int) -> MobileNetV3:
    blocks = [InvertedResidualConfig(*block, dilation=1, width_mult=1.0) for block in _V3_LARGE]
    next(block for block in blocks if block.stride == 2).stride = 1
    model = MobileNetV3(blocks, _V3_HEAD, num_classes, block=partial(InvertedResidual, se_layer=_quarter_gate))
    model.features[0][0].stride = (1, 1)
    return model


def _quarter_gate(channels: int, _: int) -> SqueezeExcitation:
    return SqueezeExcitation(channels, channels // 4, scale_activation=nn.Hardsigmoid)


def _mobilenet(model: nn.Module, *, expansion: str) -> nn.Module:
    """List the expansions as prunable; a block without expansion begins with its depthwise convolution."""
    prunable = tuple(
        path
        for path, module in model.named_modules()
        if path.endswith(f".{expansion}") and isinstance(module, nn.Conv2d) and module.groups == 1
    )
    return stating(model, prunable=prunable, group_size=_MOBILENET_GROUP)
