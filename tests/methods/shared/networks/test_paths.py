from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.geometry import ConvGeometry
from bench.compression.policy import LayerPolicy, Policy, uniform
from bench.compression.quantizer import QuantizerFactory, Shifted, UniformQuantizer
from bench.compression.shapes import LayerShape
from bench.costs.counter import price
from bench.method import SearchJob
from bench.spec.seeds import generator
from methods.dnas import dorefa_pact
from methods.shared.networks.paths import MixedLayer, PathNetwork

MakeJob = Callable[..., SearchJob]

BITS = (2, 4, 8)
QUANTIZERS = [pytest.param(UniformQuantizer, id="common"), pytest.param(dorefa_pact, id="dorefa-pact")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def random_logits(network: PathNetwork, seed: int = 0) -> None:
    for index, logits in enumerate(network.logits()):
        logits.copy_(normal(*logits.shape, seed=100 * seed + index))


# --- the mixed convolution --------------------------------------------------------------------------------------


def shape_of(layer: nn.Conv2d | nn.Linear, *, signed: bool = False) -> LayerShape:
    """A layer in the middle that a normalisation follows."""
    conv = isinstance(layer, nn.Conv2d)
    return LayerShape(
        name="layer",
        kind="conv" if conv else "linear",
        position="middle",
        in_channels=layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features,
        out_channels=layer.weight.shape[0],
        signed_input=signed,
        normalized=conv,
    )


def ready_layer(
    module: nn.Conv2d | nn.Linear, quantizer: QuantizerFactory, x: Tensor, scores: Tensor, *, signed: bool
) -> MixedLayer:
    """With a different weight in each path, clip values that suit, and the softmax of scores as probabilities."""
    layer = MixedLayer(module, shape_of(module, signed=signed), BITS, quantizer).double()
    with torch.no_grad():
        for path, weight in enumerate(layer.weight):
            weight.add_(0.1 * normal(*weight.shape, seed=path))
    layer.calibrate(x)
    with torch.no_grad():
        for name, clip in layer.named_parameters():
            if name.endswith("clip"):
                clip.mul_(0.5)  # so that something that is read is clipped, also at 8 bits
    layer.probabilities = torch.softmax(scores, dim=1)
    return layer


def all_paths(layer: MixedLayer, x: Tensor) -> Tensor:
    """Σ_ij p_i q_j conv(Q_j(x), Q_i(w_i)), one convolution a path."""
    total = torch.zeros(())
    for i, j in product(range(len(BITS)), repeat=2):
        weight = layer.weight_quantizers[i](layer.weight[i])
        output = layer.geometry.convolve(layer.activation_quantizers[j](x), weight, layer.bias)
        total = total + layer.probabilities[0, i] * layer.probabilities[1, j] * output
    return total


@pytest.mark.parametrize("signed", [False, True], ids=["after ReLU", "signed input"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(4, 6, 1, stride=2),
        nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Linear(4, 5),
    ],
    ids=["plain", "shortcut with bias", "groups and dilation", "depthwise", "linear"],
)
def test_one_layer_is_the_sum_over_all_paths(
    module: nn.Conv2d | nn.Linear, quantizer: QuantizerFactory, signed: bool
) -> None:
    x = normal(*((3, 4, 7, 6) if isinstance(module, nn.Conv2d) else (99, 4)), seed=1)
    x = (x if signed else x.abs()).requires_grad_()
    scores = normal(2, len(BITS), seed=9).requires_grad_()
    layer = ready_layer(module, quantizer, x.detach(), scores, signed=signed)
    assert all(isinstance(q, Shifted) == signed for q in layer.activation_quantizers)
    leaves = [x, scores, *(p for name, p in layer.named_parameters() if name != "logits")]
    outputs = [layer(x), all_paths(layer, x)]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-12)
    upstream = normal(*outputs[0].shape, seed=2)
    gradients = [torch.autograd.grad((output * upstream).sum(), leaves, retain_graph=True) for output in outputs]
    for found, expected in zip(*gradients, strict=True):
        assert bool(expected.any())
        assert torch.allclose(found, expected, atol=1e-10)


