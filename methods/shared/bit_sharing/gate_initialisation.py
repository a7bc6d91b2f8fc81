"""Initial values of gates beyond the paper: the scale in which metrics compare, and which gates start open.

The paper's metrics have the scale that clip values and pretraining leave. Gates close in the order of metric over share
of the cost: from the paper's start all activations before the first weight. Factors, set once before the search, make
all gates of one level start at the same metric, the mean of the level ("start"). Or they follow the loss that closing a
gate costs ("hessian"): the mean times (Ω/Ω̄)^½, with Ω the rise in loss that HAWQ estimates.

Only a shut gate has an informative task gradient (see `docs/sbs.md`). A search can therefore start with all gates of
bits shut.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Literal, NamedTuple

import torch

from bench.api import SearchJob
from methods.shared.bit_sharing.extended import ExtendedNetwork, ScaledQuantizer
from methods.shared.decisions import What
from methods.shared.hessian import hutchinson, loss_graph, sensitivity

MetricScale = Literal["plain", "start", "hessian"]

_SHUT_MARGIN = 0.01
"""Distance at which thresholds start above their metrics, 0.01 to 0.13: our choice, a few updates of a gate."""

_HESSIAN_DRAWS = 20
_HESSIAN_IMAGES = 128
_LEAST_METRIC = 1e-6
"""A tensor that is constant has no error to compare."""


class _Gates(NamedTuple):
    """The gates of one tensor's bits."""

    layer: str
    what: What
    quantizer: ScaledQuantizer


def _gates_of_bits(network: ExtendedNetwork) -> list[_Gates]:
    return [
        _Gates(name, what, quantizer)
        for name, layer in network.layers.items()
        for what, quantizer in layer.quantizers().items()
        if isinstance(quantizer, ScaledQuantizer)
    ]


@torch.no_grad()
def scale_metrics(job: SearchJob, network: ExtendedNetwork, scale: MetricScale) -> None:
    """Set the factors of all metrics.

    Args:
        job: Images for the Hessian.
        network: Network with calibrated metrics, and with factors of 1.
        scale: Rule for the factors, "start" or "hessian".
    """
    gates = _gates_of_bits(network)
    rises = _rises(job, gates) if scale == "hessian" else {}
    for level, values in enumerate(zip_longest(*[gate.quantizer.metric.tolist() for gate in gates])):
        present = [(gate, value) for gate, value in zip(gates, values, strict=True) if value is not None]
        mean = sum(value for _, value in present) / len(present)
        weights = [1.0] * len(present)
        if rises:
            weights = _relative([rises[gate.layer, gate.what][level] for gate, _ in present])
        for (gate, value), weight in zip(present, weights, strict=True):
            gate.quantizer.scale[level] = mean * weight / max(value, _LEAST_METRIC)
    _scale_groups(network)


def _scale_groups(network: ExtendedNetwork) -> None:
    """Give the pruning gates of all layers the same mean metric."""
    gates = {name: layer.filter_gates for name, layer in network.layers.items()}
    levels = {name: float(of_layer.metric.mean()) for name, of_layer in gates.items() if of_layer is not None}
    for name, level in levels.items():
        network.scale_groups(name, sum(levels.values()) / len(levels) / max(level, _LEAST_METRIC))


def _rises(job: SearchJob, gates: Sequence[_Gates]) -> dict[tuple[str, What], list[float]]:
    """Estimate the loss that closing each gate costs, by HAWQ: Ω at the bits below it minus Ω at the bits above."""
    with torch.enable_grad():
        graph = loss_graph(job, _HESSIAN_IMAGES)
        traces = hutchinson(graph, job.noise("signs"), _HESSIAN_DRAWS, 1e-3)
    chains = {(gate.layer, gate.what): gate.quantizer.bits for gate in gates}
    bits = sorted({candidate for chain in chains.values() for candidate in chain})
    omega = sensitivity(job.task.network, graph.tensors, traces.means, bits)
    by_bits = {key: dict(zip(bits, values, strict=True)) for key, values in omega.items()}
    return {key: _steps(by_bits[key], chain) for key, chain in chains.items()}


def _steps(omega: Mapping[int, float], chain: Sequence[int]) -> list[float]:
    return [max(0.0, omega[low] - omega[high]) for low, high in pairwise(chain)]


def _relative(rises: Sequence[float]) -> list[float]:
    """Compute (Ω/Ω̄)^½ of each; 1 where nothing rises."""
    mean = sum(rises) / len(rises)
    return [(rise / mean) ** 0.5 if mean > 0 else 1.0 for rise in rises]


@torch.no_grad()
def shut_bits(network: ExtendedNetwork) -> None:
    """Start with the lowest bits everywhere: set every threshold of bits a little above its metric.

    Args:
        network: Network with calibrated metrics.
    """
    for gate in _gates_of_bits(network):
        gate.quantizer.thresholds.copy_(gate.quantizer.metric + _SHUT_MARGIN)
