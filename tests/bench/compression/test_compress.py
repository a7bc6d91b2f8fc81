from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.compression.compress import QuantizedLayer, calibrate, compress, reduce
from bench.compression.geometry import ConvGeometry, LinearGeometry
from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import Shifted, UniformQuantizer, best_clip, quantize, standardize
from bench.compression.shapes import NetworkShape, trace
from bench.models.resnet import CifarResNet, resnet8

KEPT = {
    "stages.0.0.conv1": (0, 3, 5, 15),
    "stages.1.0.conv1": (7,),
    "stages.2.0.conv1": tuple(range(1, 64, 2)),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model() -> CifarResNet:
    """A float network whose normalisations have random statistics."""
    torch.manual_seed(1)
    network = resnet8(3, 10).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(-1, 2)
                module.bias.normal_()
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.eval()


@pytest.fixture
def network(model: CifarResNet) -> NetworkShape:
    return trace(model, (3, 8, 8), name="resnet8", dataset="none")


@pytest.fixture
def pruned(network: NetworkShape) -> Policy:
    return pruned_policy(network, 32)


def pruned_policy(network: NetworkShape, bits: int) -> Policy:
    policy = uniform(network, bits)
    for name, kept in KEPT.items():
        policy = policy.with_layer(name, kept_filters=kept)
    return policy


@torch.no_grad()
def masked_output(model: CifarResNet, network: NetworkShape, images: Tensor) -> Tensor:
    """The float network with pruned channels set to zero at the input of the second convolution of each block."""

    def masking(kept: tuple[int, ...]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            mask = torch.zeros(inputs[0].shape[1], 1, 1, dtype=inputs[0].dtype)
            mask[list(kept)] = 1
            return (inputs[0] * mask,)

        return hook

    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(masking(KEPT[layer.producer]))
        for layer in network.layers
        if layer.producer is not None
    ]
    try:
        return model(images)  # type: ignore[no-any-return]
    finally:
        for hook in hooks:
            hook.remove()


def test_reduced_network_gives_the_masked_networks_output(
    model: CifarResNet, network: NetworkShape, pruned: Policy
) -> None:
    images = normal(5, 3, 8, 8)
    reduced = reduce(model, network, pruned)
    expected = masked_output(model, network, images)
    assert torch.allclose(reduced(images), expected, atol=1e-10)
    assert not torch.allclose(model(images), expected, atol=1e-3)


def test_reduced_layers_have_the_surviving_slices(model: CifarResNet, network: NetworkShape, pruned: Policy) -> None:
    reduced = reduce(model, network, pruned)
    for name, kept in KEPT.items():
        block = name.removesuffix(".conv1")
        first, norm, second = (reduced.get_submodule(f"{block}.{part}") for part in ("conv1", "bn1", "conv2"))
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert first.out_channels == second.in_channels == norm.num_features == len(kept)
        original = model.get_submodule(f"{block}.bn1")
        assert isinstance(original, nn.BatchNorm2d)
        assert original.running_mean is not None
        assert norm.running_mean is not None
        assert torch.equal(norm.running_mean, original.running_mean[list(kept)])
    assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in model.parameters())


def test_reduce_leaves_the_model_alone(model: CifarResNet, network: NetworkShape, pruned: Policy) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    reduced = reduce(model, network, pruned)
    with torch.no_grad():
        for parameter in reduced.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_reduced_network_learns(model: CifarResNet, network: NetworkShape, pruned: Policy) -> None:
    reduced = reduce(model, network, pruned)
    parameters = list(reduced.parameters())
    gradients = torch.autograd.grad(reduced(normal(4, 3, 8, 8)).square().sum(), parameters)
    assert all(gradient.shape == parameter.shape for gradient, parameter in zip(gradients, parameters, strict=True))


def test_bias_of_a_pruned_convolution_is_sliced(network: NetworkShape, model: CifarResNet, pruned: Policy) -> None:
    block = model.get_submodule("stages.0.0")
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=True).double()
    block.conv1 = conv
    reduced = reduce(model, network, pruned)
    images = normal(2, 3, 8, 8)
    assert torch.allclose(reduced(images), masked_output(model, network, images), atol=1e-10)


