"""Compiled networks do what they do as they stand, operation by operation.

Whole networks are not compared: at initialisation a quantized network amplifies rounding a millionfold.
"""

import logging
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind
from bench.compression.policy import LayerSpace
from bench.compression.quantizer import UniformQuantizer
from bench.compression.shapes import LayerShape
from bench.training.forward import Forward
from methods.shared.bit_sharing.layer import LayerSettings, SharedLayer
from methods.shared.bit_sharing.quantization import bit_sharing

BITS = (2, 4, 8)
CPU = torch.device("cpu")
SETTINGS = LayerSettings(gate_place="next_input", group_metric="raw", weight_normalization=True, task_gradient=True)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def off_ties(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values of which none lies within rounding of the middle between two levels, for clip values of 1."""
    codes = torch.randint(-400, 700, shape, generator=torch.Generator().manual_seed(seed))
    return (codes + 0.21) / (2 * 255)


class Gated(nn.Module):
    """Bit sharing of one tensor."""

    def __init__(self, kind: Kind, pattern: tuple[int, int]) -> None:
        super().__init__()
        self.kind = kind
        self.clip = nn.Parameter(torch.ones(()))
        self.thresholds = nn.Parameter(torch.tensor([-1.0 if opened else 1.0 for opened in pattern]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return bit_sharing(x, self.clip, self.thresholds, BITS, self.kind)


def shape_of(conv: nn.Conv2d) -> LayerShape:
    """A layer in the middle whose first input can be negative."""
    return LayerShape(
        name="conv",
        kind="conv",
        position="middle",
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel=(3, 3),
        signed_input=conv.in_channels == 3,
    )


class TwoLayers(nn.Module):
    """A pruned layer and the one that reads it, with what a search looks at."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        space = LayerSpace(weight_bits=BITS, activation_bits=BITS, group_size=2)
        convs = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)]
        first = SharedLayer(convs[0], shape_of(convs[0]), space, SETTINGS)
        second = SharedLayer(convs[1], shape_of(convs[1]), space, SETTINGS, producer=first)
        self.first, self.norm, self.second = first, nn.BatchNorm2d(6), second
        with torch.no_grad():
            assert first.filter_gates is not None
            metric = first.weight.abs().mean((1, 2, 3)).view(3, 2).mean(1)
            first.filter_gates.threshold.copy_(metric.sort().values[:2].mean())  # shuts one group of three
            first.weight_quantizer.thresholds.copy_(torch.tensor([-1.0, 1.0]))
            second.activation_quantizer.thresholds.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.second(torch.relu(self.norm(self.first(x))))
        return (
            y,
            self.first.weight_quantizer.chosen_bits()
            * self.second.activation_quantizer.chosen_bits()
            * self.first.filters(),
        )


def differentiated(module: nn.Module, call: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """All results of a call, and the gradients of a fixed function of them for input and parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    results = call(x)
    results = results if isinstance(results, tuple) else (results,)
    draws = torch.Generator().manual_seed(3)
    factors = [torch.randn(result.shape, generator=draws).to(result.dtype) for result in results]
    loss = sum((result * factor).sum() for result, factor in zip(results, factors, strict=True) if result.requires_grad)
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [result.detach() for result in results] + [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def compiled(module: nn.Module) -> tuple[Callable[..., Any], dict[str, Any]]:
    forward = Forward("on", "fp32", CPU)
    return forward.prepare(module, "test", 1.0), forward.record


@needs_compiler
@pytest.mark.parametrize("kind", ["weight", "activation"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_bit_sharing(kind: Kind, channels_last: bool) -> None:
    module = Gated(kind, (1, 0))
    call, record = compiled(module)
    x = off_ties((4, 8, 5, 5), 1)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    for pattern in ((1, 0), (0, 1), (1, 1), (0, 0)):
        with torch.no_grad():
            module.thresholds.copy_(torch.tensor([-1.0 if opened else 1.0 for opened in pattern]))
        fast, plain = differentiated(module, call, x), differentiated(module, module, x)
        assert fast[1].tolist() == list(pattern)
        for index, (found, expected) in enumerate(zip(fast, plain, strict=True)):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5, msg=lambda m, i=index: f"{i}: {m}")
    assert record["compiled"] == ["test"] and record["compile_seconds"] > 0 and "not_compiled" not in record


@needs_compiler
def test_compiled_quantizer_serves_all_widths_and_nan() -> None:
    module = UniformQuantizer(bits=2, kind="activation")
    call, _ = compiled(module)
    x = off_ties((3, 4, 6, 6), 2)
    for bits in (2, 4, 8):
        module.count.fill_(2**bits - 1)
        module.bits = bits
        for found, expected in zip(differentiated(module, call, x), differentiated(module, module, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    x[0, 0, 0, 0] = math.nan
    assert call(x).isnan().sum() == 1


@needs_compiler
def test_compiled_layers_leave_what_a_search_reads() -> None:
    model = TwoLayers()
    call, record = compiled(model)
    x = off_ties((4, 3, 6, 6), 4)
    plain = differentiated(model, model, x)
    expected = [layer.activation_quantizer.metric for layer in (model.first, model.second)]
    assert model.first.filter_gates is not None
    groups = model.first.filter_gates.gates.detach()
    fast = differentiated(model, call, x)
    assert record["compiled"] == ["test"]
    assert groups.tolist() == model.first.filter_gates.gates.tolist() and sorted(groups.tolist()) == [0, 1, 1]
    for layer, metric in zip((model.first, model.second), expected, strict=True):
        torch.testing.assert_close(layer.activation_quantizer.metric, metric, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(fast, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_the_network_is_carried_out_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    module = Gated("activation", (1, 0))
    with caplog.at_level(logging.WARNING):
        call, record = compiled(module)
    assert call is module
    assert record["compiled"] == [] and "no-such-compiler" in record["not_compiled"]
    assert len(caplog.messages) == 1 and "no-such-compiler" in caplog.messages[0]


def test_what_cannot_be_compiled_is_carried_out_as_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    class Unfit(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x  # compiled code cannot look at values

    call, record = compiled(Unfit())
    with caplog.at_level(logging.WARNING):
        assert call(torch.ones(2)).tolist() == [2, 2]
    assert record["compiled"] == [] and record["not_compiled"]
    assert call(-torch.ones(2)).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("compiling", "multiplications", "expected"),
    [("off", 1e20, False), ("auto", 1e6, False), ("auto", 1e20, True), ("on", 1.0, True), ("on", None, False)],
)
def test_what_is_compiled(compiling: Any, multiplications: float | None, expected: bool) -> None:
    module = nn.Linear(2, 2)
    call = Forward(compiling, "fp32", CPU).prepare(module, "test", multiplications)
    assert (call is not module) == (expected and shutil.which("g++") is not None)


def test_low_precision_touches_the_forward_pass_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    seen = []
    module[0].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    call = Forward("off", "bf16", CPU).prepare(module, "test", None)
    result = call(torch.randn(2, 3, 6, 6))
    assert seen == [torch.bfloat16] and result.dtype == torch.float32
    result.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in module.parameters()
    )
