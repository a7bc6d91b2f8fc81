"""CLADO: rises of the loss for single layers and for pairs of layers, and bits from an integer quadratic programme.

From Deng et al. 2023 (arXiv 2307.05657) and the authors' code, github.com/JamesTuna/CLADO_MPQ. With L(S) for the loss
when the choices S are applied to the network at full precision,

    Ω_i(m) = L({i at m}) − L(∅)        Ω_ij(m, n) = L({i at m, j at n}) − L({i at m}) − L({j at n}) + L(∅)
    min Σ_i Ω_i(c_i) + Σ_{i<j} Ω_ij(c_i, c_j)  subject to  Σ_i cost_i(c_i) ≤ budget.

All losses are of the same images, without training. With G of the diagonal 2 Ω_i and Ω_ij beside it, the objective is
xᵀGx/2 for choices x. Its negative eigenvalues are set to zero before the programme is solved (`projection = "clip"`, as
published), which the authors found to smooth the noise of the measurement. The programme itself does not need it here
(`methods.shared.quadratic_programme`). To add a multiple of the identity instead, which makes G convex too, would
change nothing: it adds the same number to the value of every policy.
"""

from dataclasses import dataclass
from itertools import combinations, product
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from bench.api import FULL_PRECISION_BITS, Capabilities, NetworkShape, Options, Policy, SearchJob, SearchResult, uniform
from methods.shared.allocation import CostTable, Pair, cost_table, policy_of_pair, tied
from methods.shared.integer_programme import Limit
from methods.shared.knapsack import Floats
from methods.shared.options import Candidates, ChoosesBits
from methods.shared.policy_losses import PolicyLosses, sensitivity_batches
from methods.shared.quadratic_programme import QuadraticChoice, improved, least_quadratic_choice, value_of


class CladoOptions(Options):
    """Options of CLADO.

    Attributes:
        bits: Candidate bits of weights (2, 4 and 8 in the paper).
        activations: Bits of inputs: those of the weights of the same layer ("tied"), or one number of bits for all
            layers (8 in the paper), or all pairs of bits of weights and inputs ("paired"), which the authors report to
            fail.
        batches: Number of training batches on which losses are measured (2 to 32 of 64 images in the code).
        projection: Whether negative eigenvalues of G are set to zero ("clip", as published), or G is taken as measured
            ("none").
    """

    bits: Candidates = (2, 4, 8)
    activations: Literal["tied", "paired"] | Annotated[int, Field(ge=1, le=16)] = "tied"
    batches: Annotated[int, Field(ge=1)] = 4
    projection: Literal["clip", "none"] = "clip"

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of bits of weights and inputs among which a layer chooses, the cheapest first."""
        bits = sorted(self.bits)
        if self.activations == "paired":
            return list(product(bits, bits))
        return tied(bits) if self.activations == "tied" else [(b, int(self.activations)) for b in bits]

    @property
    def unchanged_inputs(self) -> int:
        """Bits of inputs in the network without any choice: full precision, unless all have the same bits."""
        return self.activations if isinstance(self.activations, int) else FULL_PRECISION_BITS


class Clado(ChoosesBits):
    """Interactions between layers, measured pair by pair."""

    summary = "CLADO: rise of the loss for single layers and for pairs of them, and an integer quadratic programme"
    family = "sensitivity"
    source = (
        "Deng, Sharify, Wang, Orshansky 2023, Mixed-Precision Quantization with Cross-Layer Dependencies, arXiv "
        "2307.05657 (DAC 2025); github.com/JamesTuna/CLADO_MPQ"
    )
    deviations = (
        "By default the input of a layer has the bits of its weights, so that budgets of few bit operations can be "
        "met; the paper chooses bits of weights, with inputs of 8 bits, which activations = 8 gives.",
        "activations = 'paired' chooses both bits of a layer. The authors report that this failed: at 2 bits the rises "
        "are beyond a second-order expansion, and their solvers did not end.",
        "Losses are of four training batches with labels; the code has sets of 128 to 2,048 images.",
        "Quantizers are the common ones, at the least squared error, calibrated once for each number of bits. "
        "Normalisations use the statistics of each batch in all measurements.",
        "The programme is linearised and solved by branch and bound, where it has at most 3,000 pairs of choices (26 "
        "layers of 3 choices); in larger networks a local search with 20 starts answers. The code hands it to Gurobi "
        "or SCIP. The record states the gap.",
        "Where the best policy costs less than the window of the budget, the best one inside the window is taken.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True)
    Options = CladoOptions
    options: CladoOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """Take the first pair of bits in every layer but the first and the last."""
        return policy_of_pair(network, self.options.pairs[0])

    def costliest(self, network: NetworkShape) -> Policy:
        """Take the last pair of bits in every layer but the first and the last."""
        return policy_of_pair(network, self.options.pairs[-1])

    def search(self, job: SearchJob) -> SearchResult:
        """Measure all pairs of layers, then solve the quadratic programme.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        options, pairs = self.options, self.options.pairs
        table = cost_table(job, [(layer.name,) for layer in job.task.network.middle], pairs)
        measured = measure(job, options)
        rises = clipped(measured) if options.projection == "clip" else measured
        found = choose(rises, table)
        return SearchResult(
            policy=table.policy(found.chosen),
            state=job.pretrained,
            record={**_effort(job, measured, options), **_figures(measured, rises, table, found)},
        )


