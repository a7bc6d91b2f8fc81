"""The meaning of a packed program, written a second time with PyTorch's 64-bit integers and Python's own."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]
_DEFAULTS: dict[str, Any] = {
    **{"stride": [1, 1], "dilation": [1, 1], "padding": [0, 0, 0, 0], "border_classes": [1, 1]},
    **{"groups": 1, "linear": False, "sums_apart": False, "high": None, "right": False},
}


def execute(program: Mapping[str, Any], tensors: Tensors, images: Tensor) -> dict[str, Tensor]:
    """Return every tensor of a program, by name."""
    known = {"image": images.long()}
    unit = 2 ** program["fraction_bits"]
    for stated in program["operations"]:
        step = _DEFAULTS | stated
        inputs = [known[name] for name in step["inputs"]]
        known[step["name"]] = _OPERATIONS[step["operation"]](step, tensors, unit, *inputs)
    return known


def floor_div(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")


def rounded(x: Tensor, divisor: int) -> Tensor:
    """Nearest whole number of x/divisor, upwards half-way."""
    return floor_div(2 * x + divisor, 2 * divisor)


def part(tensor: Tensor, first: int, count: int) -> Tensor:
    return tensor[first : first + count].long()


def codes_of(step: Mapping[str, Any], packed: Tensor) -> Tensor:
    """Read a layer's codes from the string of bits, with its lowest bit last."""
    bits, first = step["weight_bits"], step["first_bit"]
    string = format(int.from_bytes(bytes(packed.tolist()), "little"), f"0{8 * len(packed)}b")
    ends = [len(string) - first - bits * index for index in range(prod(step["weight_shape"]))]
    codes = [int(string[end - bits : end], 2) for end in ends]
    return torch.tensor(codes).reshape(step["weight_shape"])


