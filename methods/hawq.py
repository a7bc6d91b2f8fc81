"""HAWQ: sensitivity from the Hessian, widths from an integer programme.

From HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852) the sensitivity of a tensor, its average Hessian trace times its
squared quantization error; from HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680) the exact allocation under a budget:

    Ω_t(b) = tr(H_t)/n_t · ‖Q_b(t) − t‖²        min Σ Ω  subject to  Σ cost ≤ budget, one choice a layer.

Traces are Hutchinson's, E[vᵀHv] with v of random signs, for all tensors by one Hessian-vector product a draw: products
between different tensors have mean zero. They are taken on the pretrained float network in evaluation mode; draws end
when every running mean changes by less than a thousandth, or after 100 (PyHessian's rule).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    Decision,
    LayerShape,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UniformQuantizer,
    UnreachableBudgetError,
    generator,
    uniform,
)
from bench.compression.quantizer import Shifted, standardize
from methods.shared.decisions import What, bits_decision

Tensors = Mapping[tuple[str, What], Tensor]
Sensitivity = Mapping[tuple[str, What], Sequence[float]]
"""By layer and tensor: Ω at every candidate width."""


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


@dataclass(frozen=True)
class LossGraph:
    """The training loss of the float network, with the tensors that may be quantized.

    Attributes:
        tensors: Weights and inputs of the searched layers.
        gradients: Of the loss with respect to them, differentiable.
    """

    tensors: Tensors
    gradients: Sequence[Tensor]


def loss_graph(job: SearchJob, images: int) -> LossGraph:
    """One pass over training images, and its gradients."""
    model = job.float_model().eval()
    tensors: dict[tuple[str, What], Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tensors[name, "activation_bits"] = inputs[0]

        return hook

    for layer in job.task.network.middle:
        module = model.get_submodule(layer.name)
        tensors[layer.name, "weight_bits"] = module.weight  # type: ignore[assignment]
        module.register_forward_pre_hook(keep(layer.name))
    order = generator("hessian", job.seed)
    batch, labels = next(job.task.data.training_batches(min(images, len(job.task.data.train)), order))
    loss = F.cross_entropy(model(batch), labels)
    return LossGraph(tensors, torch.autograd.grad(loss, list(tensors.values()), create_graph=True))


def hutchinson(graph: LossGraph, signs: torch.Generator, draws: int, tolerance: float) -> dict[tuple[str, What], float]:
    """The Hessian's trace for every tensor: the mean of vᵀHv over draws of random signs."""
    tensors = list(graph.tensors.values())
    sums = torch.zeros(len(tensors), dtype=torch.float64)
    for draw in range(1, draws + 1):
        vectors = [_signs(tensor, signs) for tensor in tensors]
        products = torch.autograd.grad(graph.gradients, tensors, vectors, retain_graph=True)
        before = sums / max(1, draw - 1)
        sums += torch.stack(
            [(vector * found).sum().double().cpu() for vector, found in zip(vectors, products, strict=True)]
        )
        change = ((sums / draw - before).abs() / (before.abs() + 1e-12)).max()
        if draw > 1 and float(change) < tolerance:
            break
    return dict(zip(graph.tensors, (sums / draw).tolist(), strict=True))


def _signs(like: Tensor, source: torch.Generator) -> Tensor:
    """A tensor of −1 and 1."""
    drawn = torch.randint(2, like.shape, generator=source, dtype=torch.int8)
    return (2 * drawn - 1).to(like.device, like.dtype)


@torch.no_grad()
def sensitivity(
    network: NetworkShape, tensors: Tensors, traces: Mapping[tuple[str, What], float], bits: Sequence[int]
) -> dict[tuple[str, What], list[float]]:
    """Ω of every tensor at every candidate width."""
    return {
        (layer, what): [
            max(0.0, traces[layer, what]) / tensor.numel() * squared_error(network[layer], what, tensor, width)
            for width in bits
        ]
        for (layer, what), tensor in tensors.items()
    }


@torch.no_grad()
def squared_error(layer: LayerShape, what: What, tensor: Tensor, bits: int) -> float:
    """‖Q(t) − t‖² in the units of the tensor, for the clip value of least error."""
    if what == "activation_bits":
        plain = UniformQuantizer(bits=bits, kind="activation")
        quantizer: nn.Module = Shifted(plain) if layer.signed_input else plain
        scaled, scale = tensor, 1.0
    else:
        quantizer = UniformQuantizer(bits=bits, kind="weight")
        scaled = standardize(tensor) if layer.normalized else tensor
        scale = float(tensor.std()) if layer.normalized else 1.0
    quantizer = quantizer.to(tensor.device, tensor.dtype)
    quantizer.calibrate(scaled)  # type: ignore[operator]
    return scale**2 * float((quantizer(scaled) - scaled).square().sum())


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
