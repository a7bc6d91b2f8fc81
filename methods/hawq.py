"""HAWQ: sensitivities from the Hessian, bits from an integer programme.

From HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852) comes the sensitivity Ω of a tensor t at b bits: its average Hessian
trace times its squared quantization error (`methods.shared.hessian`). From HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680)
comes the exact allocation under a budget:

    Ω_t(b) = tr(H_t)/n_t · ‖Q_b(t) − t‖²        min Σ Ω  subject to  Σ cost ≤ budget, one choice a layer.

Traces are taken on the pretrained float network in evaluation mode. They are means over random draws, which end when
every running mean changes by less than a thousandth, or after 100 (PyHessian's rule).

V2 takes traces of activations too, and V3 gives an input the bits of the weights, by sensitivities of weights alone. By
default, inputs have traces and bits of their own, so that HAWQ chooses among the same policies as all methods here.
`activations = "tied"` is V3 but for its ties between layers, which `hawq_v3` has.
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.api import Capabilities, Decision, Options, Policy, SearchJob, SearchResult
from methods.shared import allocation
from methods.shared.decisions import bits_decision
from methods.shared.hessian import Sensitivity, Traces, hutchinson, loss_graph, sensitivity
from methods.shared.options import Candidates, ChoosesBits


class HawqOptions(Options):
    """Options of HAWQ.

    Attributes:
        bits: Candidate bits for weights and activations.
        activations: Bits of inputs by their own trace, or tied to those of the weights (V3). If they are tied, only the
            sensitivities of weights count, and repair cannot change the policy.
        draws: Largest number of Hessian-vector products.
        tolerance: Relative change of the running means at which draws end.
        images: Number of training images on which the Hessian is taken.
    """

    bits: Candidates = (2, 4, 8)
    activations: Literal["traced", "tied"] = "traced"
    draws: Annotated[int, Field(ge=2)] = 100
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    images: Annotated[int, Field(ge=1)] = 128


class Hawq(ChoosesBits):
    """Hessian traces and an integer programme."""

    summary = "HAWQ: average Hessian trace × quantization error, and bits by an exact integer programme"
    family = "sensitivity"
    source = (
        "Dong et al. 2020, HAWQ-V2, arXiv 1911.03852, for sensitivities; Yao et al. 2021, HAWQ-V3, arXiv 2011.10680, "
        "for the allocation"
    )
    deviations = (
        "Candidates are by default 2, 4 and 8 bits; V3 has 4 and 8.",
        "The common quantizer, with one clip value a tensor, replaces the papers' own; V3 quantizes weights by channel "
        "and folds normalisations. Errors are in the units of the float weights.",
        "Inputs have a trace (as in V2) and bits of their own; activations = 'tied' gives them the bits of the "
        "weights, by sensitivities of weights alone, as published in V3.",
        "V3 gives the first convolution of a block and its shortcut the same bits, since they read one tensor; here "
        "they are chosen apart.",
        "Traces are of one batch of 128 images, and of at most 100 draws; the record has their standard errors.",
        "Negative traces count as zero: such a tensor has the lowest bits.",
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
        omega = sensitivity(job.task.network, graph.tensors, traces.means, bits)
        tied = self.options.activations == "tied"
        policy = allocate(job, omega, bits, tied=tied)
        return SearchResult(
            policy=policy,
            state=job.pretrained,
            decisions=() if tied else _decisions(policy, omega, bits),
            record=_record(traces, omega, self.options.images),
        )


def _record(traces: Traces, omega: Sensitivity, images: int) -> dict[str, Any]:
    """State the traces and sensitivities of every tensor, and what they cost."""
    return {
        "effort": f"{traces.draws} Hessian-vector products on {images} images",
        "draws": traces.draws,
        "traces": {f"{layer}.{what}": trace for (layer, what), trace in traces.means.items()},
        "standard_errors": {f"{layer}.{what}": error for (layer, what), error in traces.standard_errors.items()},
        "sensitivity": {f"{layer}.{what}": list(values) for (layer, what), values in omega.items()},
    }


def allocate(job: SearchJob, omega: Sensitivity, bits: Sequence[int], *, tied: bool) -> Policy:
    """Find the bits of least total Ω within the budget, exactly (`methods.shared.allocation`).

    Args:
        job: Network, measure and budget.
        omega: Sensitivity of every tensor at every candidate.
        bits: Candidate bits, rising.
        tied: Whether inputs have the bits of the weights; then Ω is that of weights alone.

    Raises:
        UnreachableBudgetError: Even the lowest candidates cost more than the budget.
    """
    pairs = allocation.tied(bits) if tied else list(product(bits, bits))
    values: dict[allocation.Group, list[float]] = {}
    for layer in job.task.network.middle:
        of_weights = dict(zip(bits, omega[layer.name, "weight_bits"], strict=True))
        of_inputs = dict(zip(bits, omega[layer.name, "activation_bits"], strict=True))
        values[(layer.name,)] = [of_weights[w] + (0.0 if tied else of_inputs[a]) for w, a in pairs]
    return allocation.allocate(job, values, pairs, in_window=False)


def _decisions(policy: Policy, omega: Sensitivity, bits: tuple[int, ...]) -> list[Decision]:
    """List every choice of bits, for a budget that is not filled; margins say by how much a step up lowers Ω."""
    return [
        bits_decision(
            layer, what, bits, [-value for value in values], chosen=bits.index(getattr(policy.layers[layer], what))
        )
        for (layer, what), values in omega.items()
    ]