def layer(step: Mapping[str, Any], tensors: Tensors, _: int, x: Tensor) -> Tensor:
    weight = 2 * codes_of(step, tensors["weights"]) - (2 ** step["weight_bits"] - 1)
    lead = x.shape[1:-1]
    if step["linear"]:
        x = torch.stack([row.T for row in x.reshape(len(x), -1, x.shape[-1])])[..., None]
    above, left, below, right = step["padding"]
    x = F.pad(x, (left, right, above, below))
    (outputs, inputs, height, width), groups = weight.shape, step["groups"]
    (down, across), (tall, wide) = step["stride"], step["dilation"]
    rows = (x.shape[2] - tall * (height - 1) - 1) // down + 1
    columns = (x.shape[3] - wide * (width - 1) - 1) // across + 1
    separate = inputs if step["sums_apart"] else 1
    multipliers = part(tensors["multipliers"], step["first_multiplier"], separate * outputs).view(separate, outputs)
    shifts = part(tensors["shifts"], step["first_shift"], outputs).tolist()
    sums = torch.zeros(len(multipliers), len(x), outputs, rows, columns, dtype=torch.int64)
    for channel in range(inputs):
        for i in range(height):
            for j in range(width):
                values = x[:, :, i * tall :, j * wide :][:, :, ::down, ::across][:, :, :rows, :columns]
                read = torch.tensor([o // (outputs // groups) * inputs + channel for o in range(outputs)])
                sums[channel if step["sums_apart"] else 0] += values[:, read] * weight[:, channel, i, j].view(-1, 1, 1)
    total = (sums * multipliers[:, None, :, None, None]).sum(0)
    scaled = [
        rounded(total[:, o], 2**shift) if shift > 0 else total[:, o] * 2**-shift for o, shift in enumerate(shifts)
    ]
    row_classes, column_classes = step["border_classes"]
    bias = part(tensors["biases"], step["first_bias"], outputs * row_classes * column_classes)
    bias = bias.view(outputs, row_classes, column_classes)
    if row_classes * column_classes > 1:
        height, width = step["positions"]
        bias = bias[:, part(tensors["borders"], step["first_border"], height)]
        bias = bias[:, :, part(tensors["borders"], step["first_border"] + height, width)]
    result = torch.stack(scaled, 1) + bias
    if not step["linear"]:
        return result
    return torch.stack([row[..., 0].T for row in result]).reshape(len(x), *lead, outputs)


def product(step: Mapping[str, Any], _: Tensors, __: int, left: Tensor, right: Tensor) -> Tensor:
    sums = left @ right, left.sum(-1, keepdim=True), right.sum(-2, keepdim=True)
    total = torch.full_like(sums[0], step["bias"])
    for part, (number, shift) in zip(sums, step["factors"], strict=True):
        total = total + (rounded(part * number, 2**shift) if shift > 0 else part * number * 2**-shift)
    return total


def constants(step: Mapping[str, Any], tensors: Tensors, count: int) -> Tensor:
    return tensors["constants"][step["first_constant"] :][:count].double()


def each(function: Callable[[list[int]], list[int]], x: Tensor, axis: int) -> Tensor:
    """Apply a function of whole numbers along a dimension."""
    rows = x.movedim(axis, -1)
    made = torch.tensor([function(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()])
    return made.reshape(rows.shape).movedim(-1, axis)


def softmax(step: Mapping[str, Any], _: Tensors, unit: int, x: Tensor) -> Tensor:
    def shares(row: list[int]) -> list[int]:
        sizes = [round(math.exp((number - max(row)) / unit) * 2**40) for number in row]
        return [round(Fraction(size * unit, sum(sizes))) for size in sizes]

    return each(shares, x, step["axis"] + 1)


def gelu(_: Mapping[str, Any], __: Tensors, unit: int, x: Tensor) -> Tensor:
    return each(lambda row: [round(n * math.erfc(-n / unit / math.sqrt(2)) / 2) for n in row], x, -1)


def layer_norm(step: Mapping[str, Any], tensors: Tensors, unit: int, x: Tensor) -> Tensor:
    count = x.shape[-1]
    weight, bias = constants(step, tensors, 2 * count).reshape(2, count).tolist()

    def normalised(row: list[int]) -> list[int]:
        mean = (2 * sum(row) + count) // (2 * count)
        variance = sum((number - mean) ** 2 for number in row) / count + step["epsilon"] * unit**2
        pairs = zip(row, weight, bias, strict=True)
        return [round((number - mean) / math.sqrt(variance) * w * unit + b * unit) for number, w, b in pairs]

    return each(normalised, x, -1)


def prepend(step: Mapping[str, Any], tensors: Tensors, unit: int, x: Tensor) -> Tensor:
    tokens = (constants(step, tensors, step["tokens"] * x.shape[-1]) * unit).round().long()
    return torch.cat([tokens.reshape(1, step["tokens"], -1).repeat(len(x), 1, 1), x], 1)


def quantize(step: Mapping[str, Any], _: Tensors, __: int, x: Tensor) -> Tensor:
    """The smallest whole number that is at least t − 1/2."""
    inside = (x - step["offset"]).clamp(0, step["top"]) * step["multiplier"]
    return (-floor_div(2 ** (step["shift"] - 1) - inside, 2 ** step["shift"])).clamp(max=step["largest_code"])


def max_pool(step: Mapping[str, Any], _: Tensors, __: int, x: Tensor) -> Tensor:
    above, left, below, right = step["padding"]
    padded = F.pad(x, (left, right, above, below), value=torch.iinfo(torch.int64).min)
    windows = padded.unfold(2, step["kernel"][0], step["stride"][0]).unfold(3, step["kernel"][1], step["stride"][1])
    return windows.amax((4, 5))


def hardswish(_: Any, __: Tensors, unit: int, x: Tensor) -> Tensor:
    bent = rounded(x * (x + 3 * unit), 6 * unit)
    return torch.where(x >= 3 * unit, x, torch.where(x <= -3 * unit, 0, bent))


_OPERATIONS: dict[str, Any] = {
    "product": product,
    "softmax": softmax,
    "gelu": gelu,
    "layer_norm": layer_norm,
    "prepend": prepend,
    "add_constant": lambda step, tensors, unit, x: (
        x + (constants(step, tensors, x[0].numel()) * unit).round().long().reshape(x.shape[1:])
    ),
    "rescale": lambda step, _, __, x: rounded(x * step["multiplier"], 2 ** step["shift"]),
    "permute": lambda step, _, __, x: x.permute(0, *(axis + 1 for axis in step["axes"])),
    "select": lambda step, _, __, x: x[:, step["index"]],
    "layer": layer,
    "quantize": quantize,
    "max_pool": max_pool,
    "hardswish": hardswish,
    "clip": lambda step, _, unit, x: x.clamp(0, None if step["high"] is None else step["high"] * unit),
    "add": lambda _, __, ___, a, b: a + b,
    "multiply": lambda _, __, unit, a, b: rounded(a * b, unit),
    "mean": lambda step, _, __, x: rounded(x.sum((2, 3), keepdim=step["keeps_dimensions"]), x.shape[2] * x.shape[3]),
    "hardsigmoid": lambda _, __, unit, x: rounded((x + 3 * unit).clamp(0, 6 * unit), 6),
    "reshape": lambda step, _, __, x: x.reshape(len(x), *step["shape"]),
}
