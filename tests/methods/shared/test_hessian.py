"""Second-order sensitivity: Hutchinson's traces and quantization errors."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

from bench.compression.quantizer import best_clip, quantize_literal, standardize
from bench.compression.shapes import LayerShape, NetworkShape
from bench.method import SearchJob
from methods.shared.hessian import LossGraph, hutchinson, loss_graph, sensitivity, squared_error

BITS = (2, 4, 8)


def tiny_graph() -> tuple[LossGraph, list[torch.Tensor]]:
    """A network of 9 weights in double precision, and its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    weights = list(model.parameters())
    loss = (model(x) - y).square().mean()
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    return LossGraph({("a", "weight_bits"): weights[0], ("b", "weight_bits"): weights[1]}, gradients), weights


def exact_traces(graph: LossGraph, weights: list[torch.Tensor]) -> list[float]:
    """By one second derivative after the other."""
    found = []
    for gradient, weight in zip(graph.gradients, weights, strict=True):
        total = 0.0
        for index in range(weight.numel()):
            (row,) = torch.autograd.grad(gradient.flatten()[index], weight, retain_graph=True)
            total += float(row.flatten()[index])
        found.append(total)
    return found


def test_the_mean_over_all_signs_is_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, weights = tiny_graph()
    every = iter([torch.tensor(signs, dtype=torch.float64) for signs in product((-1.0, 1.0), repeat=9)])
    rest = torch.zeros(0, dtype=torch.float64)

    def next_signs(like: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        nonlocal rest
        rest = rest if len(rest) else next(every)
        signs, rest = rest[: like.numel()], rest[like.numel() :]
        return signs.view_as(like)

    monkeypatch.setattr("methods.shared.hessian._signs", next_signs)
    found = hutchinson(graph, torch.Generator(), draws=2**9, tolerance=1e-300)
    assert list(found.values()) == pytest.approx(exact_traces(graph, weights), rel=1e-9)


def test_of_a_diagonal_hessian_one_draw_is_exact_and_draws_end_early() -> None:
    weight = torch.arange(1.0, 6.0, dtype=torch.float64, requires_grad=True)
    loss = (torch.arange(5, dtype=torch.float64) * weight.square()).sum() / 2
    gradients = torch.autograd.grad(loss, [weight], create_graph=True)
    graph, source = LossGraph({("a", "weight_bits"): weight}, gradients), torch.Generator().manual_seed(1)
    found = hutchinson(graph, source, draws=100, tolerance=1e-3)
    assert found["a", "weight_bits"] == pytest.approx(10.0)
    after_two = torch.Generator().manual_seed(1)
    for _ in range(2):
        torch.randint(2, weight.shape, generator=after_two, dtype=torch.int8)
    assert torch.equal(source.get_state(), after_two.get_state())


def test_errors_are_in_the_units_of_the_float_tensor() -> None:
    source = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(4, 3, 3, 3, generator=source, dtype=torch.float64) + 0.01
    conv = LayerShape(name="l", kind="conv", position="middle", in_channels=3, out_channels=4)
    standard = standardize(weight)
    clip = torch.tensor(best_clip(standard, 4, "weight"), dtype=torch.float64)
    back = quantize_literal(standard, clip, 4, "weight") * weight.std() + weight.mean()
    assert squared_error(conv, "weight_bits", weight, 4) == pytest.approx(float((back - weight).square().sum()))
    x = torch.rand(5, 3, 4, 4, generator=source, dtype=torch.float64)
    clip = torch.tensor(best_clip(x, 2, "activation"), dtype=torch.float64)
    expected = float((quantize_literal(x, clip, 2, "activation") - x).square().sum())
    assert squared_error(conv, "activation_bits", x, 2) == pytest.approx(expected)


def test_sensitivity_is_the_average_trace_times_the_error(
    network: NetworkShape, make_job: Callable[..., SearchJob]
) -> None:
    graph = loss_graph(make_job(), 32)
    traces = dict.fromkeys(graph.tensors, 3.0) | {(network.middle[0].name, "weight_bits"): -1.0}
    found = sensitivity(network, graph.tensors, traces, BITS)
    assert found[network.middle[0].name, "weight_bits"] == [0.0, 0.0, 0.0]
    layer = network.middle[1]
    tensor = graph.tensors[layer.name, "activation_bits"]
    expected = 3.0 / tensor.numel() * squared_error(layer, "activation_bits", tensor, 4)
    assert found[layer.name, "activation_bits"][1] == pytest.approx(expected)
