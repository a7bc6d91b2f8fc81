"""Networks as people write them: compressed without changing their function, counted completely, or refused by name."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from bench.compression import compress as compress_module
from bench.compression.compress import QuantizedLayer, QuantizedProduct, calibrate, compress, reduce
from bench.compression.function_check import check_function
from bench.compression.geometry import ConvGeometry
from bench.compression.operations import Operation
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import UniformQuantizer, best_clip, standardize
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.compression.structure import executions
from bench.costs.counter import price
from bench.errors import BenchError
from tests.kinds_of_networks import (
    CLASSES,
    HANDLED,
    IMAGE,
    Aliased,
    Base,
    Branches,
    InAList,
    Squeezes,
    TwiceByFunction,
    no_norm,
    stack,
)


def shape_of(model: nn.Module) -> NetworkShape:
    return trace(model, IMAGE, name="net", dataset="none", classes=CLASSES)


def made(kind: str) -> nn.Module:
    torch.manual_seed(5)
    return HANDLED[kind]()


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nothing(*, bits: int, kind: str, normalized: bool) -> nn.Module:
    return nn.Identity()


@pytest.fixture(autouse=True)
def fixed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


# --- the same function ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HANDLED)
def test_quantizers_that_do_nothing_leave_the_function(kind: str) -> None:
    model = made(kind).double()
    network = shape_of(model)
    rebuilt = compress(model, network, uniform(network, 2), quantizer=nothing)
    replaced = [rebuilt.get_submodule(layer.name) for layer in network.layers]
    assert all(isinstance(module, QuantizedLayer | QuantizedProduct) for module in replaced)
    for training in (True, False):
        results = []
        for net in (model, rebuilt):
            torch.manual_seed(1)
            net.zero_grad()
            outputs = net.train(training)(images())
            (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
            results.append((outputs, {name: parameter.grad for name, parameter in net.named_parameters()}))
        (wanted, gradients), (found, others) = results
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-7, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", HANDLED)
def test_what_is_handled_passes_the_check(kind: str) -> None:
    model = made(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    check_function(model, shape_of(model), IMAGE)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), drawn)


@pytest.mark.parametrize("kind", ["standardised", "branches", "cosine", "circular without norms"])
def test_eight_bits_are_nearly_the_float_network(kind: str) -> None:
    """With weights that are standardised where no norm follows, or with other edges of the maps, they are far away."""
    model = made(kind)
    network = shape_of(model)
    quantized = compress(model, network, uniform(network, 8))
    batch = images(16, seed=2).float()
    calibrate(quantized, batch)
    with torch.no_grad():
        wanted, found = model.train()(batch), quantized.train()(batch)
    assert (found - wanted).norm() < 0.1 * wanted.norm()


def test_other_names_of_a_layer_change_nothing() -> None:
    aliased, direct = made("aliased"), made("plain")
    direct.load_state_dict({name: aliased.state_dict()[name] for name in direct.state_dict()})
    networks = [shape_of(model) for model in (aliased, direct)]
    assert networks[0] == networks[1]
    policy = uniform(networks[0], 1).with_layer("second", kept_filters=(0, 1, 5))
    found, wanted = (compress(model, networks[0], policy) for model in (aliased, direct))
    for net in (found, wanted):
        calibrate(net, images(4).float())
    assert torch.equal(found.eval()(images().float()), wanted.eval()(images().float()))
    assert found.body[3] is found.second  # type: ignore[union-attr, index]
    assert found.body[4] is found.norm2  # type: ignore[union-attr, index]
    assert found.norm2.num_features == 3  # type: ignore[union-attr]


def test_frozen_parameters_stay_frozen_without_filters() -> None:
    model = made("frozen")
    network = shape_of(model)
    reduced = reduce(model, network, uniform(network, 32).with_layer("second", kept_filters=(1, 2)))
    trained = {name for name, parameter in reduced.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in Base().named_parameters()} - {"second.weight", "norm2.weight", "norm2.bias"}


def test_a_single_weight_is_standardised_to_its_sign() -> None:
    weight = torch.tensor([[-0.3]], requires_grad=True)
    assert standardize(weight).item() == pytest.approx(-1)
    mask = torch.tensor([[0.0], [1.0], [0.0]])
    assert standardize(torch.tensor([[2.0], [0.5], [-1.0]]), mask)[1].item() == pytest.approx(1)
    assert standardize(torch.tensor([[2.0], [0.5], [-1.0]]), mask).isfinite().all()


def test_norms_are_followed_through_subclasses_only_without_a_forward() -> None:
    for kind, wanted in (("shorthand", True), ("standardised with norms", False), ("branches", False)):
        network = shape_of(made(kind))
        assert [layer.normalized for layer in network.layers[:3]] == [wanted] * 3
        assert any(layer.prunable for layer in network.layers) == wanted


# --- every multiplication ---------------------------------------------------------------------------------------------

BY_HAND = {"matrix times vector": 12 * 12 * 8}
"""Multiplications that PyTorch's counter leaves out."""


