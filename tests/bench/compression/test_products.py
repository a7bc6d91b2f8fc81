"""Products of activations and layers of tokens: traced, checked, quantized and priced, or refused by name."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from bench.compression import compress as compress_module
from bench.compression import function_check
from bench.compression.compress import QuantizedProduct, calibrate, compress, quantized_layer, reduce
from bench.compression.function_check import check_function
from bench.compression.geometry import MatMul
from bench.compression.operations import count_multiplications
from bench.compression.policy import LayerSpace, Policy, uniform
from bench.compression.quantizer import UniformQuantizer, clips_of, quantize_literal, read_clips, restore_clips
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.costs.accelerator.pricing import price_on
from bench.costs.breakdown import breakdown
from bench.costs.counter import price, price_layer
from bench.costs.relaxed import RelaxedBops, RelaxedMemory
from bench.diagnostics.verify.costs import CANDIDATES, random_policy, relaxed_arguments
from bench.errors import BenchError
from bench.models.cct import AttentionPool, CompactTransformer
from bench.models.normal_form import normal_form
from bench.spec.schema import AcceleratorSpec

IMAGE = (3, 8, 8)


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(8, 4, 2, 3, 12, 20, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # it starts at zero
    return normal_form(model, "net")


def compact() -> nn.Module:
    torch.manual_seed(0)
    return CompactTransformer(3, 5, 4)


def shifted_windows() -> nn.Module:
    """Windows of 4 on a map of 8×8, shifted in the second block, with a bias for each head and pair of tokens."""
    torch.manual_seed(0)
    model = SwinTransformer([1, 1], 8, [2], [2], [4, 4], stochastic_depth_prob=0.0, num_classes=5)
    return normal_form(model, "net")


MODELS = {"vision transformer": vision_transformer, "compact": compact, "shifted windows": shifted_windows}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def shape_of(model: nn.Module) -> NetworkShape:
    return trace(model, IMAGE, name="net", dataset="none", classes=5)


# --- quantized products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_both_operands_are_quantized(signed: bool) -> None:
    """The left one by its own bits and range, the right one with an offset."""
    shape = LayerShape(name="mix", kind="matmul", position="middle", in_channels=5, out_channels=3, signed_input=signed)
    made = quantized_layer(MatMul(), shape, (3, 4), UniformQuantizer, normalized=True).double()
    assert isinstance(made, QuantizedProduct)
    left, right = torch.rand(2, 4, 5, dtype=torch.float64) - signed * 0.4, torch.randn(2, 5, 3, dtype=torch.float64)
    made.calibrate(left, right)
    values = read_clips(clips_of("mix", made.weight_quantizer, made.activation_quantizer))
    assert set(values) == {"mix.weight", "mix.weight.offset", "mix.activation"} | ({"mix.offset"} if signed else set())

    def on_grid(x: Tensor, key: str, offset: str, bits: int) -> Tensor:
        clip, beta = torch.tensor(values[key], dtype=torch.float64), values.get(offset, 0.0)
        return quantize_literal(x - beta, clip, bits, "activation") + beta

    expected = on_grid(left, "mix.activation", "mix.offset", 4) @ on_grid(right, "mix.weight", "mix.weight.offset", 3)
    torch.testing.assert_close(made(left, right), expected)
    again = quantized_layer(MatMul(), shape, (3, 4), UniformQuantizer, normalized=True).double()
    restore_clips(clips_of("mix", again.weight_quantizer, again.activation_quantizer), values)
    torch.testing.assert_close(again(left, right), expected, rtol=1e-6, atol=1e-6)


@each_model
def test_a_compressed_transformer_has_quantized_products_and_layers(make: Callable[[], nn.Module]) -> None:
    model = make()
    network = shape_of(model)
    compressed = compress(model, network, uniform(network, 8))
    images = torch.randn(16, *IMAGE)
    calibrate(compressed, images)
    for layer in network.layers:
        module: Any = compressed.get_submodule(layer.name)
        assert isinstance(module, QuantizedProduct) == (layer.kind == "matmul")
        assert module.weight_quantizer is not None
    with torch.no_grad():
        wanted, found = model.eval()(images), compressed.eval()(images)
    assert (found - wanted).norm() <= 0.1 * wanted.norm()


@each_model
def test_full_precision_is_the_float_network(make: Callable[[], nn.Module]) -> None:
    model = make()
    network = shape_of(model)
    images = torch.randn(4, *IMAGE)
    with torch.no_grad():
        assert torch.equal(compress(model, network, uniform(network, 32)).eval()(images), model.eval()(images))


# --- the check ------------------------------------------------------------------------------------------------------


@each_model
def test_a_transformer_passes_the_check(make: Callable[[], nn.Module]) -> None:
    model = make()
    check_function(model, shape_of(model), IMAGE)


@each_model
def test_a_product_that_is_not_quantized_is_found(make: Callable[[], nn.Module]) -> None:
    model = make()
    network = shape_of(model)
    product = next(layer.name for layer in network.layers if layer.kind == "matmul")

    def build(float_model: nn.Module, shapes: NetworkShape, policy: Policy, quantizer: Any) -> nn.Module:
        return compress(float_model, shapes, policy.with_layer(product, weight_bits=32, activation_bits=32))

    built = build(model, network, uniform(network, 2), UniformQuantizer)
    with pytest.raises(BenchError, match=f"layer '{product}' of model 'net' computes the same at 2 bits"):
        function_check._check_reached(model, built, network, torch.randn(2, *IMAGE))


@each_model
def test_a_product_with_other_operands_is_found(make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(QuantizedProduct):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return 1.01 * super().forward(left, right)

    monkeypatch.setattr(compress_module, "QuantizedProduct", Wrong)
    model = make()
    network = shape_of(model)
    with pytest.raises(BenchError, match=r"computes something else|has another gradient"):
        check_function(model, network, IMAGE)


@torch.no_grad()
@each_model
@pytest.mark.parametrize("kept_head", [0, 1])
def test_without_heads_and_hidden_units_the_others_compute_the_same(
    make: Callable[[], nn.Module], kept_head: int
) -> None:
    """What is removed is what columns of zeros of the next layer do not read; biases of units and heads count."""
    model = make().double().eval()
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    network = shape_of(model)
    policy, masked = uniform(network, 32), copy.deepcopy(model)
    pruned = [layer for layer in network.layers if layer.prunable]
    assert len(pruned) == 4 and {layer.filters for layer in pruned} & {2, 3}
    for layer in pruned:
        heads = layer.filters < 4
        kept = (kept_head,) if heads else tuple(range(1, layer.out_channels, 3))
        policy = policy.with_layer(layer.name, kept_filters=kept)
        reader = next(o.name for o in network.layers if o.producer == layer.name and o.kind == "linear")
        weight: Tensor = masked.get_submodule(reader).weight  # type: ignore[assignment]
        by_filter = weight.view(len(weight), layer.filters, -1)
        by_filter[:, [unit for unit in range(layer.filters) if unit not in kept]] = 0
    images = torch.randn(3, *IMAGE, dtype=torch.float64)
    reduced = reduce(model, network, policy)
    torch.testing.assert_close(reduced(images), masked(images), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(reduced(images), model(images), atol=1e-3)
    counted = sum(macs for own in count_multiplications(reduced, images[:1]).values() for macs in own.values())
    assert counted == price(network, policy).macs < price(network, uniform(network, 32)).macs


@torch.no_grad()
def test_a_head_is_what_its_rows_say() -> None:
    """Against attention that is written out, head by head."""
    torch.manual_seed(1)
    attention = normal_form(nn.MultiheadAttention(6, 3, batch_first=True), "net").double()
    heads = range(3)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    in_proj, out_proj = attention.in_proj, attention.out_proj
    expected = out_proj.bias.expand(2, 5, 6).clone()  # type: ignore[union-attr, operator]
    for head in heads[1:]:
        rows = [[part * 6 + head * 2 + i for i in range(2)] for part in range(3)]
        q, k, v = (x @ in_proj.weight[own].T + in_proj.bias[own] for own in rows)  # type: ignore[union-attr, index]
        probabilities = torch.softmax(q @ k.transpose(1, 2) / 2**0.5, -1)
        expected += (probabilities @ v) @ out_proj.weight[:, head * 2 : head * 2 + 2].T  # type: ignore[union-attr, index]
    shape = LayerShape(
        **{"name": "in_proj", "kind": "linear", "position": "middle", "in_channels": 6, "out_channels": 18},
        **{"outputs_per_filter": 6, "parts": 3, "prunable": True},
    )
    reader = LayerShape(
        name="out_proj", kind="linear", position="middle", in_channels=6, out_channels=6, inputs_per_filter=2
    )
    attention.in_proj = compress_module._slice_layer(in_proj, shape.rows(heads[1:]), None)  # type: ignore[arg-type]
    attention.out_proj = compress_module._slice_layer(out_proj, None, reader.columns(heads[1:]))  # type: ignore[arg-type]
    torch.testing.assert_close(attention(x, x, x, need_weights=False)[0], expected)


# --- what is refused --------------------------------------------------------------------------------------------------


class Products(nn.Module):
    """Two layers with a product between them; subclasses call it in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.product, self.last = nn.Conv2d(3, 4, 8), MatMul(), nn.Linear(4, 5)

    def multiply(self, x: Tensor) -> Tensor:
        return self.product(x.transpose(1, 2), x).mean(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.multiply(self.first(x).flatten(2).transpose(1, 2)))  # type: ignore[no-any-return]


