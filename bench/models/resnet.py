"""Residual networks for small images (He et al. 2016, Section 4.2), post-activation, shortcuts of type B.

Depth 6n + 2: a 3×3 stem, three stages of n basic blocks with 16, 32 and 64 channels, global average pooling and a
linear classifier. At the two changes of stage the shortcut is a 1×1 convolution of stride 2 (type B).
"""

import torch.nn.functional as F
from torch import Tensor, nn

_STAGE_CHANNELS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a residual addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class CifarResNet(nn.Module):
    """A residual network of depth 6n + 2 for images of any size and number of channels.

    The first convolution of each block can be pruned (paper, Section 4.2, after ThiNet). The outputs of the second are
    added to the shortcut, so its filters are kept.
    """

    def __init__(self, blocks_per_stage: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STAGE_CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STAGE_CHANNELS[0])
        channels = _STAGE_CHANNELS[0]
        stages = []
        for index, width in enumerate(_STAGE_CHANNELS):
            blocks: list[nn.Module] = []
            for position in range(blocks_per_stage):
                blocks.append(BasicBlock(channels, width, stride=2 if index > 0 and position == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights from normal distributions with variance 2/fan-out, as in the original."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.stages(out)
        return self.fc(out.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def resnet8(in_channels: int, num_classes: int) -> CifarResNet:
    """Build ResNet-8, with one block per stage, for quick studies and tests."""
    return CifarResNet(1, in_channels, num_classes)


def resnet20(in_channels: int, num_classes: int) -> CifarResNet:
    """Build ResNet-20, with three blocks per stage."""
    return CifarResNet(3, in_channels, num_classes)


def resnet56(in_channels: int, num_classes: int) -> CifarResNet:
    """Build ResNet-56, with nine blocks per stage."""
    return CifarResNet(9, in_channels, num_classes)
