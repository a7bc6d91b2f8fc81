"""Checks of costs: exact integers, the differentiable costs, and by other modules all costs that the paper prints."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from bench.compression.policy import LayerSpace, Policy, kept_inputs, kept_outputs, uniform
from bench.compression.shapes import NetworkShape
from bench.compression.space_size import CANDIDATES
from bench.costs.counter import price
from bench.costs.relaxed import RelaxedBops, RelaxedCost, RelaxedMemory
from bench.diagnostics.verify import CheckLine, accelerator, printed, pruning
from bench.diagnostics.verify.networks import CIFAR, MODELS, network, title
from bench.spec.seeds import generator

# Uniform k bits, first and last layer at 8 (at 32: at 32), counted independently from the layers' shapes.
_BOPS = {
    "resnet20": {
        2: 190_201_856,
        3: 392_052_736,
        4: 674_643_968,
        5: 1_037_975_552,
        6: 1_482_047_488,
        8: 2_612_412_416,
        32: 41_798_598_656,
    },
    "resnet56": {
        2: 529_940_480,
        3: 1_156_464_640,
        4: 2_033_598_464,
        5: 3_161_341_952,
        6: 4_539_695_104,
        8: 8_048_230_400,
        32: 128_771_686_400,
    },
    "mobilenet_v3_large": {
        2: 300_511_616,
        3: 630_521_696,
        4: 1_092_535_808,
        6: 2_412_576_128,
        8: 4_260_632_576,
        32: 68_170_121_216,
    },
    "resnet18": {
        2: 14_367_850_496,
        3: 22_845_587_456,
        4: 34_714_419_200,
        5: 49_974_345_728,
        6: 68_625_367_040,
        8: 116_100_694_016,
        32: 1_857_611_104_256,
    },
    "resnet50": {
        2: 23_560_454_144,
        3: 43_406_065_664,
        4: 71_189_921_792,
        5: 106_912_022_528,
        6: 150_572_367_872,
        8: 261_707_792_384,
        32: 4_187_324_678_144,
    },
    "mobilenet_v2": {
        2: 1_930_178_048,
        3: 3_373_459_328,
        4: 5_394_053_120,
        5: 7_991_959_424,
        6: 11_167_178_240,
        8: 19_249_553_408,
        32: 307_992_854_528,
    },
}
_MEMORY_BYTES = {
    "resnet20": {2: 129_648, 3: 189_488, 4: 249_328, 6: 369_008, 8: 488_688, 32: 1_954_752},
    "resnet56": {2: 360_816, 3: 536_240, 4: 711_664, 6: 1_062_512, 8: 1_413_360, 32: 5_653_440},
}
_POLICIES = 10
"""Number of random policies on which the differentiable costs are compared with the counter."""


def checks() -> Iterator[CheckLine]:
    """Check costs of the paper's networks: counter, differentiable costs, accelerator, and printed figures."""
    for model in MODELS:
        yield _exact_line(model, "BOPs", _BOPS[model])
    for model in CIFAR:
        yield _exact_line(model, "memory", _MEMORY_BYTES[model])
    for model in MODELS:
        yield _relaxed_line(model)
    yield from chain(pruning.lines(), accelerator.lines(), printed.lines())


def _exact_line(model: str, quantity: str, expected: Mapping[int, int]) -> CheckLine:
    wrong = []
    for bits, value in expected.items():
        cost = price(network(model), uniform(network(model), bits))
        counted = cost.bops if quantity == "BOPs" else cost.memory_bits / 8
        if counted != value:
            wrong.append(f"{bits} bits: {counted:,} instead of {value:,}")
    return CheckLine(
        what=f"{title(model)} {quantity}, uniform {', '.join(map(str, expected))} bits, exact integers",
        figure="; ".join(wrong) or f"all {len(expected)} equal",
        passed=not wrong,
    )


def random_policy(shape: NetworkShape, source: torch.Generator) -> Policy:
    """Draw a policy: bits from 2, 4 and 8, and a set of kept filters in every prunable layer."""
    policy = uniform(shape, 4)
    for layer in shape.middle:
        weight, activation = (int(2 ** torch.randint(1, 4, (), generator=source)) for _ in range(2))
        kept = None
        if layer.prunable:
            count = int(torch.randint(1, layer.filters + 1, (), generator=source))
            kept = tuple(sorted(torch.randperm(layer.filters, generator=source)[:count].tolist()))
        policy = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation, kept_filters=kept)
    return policy


def relaxed_arguments(shape: NetworkShape, policy: Policy) -> dict[str, Tensor]:
    """Return the arguments, shares of 0 and 1, with which a differentiable cost must equal the counter's."""

    def share(bits: int) -> list[float]:
        return [float(bits == candidate) for candidate in CANDIDATES]

    def left(kept: Sequence[int] | None, full: int, per_filter: int) -> int:
        # Counted here and not by the counter, whose mistakes the check could not find otherwise.
        return full if kept is None else len(kept) * per_filter

    choices = [policy.layers[layer.name] for layer in shape.middle]
    inputs = [left(kept_inputs(policy, layer), layer.in_channels, layer.inputs_per_filter) for layer in shape.middle]
    outputs = [
        left(kept_outputs(policy, layer), layer.out_channels, layer.outputs_per_filter) for layer in shape.middle
    ]
    return {
        "weight_shares": torch.tensor([share(choice.weight_bits) for choice in choices]),
        "activation_shares": torch.tensor([share(choice.activation_bits) for choice in choices]),
        "in_channels": torch.tensor(inputs, dtype=torch.float64),
        "out_channels": torch.tensor(outputs, dtype=torch.float64),
    }


def _relaxed(shape: NetworkShape, kind: type[RelaxedBops | RelaxedMemory]) -> RelaxedCost:
    """Make the differentiable cost of a search over 2, 4 and 8 bits in all layers."""
    everywhere = LayerSpace(weight_bits=CANDIDATES, activation_bits=CANDIDATES, group_size=1)
    return kind(shape, {layer.name: everywhere for layer in shape.middle})


def _relaxed_line(model: str) -> CheckLine:
    shape = network(model)
    bops, memory = _relaxed(shape, RelaxedBops), _relaxed(shape, RelaxedMemory)
    source = generator("check relaxed cost", model)
    wrong = 0
    for _ in range(_POLICIES):
        policy = random_policy(shape, source)
        arguments, exact = relaxed_arguments(shape, policy), price(shape, policy)
        wrong += (float(bops(**arguments)), float(memory(**arguments))) != (exact.bops, exact.memory_kb)
    return CheckLine(
        what=f"{title(model)}: the differentiable BOPs and memory of searches equal the counter on whole numbers",
        figure=f"{_POLICIES - wrong} of {_POLICIES} random policies equal",
        passed=wrong == 0,
    )
