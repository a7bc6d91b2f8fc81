"""Second-order sensitivity of tensors to their quantization (HAWQ-V2, Dong et al. 2020, arXiv 1911.03852).

The sensitivity of a tensor t at b bits is its average Hessian trace times its squared quantization error:

    Ω_t(b) = tr(H_t)/n_t · ‖Q_b(t) − t‖²

Traces are Hutchinson's estimates, E[vᵀHv] with v of random signs. One Hessian-vector product serves all tensors, since
products between different tensors have mean zero.

The right operand of a product of activations takes the place of a weight.

The input of a layer is taken at the place of its quantizer: a copy that this layer alone reads. Other readers of the
same tensor, such as the sum at the end of a residual block, see it unquantized, and must not count.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from bench.api import BenchError, LayerShape, NetworkShape, SearchJob, UniformQuantizer, generator
from bench.compression.quantizer import Shifted, standardize
from methods.shared.decisions import What

Tensors = Mapping[tuple[str, What], Tensor]
"""Weights and inputs, by layer and kind."""
Sensitivity = Mapping[tuple[str, What], Sequence[float]]
"""Ω at all candidate bits, by layer and kind."""


@dataclass(frozen=True)
class LossGraph:
    """The training loss of the float network as a function of the tensors that may be quantized.

    Attributes:
        tensors: Weights and inputs of the searched layers, each read by its layer alone.
        gradients: Gradients of the loss with respect to them, differentiable.
    """

    tensors: Tensors
    gradients: Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Estimated traces of the Hessian, by layer and kind.

    Attributes:
        means: Means over all draws.
        standard_errors: Standard errors of the means.
        draws: Number of draws.
    """

    means: Mapping[tuple[str, What], float]
    standard_errors: Mapping[tuple[str, What], float]
    draws: int


def loss_graph(job: SearchJob, images: int) -> LossGraph:
    """Run the pretrained network in evaluation mode on one batch, and differentiate its loss once.

    Args:
        job: The search.
        images: Number of training images in the batch.
    """
    model = job.float_model().eval()
    tensors: dict[tuple[str, What], Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = tuple(given.clone() for given in inputs)
            tensors.update(zip([(name, "activation_bits"), (name, "weight_bits")], own, strict=False))
            return own

        return hook

    for layer in job.task.network.middle:
        module = model.get_submodule(layer.name)
        if layer.kind != "matmul":
            weight: Tensor = module.weight  # type: ignore[assignment]
            # A frozen weight has a Hessian too.
            tensors[layer.name, "weight_bits"] = weight.requires_grad_()
        module.register_forward_pre_hook(keep(layer.name))
    order = generator("hessian", job.seed)
    data = job.task.data
    batch, labels = next(data.training_batches(min(images, len(data.train)), order, purpose="calibration"))
    with _TwiceDifferentiable(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        loss = F.cross_entropy(model(batch), labels)
        gradients = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
    return LossGraph(tensors, gradients)


class _TwiceDifferentiable(TorchFunctionMode):
    """Replacement of operations without a second derivative in PyTorch by equal ones that have it."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of the forward pass."""
        if getattr(function, "__name__", "") in ("hardsigmoid", "hardsigmoid_"):
            return F.relu6(arguments[0] + 3) / 6
        return function(*arguments, **(keywords or {}))


def hutchinson(graph: LossGraph, signs: torch.Generator, draws: int, tolerance: float) -> Traces:
    """Estimate the Hessian's trace for every tensor: the mean of vᵀHv over draws of random signs v.

    Args:
        graph: Gradients of the loss.
        signs: Generator of the signs.
        draws: Largest number of draws, at least 2.
        tolerance: Relative change of all running means below which drawing stops (PyHessian's rule).

    Raises:
        BenchError: PyTorch has no second derivative of an operation of the network.
    """
    tensors = list(graph.tensors.values())
    drawn = torch.zeros(0, len(tensors), dtype=torch.float64, device="cpu")
    while len(drawn) < draws:
        vectors = [_signs(tensor, signs) for tensor in tensors]
        products = _hessian_products(graph.gradients, tensors, vectors)
        row = torch.stack(
            [(vector * product).sum().double().cpu() for vector, product in zip(vectors, products, strict=True)]
        )
        drawn = torch.cat([drawn, row.unsqueeze(0)])
        if len(drawn) > 1 and _change_of_mean(drawn) < tolerance:
            break
    errors = drawn.std(0) / len(drawn) ** 0.5
    return Traces(
        means=dict(zip(graph.tensors, drawn.mean(0).tolist(), strict=True)),
        standard_errors=dict(zip(graph.tensors, errors.tolist(), strict=True)),
        draws=len(drawn),
    )


def _hessian_products(gradients: Sequence[Tensor], tensors: list[Tensor], vectors: list[Tensor]) -> Sequence[Tensor]:
    try:
        return torch.autograd.grad(gradients, tensors, vectors, retain_graph=True)
    except RuntimeError as error:
        missing = re.search(r"derivative for (?:aten::)?(\S+?)(?:_backward)? is not implemented", str(error))
        if missing is None:
            raise
        raise BenchError(
            f"the Hessian needs second derivatives, and PyTorch has none of the network's operation '{missing[1]}'; "
            "replace it in the model, or leave out the methods that use the Hessian"
        ) from error


def _change_of_mean(drawn: Tensor) -> float:
    """Compute the largest relative change of a running mean by the last draw, for draws of shape (draws, tensors)."""
    before = drawn[:-1].mean(0)
    return float(((drawn.mean(0) - before).abs() / (before.abs() + 1e-12)).max())


def _signs(like: Tensor, source: torch.Generator) -> Tensor:
    """Draw a tensor of −1 and 1."""
    drawn = torch.randint(2, like.shape, generator=source, dtype=torch.int8)
    return (2 * drawn - 1).to(like.device, like.dtype)


@torch.no_grad()
def sensitivity(
    network: NetworkShape, tensors: Tensors, traces: Mapping[tuple[str, What], float], bits: Sequence[int]
) -> dict[tuple[str, What], list[float]]:
    """Compute Ω of every tensor at all candidate bits; negative traces count as zero."""
    return {
        (layer, what): [
            max(0.0, traces[layer, what]) / tensor.numel() * squared_error(network[layer], what, tensor, candidate)
            for candidate in bits
        ]
        for (layer, what), tensor in tensors.items()
    }


@torch.no_grad()
def squared_error(layer: LayerShape, what: What, tensor: Tensor, bits: int) -> float:
    """Compute ‖Q(t) − t‖² in the units of the tensor, at the clip value of least error."""
    right = layer.kind == "matmul" and what == "weight_bits"
    if right or what == "activation_bits":
        plain = UniformQuantizer(bits=bits, kind="activation")
        quantizer: nn.Module = Shifted(plain) if right or layer.signed_input else plain
        scaled, scale = tensor, 1.0
    else:
        quantizer = UniformQuantizer(bits=bits, kind="weight")
        scaled = standardize(tensor) if layer.normalized else tensor
        scale = float(tensor.std()) if layer.normalized else 1.0
    quantizer = quantizer.to(tensor.device, tensor.dtype)
    quantizer.calibrate(scaled)  # type: ignore[operator]
    return scale**2 * float((quantizer(scaled) - scaled).square().sum())
