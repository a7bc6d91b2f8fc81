"""EdMIPS: one weight under a mixture of widths; weights and logits in the same step."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench.compression.policy import Policy, uniform
from bench.compression.quantizer import UniformQuantizer, quantize_literal, standardize
from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.counter import price
from bench.method import SearchJob, Task
from bench.spec.schema import SearchSchedule
from methods.edmips import Edmips
from methods.shared.networks.paths import MixedLayer, PathNetwork, PathOptions

MakeJob = Callable[..., SearchJob]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
BITS = (2, 4, 8)


def test_the_composite_convolution_is_the_average_of_one_weight_s_quantized_forms() -> None:
    source = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    shape = LayerShape(name="l", kind="conv", position="middle", in_channels=3, out_channels=4)
    layer = MixedLayer(conv, shape, BITS, UniformQuantizer, shared=True).double()
    assert len({id(weight) for weight in layer.weight}) == 1
    assert len([name for name, _ in layer.named_parameters() if name.startswith("weight.")]) == 1
    x = torch.rand(2, 3, 5, 5, generator=source, dtype=torch.float64)
    layer.calibrate(x)
    logits = torch.randn(2, 3, generator=source, dtype=torch.float64)
    layer.probabilities = torch.softmax(logits, 1)
    layer(x).square().sum().backward()

    weight = conv.weight.detach().clone().requires_grad_()
    clips = [
        [torch.tensor(float(quantizer.clip.detach()), dtype=torch.float64) for quantizer in kind]
        for kind in (layer.weight_quantizers, layer.activation_quantizers)
    ]
    standard = standardize(weight)
    of_weights, of_inputs = torch.softmax(logits, 1)
    mixed_weight = sum(
        (
            p * quantize_literal(standard, clip, bits, "weight")
            for p, clip, bits in zip(of_weights, clips[0], BITS, strict=True)
        ),
        start=torch.zeros(()),
    )
    mixed_input = sum(
        (
            q * quantize_literal(x, clip, bits, "activation")
            for q, clip, bits in zip(of_inputs, clips[1], BITS, strict=True)
        ),
        start=torch.zeros(()),
    )
    output = nn.functional.conv2d(mixed_input, mixed_weight, padding=1)
    assert torch.allclose(layer(x), output, atol=1e-12)
    output.square().sum().backward()
    (own,) = {id(weight): weight for weight in layer.weight}.values()
    assert own.grad is not None and weight.grad is not None
    assert torch.allclose(own.grad, weight.grad, atol=1e-10)


def test_weights_and_logits_move_in_the_same_step(make_job: MakeJob, small_task: Task, watched: Watched) -> None:
    seen: list[list[tuple[float, float]]] = []

    def look(model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, MixedLayer)]
        seen.append([(float(layer.logits.sum()), float(layer.weight[0].sum())) for layer in layers])

    Edmips(PathOptions()).search(make_job(task=watched(small_task, look)))
    assert len(seen) == 10
    for before, after in itertools.pairwise(seen):
        assert all(a[0] != b[0] and a[1] != b[1] for a, b in zip(before, after, strict=True))


def test_the_cost_is_the_product_of_expected_widths(make_job: MakeJob, network: NetworkShape) -> None:
    paths = PathNetwork(make_job(), BITS, UniformQuantizer, shared=True)
    with torch.no_grad():
        for index, logits in enumerate(paths.logits()):
            logits.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(index)))
    paths.draw(temperature=1.0, noise=None)
    expected = price(network, uniform(network, 8)).bops - sum(
        layer.bops for layer in price(network, uniform(network, 8)).layers if layer.name in paths.layers
    )
    total = float(expected)
    for layer in price(network, uniform(network, 8)).layers:
        if layer.name in paths.layers:
            of_weights, of_inputs = torch.softmax(paths.layers[layer.name].logits.double(), 1)
            widths = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64)
            total += layer.macs * float(of_weights @ widths) * float(of_inputs @ widths)
    assert float(paths.expected_cost()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(("strength", "least"), [(1e3, True), (0.0, False)])
def test_the_extremes_of_the_strength(make_job: MakeJob, network: NetworkShape, strength: float, least: bool) -> None:
    """A cost that outweighs everything ends at the known cheapest policy; none leaves what the task prefers."""
    schedule = SearchSchedule(epochs=3, batch_size=28)
    job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
    found = Edmips(PathOptions()).search(job)
    assert (found.policy == uniform(network, 2)) == least
    assert len(found.record["history"]) == 3
    assert all(math.isfinite(entry["loss"]) for entry in found.record["history"])


def test_a_search_returns_one_weight_a_layer_and_every_choice(make_job: MakeJob, network: NetworkShape) -> None:
    job = make_job()
    found = Edmips(PathOptions()).search(job)
    assert found.state.keys() == job.pretrained.keys()
    assert all(found.state[name].shape == value.shape for name, value in job.pretrained.items())
    assert [(d.layer, d.what) for d in found.decisions] == [
        (layer.name, what) for layer in network.middle for what in ("weight_bits", "activation_bits")
    ]
    assert isinstance(found.policy, Policy) and found.clips.keys() >= {f"{network.middle[0].name}.weight"}


@pytest.mark.parametrize("bits", [(4, 2), (4, 4), (2,), (0, 2)])
def test_candidates_must_rise(bits: Any) -> None:
    with pytest.raises(ValidationError):
        PathOptions(bits=bits)
