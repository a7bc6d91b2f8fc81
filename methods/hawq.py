"""HAWQ: sensitivity from the Hessian, widths from an integer programme.

From HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852) the sensitivity of a tensor, its average Hessian trace times its
squared quantization error; from HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680) the exact allocation under a budget:

    Ω_t(b) = tr(H_t)/n_t · ‖Q_b(t) − t‖²        min Σ Ω  subject to  Σ cost ≤ budget, one choice a layer.

Traces are Hutchinson's, E[vᵀHv] with v of random signs, for all tensors by one Hessian-vector product a draw: products
between different tensors have mean zero. They are taken on the pretrained float network in evaluation mode; draws end
when every running mean changes by less than a thousandth, or after 100 (PyHessian's rule).
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from bench.api import (
    Capabilities,
    Decision,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UnreachableBudgetError,
    uniform,
)
from methods.shared.decisions import bits_decision
from methods.shared.hessian import Sensitivity, hutchinson, loss_graph, sensitivity


class HawqOptions(Options):
    """Options of HAWQ.

    Attributes:
        bits: Candidates for weights and activations, rising.
        activations: Whether inputs have a width of their own, by their own trace, or that of the weights.
        draws: Hessian-vector products at most.
        tolerance: Relative change of the running means at which draws end.
        images: Training images on which the Hessian is taken.
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=1, le=16)], ...], Field(min_length=1)] = (2, 4, 8)
    activations: Literal["traced", "tied"] = "traced"
    draws: Annotated[int, Field(ge=1)] = 100
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    images: Annotated[int, Field(ge=1)] = 128


class Hawq(Method):
    """Hessian traces and an integer programme."""

    summary = "HAWQ: average Hessian trace × quantization error, widths by an exact integer programme"
    source = (
        "Dong et al. 2020, HAWQ-V2, arXiv 1911.03852, for sensitivities; Yao et al. 2021, HAWQ-V3, arXiv 2011.10680, "
        "for the allocation"
    )
    deviations = (
        "The common quantizer stands in the place of the papers'; errors are in the units of the float weights.",
        "Activations have a trace and a width of their own; activations = 'tied' gives inputs the width of the "
        "weights, the published choice of V3.",
        "Negative traces count as zero.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = HawqOptions
    options: HawqOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """The least candidate everywhere."""
        return uniform(network, min(self.options.bits))

    def search(self, job: SearchJob) -> SearchResult:
        """Measure traces, then solve.

        Raises:
            UnreachableBudgetError: Even the least widths cost more than the budget.
        """
        bits = tuple(sorted(self.options.bits))
        graph = loss_graph(job, self.options.images)
        traces = hutchinson(graph, job.noise("signs"), self.options.draws, self.options.tolerance)
        omega = sensitivity(job.task.network, graph.tensors, traces, bits)
        policy = allocate(job, omega, bits, tied=self.options.activations == "tied")
        free = self.options.activations == "traced"
        return SearchResult(
            policy=policy,
            state=job.pretrained,
            decisions=_decisions(policy, omega, bits) if free else (),
            record={
                "traces": {f"{layer}.{what}": trace for (layer, what), trace in traces.items()},
                "sensitivity": {f"{layer}.{what}": list(values) for (layer, what), values in omega.items()},
            },
        )


def allocate(job: SearchJob, omega: Sensitivity, bits: Sequence[int], *, tied: bool) -> Policy:
    """The widths of least total Ω within the budget, exactly.

    Raises:
        UnreachableBudgetError: Even the least widths cost more.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    network = job.task.network
    pairs = [(width, width) for width in bits] if tied else list(product(bits, bits))
    base = uniform(network, bits[0])
    least = job.price(base)
    if least > job.budget:
        raise UnreachableBudgetError(f"the least widths cost {least / job.budget:.2f} × the budget", least)
    objective, costs = [], []
    for layer in network.middle:
        start = job.measure.price_layer(base, layer)
        for weight, activation in pairs:
            of_weight = omega[layer.name, "weight_bits"][bits.index(weight)]
            objective.append(of_weight + omega[layer.name, "activation_bits"][bits.index(activation)])
            changed = base.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
            costs.append((job.measure.price_layer(changed, layer) - start) / job.budget)
    one_each = np.kron(np.eye(len(network.middle)), np.ones(len(pairs)))
    within = LinearConstraint(np.array([costs]), -np.inf, 1 - least / job.budget)
    scale = max(objective) or 1.0
    solved = milp(
        np.array(objective) / scale,
        constraints=[LinearConstraint(one_each, 1, 1), within],
        integrality=np.ones(len(objective), dtype=np.int64),
        bounds=Bounds(0, 1),
    )
    if solved.x is None:
        raise RuntimeError(f"the integer programme was not solved: {solved.message}")
    chosen = np.round(solved.x).reshape(len(network.middle), len(pairs)).argmax(1)
    for layer, choice in zip(network.middle, chosen, strict=True):
        weight, activation = pairs[int(choice)]
        base = base.with_layer(layer.name, weight_bits=weight, activation_bits=activation)
    return base


def _decisions(policy: Policy, omega: Sensitivity, bits: tuple[int, ...]) -> list[Decision]:
    """Every width, with what a step up lowers Ω by as its margin; for a budget that is not filled."""
    return [
        bits_decision(
            layer, what, bits, [-value for value in values], chosen=bits.index(getattr(policy.layers[layer], what))
        )
        for (layer, what), values in omega.items()
    ]
