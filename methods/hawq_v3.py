"""HAWQ-V3: Hessian traces of the weights, and one number of bits for each layer from an exact integer programme.

From Yao et al. 2021 (arXiv 2011.10680, Section 3.4) and the notebook `ILP.ipynb` of the authors' code
(github.com/Zhen-Dong/HAWQ). With the average Hessian trace of a layer's weights and their squared quantization error,

    Ω_l(b) = tr(H_l)/n_l · ‖Q_b(W_l) − W_l‖²        min Σ_l Ω_l(b_l)  subject to  Σ_l cost_l(b_l) ≤ budget.

The input of a layer has the bits of its weights, and counts in the cost alone. Layers that read the same tensor have
the same bits, as the first convolution of a residual block and that of its shortcut: an integer accelerator holds the
tensor once. The budget limits bit operations, memory, latency or energy; the paper has the model's size, bit operations
and measured latencies.

`hawq` is the mixture of V2 and V3 in which inputs have sensitivities and bits of their own.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from bench.api import Capabilities, Options, SearchJob, SearchResult
from methods.shared.allocation import Group, allocate, tied
from methods.shared.hessian import LossGraph, Sensitivity, Traces, hutchinson, loss_graph, sensitivity
from methods.shared.options import Candidates, ChoosesBits
from methods.shared.readers import readers


class HawqV3Options(Options):
    """Options of HAWQ-V3.

    Attributes:
        bits: Candidate bits of a layer's weights and input together (4 and 8 in the paper).
        draws: Largest number of Hessian-vector products.
        tolerance: Relative change of the running means at which draws end.
        images: Number of training images on which the Hessian is taken.
    """

    bits: Candidates = (2, 4, 8)
    draws: Annotated[int, Field(ge=2)] = 100
    tolerance: Annotated[float, Field(gt=0)] = 1e-3
    images: Annotated[int, Field(ge=1)] = 128


class HawqV3(ChoosesBits):
    """The integer programme of HAWQ-V3, with its ties."""

    summary = "HAWQ-V3: one number of bits a layer, by Hessian traces of the weights and an exact integer programme"
    family = "sensitivity"
    source = (
        "Yao, Dong, Zheng, Gholami et al. 2021, HAWQ-V3: Dyadic Neural Network Quantization, arXiv 2011.10680; "
        "github.com/Zhen-Dong/HAWQ"
    )
    deviations = (
        "Candidates are by default 2, 4 and 8 bits, as for most methods here; the paper has 4 and 8.",
        "Errors are those of the common quantizer, with which the network is fine-tuned; the paper's quantizer has one "
        "scale a channel, up to the channel's largest weight, and folds normalisations.",
        "The memory that a budget limits has the inputs of all layers too; the paper's has the weights alone.",
        "All layers that read the same tensor have the same bits; the notebook states these ties for ResNets.",
        "Where the best policy costs less than the window of the budget, the best one inside the window is taken; the "
        "paper has no window.",
        "Traces are of one batch of 128 images, and of at most 100 draws; the record has their standard errors.",
        "Negative traces count as zero: such a layer has the lowest bits.",
        "Integer-only inference with dyadic scales is no part of a policy, and left out.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = HawqV3Options
    options: HawqV3Options

    def search(self, job: SearchJob) -> SearchResult:
        """Measure sensitivities of the weights, then solve the integer programme.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        bits, options = tuple(sorted(self.options.bits)), self.options
        graph = of_weights(loss_graph(job, options.images))
        traces = hutchinson(graph, job.noise("signs"), options.draws, options.tolerance)
        omega = sensitivity(job.task.network, graph.tensors, traces.means, bits)
        groups = readers(job)
        policy = allocate(job, values(groups, omega), tied(bits))
        return SearchResult(policy=policy, state=job.pretrained, record=_record(traces, omega, groups, options.images))


def of_weights(graph: LossGraph) -> LossGraph:
    """Leave out the inputs of layers; the right operand of a product of activations stays as its weight."""
    kept = {key: index for index, key in enumerate(graph.tensors) if key[1] == "weight_bits"}
    return LossGraph({key: graph.tensors[key] for key in kept}, [graph.gradients[index] for index in kept.values()])


def values(groups: Sequence[Group], omega: Sensitivity) -> dict[Group, list[float]]:
    """Sum Ω over the layers of each group, for every candidate."""
    each = {group: [omega[name, "weight_bits"] for name in group] for group in groups}
    return {group: [sum(candidate) for candidate in zip(*rows, strict=True)] for group, rows in each.items()}


def _record(traces: Traces, omega: Sensitivity, groups: Sequence[Group], images: int) -> dict[str, Any]:
    """State the traces and sensitivities of all layers, and what they cost."""
    return {
        "effort": f"{traces.draws} Hessian-vector products on {images} images",
        "draws": traces.draws,
        "traces": {layer: trace for (layer, _), trace in traces.means.items()},
        "standard_errors": {layer: error for (layer, _), error in traces.standard_errors.items()},
        "sensitivity": {layer: list(each) for (layer, _), each in omega.items()},
        "same_bits": [list(group) for group in groups if len(group) > 1],
    }
