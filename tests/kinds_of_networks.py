"""Small networks as people write them, one for each kind of trouble, on images of three channels and four classes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import SwinTransformerBlockV2

from bench.compression.geometry import MatMul
from bench.compression.heads import JoinHeads, SplitHeads
from bench.models.normal_form import normal_form

IMAGE = (3, 12, 12)
CLASSES = 4

Maker = Callable[[], nn.Module]
Conv = Callable[..., nn.Conv2d]


class Shorthand(nn.Conv2d):
    """A convolution whose class only fixes arguments."""

    def __init__(self, inputs: int, outputs: int, **others: Any) -> None:
        super().__init__(inputs, outputs, 3, padding=1, **others)


class Standardised(Shorthand):
    """Weight standardisation, filter by filter (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, 1)


class PadsItself(nn.Conv2d):
    """The padding is part of the forward pass, and one-sided."""

    def __init__(self, inputs: int, outputs: int, **others: Any) -> None:
        super().__init__(inputs, outputs, 3, **others)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (2, 0, 0, 2)))


class CentralDifference(Shorthand):
    """Convolution of differences to the centre, by a second convolution with the sums of the kernels."""

    def forward(self, x: Tensor) -> Tensor:
        sums = self.weight.sum((2, 3), keepdim=True)
        return super().forward(x) - 0.7 * F.conv2d(x, sums, stride=self.stride)


class CosineLinear(nn.Linear):
    """A classifier by the angle between features and weights."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(x), F.normalize(self.weight), self.bias)


def conv3(inputs: int, outputs: int, **others: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **others})


def stack(conv: Conv = conv3, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, **others: Any) -> nn.Sequential:
    """Three convolutions with norms, then a classifier."""
    return nn.Sequential(
        *(conv(3, 8, **others), norm(8), nn.ReLU()),
        *(conv(8, 8, **others), norm(8), nn.ReLU()),
        *(conv(8, 8, stride=1 if others.get("padding") == "same" else 2, **others), norm(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


class Base(nn.Module):
    """Three convolutions and a classifier by name; subclasses call them in their own ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = conv3(3, 8, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = conv3(8, 8, bias=False), nn.BatchNorm2d(8)
        self.third, self.norm3 = conv3(8, 8, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.norm2(self.middle(x)).relu()
        return self.norm3(self.third(x)).relu()

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3)))


class Aliased(Base):
    """Layers that are registered by themselves, and called as parts of containers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(self.first, self.norm1, nn.ReLU(), self.second, self.norm2, nn.ReLU()),
            *(self.third, self.norm3, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.parts = nn.ModuleDict({"classifier": self.head})

    def forward(self, x: Tensor) -> Any:
        return self.parts["classifier"](self.body(x))


class InAList(Base):
    """The second convolution is called through a plain list, which modules cannot be replaced in."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.second]

    def middle(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)  # type: ignore[no-any-return]


class ByFunction(Base):
    """The weight of the second convolution is used by a function."""

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.second.weight, padding=1)


class TwiceByFunction(Base):
    """The second convolution is called, and a function uses its weight once more."""

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x) + F.conv2d(x, self.second.weight, padding=2, dilation=2)


class Projected(Base):
    """A matrix of the module's own mixes the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(8, 8))

    def middle(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", self.second(x), self.mixing)


class Attends(Base):
    """Every position looks at all others: two products of activations."""

    def middle(self, x: Tensor) -> Tensor:
        tokens = self.second(x).flatten(2)
        scores = torch.softmax(tokens.transpose(1, 2) @ tokens, dim=-1)
        return x + (tokens @ scores).view_as(x)


class FusedAttention(Base):
    """The same with PyTorch's one operation."""

    def middle(self, x: Tensor) -> Tensor:
        tokens = self.second(x).flatten(2).transpose(1, 2)
        return x + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).reshape(x.shape)


class Blurred(Base):
    """Down-sampling by a fixed kernel (Zhang 2019)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(row, row).expand(8, 1, 3, 3).clone())

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(self.second(x), self.kernel, stride=2, padding=1, groups=8)


class MatrixVector(Base):
    """A product of a matrix and a vector, which PyTorch's own counter leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(8))

    def middle(self, x: Tensor) -> Tensor:
        y = self.second(x)
        weights = torch.mv(y.permute(0, 2, 3, 1).reshape(-1, 8), self.direction)
        return y * torch.sigmoid(weights.view(x.shape[0], 1, *x.shape[2:]))


class Branches(Base):
    """The forward pass reads a value, so that it cannot be traced; no norm follows the convolutions."""

    def features(self, x: Tensor) -> Tensor:
        if float(x.detach().abs().amax()) > 1e9:
            raise ValueError("bad image")
        return self.third(self.second(self.first(x).relu()).relu()).relu()  # type: ignore[no-any-return]


