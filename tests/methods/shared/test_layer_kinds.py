"""Every kind of searched layer computes what the float layer computes, in networks as people write them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.api import LayerShape, LayerSpace, QuantizedProduct, calibrate, quantized_layer
from bench.compression.shapes import trace
from bench.errors import BenchError
from methods.shared.bit_sharing.layer import LayerSettings, SharedLayer, SharedProduct
from methods.shared.networks.bottleneck import BottleneckLayer
from methods.shared.networks.paths import MixedLayer, MixedProduct
from methods.shared.networks.ranges import plain_layer
from methods.shared.networks.stochastic_gates import GatedLayer, GatedProduct
from methods.shared.search import replace_layers
from tests.kinds_of_networks import CLASSES, HANDLED, IMAGE, InAList

Make = Callable[[nn.Module, LayerShape], nn.Module]

FULL = LayerSpace(weight_bits=(32,), activation_bits=(32,))
SETTINGS = LayerSettings(gate_place="next_input", group_metric="raw", weight_normalization=True, task_gradient=True)


class Nothing(nn.Identity):
    """A quantizer that does nothing."""

    def calibrate(self, x: Tensor) -> None:
        """Set nothing."""


def nothing(*, bits: int, kind: str, normalized: bool) -> nn.Module:
    return Nothing()


def shared(module: nn.Module, shape: LayerShape) -> nn.Module:
    if shape.kind == "matmul":
        return SharedProduct(module, shape, FULL, SETTINGS, torch.zeros((), dtype=torch.float64))
    return SharedLayer(module, shape, FULL, SETTINGS)


def paths(module: nn.Module, shape: LayerShape, **others: bool) -> nn.Module:
    if shape.kind == "matmul":
        return MixedProduct(module, shape, (2, 4), nothing, torch.device("cpu"))
    return MixedLayer(module, shape, (2, 4), nothing, **others)


def gated(module: nn.Module, shape: LayerShape) -> nn.Module:
    layer: GatedProduct | GatedLayer
    if shape.kind == "matmul":
        layer = GatedProduct(module, shape, (2, 4, 8))
    else:
        layer = GatedLayer(module, shape, (2, 4, 8), 0, None)
    layer.weight_quantizer = layer.activation_quantizer = Nothing()
    return layer


def ranged(layer: Make) -> Make:
    def make(module: nn.Module, shape: LayerShape) -> nn.Module:
        plain = shape.kind == "matmul"
        return QuantizedProduct(module, Nothing(), Nothing()) if plain else layer(module, shape)

    return make


LAYERS: dict[str, Make] = {
    "shared": shared,
    "multi-path": paths,
    "one weight for all paths": lambda module, shape: paths(module, shape, shared=True),
    "bayesian bits": gated,
    "djpq": ranged(lambda module, _: BottleneckLayer(module, Nothing(), Nothing(), None, None)),
    "dq": ranged(lambda module, shape: plain_layer(module, shape, Nothing(), Nothing())),
}


def searched(model: nn.Module, make: Make) -> nn.Module:
    """The model with every layer replaced."""
    network = trace(model, IMAGE, name="net", dataset="none", classes=CLASSES)
    replace_layers(
        model,
        network,
        lambda module, shape, _: make(module, shape),
        lambda module, shape: quantized_layer(module, shape, (8, 8), nothing, normalized=False),
    )
    return model


def results(model: nn.Module, training: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits, and gradients by the float parameters' names; those of several paths add up."""
    torch.manual_seed(1)
    images = torch.randn(3, *IMAGE, dtype=torch.float64)
    outputs: Tensor = model.train(training)(images)
    (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
    gradients: dict[str, Tensor | None] = {}
    for name, parameter in model.named_parameters():
        own, _, last = name.rpartition(".")
        key = own if last.isdecimal() else name
        earlier = gradients.get(key)
        both = earlier is not None and parameter.grad is not None
        gradients[key] = earlier + parameter.grad if both else parameter.grad  # type: ignore[operator]
    return outputs, gradients


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", HANDLED)
def test_the_function_is_that_of_the_float_network(kind: str, layer: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(HANDLED[kind]().double())
    searched(models[1], LAYERS[layer])
    for training in (True, False):
        (wanted, gradients), (found, others) = (results(model, training) for model in models)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-7, atol=1e-7, msg=f"{name}")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_not_reached_is_named(layer: str) -> None:
    model = searched(InAList(), LAYERS[layer])
    with pytest.raises(BenchError, match="the quantized layer 'second' was executed 0 times in one pass, not once"):
        calibrate(model, torch.zeros(2, *IMAGE))