def test_paths_start_alike_and_are_calibrated_each_for_its_width() -> None:
    conv = nn.Conv2d(3, 64, 3)
    with torch.no_grad():
        conv.weight.copy_(normal(64, 3, 3, 3))
    layer = MixedLayer(conv, shape_of(conv), BITS, UniformQuantizer)
    assert all(torch.equal(weight, conv.weight) for weight in layer.weight)
    assert len({weight.data_ptr() for weight in (*layer.weight, conv.weight)}) == 4
    assert layer.geometry == ConvGeometry.from_layer(conv)
    assert layer.probabilities.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    layer.calibrate(normal(2, 3, 16, 16, seed=1).float())
    for quantizers in (layer.weight_quantizers, layer.activation_quantizers):
        clips = [quantizer.clip.item() for quantizer in quantizers]  # type: ignore[operator]
        assert clips == sorted(clips)
        assert len(set(clips)) == 3


# --- probabilities ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths(make_job: MakeJob) -> PathNetwork:
    return PathNetwork(make_job(), BITS, UniformQuantizer)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
def test_probabilities_are_a_gumbel_softmax(temperature: float, paths: PathNetwork) -> None:
    random_logits(paths)
    paths.draw(temperature, generator("gumbel", "test"))
    again = generator("gumbel", "test")
    for layer in paths.layers.values():
        uniform_draws = torch.rand(2, 3, generator=again).double().numpy()
        scores = (layer.logits.detach().double().numpy() - np.log(-np.log(uniform_draws))) / temperature
        powers = np.exp(scores - scores.max(1, keepdims=True))
        expected = powers / powers.sum(1, keepdims=True)
        assert layer.probabilities.detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_without_noise_probabilities_are_a_softmax(paths: PathNetwork) -> None:
    random_logits(paths)
    paths.draw(2.0, None)
    for layer in paths.layers.values():
        powers = np.exp(layer.logits.detach().double().numpy() / 2)
        assert layer.probabilities.detach().numpy() == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-6)


def test_the_largest_is_drawn_as_often_as_the_softmax_says(paths: PathNetwork) -> None:
    """What Gumbel noise is for; the logits are the same in all layers, so that each draw counts eight times."""
    logits = torch.tensor([[0.0, 1.0, -0.5], [0.7, 0.0, 0.2]])
    with torch.no_grad():
        for parameter in paths.logits():
            parameter.copy_(logits)
    noise = generator("gumbel", "frequencies")
    counts = torch.zeros(2, 3)
    for _ in range(500):
        paths.draw(1.0, noise)
        for layer in paths.layers.values():
            counts += nn.functional.one_hot(layer.probabilities.argmax(1), 3)
    frequencies = counts / counts.sum(1, keepdim=True)
    assert torch.allclose(frequencies, torch.softmax(logits, 1), atol=0.03)


def test_a_low_temperature_picks_one_path(paths: PathNetwork) -> None:
    random_logits(paths)
    sharpness = []
    for temperature in (5.0, 0.5, 0.01):
        paths.draw(temperature, generator("gumbel"))
        sharpness.append(float(torch.stack([p.probabilities for p in paths.layers.values()]).amax(2).mean().detach()))
    assert sharpness == sorted(sharpness)
    assert sharpness[-1] > 0.99


# --- cost -------------------------------------------------------------------------------------------------------