@pytest.mark.parametrize("kind", HANDLED)
def test_every_multiplication_is_counted(kind: str) -> None:
    model = made(kind).eval()
    network = shape_of(model)
    device = "cpu" if kind == "branches" else "meta"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        copy.deepcopy(model).to(device)(torch.zeros(1, *IMAGE, device=device))
    counted = counter.get_total_flops() // 2 + BY_HAND.get(kind, 0)
    assert sum(operation.macs for operation in (*network.layers, *network.unquantized, *network.constant)) == counted
    once = sum(operation.macs for operation in network.constant)  # for all images together
    assert price(network, uniform(network, 4)).macs == counted - once


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        ("plain", []),
        ("aliased", []),
        ("by function", [(":convolution", 8 * 8 * 9 * 144)]),
        ("attention", [(":bmm", 2 * 144 * 144 * 8)]),
        ("fused attention", [(":bmm", 2 * 144 * 144 * 8)]),
        ("own matrix", [(":bmm", 8 * 8 * 144)]),
        ("blurred", [(":convolution", 8 * 9 * 36)]),
        ("matrix times vector", [(":mv", 144 * 8)]),
        (
            "central difference",
            [("0:convolution", 3 * 8 * 144), ("3:convolution", 64 * 144), ("6:convolution", 64 * 36)],
        ),
        ("cosine", []),
    ],
)
def test_what_is_not_a_layers_is_named(kind: str, rest: list[tuple[str, int]]) -> None:
    network = shape_of(made(kind))
    assert [(operation.label, operation.macs) for operation in network.unquantized] == rest


def test_bit_operations_outside_of_layers_have_full_precision() -> None:
    network = shape_of(made("attention"))
    cost = price(network, uniform(network, 2))
    assert cost.bops == sum(layer.bops for layer in cost.layers) + 2 * 144 * 144 * 8 * 32 * 32
    assert cost.memory_bits == sum(layer.memory_bits for layer in cost.layers)
    assert Operation(path="a.b", name="bmm", macs=1).label == "a.b:bmm"


# --- refused ----------------------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Base()
        return change(model) or model

    return make


def with_forward(forward: Callable[[Any, Tensor], Any]) -> Callable[[], nn.Module]:
    return type("Changed", (Base,), {"forward": forward})


def tie(model: Any) -> None:
    model.third.weight = model.second.weight


def patch(model: Any) -> None:
    model.second.forward = lambda x: F.conv2d(x, model.second.weight, padding=1)