def test_only_batch_norm_can_follow_a_pruned_layer(model: CifarResNet, network: NetworkShape, pruned: Policy) -> None:
    model.get_submodule("stages.0.0").bn1 = nn.GroupNorm(4, 16)
    with pytest.raises(TypeError, match="BatchNorm2d"):
        reduce(model, network, pruned)


def test_full_precision_is_the_float_model(model: CifarResNet, network: NetworkShape) -> None:
    images = normal(5, 3, 8, 8)
    compressed = compress(model, network, uniform(network, 32))
    assert torch.equal(compressed(images), model(images))
    assert not any(isinstance(module, UniformQuantizer) for module in compressed.modules())


def test_pruning_alone_is_the_reduced_model(model: CifarResNet, network: NetworkShape, pruned: Policy) -> None:
    images = normal(5, 3, 8, 8)
    assert torch.equal(compress(model, network, pruned)(images), reduce(model, network, pruned)(images))


def layers_of(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def test_every_layer_has_the_policys_quantizers(model: CifarResNet, network: NetworkShape) -> None:
    policy = uniform(network, 4).with_layer("stages.1.0.conv2", weight_bits=2, activation_bits=6)
    layers = layers_of(compress(model, network, policy))
    assert set(layers) == {layer.name for layer in network.layers}
    for layer in network.layers:
        choice = policy.layers[layer.name]
        weight, activation = layers[layer.name].weight_quantizer, layers[layer.name].activation_quantizer
        assert isinstance(layers[layer.name].geometry, ConvGeometry if layer.kind == "conv" else LinearGeometry)
        assert isinstance(weight, UniformQuantizer)
        assert (weight.bits, weight.kind) == (choice.weight_bits, "weight")
        assert weight.normalized == (layer.kind == "conv")
        if layer.position == "first":
            assert isinstance(activation, nn.Identity)
        else:
            assert isinstance(activation, UniformQuantizer)
            assert (activation.bits, activation.kind) == (choice.activation_bits, "activation")
            assert not activation.normalized


def test_layer_quantizes_its_weight_and_input() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    weight = UniformQuantizer(bits=2, kind="weight", normalized=True).double()
    activation = UniformQuantizer(bits=3, kind="activation").double()
    x = normal(2, 2, 5, 5)
    with torch.no_grad():
        expected = nn.functional.conv2d(
            quantize(x, activation.clip, 3, "activation"),
            quantize(standardize(conv.weight), weight.clip, 2, "weight"),
            conv.bias,
            stride=2,
            padding=1,
        )
        assert torch.equal(QuantizedLayer(conv, weight, activation)(x), expected)


def test_only_convolutions_and_linear_layers_can_be_quantized() -> None:
    with pytest.raises(TypeError, match="cannot quantize a ReLU"):
        QuantizedLayer(nn.ReLU(), nn.Identity(), nn.Identity())


def test_clips_start_at_given_values(model: CifarResNet, network: NetworkShape) -> None:
    clips = {"conv1.weight": 2.5, "stages.0.0.conv1.activation": 0.25, "conv1.activation": 9.0}
    layers = layers_of(compress(model, network, uniform(network, 4), clips=clips))
    assert clip_of(layers["conv1"].weight_quantizer) == 2.5
    assert clip_of(layers["stages.0.0.conv1"].activation_quantizer) == 0.25
    assert clip_of(layers["stages.0.0.conv1"].weight_quantizer) == 1.0


def clip_of(quantizer: nn.Module) -> float:
    assert isinstance(quantizer, UniformQuantizer)
    return float(quantizer.clip.detach())


def test_calibrate_sets_clips_in_the_order_of_execution(model: CifarResNet, network: NetworkShape) -> None:
    """Each clip value fits an input that comes from calibrated layers, not from uncalibrated ones."""
    compressed = compress(model, network, pruned_policy(network, 3)).double()
    images = normal(16, 3, 8, 8)
    before = arriving(compressed, images)
    calibrate(compressed, images)
    after = arriving(compressed, images)
    stale = 0
    for name, layer in layers_of(compressed).items():
        assert clip_of(layer.weight_quantizer) == calibrated_weight_clip(layer)
        if isinstance(layer.activation_quantizer, UniformQuantizer):
            bits = layer.activation_quantizer.bits
            assert clip_of(layer.activation_quantizer) == best_clip(after[name], bits, "activation")
            stale += best_clip(before[name], bits, "activation") != best_clip(after[name], bits, "activation")
    assert stale > 0


def calibrated_weight_clip(layer: QuantizedLayer) -> float:
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, UniformQuantizer)
    weight = layer.weight.detach()
    return best_clip(standardize(weight) if quantizer.normalized else weight, quantizer.bits, "weight")