def test_expected_cost_is_the_mean_over_all_paths_of_a_layer(paths: PathNetwork) -> None:
    """The other layers have one path; the counter prices each of the nine."""
    network = paths.network
    name = "stages.1.0.conv2"
    for layer in paths.layers.values():
        layer.probabilities = torch.tensor([[0.0, 1.0, 0.0]] * 2)
    probabilities = torch.softmax(normal(2, 3, seed=4).float(), dim=1)
    paths.layers[name].probabilities = probabilities
    expected = 0.0
    for i, j in product(range(3), repeat=2):
        policy = uniform(network, 4).with_layer(name, weight_bits=BITS[i], activation_bits=BITS[j])
        expected += float(probabilities[0, i] * probabilities[1, j]) * price(network, policy).bops
    assert paths.expected_cost().item() == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_expected_cost_for_the_logits(paths: PathNetwork) -> None:
    """By a difference in a single logit, without noise."""
    random_logits(paths)
    layer = paths.layers["stages.2.0.conv1"]
    paths.draw(1.5, None)
    (found,) = torch.autograd.grad(paths.expected_cost(), layer.logits)
    for row, column in product(range(2), range(3)):
        ends = []
        for h in (0.02, -0.02):
            with torch.no_grad():
                layer.logits[row, column] += h
                paths.draw(1.5, None)
                ends.append(paths.expected_cost().item())
                layer.logits[row, column] -= h
        assert found[row, column].item() == pytest.approx((ends[0] - ends[1]) / 0.04, rel=1e-2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_actual_cost_and_decisions_are_the_argmax_policys(seed: int, paths: PathNetwork) -> None:
    random_logits(paths, seed)
    decisions = paths.decisions()
    policy = paths.policy(decisions)
    assert paths.actual_cost().item() == price(paths.network, policy).bops
    for name, layer in paths.layers.items():
        best = [BITS[index] for index in layer.logits.argmax(1).tolist()]
        assert [policy.layers[name].weight_bits, policy.layers[name].activation_bits] == best
        assert policy.layers[name].kept_filters is None
    assert {policy.layers[name] for name in ("conv1", "fc")} == {LayerPolicy(weight_bits=8, activation_bits=8)}


def test_margins_lean_towards_the_choice(paths: PathNetwork) -> None:
    random_logits(paths, 5)
    decisions = paths.decisions()
    assert len(decisions) == 2 * len(paths.layers)
    for decision in decisions:
        logits = paths.layers[decision.layer].logits[0 if decision.what == "weight_bits" else 1].tolist()
        assert decision.options == BITS
        assert decision.margins == pytest.approx([high - low for low, high in pairwise(logits)])
        if decision.chosen > 0:
            assert decision.margins[decision.chosen - 1] >= 0
        if decision.chosen < 2:
            assert decision.margins[decision.chosen] <= 0


# --- the chosen paths -------------------------------------------------------------------------------------------


def leave_one_path(network: PathNetwork, policy: Policy) -> None:
    """Put all probability on the policy's paths."""
    for name, layer in network.layers.items():
        choice = policy.layers[name]
        rows = [[float(width == chosen) for width in BITS] for chosen in (choice.weight_bits, choice.activation_bits)]
        layer.probabilities = torch.tensor(rows, dtype=torch.float64)


def different_paths(job: SearchJob) -> PathNetwork:
    """Each path with a weight and clip values of its own."""
    network = PathNetwork(job, BITS, UniformQuantizer)
    calibrate(network.model, job.task.data.calibration_batches(1, 8)[0])
    random_logits(network, 3)
    with torch.no_grad():
        for layer in network.layers.values():
            for index, weight in enumerate(layer.weight):
                weight.add_(0.05 * normal(*weight.shape, seed=index))
    return network


@pytest.mark.parametrize("signed", [False, True], ids=["resnet8", "depthwise, gates and signed inputs"])
def test_chosen_paths_are_handed_on(make_job: MakeJob, mobile_job: SearchJob, signed: bool) -> None:
    """Policy, weights, clip values and offsets rebuild the network in which no other path is left."""
    job = mobile_job if signed else make_job()
    network = different_paths(job)
    policy = network.policy(network.decisions())
    assert {policy.layers[name].weight_bits for name in network.layers} == set(BITS)
    assert {policy.layers[name].activation_bits for name in network.layers} == set(BITS)
    model = job.task.make_model()
    model.load_state_dict(network.state(policy, job.pretrained))
    rebuilt = compress(model, job.task.network, policy, clips=network.clips(policy)).double().eval()
    leave_one_path(network, policy)
    images = job.task.data.calibration_batches(1, 8)[0].double()
    with torch.no_grad():
        assert torch.allclose(network.model.double().eval()(images), rebuilt(images), rtol=1e-5, atol=1e-5)
