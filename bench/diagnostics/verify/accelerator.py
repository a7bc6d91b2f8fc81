"""Checks latency and energy: cycles that the accelerator's own simulator counts, and the paper's Table 6."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from bench.compression.policy import uniform
from bench.compression.shapes import NetworkShape
from bench.costs.accelerator.pricing import AcceleratorCost, price_on
from bench.diagnostics.verify import CheckLine
from bench.diagnostics.verify.networks import network, title
from bench.spec.schema import AcceleratorSpec

_CYCLES = {"mobilenet_v2": 196_571_950, "resnet18": 58_992_481, "resnet50": 144_432_432}
_UNPOOLED_CYCLES = 199_521_070
UNPOOLED_INPUTS = 7 * 7 * 1280
"""Of MobileNetV2's classifier when it reads the map before pooling, as a benchmark of the simulator has it."""


def lines() -> Iterator[CheckLine]:
    """Cycles of a batch of 16 at 8 bits, depthwise layers dense, on the simulator's default hardware."""
    for model, cycles in _CYCLES.items():
        yield _cycles_line(title(model), network(model), cycles)
    yield _cycles_line(f"MobileNetV2, classifier of {UNPOOLED_INPUTS:,} inputs", unpooled(), _UNPOOLED_CYCLES)


def _cycles_line(what: str, shape: NetworkShape, expected: int) -> CheckLine:
    found = on_accelerator(shape).cycles
    return CheckLine(
        what=f"{what}: cycles on BitFusion at 8 bits, batch 16, those of the simulator",
        figure=f"{found:,}" if found == expected else f"{found:,} instead of {expected:,}",
        passed=found == expected,
    )


@cache
def on_accelerator(shape: NetworkShape, bits: int = 8) -> AcceleratorCost:
    """A uniform network on the default hardware."""
    return price_on(AcceleratorSpec(), shape, uniform(shape, bits))


@cache
def unpooled() -> NetworkShape:
    """MobileNetV2 with a classifier that reads the map before pooling."""
    shape = network("mobilenet_v2")
    *others, last = shape.layers
    return replace(shape, layers=(*others, replace(last, in_channels=UNPOOLED_INPUTS)))