class Twice(Products):
    def multiply(self, x: Tensor) -> Tensor:
        return super().multiply(super().multiply(x).unsqueeze(1))


class Shared(Products):
    def multiply(self, x: Tensor) -> Tensor:
        return self.product(x, torch.eye(4)).mean(1)  # type: ignore[no-any-return]


class Broadcast(Products):
    def multiply(self, x: Tensor) -> Tensor:
        return self.product(x.unsqueeze(1).expand(-1, 3, -1, -1), torch.ones(2, 1, 4, 4)).mean((1, 2))  # type: ignore[no-any-return]


class Keywords(Products):
    def multiply(self, x: Tensor) -> Tensor:
        return self.product(left=x.transpose(1, 2), right=x).mean(1)  # type: ignore[no-any-return]


class Early(Products):
    def forward(self, x: Tensor) -> Tensor:
        x = self.product(x, x.transpose(2, 3))
        return self.last(self.first(x).flatten(1))  # type: ignore[no-any-return]


def test_a_product_is_traced() -> None:
    network = shape_of(Products())
    assert [(layer.name, layer.position) for layer in network.layers] == [
        *(("first", "first"), ("product", "middle"), ("last", "last"))
    ]
    product = network["product"]
    assert (product.in_channels, product.out_channels, product.in_size, product.macs) == (1, 4, (4, 1), 16)
    assert not product.prunable and product.signed_input and network.unquantized == ()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Twice, "model 'net' runs layer 'product' more than once"),
        (Shared, r"layer 'product' reads a tensor of shape \(2, 1, 4\) and \(4, 4\) for 2 images; its first dimension"),
        (Broadcast, r"product 'product' multiplies tensors of shape \(2, 3, 1, 4\) and \(2, 1, 4, 4\) for 2 images"),
        (Keywords, "layer 'product' of model 'net' is called with keywords or several arguments; call it with its two"),
        (Early, "'bmm' in 'product' multiplies before the first layer, 'first', whose input must be the image"),
    ],
)
def test_other_products_are_refused_by_name(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        shape_of(kind())


def test_a_network_of_one_layer_and_products_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(2))
    pooled = nn.Sequential(model, AttentionPool())
    pooled[1].score = nn.Identity()
    with pytest.raises(BenchError, match="at least two convolution or linear layers; it runs 1"):
        trace(pooled, IMAGE, name="net", dataset="none")


