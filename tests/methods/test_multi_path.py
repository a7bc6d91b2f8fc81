from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import ConvGeometry, calibrate, compress
from bench.compression.policy import LayerPolicy, Policy, uniform
from bench.compression.quantizer import QuantizerFactory, Shifted, UniformQuantizer, quantize_literal
from bench.compression.shapes import LayerShape, trace
from bench.costs.counter import price
from bench.matching.repair import policy_of
from bench.method import SearchJob, Task
from bench.spec.schema import SearchSchedule
from bench.spec.seeds import generator
from methods.dnas import Dnas, dorefa_pact
from methods.multi_path import MixedLayer, MultiPath, MultiPathOptions, PathNetwork, mixture

Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
MakeJob = Callable[..., SearchJob]

BITS = (2, 4, 8)
QUANTIZERS = [pytest.param(UniformQuantizer, id="common"), pytest.param(dorefa_pact, id="dorefa-pact")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed_layers(model: nn.Module) -> dict[str, MixedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixedLayer)}


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
    assert layer.geometry == ConvGeometry.of(conv)
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


# --- the search -------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One training step as a forward pass met it: labels are not seen, the images tell."""

    images: Tensor
    parameters: dict[str, Tensor]
    probabilities: Tensor


@dataclass
class Log:
    """All steps of a search."""

    steps: list[Step] = field(default_factory=list)
    model: nn.Module | None = None

    def watch(self, task: Task) -> Task:
        def hook(model: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self.model = model
            if torch.is_grad_enabled():
                parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
                probabilities = torch.stack([layer.probabilities.detach() for layer in mixed_layers(model).values()])
                self.steps.append(Step(inputs[0], parameters, probabilities))

        def make_model() -> nn.Module:
            model = task.make_model()
            model.register_forward_hook(hook)
            return model

        return replace(task, make_model=make_model)

    def learned(self, step: int) -> set[str]:
        """What changed in a step: "logits", "weights" or nothing."""
        before, after = self.steps[step].parameters, self.steps[step + 1].parameters
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        return {"logits" if name.endswith("logits") else "weights" for name in moved}


def fingerprints(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.contiguous()}


@pytest.fixture
def unaltered(small_task: Task, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Images arrive as they are, so that they can be told apart."""
    monkeypatch.setattr("bench.data.dataset.augment", lambda images, augmentation, order: images)
    return small_task


def test_weights_and_logits_learn_in_turn_on_disjoint_images(unaltered: Task, make_job: MakeJob) -> None:
    log = Log()
    schedule = SearchSchedule(epochs=2, batch_size=18)
    job = make_job(log.watch(unaltered), schedule=schedule)
    options = MultiPathOptions(architecture_share=0.25, warmup_share=0.2)
    MultiPath(options).search(job)
    assert len(log.steps) == job.steps == 32
    of_logits, of_weights = set[bytes](), set[bytes]()
    for number in range(31):
        images = fingerprints(log.steps[number].images)
        if number >= 6 and number % 4 == 3:
            assert log.learned(number) == {"logits"}
            of_logits |= images
        else:
            assert log.learned(number) == {"weights"}
            of_weights |= images
    everything = fingerprints(job.task.data.normalize(job.task.data.train.images))
    assert not of_logits & of_weights
    assert of_logits | of_weights <= everything
    assert len(of_logits) <= 0.25 * len(everything) + 1 < len(of_weights)


def test_temperature_falls_exponentially(make_job: MakeJob) -> None:
    options = MultiPathOptions(temperature_start=4.0, temperature_end=1.0)
    job = make_job(schedule=SearchSchedule(epochs=2, batch_size=72))
    history = MultiPath(options).search(job).record["history"]
    assert [entry["temperature"] for entry in history] == pytest.approx([4 * 0.25 ** (3 / 8), 4 * 0.25 ** (7 / 8)])


@pytest.mark.parametrize("method", [MultiPath, Dnas])
def test_search_repeats_itself_to_the_last_bit(method: type[MultiPath], make_job: MakeJob) -> None:
    results = []
    options = MultiPathOptions(architecture_share=0.5, warmup_share=0.0)
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        results.append(method(options).search(make_job(schedule=SearchSchedule(epochs=1, batch_size=48))))
    one, two = results
    assert (one.policy, list(one.decisions), one.clips, one.record) == (
        two.policy,
        list(two.decisions),
        two.clips,
        two.record,
    )
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


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


def test_result_fits_its_decisions_and_record(make_job: MakeJob) -> None:
    job = make_job(schedule=SearchSchedule(epochs=2, batch_size=48))
    before = {name: value.clone() for name, value in job.pretrained.items()}
    result = MultiPath(MultiPathOptions()).search(job)
    assert policy_of(result.policy, result.decisions) == result.policy
    assert result.record["history"][-1]["cost"] == price(job.task.network, result.policy).bops
    assert set(result.record["logits"]) == {shape.name for shape in job.task.network.middle}
    assert any(not torch.equal(result.state[name], before[name]) for name in before)
    assert all(torch.equal(job.pretrained[name], before[name]) for name in before)


def test_budget_is_heard_by_the_logits_alone(make_job: MakeJob) -> None:
    """A strong cost ends at the cheapest widths, none at all wherever the task leads."""
    job = make_job(match="lambda")
    options = MultiPathOptions(architecture_share=0.5, warmup_share=0.0, logit_travel=20.0)
    strong, absent = (
        MultiPath(options).search(replace(job, knobs={"strength": strength})).policy for strength in (50.0, 0.0)
    )
    assert strong == MultiPath(options).cheapest(job.task.network)
    assert price(job.task.network, absent).bops > price(job.task.network, strong).bops


# --- what it says of itself -------------------------------------------------------------------------------------


def test_cheapest_has_the_least_candidate_everywhere(paths: PathNetwork) -> None:
    policy = MultiPath(MultiPathOptions(bits=(3, 5))).cheapest(paths.network)
    assert policy == uniform(paths.network, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": (4,)},
        {"bits": (0, 4)},
        {"bits": (4, 32)},
        {"bits": (8, 4, 2)},
        {"bits": (4, 4)},
        {"architecture_share": 0.0},
        {"architecture_share": 1.0},
        {"warmup_share": 1.0},
        {"temperature_end": 0.0},
        {"logit_travel": -1.0},
        {"temperature": 1.0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MultiPathOptions(**options)


class Dense(nn.Sequential):
    """A network with a linear layer among those that are searched."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 10))


def test_linear_layers_are_searched(small_task: Task, make_job: MakeJob) -> None:
    shapes = trace(Dense(), (1, 8, 8), name="dense", dataset="digits")
    job = make_job(replace(small_task, network=shapes, make_model=Dense), state=Dense().state_dict())
    result = MultiPath(MultiPathOptions()).search(job)
    assert [(d.layer, d.what) for d in result.decisions] == [("2", "weight_bits"), ("2", "activation_bits")]
    assert result.state["2.weight"].shape == (8, 72)
    # What it reads comes from a convolution without ReLU: the range of its input has an offset.
    assert set(result.clips) >= {"2.weight", "2.activation", "2.offset", "4.weight", "4.activation"}
    assert "4.offset" not in result.clips


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (40, 16, 32, 32)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_mixture_is_the_sum_of_its_paths(shape: tuple[int, ...], channels_last: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draws, dtype=torch.float64)
    grad = torch.randn(shape, generator=draws, dtype=torch.float64)
    if channels_last:
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    bits = (2, 3, 8)
    leaves = [
        x.requires_grad_(),
        torch.tensor([0.7, 1.1, 1.9], dtype=torch.float64, requires_grad=True),
        torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True),
    ]
    found = mixture(*leaves, bits)
    paths = zip(leaves[1], leaves[2], bits, strict=True)
    expected = sum(p * quantize_literal(x, clip, width, "activation") for clip, p, width in paths)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