def extend(model: Any) -> None:
    class Scaled(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(8, 8, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    model.second = Scaled()


def reads_attribute(model: Any, x: Tensor) -> Any:
    maps = model.features(x)
    return model.head(maps.view(len(x), model.third.out_channels, -1).mean(2))


def set_lazy(model: Any) -> None:
    model.second = nn.LazyConv2d(8, 3, padding=1)


def add_lstm(model: Any) -> None:
    model.recurrent = nn.LSTM(8, 8)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "new weight norm": (
        changed(lambda model: parametrizations.weight_norm(model.second) and None),
        "layer 'second' .*remove_parametrizations\\(layer, 'weight'\\)",
    ),
    "new spectral norm": (
        changed(lambda model: parametrizations.spectral_norm(model.head) and None),
        "layer 'head' .*remove_parametrizations\\(layer, 'weight'\\)",
    ),
    "old weight norm": (
        changed(lambda model: weight_norm(model.second) and None),
        "layer 'second' .*remove_weight_norm\\(layer\\)",
    ),
    "old spectral norm": (
        changed(lambda model: spectral_norm(model.second) and None),
        "layer 'second' .*remove_spectral_norm\\(layer\\)",
    ),
    "pruning mask": (
        changed(lambda model: prune.l1_unstructured(model.second, "weight", 0.5) and None),
        "layer 'second' .*prune.remove\\(layer, 'weight'\\)",
    ),
    "hook": (
        changed(lambda model: model.second.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,)) and None),
        "layer 'second' of model 'net' has hooks",
    ),
    "patched": (changed(patch), "layer 'second' of model 'net' has a forward function set on the object"),
    "tied": (changed(tie), "layer 'third' of model 'net' has the parameter 'weight' of 'second'"),
    "extended": (changed(extend), "layer 'second' of model 'net' is a Scaled with a forward .*'scale'"),
    "lazy": (changed(set_lazy), "layer 'second' of model 'net' is lazy"),
    "recurrent": (changed(add_lstm), "layer 'recurrent' of model 'net' is a LSTM, whose cost is not known"),
    "frozen": (changed(lambda model: model.requires_grad_(False)), "model 'net' has no parameter to train"),
    "twice": (
        with_forward(lambda model, x: Base.forward(model, x) + model.head(x.mean((2, 3)).repeat(1, 3)[:, :8])),
        "model 'net' runs layer 'head' more than once",
    ),
    "keyword": (
        with_forward(lambda model, x: model.head(input=model.features(x).mean((2, 3)))),
        "layer 'head' of model 'net' is called with keywords",
    ),
    "dictionary": (with_forward(lambda model, x: {"out": Base.forward(model, x)}), "model 'net' returns a dict"),
    "tuple": (with_forward(lambda model, x: (Base.forward(model, x), x)), "model 'net' returns a tuple"),
    "tuple in training": (
        with_forward(lambda model, x: (Base.forward(model, x), x) if model.training else Base.forward(model, x)),
        "model 'net' returns a tuple",
    ),
    "classes": (
        with_forward(lambda model, x: Base.forward(model, x)[:, :3]),
        "shape \\(2, 3\\) for 2 images; .*logits of shape \\(2, 4\\)",
    ),
    "folded batch": (
        with_forward(lambda model, x: Base.forward(model, x.repeat(3, 1, 1, 1))[: len(x)]),
        "layer 'first' reads a tensor of shape \\(6, 3, 12, 12\\) for 2 images",
    ),
    "too small": (
        with_forward(lambda model, x: Base.forward(model, F.max_pool2d(x, 13))),
        "model 'net' cannot compute an image of 12×12 pixels and 3 channels",
    ),
    "multiplied image": (
        with_forward(lambda model, x: Base.forward(model, F.conv2d(x, torch.ones(3, 1, 1, 1), groups=3))),
        "'convolution' in '' multiplies before the first layer, 'first'",
    ),
    "in a list": (InAList, "layer 'second' of model 'net' runs 0 times once it is replaced"),
    "reads an attribute": (
        with_forward(reads_attribute),
        "model 'net' cannot be compressed: AttributeError: layer 'third' is asked for 'out_channels'",
    ),
    "uses a weight twice": (
        TwiceByFunction,
        "model 'net' cannot be compressed: AttributeError: layer 'second' is asked for 'weight'",
    ),
    "parameter under two names": (
        changed(lambda model: setattr(model, "filters", model.second.weight)),
        "layer 'second' of model 'net' has the parameter 'filters' of ''",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_handled_is_refused_in_one_line(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(BenchError, match=message) as caught:
        model = make()
        check_function(model, shape_of(model), IMAGE)
    assert "\n" not in str(caught.value)


def test_a_literal_number_of_channels_is_found_before_filters_are_removed() -> None:
    def forward(model: Any, x: Tensor) -> Any:
        x = F.adaptive_avg_pool2d(model.norm2(model.second(model.norm1(model.first(x)).relu())).relu(), 1)
        return model.head(model.norm3(model.third(x.view(-1, 8, 1, 1))).relu().view(-1, 8))

    model = with_forward(forward)()
    network = shape_of(model)
    assert [layer.name for layer in network.layers if layer.prunable] == ["second"]
    with pytest.raises(BenchError, match="model 'net' cannot lose filters; set its attribute `prunable` to \\(\\)"):
        check_function(model, network, IMAGE)
    model.prunable = ()  # type: ignore[assignment]
    check_function(model, shape_of(model), IMAGE)


def test_a_layer_that_is_not_reached_is_not_calibrated() -> None:
    model = InAList()
    network = shape_of(model)
    with pytest.raises(BenchError, match="the quantized layer 'second' was executed 0 times in one pass, not once"):
        calibrate(compress(model, network, uniform(network, 4)), images(4).float())


def test_a_layer_that_training_leaves_out_is_calibrated_too() -> None:
    model = made("skips in training")
    network = shape_of(model)
    quantized = compress(model, network, uniform(network, 4))
    torch.manual_seed(0)  # the first draw leaves the block out
    runs: list[nn.Module] = []
    quantized.second.register_forward_pre_hook(lambda module, _: runs.append(module))  # type: ignore[union-attr]
    calibrate(quantized, images(8).float())
    assert len(runs) == 1 and quantized.training
    clip = quantized.second.weight_quantizer.clip  # type: ignore[union-attr]
    assert clip.item() == pytest.approx(best_clip(model.second.weight.detach(), 4, "weight"))  # type: ignore[arg-type]


# --- the checks find what they are for --------------------------------------------------------------------------------


def test_an_alias_that_is_not_replaced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Aliased()
    monkeypatch.setattr(compress_module, "names_of", lambda _, path: [path])
    with pytest.raises(BenchError, match="layer 'first' of model 'net' runs 0 times"):
        check_function(model, shape_of(model), IMAGE)


@pytest.mark.parametrize("kind", ["circular", "reflect", "replicate"])
def test_padding_that_is_dropped_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def convolve(geometry: ConvGeometry, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)

    model = made(kind)
    network = shape_of(model)
    monkeypatch.setattr(ConvGeometry, "convolve", convolve)
    with pytest.raises(BenchError, match="layer '0' of model 'net' computes something else in evaluation mode"):
        check_function(model, network, IMAGE)


def test_a_dropped_bias_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ConvGeometry.convolve
    monkeypatch.setattr(ConvGeometry, "convolve", lambda self, x, weight, bias: right(self, x, weight, None))
    model = stack(norm=no_norm)
    with pytest.raises(BenchError, match="layer '0' of model 'net' computes something else"):
        check_function(model, shape_of(model), IMAGE)


def test_a_lost_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ConvGeometry.convolve
    monkeypatch.setattr(ConvGeometry, "convolve", lambda self, x, weight, bias: right(self, x, weight.detach(), bias))
    with pytest.raises(BenchError, match=r"parameter 'first.weight' of model 'net' has another gradient"):
        check_function(Base(), shape_of(Base()), IMAGE)


def test_a_layer_in_full_precision_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetting(model: nn.Module, network: NetworkShape, policy: Policy, quantizer: Any) -> nn.Module:
        built = compress(model, network, policy, quantizer=quantizer)
        for path, others in (
            ("second.weight_quantizer", nn.Identity()),
            ("second.activation_quantizer", nn.Identity()),
        ):
            compress_module.replace_layer(built, path, others)
        return built

    with pytest.raises(BenchError, match="layer 'second' of model 'net' computes the same at 2 bits"):
        check_function(Base(), shape_of(Base()), IMAGE, forgetting)


def test_a_removed_filter_that_is_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wrong filters are taken, the reduced network computes something else than the masked one."""
    model = Base()
    monkeypatch.setattr(compress_module, "_slice_norm", lambda norm, kept: nn.BatchNorm2d(len(kept)))
    with pytest.raises(BenchError, match="model 'net' computes something else once filters are removed"):
        check_function(model, shape_of(model), IMAGE)


@pytest.mark.parametrize(("factor", "words"), [(2, "less often"), (0.5, "more often")])
def test_a_miscounted_layer_is_found(factor: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LayerShape.right_elements
    monkeypatch.setattr(
        LayerShape,
        "right_elements",
        lambda self, i, o: int(right(self, i, o) * (factor if self.name == "second" else 1)),
    )
    with pytest.raises(BenchError, match=f"layer 'second' multiplies {words} than its shape says"):
        shape_of(Base())


def test_a_layer_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = executions._executed

    def forgetful(*given: Any) -> Any:
        calls, constant = right(*given)
        return [call for call in calls if call.path != "second"], constant

    monkeypatch.setattr(executions, "_executed", forgetful)
    with pytest.raises(BenchError, match="layer 'second' multiplies more often than its shape says"):
        shape_of(Base())


def test_warnings_say_what_an_unreadable_forward_costs(caplog: pytest.LogCaptureFixture) -> None:
    shape_of(Branches())
    assert re.search("cannot be pruned, its weights are not standardised and all inputs count as signed", caplog.text)


def test_a_batch_of_two_keeps_squeezed_features_apart() -> None:
    assert shape_of(Squeezes()).layers[-1].in_channels == 8


def test_quantizers_have_no_choice_of_standardisation_without_norms() -> None:
    model = made("standardised")
    network = shape_of(model)
    quantized = compress(model, network, uniform(network, 4))
    found = [module.normalized for module in quantized.modules() if isinstance(module, UniformQuantizer)]
    assert found and not any(found)


def test_heads_of_separate_projections_are_removed_together() -> None:
    network = shape_of(made("separate projections"))
    assert [layer.name for layer in network.layers if layer.leader == "q"] == ["k", "v", "scores", "mix"]
    assert [layer.name for layer in network.layers if layer.producer == "q"] == ["scores", "mix", "proj"]
    assert (network["q"].prunable, network["q"].filters, network["k"].rows((1, 3))) == (True, 4, [2, 3, 6, 7])


def test_a_forward_that_branches_on_sizes_is_read() -> None:
    network = shape_of(made("branches on sizes"))
    assert [layer.name for layer in network.layers if layer.prunable] == ["second"]
    assert network.norms == shape_of(Base()).norms and network.layers == shape_of(Base()).layers


# --- as few passes as possible ----------------------------------------------------------------------------------------


def test_shapes_of_large_images_are_read_without_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads no value is then never carried out; one that does is."""
    devices: list[str] = []
    right = nn.Conv2d.forward

    def watched(self: nn.Conv2d, x: Tensor) -> Tensor:
        devices.append(x.device.type)
        return right(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    for model, found in ((Base(), {"meta"}), (Branches(), {"meta", "cpu"})):
        trace(model, (IMAGE[0], 128, 128), name="net", dataset="none", classes=CLASSES)
        assert set(devices) == found


def test_the_check_runs_every_layer_six_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float and rebuilt in training and evaluation mode, quantized with its float layers."""
    model, calls = Base(), []
    network = shape_of(model)
    right = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda *given, **others: calls.append(1) or right(*given, **others))
    check_function(model, network, IMAGE)
    assert len(calls) == 6 * 3  # three convolutions
