"""Transformers and ConvNeXt: sizes and costs of their published forms.

The integers follow from the hyper-parameters alone.
"""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.compression.geometry import MatMul
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import NetworkCost, price
from bench.errors import BenchError
from bench.models.build import build_model
from bench.models.normal_form import normal_form

PLACES = {
    "vit_b_16": "bench.models.transformers:vit_b_16",
    "vit_tiny": "bench.models.transformers:vit_tiny",
    "swin_t": "bench.models.transformers:swin_t",
    "convnext_tiny": "bench.models.transformers:convnext_tiny",
    "cct_2_3x2": "bench.models.cct:cct_2_3x2",
}
SETTINGS = dict.fromkeys(PLACES, (224, 1000)) | {"cct_2_3x2": (32, 100)}


def built(name: str, image: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network without memory; on the meta device PyTorch's counter sees every multiplication."""
    with torch.device("meta"):
        return build_model(PLACES[name], image, classes).eval()


def published(name: str) -> nn.Module:
    size, classes = SETTINGS[name]
    return built(name, (3, size, size), classes)


def macs(model: nn.Module, image: tuple[int, int, int]) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image, device="meta"))
    return counter.get_total_flops() / 2


# Parameters and MACs; operations, and of them products of two activations.
COUNTS = {
    "vit_b_16": (86_567_656, 17_563_828_224, 74, 24),
    "vit_tiny": (5_717_416, 1_253_683_200, 74, 24),
    "swin_t": (28_288_354, 4_490_566_656, 77, 24),
    "convnext_tiny": (28_589_128, 4_455_531_264, 59, 0),
    "cct_2_3x2": (295_333, 35_353_088, 17, 5),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_operations(name: str) -> None:
    model, size = published(name), SETTINGS[name][0]
    calls: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, MatMul | nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda module, _, __: calls.append(module))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = macs(model, (3, size, size))
    products = sum(isinstance(module, MatMul) for module in calls)
    assert (parameters, counted, len(calls), products) == COUNTS[name]


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
def test_torchvision_s_state_can_be_loaded(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    published(name).load_state_dict(state)


@pytest.mark.parametrize(
    ("size", "tokens", "patch"), [(8, 64, 1), (28, 49, 4), (32, 64, 4), (96, 64, 12), (160, 100, 16), (224, 196, 16)]
)
def test_a_small_vision_transformer_reads_about_64_patches(size: int, tokens: int, patch: int) -> None:
    model: Any = built("vit_tiny", (3, size, size), 10)
    assert model.conv_proj.kernel_size == model.conv_proj.stride == (patch, patch)
    assert model.seq_length == tokens + 1


def swin_macs(size: int, patch: int, window: int) -> int:
    """Count Swin-T's multiplications from its hyper-parameters, for sizes that padding changes, and 10 classes."""
    side = size // patch
    total = side**2 * 96 * 3 * patch**2
    for stage, depth in enumerate((2, 2, 6, 2)):
        width, padded = 96 * 2**stage, -(-side // window) * window
        total += depth * (padded**2 * width * (4 * width + 2 * window**2) + side**2 * 8 * width**2)
        if stage < 3:
            side //= 2
            total += side**2 * 4 * width * 2 * width
    return total + 768 * 10


@pytest.mark.parametrize(("size", "patch", "window"), [(32, 2, 4), (48, 2, 4), (64, 4, 7), (224, 4, 7)])
def test_swin_has_a_form_for_small_images(size: int, patch: int, window: int) -> None:
    assert macs(built("swin_t", (3, size, size), 10), (3, size, size)) == swin_macs(size, patch, window)


@pytest.mark.parametrize(("size", "patch"), [(32, 2), (64, 4)])
def test_convnext_has_a_form_for_small_images(size: int, patch: int) -> None:
    stem: Any = built("convnext_tiny", (3, size, size), 10).get_submodule("features.0.0")
    assert stem.kernel_size == stem.stride == (patch, patch)


@pytest.mark.parametrize("name", PLACES)
def test_images_of_one_channel(name: str) -> None:
    model = built(name, (1, 32, 32), 10)
    assert next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels == 1
    assert model(torch.zeros(2, 1, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize(("name", "deviation"), [("vit_tiny", 16**-0.5), ("cct_2_3x2", (2 / 9) ** 0.5)])
def test_a_new_stem_is_initialised_by_its_inputs(name: str, deviation: float) -> None:
    torch.manual_seed(0)
    model = build_model(PLACES[name], (1, 32, 32), 10)
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert float(stem.weight.detach().std()) == pytest.approx(deviation, rel=0.1)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_b_16", 40, "vit_b_16 cannot read images 40 pixels high; allowed: multiples of 16"),
        ("vit_tiny", 200, "vit_tiny cannot read images 200 pixels high; allowed: multiples of 16"),
        ("cct_2_3x2", 30, "cct_2_3x2 cannot read images 30 pixels high; allowed: multiples of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, size: int, message: str) -> None:
    with pytest.raises(BenchError, match=f"^{message}$"):
        built(name, (3, size, size), 10)


# --- costs ------------------------------------------------------------------------------------------------------


@cache
def shape_of(name: str) -> NetworkShape:
    size = SETTINGS[name][0]
    return trace(published(name), (3, size, size), name=name, dataset="none")


def with_products_at(shapes: NetworkShape, bits: int, products: int) -> Policy:
    """A uniform policy with another number of bits for products of activations."""
    policy = uniform(shapes, bits)
    for layer in shapes.layers:
        if layer.kind == "matmul":
            policy = policy.with_layer(layer.name, weight_bits=products, activation_bits=products)
    return policy


def all_at(name: str, bits: int, products: int) -> Policy:
    return with_products_at(shape_of(name), bits, products)


# With products at the bits of the layers, the policy of `uniform`; and with products at 8.
BOPS = {
    ("vit_b_16", 2): (77_237_723_136, None),
    ("vit_b_16", 4): (286_607_179_776, 320_942_899_200),
    ("vit_b_16", 8): (1_124_085_006_336, 1_124_085_006_336),
    ("vit_b_16", 32): (17_985_360_101_376, 17_985_360_101_376),
    ("vit_tiny", 4): (21_455_413_248, 30_039_343_104),
    ("swin_t", 2): (18_875_387_904, None),
    ("swin_t", 4): (72_579_563_520, 79_306_358_784),
    ("swin_t", 8): (287_396_265_984, 287_396_265_984),
    ("convnext_tiny", 4): (72_018_997_248, 72_018_997_248),
    ("convnext_tiny", 8): (285_154_000_896, 285_154_000_896),
    ("cct_2_3x2", 2): (248_348_672, None),
    ("cct_2_3x2", 4): (651_198_464, 752_254_976),
    ("cct_2_3x2", 8): (2_262_597_632, 2_262_597_632),
    ("cct_2_3x2", 32): (36_201_562_112, 36_201_562_112),
}


@pytest.mark.parametrize(("name", "bits"), BOPS)
def test_bops(name: str, bits: int) -> None:
    same, at_8 = BOPS[name, bits]
    assert price(shape_of(name), uniform(shape_of(name), bits)).bops == same
    if at_8 is not None and bits < 32:
        assert price(shape_of(name), all_at(name, bits, 8)).bops == at_8


class Memory(NamedTuple):
    """Weights, then bits in memory and at the peak with everything at 4 and at 8 bits, ends at 8."""

    weights: int
    sum4: int
    sum8: int
    peak4: int
    peak8: int


MEMORY = {
    "vit_b_16": Memory(86_292_480, 446_787_648, 881_502_336, 353_069_232, 695_275_872),
    "vit_tiny": Memory(5_647_872, 48_899_088, 93_876_768, 25_153_536, 46_416_984),
    "swin_t": Memory(28_199_424, 185_165_376, 362_939_520, 120_705_024, 235_229_184),
    "convnext_tiny": Memory(28_524_000, 171_984_768, 336_578_304, 122_003_328, 237_825_792),
    "cct_2_3x2": Memory(284_992, 1_879_296, 3_616_768, 1_263_616, 2_411_008),
}


@pytest.mark.parametrize("name", MEMORY)
def test_weights_and_memory(name: str) -> None:
    four, eight = (price(shape_of(name), all_at(name, bits, bits)) for bits in (4, 8))
    found = Memory(four.parameters, four.memory_bits, eight.memory_bits, four.peak_memory_bits, eight.peak_memory_bits)
    assert found == MEMORY[name]


def figures(cost: NetworkCost, name: str) -> tuple[int, int, int]:
    """MACs, weights, and elements of the activations that are read, at 1 bit."""
    layer = next(layer for layer in cost.layers if layer.name == name)
    return layer.macs, layer.parameters, layer.activation_memory_bits


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("vit_tiny", "self_attention.in_proj", (21_786_624, 110_592, 37_824)),
        ("vit_tiny", "self_attention.scores", (7_451_328, 0, 37_824 + 37_824)),
        ("vit_tiny", "self_attention.mix", (7_451_328, 0, 116_427 + 37_824)),
        ("vit_tiny", "self_attention.out_proj", (7_262_208, 36_864, 37_824)),
        ("vit_tiny", "mlp.0", (29_048_832, 147_456, 37_824)),
        ("vit_tiny", "mlp.3", (29_048_832, 147_456, 151_296)),
        ("swin_t", "attn.qkv", (86_704_128, 27_648, 301_056)),
        ("swin_t", "attn.scores", (14_751_744, 0, 301_056 + 301_056)),
        ("swin_t", "attn.mix", (14_751_744, 0, 460_992 + 301_056)),
        ("swin_t", "attn.proj", (28_901_376, 9_216, 301_056)),
        ("swin_t", "mlp.3", (115_605_504, 36_864, 1_204_224)),
    ],
)
def test_single_operations_of_the_first_block(name: str, path: str, expected: tuple[int, int, int]) -> None:
    block = {"vit_tiny": "encoder.layers.encoder_layer_0", "swin_t": "features.1.0"}[name]
    assert figures(price(shape_of(name), all_at(name, 1, 1)), f"{block}.{path}") == expected


# Half of the hidden units of every block are kept, two of three heads, or both: MACs, those of products, weights, BOPs
# and bits in memory at 4 bit.
PRUNED = {
    ("vit_tiny", "units"): (905_097_216, 178_831_872, 3_878_400, 15_878_037_504, 38_190_096),
    ("vit_tiny", "heads"): (1_077_877_248, 119_221_248, 5_058_048, 18_642_518_016, 42_256_224),
    ("vit_tiny", "both"): (729_291_264, 119_221_248, 3_288_576, 13_065_142_272, 31_547_232),
    ("convnext_tiny", "units"): (2_374_632_192, 0, 15_584_736, 38_724_612_096, 103_067_520),
}


def pruned(shapes: NetworkShape, what: str) -> Policy:
    """At 4 bit, without every second unit, or without the middle one of three heads."""
    policy = uniform(shapes, 4)
    for layer in shapes.layers:
        heads = layer.outputs_per_filter > 1
        if layer.prunable and what != ("units" if heads else "heads"):
            policy = policy.with_layer(layer.name, kept_filters=tuple(range(0, layer.filters, 2)))
    return policy


@pytest.mark.parametrize(("name", "what"), PRUNED)
def test_costs_of_pruned_networks(name: str, what: str) -> None:
    cost = price(shape_of(name), pruned(shape_of(name), what))
    of_products = sum(
        layer.macs
        for layer in cost.layers
        if next(s for s in shape_of(name).layers if s.name == layer.name).kind == "matmul"
    )
    assert (cost.macs, of_products, cost.parameters, cost.bops, cost.memory_bits) == PRUNED[name, what]


def test_a_head_costs_what_it_multiplies() -> None:
    """4·N·C·d for the projections, and 2·N²·d for the products."""
    shapes = shape_of("vit_tiny")
    layer = next(layer for layer in shapes.layers if layer.outputs_per_filter > 1)
    without = uniform(shapes, 4).with_layer(layer.name, kept_filters=(1, 2))
    saved = price(shapes, uniform(shapes, 4)).macs - price(shapes, without).macs
    assert saved == 4 * 197 * 192 * 64 + 2 * 197**2 * 64 == 14_650_496


BLOCKS = {"vit_b_16": 12, "vit_tiny": 12, "swin_t": 12, "convnext_tiny": 18, "cct_2_3x2": 2}


@pytest.mark.parametrize("name", BLOCKS)
def test_heads_and_hidden_units_of_every_block_can_be_pruned(name: str) -> None:
    shapes = shape_of(name)
    units = [layer.name for layer in shapes.layers if layer.prunable and layer.outputs_per_filter == 1]
    heads = [layer.name for layer in shapes.layers if layer.prunable and layer.outputs_per_filter > 1]
    assert len(units) == BLOCKS[name] and len(heads) == (0 if name == "convnext_tiny" else BLOCKS[name])
    readers = [layer for layer in shapes.layers if layer.producer is not None]
    assert [layer.producer for layer in readers if layer.inputs_per_filter == 1] == units
    of_heads = [layer.producer for layer in readers if layer.inputs_per_filter > 1]
    assert of_heads == [name for name in heads for _ in range(3)]  # both products, and the projection
    assert [layer.group_size(shapes.group_size) for layer in shapes.layers if layer.name in heads] == [1] * len(heads)
    assert dict(shapes.tables).keys() == (
        {f"{n[:-3]}relative_position_bias_table" for n in heads} if name == "swin_t" else set()
    )
    assert shapes.group_size == 16
    assert shapes.unquantized == ()


def test_signs_of_operands() -> None:
    """Probabilities are not negative; what follows a normalisation, a projection or GELU can be."""
    signed = {layer.name: layer.signed_input for layer in shape_of("cct_2_3x2").layers}
    assert [name for name in signed if not signed[name]] == [
        *("tokenizer.3", "blocks.0.attention.mix", "blocks.1.attention.mix", "pool.mix")
    ]


@pytest.mark.slow
def test_the_attention_of_maxvit_is_counted() -> None:
    with torch.device("meta"):
        model = normal_form(torchvision.models.maxvit_t(), "maxvit_t")
    network = trace(model, (3, 224, 224), name="maxvit_t", dataset="none")
    assert sum(layer.macs for layer in network.layers) == 5_558_046_720  # as torchvision states
    assert sum(layer.kind == "matmul" for layer in network.layers) == 2 * 22
    assert network.unquantized == ()


@cache
def swin_v2() -> NetworkShape:
    with torch.device("meta"):
        model = normal_form(torchvision.models.swin_v2_t(), "swin_v2_t")
    return trace(model, (3, 256, 256), name="swin_v2_t", dataset="none")


@pytest.mark.parametrize(
    ("bits", "products", "bops", "memory"),
    [
        (4, 4, 95_679_283_200, 209_872_896),
        (4, 8, 107_154_898_944, None),
        (8, 8, 378_945_798_144, 411_985_920),
    ],
)
def test_costs_of_swin_v2(bits: int, products: int, bops: int, memory: int | None) -> None:
    cost = price(swin_v2(), with_products_at(swin_v2(), bits, products))
    assert (cost.macs, cost.parameters, cost.bops) == (5_921_028_096, 28_199_424, bops)
    assert memory is None or cost.memory_bits == memory


def test_the_position_networks_of_swin_v2_are_constant() -> None:
    """They read no image: two layers in each of 12 blocks, which are computed once, and are no part of a policy."""
    constant = swin_v2().constant
    assert sum(operation.macs for operation in constant) == 18_662_400
    assert [operation.path.rpartition(".")[0][-7:] for operation in constant] == ["cpb_mlp"] * 24
    assert swin_v2().unquantized == ()
    assert not any("cpb_mlp" in layer.name for layer in swin_v2().layers)


def test_the_heads_of_swin_v2_stay() -> None:
    """Each has a scale of its own."""
    pruned = [layer.name for layer in swin_v2().layers if layer.prunable]
    assert len(pruned) == 12 and all(name.endswith("mlp.0") for name in pruned)
    assert swin_v2().obstacles["features.1.0.attn.qkv"] == "the operation 'add' reads them"
