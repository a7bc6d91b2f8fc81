"""Checks of latency and energy against the accelerator's own simulator, and networks for the paper's Table 6."""

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
"""Inputs of MobileNetV2's classifier if it reads the map before pooling, as in a benchmark of the simulator."""


def lines() -> Iterator[CheckLine]:
    """Compare cycles of a batch of 16 at 8 bits, with dense depthwise layers, on the simulator's default hardware."""
    for model, cycles in _CYCLES.items():
        yield _cycles_line(title(model), network(model), cycles)
    yield _cycles_line(f"MobileNetV2, classifier of {UNPOOLED_INPUTS:,} inputs", unpooled(), _UNPOOLED_CYCLES)


def _cycles_line(what: str, shape: NetworkShape, expected: int) -> CheckLine:
    counted = on_accelerator(shape).cycles
    return CheckLine(
        what=f"{what}: cycles on BitFusion at 8 bits, batch 16, equal those of the simulator",
        figure=f"{counted:,}" if counted == expected else f"{counted:,} instead of {expected:,}",
        passed=counted == expected,
    )


@cache
def on_accelerator(shape: NetworkShape, bits: int = 8) -> AcceleratorCost:
    """Price a uniform network on the default hardware."""
    return price_on(AcceleratorSpec(), shape, uniform(shape, bits))


@cache
def unpooled() -> NetworkShape:
    """Return MobileNetV2 with a classifier that reads the map before pooling."""
    shape = network("mobilenet_v2")
    *others, last = shape.layers
    return replace(shape, layers=(*others, replace(last, in_channels=UNPOOLED_INPUTS)))
