"""Small compressed networks with random weights, policies and normalisations, and what they compute in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as GatedResidual
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from bench.compression.compress import QuantizedLayer, QuantizedProduct, calibrate, compress
from bench.compression.geometry import MatMul
from bench.compression.heads import JoinHeads, SplitHeads
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import Shifted
from bench.compression.shapes import NetworkShape, trace
from bench.export.executor import PackedNetwork
from bench.export.graph.operations import Graph
from bench.export.graph.reading import read_graph
from bench.export.packed import FRACTION_BITS
from bench.models.build import build_model

Array = NDArray[Any]
UNIT = 2.0**FRACTION_BITS


@dataclass
class Sample:
    """A compressed network, its graph, and images."""

    network: nn.Module
    shape: NetworkShape
    policy: Policy
    data: Any
    images: Tensor
    graph: Graph

    def normalised(self, dtype: torch.dtype) -> Tensor:
        """The images as the harness normalises them."""
        mean, std = (values.to(dtype).view(-1, 1, 1) for values in (self.data.pixel_mean, self.data.pixel_std))
        return (self.images.to(dtype) - mean) / std

    def exact(self) -> tuple[Array, dict[str, Array]]:
        """Logits and codes of the harness's own network in float64, with the weights' codes of float32."""
        network = copy.deepcopy(self.network).double()
        for path, module in self.network.named_modules():
            if isinstance(module, QuantizedLayer):
                _fix_weights(network.get_submodule(path), module)
        codes: dict[str, Array] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(quantizer: nn.Module, _: Any, values: Tensor) -> None:
                offset, inner = 0.0, quantizer
                if isinstance(quantizer, Shifted):
                    offset, inner = quantizer.offset.item(), quantizer.quantizer
                step = abs(inner.clip.item()) / (2**inner.bits - 1)  # type: ignore[operator,union-attr]
                codes[name] = ((values - offset) / step).round().long().numpy()

            return hook

        for path, module in network.named_modules():
            if isinstance(module, QuantizedProduct):
                module.weight_quantizer.register_forward_hook(keep(f"{path}.right"))
            quantizer = getattr(module, "activation_quantizer", nn.Identity())
            if not isinstance(quantizer, nn.Identity):
                quantizer.register_forward_hook(keep(f"{path}.input"))
        with torch.no_grad():
            logits = network(self.normalised(torch.float64)).numpy()
        return logits, codes


def _fix_weights(exact: Any, module: Any) -> None:
    """Give a layer in float64 the quantized weights of the original, so that no weight is rounded another way."""
    quantizer = module.weight_quantizer
    step = abs(quantizer.clip.item()) / (2**quantizer.bits - 1)
    with torch.no_grad():
        exact.weight.copy_((quantizer(module.weight).double() / step).round() * step)
    exact.weight_quantizer = nn.Identity()


def sample(
    model: str | nn.Module,
    image_shape: tuple[int, int, int] = (3, 16, 16),
    *,
    bits: tuple[int, ...] = (2, 4, 8),
    prune: bool = True,
    images: int = 3,
    seed: int = 0,
) -> Sample:
    """Make a network with a random policy and random normalisations, among them negative factors and a zero."""
    torch.manual_seed(seed)
    network = build_model(model, image_shape, 10) if isinstance(model, str) else model
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, 0, 0.2)
            module.weight.data[0] = 0
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    network.eval()
    shape = trace(network, image_shape, name="sample", dataset="pixels")
    policy = _random_policy(shape, bits, prune, np.random.default_rng(seed))
    compressed = compress(network, shape, policy)
    channels = image_shape[0]
    data = SimpleNamespace(
        pixel_mean=torch.tensor([120.0, 110.0, 95.5])[:channels],
        pixel_std=torch.tensor([60.0, 65.0, 70.25])[:channels],
        image_shape=image_shape,
    )
    pixels = torch.randint(0, 256, (images, *image_shape), dtype=torch.uint8)
    made = Sample(compressed, shape, policy, data, pixels, None)  # type: ignore[arg-type]
    calibrate(compressed, made.normalised(torch.float32).repeat(2, 1, 1, 1))
    compressed.eval()
    made.graph = read_graph(compressed, data, model="sample", dataset="pixels")  # type: ignore[arg-type]
    return made


def _random_policy(shape: NetworkShape, bits: tuple[int, ...], prune: bool, draw: np.random.Generator) -> Policy:
    policy = uniform(shape, 8)
    for layer in shape.middle:
        weight_bits, activation_bits = draw.choice(bits, 2)
        policy = policy.with_layer(layer.name, weight_bits=weight_bits, activation_bits=activation_bits)
        if prune and layer.prunable:
            kept = np.sort(draw.permutation(layer.filters)[: max(1, layer.filters * 2 // 3)])
            policy = policy.with_layer(layer.name, kept_filters=tuple(kept.tolist()))
    return policy


def ran(content: bytes, images: torch.Tensor) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Logits of a packed network, and all of its tensors."""
    seen: dict[str, Any] = {}
    network = PackedNetwork(content)
    return network.run(images.numpy(), seen.__setitem__) / UNIT, seen