class BranchesOnSizes(Base):
    """The forward pass branches and loops on the sizes of tensors."""

    def middle(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 2 or len(x) == 0:
            raise ValueError("small image")
        for _ in range(x.size(1) // 8):
            x = self.second(x)
        return x


class SeparateProjections(Base):
    """Attention over positions, with a linear layer each for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.split, self.join = SplitHeads(2, parts=1), JoinHeads()
        self.scores, self.mix = MatMul(), MatMul()

    def middle(self, x: Tensor) -> Tensor:
        tokens = self.second(x).flatten(2).transpose(1, 2)
        (q,), (k,), (v,) = (self.split(layer(tokens)) for layer in (self.q, self.k, self.v))
        mixed = self.join(self.mix(torch.softmax(self.scores(q, k.transpose(-2, -1)), dim=-1), v))
        return x + self.proj(mixed).transpose(1, 2).reshape(x.shape)


class Squeezes(Base):
    """The map of one pixel is squeezed away without naming dimensions."""

    def forward(self, x: Tensor) -> Any:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).squeeze())


class SmallMaps(Base):
    """Normalisation of a map of one pixel."""

    def middle(self, x: Tensor) -> Tensor:
        return self.second(F.adaptive_avg_pool2d(x, 1))  # type: ignore[no-any-return]


class SkipsInTraining(Base):
    """A block that is left out at random in training (stochastic depth)."""

    def middle(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) < 0.9:
            return x
        return x + self.second(x)


class OneWeight(Base):
    """A gate of one channel, by a convolution of a single weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def middle(self, x: Tensor) -> Tensor:
        return self.second(x) * torch.sigmoid(self.norm(self.gate(x.mean(1, keepdim=True))))


class Wide(Base):
    """Dilated, asymmetric and "same" padding, grouped and strided by (2, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(2, 1), groups=2)
        self.third = nn.Conv2d(8, 8, (1, 3), (2, 1), (0, 2), padding_mode="replicate")


def frozen_first() -> nn.Module:
    model = Base()
    model.second.requires_grad_(False)
    model.norm2.requires_grad_(False)
    return model


def no_norm(_: int) -> nn.Module:
    return nn.Identity()


def bare_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


def vision_transformer() -> nn.Module:
    model = VisionTransformer(12, 4, 2, 2, 8, 16, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero
    return normal_form(model, "net")


def shifted_windows() -> nn.Module:
    model = SwinTransformer([2, 2], 8, [2], [2], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES)
    return normal_form(model, "net")


def position_networks() -> nn.Module:
    """Linear layers that read no image compute the position biases."""
    block: Any = SwinTransformerBlockV2
    model = SwinTransformer([2, 2], 8, [2], [2], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES, block=block)
    return normal_form(model, "net")


def channels_last() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 8, 1), CNBlockConfig(8, None, 1)], layer_scale=0.5, num_classes=CLASSES)


HANDLED: Mapping[str, Maker] = {
    "plain": Base,
    "aliased": Aliased,
    "reflect": lambda: stack(padding_mode="reflect"),
    "circular": lambda: stack(padding_mode="circular"),
    "replicate": lambda: stack(padding_mode="replicate"),
    "circular without norms": lambda: stack(norm=no_norm, padding_mode="circular"),
    "asymmetric": lambda: stack(padding=(2, 1)),
    "asymmetric circular": lambda: stack(padding=(2, 1), padding_mode="circular"),
    "same": lambda: stack(padding="same"),
    "same, even kernel": lambda: stack(
        lambda i, o, **others: nn.Conv2d(i, o, 4, **others), padding="same", padding_mode="reflect"
    ),
    "dilated": lambda: stack(padding=2, dilation=2),
    "wide": Wide,
    "shorthand": lambda: stack(Shorthand),
    "standardised": lambda: stack(Standardised, no_norm),
    "standardised with norms": lambda: stack(Standardised),
    "pads itself": lambda: stack(PadsItself, bias=False),
    "central difference": lambda: stack(CentralDifference),
    "cosine": lambda: nn.Sequential(*stack(norm=no_norm)[:-1], CosineLinear(8, CLASSES)),
    "by function": ByFunction,
    "own matrix": Projected,
    "attention": Attends,
    "fused attention": FusedAttention,
    "blurred": Blurred,
    "matrix times vector": MatrixVector,
    "branches": Branches,
    "branches on sizes": BranchesOnSizes,
    "squeezes": Squeezes,
    "small maps": SmallMaps,
    "skips in training": SkipsInTraining,
    "one weight": OneWeight,
    "frozen": frozen_first,
    "bare norms": lambda: stack(norm=bare_norm),
    "vision transformer": vision_transformer,
    "shifted windows": shifted_windows,
    "windows with position networks": position_networks,
    "channels last": channels_last,
    "separate projections": SeparateProjections,
}
"""Networks that are compressed, by name."""
