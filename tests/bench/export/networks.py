"""Small compressed networks with random weights, policies and normalisations, and what they compute in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, calibrate, compress
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import Shifted
from bench.compression.shapes import NetworkShape, trace
from bench.export.graph import Graph
from bench.export.reading import read_graph
from bench.models.build import build_model

Array = NDArray[Any]


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

        def keep(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(quantizer: nn.Module, _: Any, values: Tensor) -> None:
                offset, inner = 0.0, quantizer
                if isinstance(quantizer, Shifted):
                    offset, inner = quantizer.offset.item(), quantizer.quantizer
                step = abs(inner.clip.item()) / (2**inner.bits - 1)  # type: ignore[operator,union-attr]
                codes[f"{path}.input"] = ((values - offset) / step).round().long().numpy()

            return hook

        for path, module in network.named_modules():
            if isinstance(module, QuantizedLayer) and not isinstance(module.activation_quantizer, nn.Identity):
                module.activation_quantizer.register_forward_hook(keep(path))
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
            kept = np.sort(draw.permutation(layer.out_channels)[: max(1, layer.out_channels * 2 // 3)])
            policy = policy.with_layer(layer.name, kept_filters=tuple(kept.tolist()))
    return policy
