"""HAWQ: sensitivities from the Hessian, bits from an integer programme.

From HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852) comes the sensitivity Ω of a tensor t at b bits: its average Hessian
trace times its squared quantization error (`methods.shared.hessian`). From HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680)
comes the exact allocation under a budget:

    Ω_t(b) = tr(H_t)/n_t · ‖Q_b(t) − t‖²        min Σ Ω  subject to  Σ cost ≤ budget, one choice a layer.

Traces are taken on the pretrained float network in evaluation mode. They are means over random draws, which end when
every running mean changes by less than a thousandth, or after 100 (PyHessian's rule).
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bench.api import Capabilities, Decision, Options, Policy, SearchJob, SearchResult, uniform
from methods.shared.budget import unreachable
from methods.shared.decisions import bits_decision
from methods.shared.hessian import Sensitivity, hutchinson, loss_graph, sensitivity
from methods.shared.options import Candidates, ChoosesBits


class HawqOptions(Options):
    """Options of HAWQ.

    Attributes:
        bits: Candidate bits for weights and activations.
        activations: Bits of inputs by their own trace, or tied to those of the weights.
        draws: Largest number of Hessian-vector products.
        tolerance: Relative change of the running means at which draws end.
        images: Number of training images on which the Hessian is taken.
    """

    bits: Candidates = (2, 4, 8)
    activations: Literal["traced", "tied"] = "traced"
    draws: Annotated[int, Field(ge=1)] = 100
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    images: Annotated[int, Field(ge=1)] = 128


class Hawq(ChoosesBits):
    """Hessian traces and an integer programme."""

    summary = "HAWQ: average Hessian trace × quantization error, and bits by an exact integer programme"
    source = (
        "Dong et al. 2020, HAWQ-V2, arXiv 1911.03852, for sensitivities; Yao et al. 2021, HAWQ-V3, arXiv 2011.10680, "
        "for the allocation"
    )
    deviations = (
        "The common quantizer replaces the papers' own; errors are in the units of the float weights.",
        "Activations have a trace and bits of their own; activations = 'tied' gives inputs the bits of the weights, as "
        "published in V3.",
        "Negative traces count as zero.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = HawqOptions
    options: HawqOptions

    def search(self, job: SearchJob) -> SearchResult:
        """Measure sensitivities, then solve the integer programme.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        bits = tuple(sorted(self.options.bits))
        graph = loss_graph(job, self.options.images)
        traces = hutchinson(graph, job.noise("signs"), self.options.draws, self.options.tolerance)
        omega = sensitivity(job.task.network, graph.tensors, traces, bits)
        tied = self.options.activations == "tied"
        policy = allocate(job, omega, bits, tied=tied)
        return SearchResult(
            policy=policy,
            state=job.pretrained,
            decisions=() if tied else _decisions(policy, omega, bits),
            record={
                "traces": {f"{layer}.{what}": trace for (layer, what), trace in traces.items()},
                "sensitivity": {f"{layer}.{what}": list(values) for (layer, what), values in omega.items()},
            },
        )


def allocate(job: SearchJob, omega: Sensitivity, bits: Sequence[int], *, tied: bool) -> Policy:
    """Find the bits of least total Ω within the budget, exactly.

    Args:
        job: Network, measure and budget.
        omega: Sensitivity of every tensor at every candidate.
        bits: Candidate bits, rising.
        tied: Whether inputs have the bits of the weights.

    Raises:
        UnreachableBudgetError: Even the lowest candidates cost more than the budget.
    """
    network = job.task.network
    pairs = [(b, b) for b in bits] if tied else list(product(bits, bits))
    policy = uniform(network, bits[0])
    least = job.price(policy)
    if least > job.budget:
        raise unreachable(job, f"uniform {bits[0]} bit", least)
    sensitivities, costs = [], []
    for layer in network.middle:
        start = job.measure.price_layer(policy, layer)
        for weight, activation in pairs:
            of_weight = omega[layer.name, "weight_bits"][bits.index(weight)]
            sensitivities.append(of_weight + omega[layer.name, "activation_bits"][bits.index(activation)])
            changed = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
            costs.append((job.measure.price_layer(changed, layer) - start) / job.budget)
    chosen = _least(np.array(sensitivities), np.array(costs), 1 - least / job.budget, len(network.middle))
    for layer, index in zip(network.middle, chosen, strict=True):
        weight, activation = pairs[int(index)]
        policy = policy.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
    return policy


def _least(
    sensitivities: NDArray[np.float64], costs: NDArray[np.float64], budget: float, layers: int
) -> NDArray[np.intp]:
    """Solve the integer programme.

    Args:
        sensitivities: Ω of each choice, shape (layers · choices,).
        costs: Cost of each choice above that of the lowest candidates, of the same shape.
        budget: Largest sum of costs.
        layers: Number of layers.

    Returns:
        Index of the choice of each layer, shape (layers,).
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    choices = len(sensitivities) // layers
    one_each = np.kron(np.eye(layers), np.ones(choices))
    solved = milp(
        sensitivities / (sensitivities.max() or 1.0),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs[np.newaxis], -np.inf, budget)],
        integrality=np.ones(len(sensitivities), dtype=np.int64),
        bounds=Bounds(0, 1),
    )
    if solved.x is None:
        raise RuntimeError(f"the integer programme was not solved: {solved.message}")
    chosen: NDArray[np.intp] = np.round(solved.x).reshape(layers, choices).argmax(1)
    return chosen


def _decisions(policy: Policy, omega: Sensitivity, bits: tuple[int, ...]) -> list[Decision]:
    """List every choice of bits, for a budget that is not filled; margins say by how much a step up lowers Ω."""
    return [
        bits_decision(
            layer, what, bits, [-value for value in values], chosen=bits.index(getattr(policy.layers[layer], what))
        )
        for (layer, what), values in omega.items()
    ]
