"""Tables of measured times with made-up figures, for tests without a runtime."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from bench.compression.shapes import LayerShape, NetworkShape
from bench.costs.measured import is_free_input, is_free_output, layer_key
from bench.costs.relaxed import channel_counts

LEVELS = ((32, 32), (8, 8), (7, 8))
Time = Callable[[LayerShape, tuple[int, int], int, int], float]


def crooked(layer: LayerShape, level: tuple[int, int], inputs: int, outputs: int) -> float:
    """A time that is not linear in channels, and is shortest at 8 bits."""
    factor = {(32, 32): 1.3, (8, 8): 1.0, (7, 8): 2.0}[level]
    positions = layer.out_size[0] * layer.out_size[1]
    return factor * ((3 + inputs) ** 1.2 * outputs**0.8 * positions * layer.kernel[0] ** 2 / 1e6 + 0.01)


def table(*networks: NetworkShape, time: Time = crooked, rest: float = 0.25) -> dict[str, Any]:
    """The content of a table with the layers of some networks."""
    layers = {layer_key(layer): layer for network in networks for layer in network.layers}
    return {
        "engine": "onnxruntime",
        "version": "1.0",
        "form": "onnx-qdq",
        "batch": 1,
        "machine": {"processor": "abacus"},
        "networks": [
            {"model": network.model, "dataset": network.dataset, "rest_ms": rest, "whole": []} for network in networks
        ],
        "layers": [_layer(key, layer, time) for key, layer in layers.items()],
    }


def _layer(key: str, layer: LayerShape, time: Time) -> dict[str, Any]:
    inputs = channel_counts(layer.in_channels, 5) if is_free_input(layer) else [layer.in_channels]
    outputs = channel_counts(layer.out_channels, 5) if is_free_output(layer) else [layer.out_channels]
    cells = {(level, i, o): time(layer, level, i, o) for level, i, o in product(LEVELS, inputs, outputs)}
    return {
        "layer": key,
        "inputs": inputs,
        "outputs": outputs,
        "levels": [
            {
                "weight_bits": level[0],
                "activation_bits": level[1],
                "ms": [
                    [[0.9 * cells[level, i, o], cells[level, i, o], 1.2 * cells[level, i, o]] for o in outputs]
                    for i in inputs
                ],
            }
            for level in LEVELS
        ],
    }


def write_table(path: Path, *networks: NetworkShape, **figures: Any) -> str:
    """Write a table, and return its path as hardware."""
    path.write_text(json.dumps(table(*networks, **figures)))
    return str(path)