@torch.no_grad()
def arriving(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The input of every quantized layer with the statistics of the batch."""
    seen: dict[str, Tensor] = {}

    def recording(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0].clone()

        return hook

    hooks = [layer.register_forward_pre_hook(recording(name)) for name, layer in layers_of(model).items()]
    try:
        model.train()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.parametrize("training", [False, True])
def test_calibrate_leaves_mode_and_hooks_as_they_were(
    model: CifarResNet, network: NetworkShape, training: bool
) -> None:
    compressed = compress(model, network, uniform(network, 4)).double().train(training)
    calibrate(compressed, normal(4, 3, 8, 8))
    assert compressed.training == training
    assert not any(layer._forward_pre_hooks for layer in layers_of(compressed).values())


def test_calibration_brings_eight_bits_close_to_the_float_network(model: CifarResNet, network: NetworkShape) -> None:
    """Weights are standardised, so that the float network agrees up to the scale that the norms take out."""
    images = normal(32, 3, 8, 8)
    compressed = compress(model, network, uniform(network, 8)).double()
    calibrate(compressed, images)
    with torch.no_grad():
        expected, found = model.train()(images), compressed.train()(images)
    correlation = torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1]
    assert float(correlation) > 0.98


# --- networks with inputs that can be negative ---


class Signed(nn.Sequential):
    """The second convolution reads a hard swish's output, the third a ReLU's, the classifier signed values."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3),
            nn.Hardswish(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 4, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )


def signed_layers(bits: int = 4, **others: Any) -> tuple[nn.Module, dict[str, QuantizedLayer]]:
    torch.manual_seed(0)
    model = Signed()
    network = trace(model, (3, 8, 8), name="signed", dataset="none")
    compressed = compress(model, network, uniform(network, bits), **others)
    return compressed, layers_of(compressed)


def test_inputs_that_can_be_negative_have_an_offset() -> None:
    _, layers = signed_layers()
    kinds = {name: type(layer.activation_quantizer) for name, layer in layers.items()}
    assert kinds == {"0": nn.Identity, "2": Shifted, "4": UniformQuantizer, "7": Shifted}
    # No norm follows any of them: the scale of their weights matters.
    assert not any(layer.weight_quantizer.normalized for layer in layers.values())


def test_offsets_start_at_given_values_and_are_kept_in_the_state() -> None:
    compressed, layers = signed_layers(clips={"2.offset": -0.375, "2.activation": 0.5, "4.offset": 9.0})
    quantizer = layers["2"].activation_quantizer
    assert isinstance(quantizer, Shifted)
    assert (float(quantizer.offset.detach()), clip_of(quantizer.quantizer)) == (-0.375, 0.5)
    other, _ = signed_layers()
    other.load_state_dict(compressed.state_dict())
    images = normal(2, 3, 8, 8).float()
    assert torch.equal(other(images), compressed(images))


def test_offsets_are_calibrated_with_the_rest() -> None:
    compressed, layers = signed_layers(bits=8)
    images = normal(8, 3, 8, 8).float()
    calibrate(compressed, images)
    quantizers = [layers[name].activation_quantizer for name in ("2", "7")]
    assert all(isinstance(q, Shifted) and float(q.offset.detach()) < 0 for q in quantizers)
    torch.manual_seed(0)
    expected = Signed()(images)
    assert torch.allclose(compressed(images), expected, atol=0.03 * float(expected.abs().max().detach()))