@dataclass(frozen=True, kw_only=True)
class Rises:
    """Rises of the loss.

    Attributes:
        alone: Ω_i(m), shape (layers, choices).
        together: Ω_ij(m, n), shape (layers, choices, layers, choices), symmetric, and 0 for two choices of one layer.
    """

    alone: Floats
    together: Floats


def measure(job: SearchJob, options: CladoOptions) -> Rises:
    """Measure the rises of the loss for every choice of every layer, and for every two choices of two layers."""
    network, pairs = job.task.network, options.pairs
    names = [layer.name for layer in network.middle]
    unchanged = uniform(network, FULL_PRECISION_BITS)
    for name in names:
        unchanged = unchanged.with_layer(name, activation_bits=options.unchanged_inputs)

    def with_choice(policy: Policy, layer: int, choice: int) -> Policy:
        weight, activation = pairs[choice]
        return policy.with_layer(names[layer], weight_bits=weight, activation_bits=activation)

    singles = list(product(range(len(names)), range(len(pairs))))
    doubles = [(one, other) for one, other in combinations(singles, 2) if one[0] != other[0]]
    policies = [unchanged, *(with_choice(unchanged, *one) for one in singles)]
    policies += [with_choice(with_choice(unchanged, *one), *other) for one, other in doubles]
    bits = sorted({width for pair in pairs for width in pair})
    base, *losses = PolicyLosses(job, unchanged, bits, sensitivity_batches(job, options.batches)).of(policies)
    rises = np.array(losses, dtype=np.float64) - base
    alone = rises[: len(singles)].reshape(len(names), len(pairs))
    together = np.zeros((*alone.shape, *alone.shape))
    for (one, other), rise in zip(doubles, rises[len(singles) :], strict=True):
        together[(*one, *other)] = together[(*other, *one)] = rise - alone[one] - alone[other]
    return Rises(alone=alone, together=together)


def clipped(rises: Rises) -> Rises:
    """Set the negative eigenvalues of G to zero; its diagonal is 2 Ω_i and the rest Ω_ij."""
    eigenvalues, vectors = np.linalg.eigh(matrix(rises))
    projected = (vectors * np.maximum(eigenvalues, 0)) @ vectors.T
    alone = (np.diag(projected) / 2).reshape(rises.alone.shape)
    together = ((projected + projected.T) / 2).reshape(*rises.alone.shape, *rises.alone.shape)
    layers = np.arange(len(rises.alone))
    together[layers, :, layers, :] = 0  # no policy has two choices for one layer
    return Rises(alone=alone, together=together)


def matrix(rises: Rises) -> Floats:
    """Build G, shape (layers · choices, layers · choices)."""
    count = rises.alone.size
    found: Floats = rises.together.reshape(count, count) + np.diag(2 * rises.alone.ravel())
    return found


def choose(rises: Rises, table: CostTable) -> QuadraticChoice:
    """Find the choices of least rise inside the window of the budget, or below it if none is inside.

    Args:
        rises: Rises of the loss.
        table: Costs of the choices.
    """
    for least in (table.least, -np.inf):
        limit = Limit(costs=table.rises, least=least, most=table.most)
        found = least_quadratic_choice(rises.alone, rises.together, limit)
        if found is not None:
            return found
    raise AssertionError("the first pair everywhere is within the budget")


def _effort(job: SearchJob, measured: Rises, options: CladoOptions) -> dict[str, Any]:
    """State what the measurement has cost."""
    layers, choices = measured.alone.shape
    count = 1 + layers * choices + layers * (layers - 1) // 2 * choices**2
    return {
        "effort": f"{count:,} losses on {options.batches} training batches",
        "evaluations": count,
        "images": options.batches * job.schedule.batch_size,
    }


def _figures(measured: Rises, rises: Rises, table: CostTable, found: QuadraticChoice) -> dict[str, Any]:
    """State the rises, and what the programme made of them."""
    eigenvalues = np.linalg.eigvalsh(matrix(measured))
    highest = np.full(len(measured.alone), measured.alone.shape[1] - 1, dtype=np.intp)
    free = improved(rises.alone, rises.together, Limit(costs=table.rises), highest)
    return {
        "pairs": [list(pair) for pair in table.pairs],
        "rises": {name: row for (name,), row in zip(table.groups, measured.alone.tolist(), strict=True)},
        "mean_interaction": float(np.abs(measured.together).sum() / max(1, np.count_nonzero(measured.together))),
        "eigenvalues": [float(eigenvalues[0]), float(eigenvalues[-1])],
        "predicted_rise": value_of(measured.alone, measured.together, found.chosen),
        "objective": found.value,
        "gap": None if np.isinf(found.bound) else found.value - found.bound,
        # The authors' check of a measurement: without a budget, no change from the highest bits should help.
        "highest_bits_stay_without_budget": bool((free == highest).all()),
    }
