from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import uniform
from bench.compression.quantizer import UniformQuantizer
from bench.method import SearchJob, Task
from methods.dnas import Dnas, DorefaWeight, PactActivation, dorefa_pact
from methods.multi_path import MultiPath, MultiPathOptions
from methods.shared.networks.paths import MixedLayer

Vector = NDArray[np.float64]
WIDTHS = (1, 2, 4, 8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_level(z: Vector, bits: int) -> Vector:
    count = 2**bits - 1
    return np.asarray(np.round(z * count) / count)


def central_differences(function: Callable[[Vector], float], at: Vector) -> Vector:
    """The gradient of a smooth function of a vector."""
    h = 1e-6
    found = np.zeros_like(at)
    for index in range(at.size):
        step = np.zeros_like(at)
        step.flat[index] = h
        found.flat[index] = (function(at + step) - function(at - step)) / (2 * h)
    return found


# --- DoReFa -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_dorefa_rounds_the_squashed_weight(bits: int) -> None:
    weight = normal(4, 3, 3, 3)
    squashed = np.tanh(weight.numpy())
    expected = 2 * nearest_level(squashed / (2 * np.abs(squashed).max()) + 0.5, bits) - 1
    found = DorefaWeight(bits)(weight)
    assert found.numpy() == pytest.approx(expected, abs=1e-12)
    assert found.abs().max().item() == 1
    assert len(found.unique()) <= 2**bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_gradient_of_dorefa_is_that_of_the_function_without_rounding(bits: int) -> None:
    """Through the hyperbolic tangent and through the largest weight alike."""
    weight, upstream = normal(40).requires_grad_(), normal(40, seed=1)
    (found,) = torch.autograd.grad((DorefaWeight(bits)(weight) * upstream).sum(), weight)

    def loss(values: Vector) -> float:
        return float((upstream.numpy() * np.tanh(values) / np.abs(np.tanh(values)).max()).sum())

    assert found.numpy() == pytest.approx(central_differences(loss, weight.detach().numpy()), abs=1e-7)


# --- PACT -------------------------------------------------------------------------------------------------------


def pact(bits: int, clip: float) -> PactActivation:
    quantizer = PactActivation(bits).double()
    with torch.no_grad():
        quantizer.clip.fill_(clip)
    return quantizer


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("clip", [0.4, 1.0, 2.5])
def test_pact_clips_and_rounds(bits: int, clip: float) -> None:
    x = torch.cat([normal(200), torch.tensor([0.0, clip, clip + 1])])
    expected = clip * nearest_level(np.clip(x.numpy(), 0, clip) / clip, bits)
    assert pact(bits, clip)(x).detach().numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("clip", [0.4, 1.0, 2.5])
def test_pact_learns_its_clip_from_what_it_clips(bits: int, clip: float) -> None:
    x, upstream = normal(200, seed=1).requires_grad_(), normal(200, seed=2)
    quantizer = pact(bits, clip)
    to_x, to_clip = torch.autograd.grad((quantizer(x) * upstream).sum(), [x, quantizer.clip])
    pairs = list(zip(x.tolist(), upstream.tolist(), strict=True))
    assert to_x.tolist() == [g if 0 < value < clip else 0 for value, g in pairs]
    assert to_clip.item() == pytest.approx(sum(g for value, g in pairs if value >= clip))


@pytest.mark.parametrize("bits", WIDTHS)
def test_clipping_level_is_calibrated_to_the_least_squared_error(bits: int) -> None:
    x = 3 * normal(2000, seed=5).abs()
    quantizer = pact(bits, 1.0)
    quantizer.calibrate(x)

    def error(clip: float) -> float:
        values = np.clip(x.numpy(), 0, clip)
        return float(np.square(clip * nearest_level(values / clip, bits) - x.numpy()).mean())

    scan = np.linspace(0.02, x.max().item(), 500)
    assert error(quantizer.clip.item()) <= 1.02 * min(map(error, scan))
    assert error(1.0) > 2 * error(quantizer.clip.item())


# --- the method -------------------------------------------------------------------------------------------------


def test_each_method_has_its_papers_quantizer() -> None:
    assert Dnas(MultiPathOptions()).quantizer is Dnas(MultiPathOptions()).search_quantizer is dorefa_pact
    assert MultiPath(MultiPathOptions()).quantizer is UniformQuantizer
    assert Dnas.capabilities.own_quantizer
    assert not MultiPath.capabilities.own_quantizer


def test_own_recipe_builds_a_network_that_learns(task: Task, make_job: Callable[..., SearchJob]) -> None:
    policy = uniform(task.network, 4).with_layer("stages.1.0.conv1", weight_bits=2, activation_bits=8)
    model = compress(make_job().float_model(), task.network, policy, quantizer=Dnas(MultiPathOptions()).quantizer)
    calibrate(model, task.data.calibration_batches(1, 8)[0])
    for shape in task.network.layers:
        layer: Any = model.get_submodule(shape.name)
        choice = policy.layers[shape.name]
        assert isinstance(layer.weight_quantizer, DorefaWeight)
        assert layer.weight_quantizer.bits == choice.weight_bits
        if shape.position == "first":
            assert isinstance(layer.activation_quantizer, nn.Identity)
        else:
            assert isinstance(layer.activation_quantizer, PactActivation)
            assert layer.activation_quantizer.bits == choice.activation_bits
    loss = model(task.data.calibration_batches(1, 8)[0]).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)


def test_every_path_is_searched_with_dorefa_and_pact(
    make_job: Callable[..., SearchJob], small_task: Task, watched: Any
) -> None:
    seen: list[nn.Module] = []
    job = make_job(watched(small_task, seen.append))
    result = Dnas(MultiPathOptions(bits=(2, 8))).search(job)
    layers = [module for module in seen[-1].modules() if isinstance(module, MixedLayer)]
    assert len(layers) == len(small_task.network.middle)
    for layer in layers:
        assert [type(quantizer) for quantizer in layer.weight_quantizers] == [DorefaWeight] * 2
        assert [type(quantizer) for quantizer in layer.activation_quantizers] == [PactActivation] * 2
        assert [quantizer.bits for quantizer in layer.activation_quantizers] == [2, 8]
    assert result.clips == {}
    middle = [result.policy.layers[shape.name] for shape in small_task.network.middle]
    assert {choice.weight_bits for choice in middle} | {choice.activation_bits for choice in middle} <= {2, 8}
