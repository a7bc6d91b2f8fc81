"""Second-order sensitivity: Hutchinson's traces and quantization errors."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import stdev

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.quantizer import best_clip, quantize_literal, standardize
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.errors import BenchError
from bench.method import SearchJob, Task
from bench.spec.seeds import generator
from methods.shared.hessian import LossGraph, hutchinson, loss_graph, sensitivity, squared_error

BITS = (2, 4, 8)


def tiny_graph() -> tuple[LossGraph, list[torch.Tensor]]:
    """A network of 9 weights in double precision, and its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    weights: list[torch.Tensor] = list(model.parameters())
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
    assert list(found.means.values()) == pytest.approx(exact_traces(graph, weights), rel=1e-9)


def test_standard_errors_are_those_of_the_draws() -> None:
    """The same draws one by one; the means of many seeds scatter as their standard errors say."""
    graph, weights = tiny_graph()
    found = hutchinson(graph, torch.Generator().manual_seed(3), draws=20, tolerance=1e-300)
    signs, products = torch.Generator().manual_seed(3), []
    for _ in range(20):
        vectors = [2.0 * torch.randint(2, w.shape, generator=signs, dtype=torch.int8).double() - 1 for w in weights]
        rows = torch.autograd.grad(graph.gradients, weights, vectors, retain_graph=True)
        products.append([float((row * vector).sum()) for row, vector in zip(rows, vectors, strict=True)])
    assert found.draws == 20
    for index, key in enumerate(graph.tensors):
        column = [row[index] for row in products]
        assert found.means[key] == pytest.approx(sum(column) / 20)
        assert found.standard_errors[key] == pytest.approx(stdev(column) / 20**0.5)
    exact = dict(zip(graph.tensors, exact_traces(graph, weights), strict=True))
    runs = [hutchinson(graph, torch.Generator().manual_seed(seed), 20, 1e-300) for seed in range(50)]
    for key in graph.tensors:
        deviations = [(run.means[key] - exact[key]) / run.standard_errors[key] for run in runs]
        assert 0.7 < stdev(deviations) < 1.4


# --- the place of the quantizer -----------------------------------------------------------------------------------


class Branched(nn.Module):
    """Every way in which a layer's input is read by others too, smooth and in double precision.

    The input of `inner` is also the identity shortcut; that of `main` is also read by a 1×1 shortcut; and with `third`,
    three layers read it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 4, stride=4)
        self.inner, self.outer = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.main, self.shortcut, self.third = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)
        self.fc = nn.Linear(3, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x.double()))
        x = torch.tanh(x + self.outer(torch.tanh(self.inner(x))))
        x = torch.tanh(self.main(x)) + self.shortcut(x) * torch.sigmoid(self.third(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def branched_job(small_task: Task, make_job: Callable[..., SearchJob]) -> SearchJob:
    torch.manual_seed(5)
    model = Branched()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    shapes = trace(model, (1, 8, 8), name="branched", dataset="digits")
    return make_job(replace(small_task, network=shapes, make_model=Branched), state=model.state_dict())


def difference_trace(job: SearchJob, layer: str, images: int, numbers: int) -> float:
    """The trace by second differences of the loss in each number that the quantizer of the layer would change."""
    model = job.float_model().eval()
    batch, labels = next(job.task.data.training_batches(images, generator("hessian", job.seed)))
    shift = torch.zeros(numbers, dtype=torch.float64)
    model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: inputs[0] + shift.view(inputs[0].shape))
    width, total = 1e-3, 0.0
    with torch.no_grad():
        middle = float(F.cross_entropy(model(batch), labels))
        for index, signed in product(range(numbers), (width, -width)):
            shift.zero_()[index] = signed
            total += float(F.cross_entropy(model(batch), labels)) - middle
    return total / width**2


@pytest.mark.parametrize("layer", ["inner", "outer", "main", "shortcut", "third"])
def test_traces_are_those_at_the_place_of_the_quantizer(branched_job: SearchJob, layer: str) -> None:
    """An input that the residual sum and other layers read too is changed for this layer alone."""
    graph = loss_graph(branched_job, 3)
    index = list(graph.tensors).index((layer, "activation_bits"))
    chosen = LossGraph({(layer, "activation_bits"): graph.tensors[layer, "activation_bits"]}, [graph.gradients[index]])
    (exact,) = exact_traces(chosen, list(chosen.tensors.values()))
    expected = difference_trace(branched_job, layer, 3, graph.tensors[layer, "activation_bits"].numel())
    assert abs(expected) > 1e-3
    assert exact == pytest.approx(expected, rel=1e-4)
    found = hutchinson(chosen, torch.Generator().manual_seed(0), draws=400, tolerance=1e-300)
    error = found.standard_errors[layer, "activation_bits"]
    assert found.means[layer, "activation_bits"] == pytest.approx(expected, abs=4 * error)


class Gated(nn.Module):
    """Channels scaled by a hard sigmoid, and attention by PyTorch's fused operation, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 2, 4, stride=4), nn.Conv2d(2, 2, 1)
        self.gate, self.sigmoid = nn.Conv2d(2, 2, 1), nn.Hardsigmoid(inplace=True)
        self.fc = nn.Linear(2, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x.double()))
        x = torch.tanh(self.inner(x)) * self.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        tokens = x.flatten(2).transpose(1, 2)
        return self.fc(F.scaled_dot_product_attention(tokens, tokens, tokens).mean(1))  # type: ignore[no-any-return]