def test_latency_and_energy_of_products_are_not_known() -> None:
    model = vision_transformer()
    network = shape_of(model)
    accelerator, policy = AcceleratorSpec(), uniform(network, 8)
    assert breakdown(accelerator, network, policy).total("latency") is None
    products = [replace(layer, producer=None, leader=None) for layer in network.layers if layer.kind == "matmul"]
    alone = NetworkShape(model="net", dataset="none", layers=tuple(products))
    layers = {layer.name: policy.layers[layer.name] for layer in alone.layers}
    own = Policy(model="net", dataset="none", layers=layers)
    assert breakdown(accelerator, alone, own).total("latency") is None
    with pytest.raises(BenchError, match=r"'.*self_attention.scores' multiplies two activations; latency and energy"):
        price_on(accelerator, alone, own)


# --- costs of pruned heads --------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("kind", [RelaxedBops, RelaxedMemory])
def test_differentiable_costs_are_the_exact_ones(
    make: Callable[[], nn.Module], kind: type[RelaxedBops | RelaxedMemory]
) -> None:
    """For random bits, and random filters and heads that are kept."""
    network = shape_of(make())
    everywhere = LayerSpace(weight_bits=CANDIDATES, activation_bits=CANDIDATES, group_size=1)
    relaxed = kind(network, {layer.name: everywhere for layer in network.middle})
    draws = torch.Generator().manual_seed(0)
    for _ in range(5):
        policy = random_policy(network, draws)
        cost = price(network, policy)
        expected = cost.bops if kind is RelaxedBops else cost.memory_kb
        assert relaxed(**relaxed_arguments(network, policy)).item() == pytest.approx(expected, rel=1e-12)


def test_a_product_without_a_head_costs_less_by_its_pairs_of_matrices() -> None:
    network = shape_of(shifted_windows())
    heads = next(layer for layer in network.layers if layer.outputs_per_filter > 1)
    policy = uniform(network, 4).with_layer(heads.name, kept_filters=(1,))
    for layer in network.layers:
        if layer.leader == heads.name:
            full, half = price_layer(uniform(network, 4), layer), price_layer(policy, layer)
            assert (half.macs * 2, half.bops * 2) == (full.macs, full.bops)
            assert half.activation_memory_bits * 2 == full.activation_memory_bits
