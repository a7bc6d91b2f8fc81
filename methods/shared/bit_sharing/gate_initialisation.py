"""How the gates of a sharing search start, beyond the paper: in which scale metrics compare, and which gates are open.

The paper's metrics have whatever scale clip values and pretraining leave, and close in the order of metric over share
of the cost: with the paper's start all activations before the first weight. Factors, set once before the search, make
every gate of one level start at the same metric, the level's mean ("start"), or let what a gate guards decide
("hessian"): the mean times (Ω/Ω̄)^½, with Ω the rise in loss that HAWQ estimates for closing it.

Only a shut gate has a task gradient that tells anything (see `docs/sbs.md`); a search can start with all gates of
bits shut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Literal

import torch
from torch import Tensor

from bench.api import SearchJob
from methods.shared.bit_sharing.network import SharedNetwork
from methods.shared.decisions import What
from methods.shared.hessian import hutchinson, loss_graph, sensitivity

MetricScale = Literal["plain", "start", "hessian"]

_SHUT_MARGIN = 0.01
"""How far thresholds start above their metrics, which are 0.01 to 0.13: our choice, a few updates of a gate."""

_HESSIAN_DRAWS = 20
_HESSIAN_IMAGES = 128
_LEAST_METRIC = 1e-6
"""A tensor that is constant has no error to compare."""


@dataclass(frozen=True)
class _Bits:
    """The gates of one tensor's bits.

    Attributes:
        layer, what: Whose they are.
        chain: The candidates, K of them.
        metric: At the start, shape (K − 1,).
        scale: The factors to set, shape (K − 1,).
        thresholds: α, shape (K − 1,).
    """

    layer: str
    what: What
    chain: tuple[int, ...]
    metric: Tensor
    scale: Tensor
    thresholds: Tensor


def _gates_of_bits(network: SharedNetwork, of_activations: Mapping[str, Tensor]) -> list[_Bits]:
    found = []
    for name, layer in network.layers.items():
        of_weights = (layer.weight_metric, layer.scale_weight, layer.thresholds_weight)
        found.append(_Bits(name, "weight_bits", layer.space.weight_bits, *of_weights))
        of_inputs = (of_activations[name], layer.scale_activation, layer.thresholds_activation)
        found.append(_Bits(name, "activation_bits", layer.space.activation_bits, *of_inputs))
    return found


@torch.no_grad()
def scale_metrics(
    job: SearchJob, network: SharedNetwork, of_activations: Mapping[str, Tensor], how: MetricScale
) -> None:
    """Set the factors of all metrics.

    Args:
        job: Images, for the Hessian.
        network: After a pass over images, with factors of 1.
        of_activations: Calibrated metrics of activations by layer.
        how: See the module.
    """
    gates = _gates_of_bits(network, of_activations)
    rises = _rises(job, gates) if how == "hessian" else {}
    for level, values in enumerate(zip_longest(*[gate.metric.tolist() for gate in gates])):
        there = [(gate, value) for gate, value in zip(gates, values, strict=True) if value is not None]
        mean = sum(value for _, value in there) / len(there)
        weights = _relative([rises[gate.layer, gate.what][level] for gate, _ in there]) if rises else [1.0] * len(there)
        for (gate, value), weight in zip(there, weights, strict=True):
            gate.scale[level] = mean * weight / max(value, _LEAST_METRIC)
    pruned = [layer for layer in network.layers.values() if layer.groups is not None]
    levels = [float(layer.group_metric.mean()) for layer in pruned]
    for layer, value in zip(pruned, levels, strict=True):
        layer.scale_filters.fill_(sum(levels) / len(levels) / max(value, _LEAST_METRIC))


def _rises(job: SearchJob, gates: Sequence[_Bits]) -> dict[tuple[str, What], list[float]]:
    """What closing each gate raises the loss by, as HAWQ estimates it: Ω at the width below less Ω at that above."""
    with torch.enable_grad():
        graph = loss_graph(job, _HESSIAN_IMAGES)
        traces = hutchinson(graph, job.noise("signs"), _HESSIAN_DRAWS, 1e-3)
    chains = {(gate.layer, gate.what): gate.chain for gate in gates}
    widths = sorted({width for chain in chains.values() for width in chain})
    omega = sensitivity(job.task.network, graph.tensors, traces, widths)
    by_width = {key: dict(zip(widths, values, strict=True)) for key, values in omega.items()}
    return {
        key: [max(0.0, by_width[key][low] - by_width[key][high]) for low, high in pairwise(chain)]
        for key, chain in chains.items()
    }


def _relative(rises: Sequence[float]) -> list[float]:
    """(Ω/Ω̄)^½ of each; 1 where nothing rises."""
    mean = sum(rises) / len(rises)
    return [(rise / mean) ** 0.5 if mean > 0 else 1.0 for rise in rises]


@torch.no_grad()
def shut_bits(network: SharedNetwork, of_activations: Mapping[str, Tensor]) -> None:
    """Start with the least width everywhere: every threshold of bits a little above its metric.

    Args:
        network: After a pass over images.
        of_activations: Calibrated metrics of activations by layer, in their scale.
    """
    for gate in _gates_of_bits(network, of_activations):
        gate.thresholds.copy_(gate.metric + _SHUT_MARGIN)