def test_hard_sigmoids_and_fused_attention_have_second_derivatives(
    small_task: Task, make_job: Callable[..., SearchJob]
) -> None:
    torch.manual_seed(5)
    model = Gated()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    shapes = trace(Branched(), (1, 8, 8), name="gated", dataset="digits")
    layers = tuple(layer for layer in shapes.layers if layer.name in ("stem", "inner", "fc"))
    job = make_job(replace(small_task, network=replace(shapes, layers=layers), make_model=Gated), model.state_dict())
    graph = loss_graph(job, 3)
    index = list(graph.tensors).index(("inner", "activation_bits"))
    chosen = LossGraph({key: graph.tensors[key] for key in [("inner", "activation_bits")]}, [graph.gradients[index]])
    (exact,) = exact_traces(chosen, list(chosen.tensors.values()))
    numbers = graph.tensors["inner", "activation_bits"].numel()
    assert exact == pytest.approx(difference_trace(job, "inner", 3, numbers), rel=1e-4)


def test_an_operation_without_a_second_derivative_is_named() -> None:
    weight = torch.zeros(3, requires_grad=True)
    loss = torch.ops.aten.hardsigmoid.default(weight).square().sum()
    graph = LossGraph({("a", "weight_bits"): weight}, torch.autograd.grad(loss, [weight], create_graph=True))
    with pytest.raises(BenchError, match=r"needs second derivatives.*'hardsigmoid'"):
        hutchinson(graph, torch.Generator(), draws=2, tolerance=1e-3)


def test_of_a_diagonal_hessian_one_draw_is_exact_and_draws_end_early() -> None:
    weight = torch.arange(1.0, 6.0, dtype=torch.float64, requires_grad=True)
    loss = (torch.arange(5, dtype=torch.float64) * weight.square()).sum() / 2
    gradients = torch.autograd.grad(loss, [weight], create_graph=True)
    graph, source = LossGraph({("a", "weight_bits"): weight}, gradients), torch.Generator().manual_seed(1)
    found = hutchinson(graph, source, draws=100, tolerance=1e-3)
    assert found.means["a", "weight_bits"] == pytest.approx(10.0)
    assert found.standard_errors["a", "weight_bits"] == pytest.approx(0.0)
    assert found.draws == 2
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