class Shifting(nn.Module):
    """Layers that read negative numbers: a padded one, a strided depthwise one, and one whose padding is uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.same = nn.Conv2d(6, 8, (3, 2), padding="same", dilation=2)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.same(self.norm(self.depthwise(self.stem(x))))
        x = self.pool(self.grouped(torch.relu(x)))
        return self.fc(x.mean((-1, -2)).reshape(x.size(0), -1))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """A small vision transformer: patches, a class token, positions, one block with two heads, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.class_token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        for norm in self.norms:
            nn.init.normal_(norm.weight, 0.5, 0.5)  # type: ignore[arg-type]
            nn.init.normal_(norm.bias)  # type: ignore[arg-type]
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.split, self.join = SplitHeads(4), JoinHeads()
        self.scores, self.mix = MatMul(), MatMul()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        patches = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(patches.size(0), -1, -1), patches], dim=1) + self.positions
        query, key, value = self.split(self.qkv(self.norms[0](tokens)))
        mixed = self.mix((self.scores(query, key.transpose(-2, -1)) * 0.3).softmax(dim=-1), value)
        tokens = tokens + self.proj(self.join(mixed))
        tokens = tokens + self.fc2(F.gelu(self.fc1(self.norms[1](tokens))))
        return self.fc(self.norms[2](tokens)[:, 0])  # type: ignore[no-any-return]


class InvertedResiduals(nn.Sequential):
    """One block of MobileNetV2, and one of MobileNetV3 with hard-swish and squeeze-excite."""

    def __init__(self) -> None:
        config = InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0)
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            InvertedResidual(8, 8, stride=1, expand_ratio=2),
            GatedResidual(config, nn.BatchNorm2d),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )


CASES: dict[str, Callable[[], Sample]] = {
    "resnet8": lambda: sample("resnet8"),
    "resnet8, 1 and 3 bits": lambda: sample("resnet8", (1, 8, 8), bits=(1, 3, 5), seed=1),
    "resnet20": lambda: sample("resnet20", (3, 8, 8), images=2, seed=2),
    "resnet18": lambda: sample("resnet18", (3, 32, 32), images=1, bits=(2, 3), seed=3),
    "mobilenet_v2": lambda: sample("mobilenet_v2", (3, 16, 16), images=2),
    "mobilenet_v3_large": lambda: sample("mobilenet_v3_large", (3, 8, 8), images=2),
    "inverted residuals": lambda: sample(InvertedResiduals(), (3, 9, 7)),
    "shifting": lambda: sample(Shifting(), (3, 13, 11)),
    "tokens": lambda: sample(Tokens(), (3, 8, 8)),
    "cct_2_3x2": lambda: sample("cct_2_3x2", (3, 8, 8), images=2),
}
